"""Quantised outputs stand where a run of the network says, one quantizer a use, and sums stay in float."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import Images, fit, hapi_model

from paddlelite_callbacks import PACTQuantCallback
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.quant.checkpoint import load_pact_
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.output_quantizers import OutputPlace, output_places
from paddlelite_callbacks.quant.prepare import activation_quantizers, prepare_pact_
from paddlelite_callbacks.quant.ptq import ptq_int8

X = np.random.RandomState(0).randn(8, 3, 8, 8).astype("float32")


def conv(channels, out=4, **options):
    return nn.Conv2D(channels, out, 3, padding=1, **options)


class Block(nn.Layer):
    """A residual block of ``paddle.vision``: one ReLU, behind the first norm and behind the sum."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3)
        self.conv1, self.bn1 = conv(4, bias_attr=False), nn.BatchNorm2D(4)
        self.conv2, self.bn2 = conv(4, bias_attr=False), nn.BatchNorm2D(4)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.relu(x + y).mean([2, 3]))

    places = (OutputPlace("stem"), OutputPlace("bn1", rectified=True), OutputPlace("bn2"))


class TorchOrder(nn.Layer):
    """Defined in one order, run in another, as networks ported from PyTorch are."""

    def __init__(self):
        super().__init__()
        self.act = nn.Swish()
        self.conv0, self.conv1, self.conv2 = conv(3), conv(4), conv(4)
        self.bn2, self.bn0, self.bn1 = nn.BatchNorm2D(4), nn.BatchNorm2D(4), nn.BatchNorm2D(4)
        self.idle = nn.BatchNorm2D(4)

    def forward(self, x):
        x = self.act(self.bn0(self.conv0(x)))
        return self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))).mean([2, 3])

    places = (OutputPlace("bn0"), OutputPlace("bn1"), OutputPlace("bn2"))


class Functional(nn.Layer):
    """ReLUs that are no layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.conv3 = conv(3), nn.BatchNorm2D(4), conv(4), conv(4)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.conv3(F.relu6(self.conv2(x)))

    places = (OutputPlace("bn1", rectified=True), OutputPlace("conv2", rectified=True))


class Plain(nn.Layer):
    """A ReLU of its own keeps the quantizer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv(3), nn.BatchNorm2D(4), nn.ReLU()
        self.conv2, self.relu2, self.conv3 = conv(4), nn.ReLU6(), conv(4)

    def forward(self, x):
        return self.conv3(self.relu2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))

    places = (OutputPlace("relu1"), OutputPlace("relu2"))


class Both(nn.Layer):
    """What a ReLU takes is used without it, too."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu, self.fc = conv(3), nn.BatchNorm2D(4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return self.fc((self.relu(y) + 0.1 * y).mean([2, 3]))

    places = (OutputPlace("bn1"),)


class Detached(Both):
    """The second use leaves no gradient, so that only running it rectified shows that negative values matter."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return self.fc((F.relu(y) + 0.1 * y.detach()).mean([2, 3]))


class Levels(nn.Layer):
    """One convolution with a norm of its own on each level, and one head with a ReLU on all levels."""

    def __init__(self):
        super().__init__()
        self.tower = conv(3)
        self.norms = nn.LayerList([nn.BatchNorm2D(4), nn.BatchNorm2D(4)])
        self.relu, self.head, self.last = nn.ReLU(), conv(4), conv(4)

    def forward(self, x):
        maps = [self.norms[0](self.tower(x)), self.norms[1](self.tower(2 * x))]
        return [self.last(self.relu(self.head(y))).flatten(2).transpose([0, 2, 1]) for y in maps]

    places = (OutputPlace("norms.0"), OutputPlace("norms.1"), OutputPlace("relu"))


class Differing(nn.Layer):
    """One convolution: behind its first call a ReLU, behind the second a sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.last = conv(3, 3), nn.ReLU(), conv(3)

    def forward(self, x):
        return self.last(self.conv(self.relu(self.conv(x))) + x)

    places = ()


class Heads(nn.Layer):
    """What the network gives stays in float: heads, of which one is transposed and flattened."""

    def __init__(self):
        super().__init__()
        self.trunk, self.act = conv(3), nn.Hardswish()
        self.heads = nn.LayerList([conv(4), conv(4, 2), conv(4, 6)])

    def forward(self, x):
        x = self.act(self.trunk(x))
        a, b, c = (head(x) for head in self.heads)
        return {"a": a, "b": [b.transpose([0, 2, 3, 1]).flatten(1)], "c": paddle.concat([c, c], axis=1)}

    places = (OutputPlace("trunk"),)


class Given(nn.Layer):
    """The network gives what a ReLU takes, too."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu, self.conv2 = conv(3), nn.BatchNorm2D(4), nn.ReLU(), conv(4)

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return y, self.conv2(self.relu(y))

    places = (OutputPlace("bn1"),)


NETWORKS = [Block, TorchOrder, Functional, Plain, Both, Detached, Levels, Differing, Heads, Given]
RUNNING = [kind for kind in NETWORKS if kind.places and kind is not Heads]  # hapi takes no dictionary


def outputs_of(network, x=X):
    network.eval()
    with paddle.no_grad():
        return [item.numpy() for item in paddle.utils.flatten(network(paddle.to_tensor(x)))]


def random_norms(network):
    """Statistics and scales as after training, so that norms give negative values."""
    random = np.random.RandomState(1)
    for layer in network.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._mean.set_value(random.randn(*layer._mean.shape).astype("float32") * 0.3)
            layer.bias.set_value(random.randn(*layer.bias.shape).astype("float32"))
    return network


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_places(kind, seed):
    paddle.seed(seed)
    network = random_norms(kind())
    names = [name for name, layer in network.named_sublayers() if isinstance(layer, nn.Conv2D)]
    before = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    assert sorted(output_places(network, names, [paddle.to_tensor(X)]), key=str) == sorted(kind.places, key=str)
    assert not any(layer._forward_pre_hooks or layer._forward_post_hooks for layer in network.sublayers(True))
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


@pytest.mark.parametrize("kind", NETWORKS)
def test_without_inputs_the_shape_is_guessed(kind):
    network = random_norms(kind())
    prepare_pact_(network, PACTConfig(quantize_outputs=True))
    found = {
        name.removesuffix(".output_quanter") for name in activation_quantizers(network) if "output_quanter" in name
    }
    assert found == {place.name for place in kind.places}


def test_where_nothing_can_be_run_norms_in_order_of_definition_are_places(caplog):
    class Two(Plain):
        def forward(self, x, mask):
            return super().forward(x * mask)

    network = Two()
    prepare_pact_(network, PACTConfig(quantize_outputs=True))
    assert "it could not be run" in caplog.text
    found = [name for name in activation_quantizers(network) if "output_quanter" in name]
    assert found == ["bn1.output_quanter", "conv2.output_quanter"]
    mask = paddle.ones([2, 1, 64, 64])
    network = Two()
    prepare_pact_(network, PACTConfig(quantize_outputs=True), inputs=[paddle.rand([2, 3, 64, 64]), mask])
    found = [name for name in activation_quantizers(network) if "output_quanter" in name]
    assert found == ["relu1.output_quanter", "relu2.output_quanter"]


class Inverted(nn.Layer):
    """An inverted bottleneck in the order of PyTorch's EfficientNet ports, for one image size only."""

    def __init__(self, size=28):
        super().__init__()
        self._expand_conv = nn.Conv2D(3, 12, 1, bias_attr=False)
        self._depthwise_conv = nn.Conv2D(12, 12, 3, padding=1, groups=12, bias_attr=False)
        self._project_conv = nn.Conv2D(12, 4, 1, bias_attr=False)
        self._bn0, self._bn1, self._bn2 = nn.BatchNorm2D(12), nn.BatchNorm2D(12), nn.BatchNorm2D(4)
        self.act, self.fc = nn.Hardswish(), nn.Linear(4 * size * size, 5)

    def forward(self, x):
        x = self.act(self._bn0(self._expand_conv(x)))
        x = self.act(self._bn1(self._depthwise_conv(x)))
        return self.fc(self._bn2(self._project_conv(x)).flatten(1))

    places = (OutputPlace("_bn0"), OutputPlace("_bn1"), OutputPlace("_bn2"))


def convolutions_of(network):
    return [name for name, layer in network.named_sublayers() if isinstance(layer, nn.Conv2D)]


@pytest.mark.parametrize("size", [28, 32, 224])
def test_a_network_of_one_image_size_is_run_too(size, caplog):
    network = Inverted(size)
    assert output_places(network, convolutions_of(network)) == list(Inverted.places)
    wrong = [paddle.zeros([1, 3, 7, 7])]
    assert output_places(network, convolutions_of(network), wrong) == list(Inverted.places)
    assert not caplog.records


def test_the_network_inside_data_parallel_is_run():
    network = paddle.DataParallel(Inverted())
    found = output_places(network, convolutions_of(network), [paddle.rand([2, 3, 28, 28])])
    assert [place.name for place in found] == ["_layers._bn0", "_layers._bn1", "_layers._bn2"]


def test_where_the_order_is_not_known_a_warning_says_so(caplog):
    network = Inverted(29)
    found = output_places(network, convolutions_of(network))
    assert {place.name for place in found} == {"_expand_conv", "_depthwise_conv"}  # no norm of other channels
    assert "it could not be run" in caplog.text
    assert "inputs=" in caplog.text


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_quantised_network_is_near_the_float_one(kind):
    """A quantizer that is calibrated on one use and clips the other is off by a multiple of this."""
    network = random_norms(kind())
    expected = outputs_of(network)
    for quantize_outputs in (False, True):
        got = ptq_int8(network, [paddle.to_tensor(X)], alpha_percentile=100, quantize_outputs=quantize_outputs)
        for a, b in zip(expected, outputs_of(got), strict=True):
            assert np.abs(a - b).max() < 0.06 * np.abs(a).max()


def test_a_rectified_output_is_the_quantised_relu():
    network = random_norms(Block())
    prepare_pact_(network, PACTConfig(quantize_outputs=True, alpha_percentile=99))
    made = []
    network.conv1.register_forward_post_hook(lambda _, __, y: made.append(y))
    network.conv2.register_forward_pre_hook(lambda _, given: made.append(given[0]))
    network(paddle.to_tensor(X))
    quantizer = network.bn1.output_quanter
    assert quantizer.levels() == (0, 255)
    mean, variance = made[0].numpy().mean((0, 2, 3)), made[0].numpy().var((0, 2, 3))
    gamma, beta = network.bn1.weight.numpy(), network.bn1.bias.numpy()
    shaped = [item.reshape(1, -1, 1, 1) for item in (mean, variance, gamma, beta)]
    y = (made[0].numpy() - shaped[0]) / np.sqrt(shaped[1] + 1e-5) * shaped[2] + shaped[3]
    alpha = np.percentile(np.maximum(y, 0), 99)
    assert float(quantizer.alpha) == pytest.approx(alpha, rel=1e-4)
    step = alpha / 255
    expected = np.round(np.clip(y, 0, alpha) / step) * step
    assert np.mean(np.abs(expected - made[1].numpy()) > 1e-4) < 1e-3  # one step where a value lies on a threshold


@pytest.mark.parametrize("kind", RUNNING)
def test_in_fit_the_shape_is_that_of_the_data(kind):
    network = random_norms(kind())
    loss = lambda *given: sum(item.mean() for item in given[:-1])  # noqa: E731
    fit(hapi_model(network, loss=loss, metrics=False), [PACTQuantCallback(quantize_outputs=True)], evaluate=False)
    found = {name: quantizer for name, quantizer in activation_quantizers(network).items() if "output_quanter" in name}
    assert set(found) == {f"{place.name}.output_quanter" for place in kind.places}
    assert all(quantizer.calibrated for quantizer in found.values())


@pytest.mark.parametrize("kind", [Block, Functional, Plain])
def test_a_checkpoint_tells_its_places(kind):
    network = random_norms(kind())
    trained = ptq_int8(network, [paddle.to_tensor(X)], quantize_outputs=True)
    again = kind()
    load_pact_(again, trained.state_dict())
    for a, b in zip(outputs_of(trained), outputs_of(again), strict=True):
        np.testing.assert_array_equal(a, b)


@needs("onnxruntime", "openvino")
@pytest.mark.parametrize("kind", [Block, Functional, Plain, Levels])
def test_the_int8_file_computes_the_same(kind, tmp_path):
    trained = ptq_int8(random_norms(kind()), [paddle.to_tensor(X)], quantize_outputs=True)
    forms = export_forms(trained, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")], sample=[X])
    assert not forms.errors
    file = next(item for item in forms.artefacts if item.precision == "int8" and item.kind == "onnx")
    expected = outputs_of(trained)
    for engine in ("onnxruntime", "openvino"):
        got = ENGINES[engine].load(file, threads=1)([X])
        for a, b in zip(expected, got, strict=True):
            assert np.abs(a - b).max() < 0.02 * np.abs(a).max()
            assert np.median(np.abs(a - b)) < 5e-3 * np.abs(a).max()  # ONNX Runtime joins two roundings in a row


@needs("onnx")
def test_no_relu_is_left_behind_an_unsigned_quantizer(tmp_path):
    import onnx

    trained = ptq_int8(random_norms(Block()), [paddle.to_tensor(X)], quantize_outputs=True)
    forms = export_forms(trained, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")], sample=[X])
    file = next(item for item in forms.artefacts if item.precision == "int8" and item.kind == "onnx")
    nodes = onnx.load(str(file.path)).graph.node
    made_by = {name: node.op_type for node in nodes for name in node.output}
    relus = [made_by[node.input[0]] for node in nodes if node.op_type == "Relu"]
    assert relus == ["Add"]  # the residual sum


def test_images_are_told_apart_as_well_with_quantised_outputs():
    """The published case: one ReLU of ``paddle.vision`` serves behind a norm and behind a sum."""
    network = paddle.vision.models.ResNet(paddle.vision.models.resnet.BasicBlock, 18, num_classes=4)
    fit(hapi_model(network, optimizer="Adam", learning_rate=1e-3), data=Images(32, 32), epochs=3, evaluate=False)
    x = paddle.to_tensor(Images(32, 32).images)
    network.eval()
    expected, off = network(x).numpy(), {}
    for quantize_outputs in (False, True):
        got = ptq_int8(network, [x], quantize_outputs=quantize_outputs)(x).numpy()
        off[quantize_outputs] = np.abs(got - expected).max() / np.abs(expected).max()
    assert off[True] < 2 * off[False] + 0.02
