"""Bias correction against loops over the layers by hand, and through files and checkpoints."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import weights_of

from paddlelite_callbacks import load_pact_, ptq_int8
from paddlelite_callbacks.benchmark.engines import OnnxRuntime, OpenVino, PaddleInference
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.bias_correction import correct_biases_
from paddlelite_callbacks.quant.prepare import quantized_layers

OPTIONS = {"weight_bits": 4, "activation_bits": 4, "bias_correction": False}


class Unbiased(nn.Layer):
    """Layers of all kinds, with norms, and most of them without a bias."""

    def __init__(self, seed=0):
        super().__init__()
        paddle.seed(seed)
        self.conv = nn.Conv2D(3, 6, 3, padding=1, bias_attr=False)
        self.norm = nn.BatchNorm2D(6)
        self.depthwise = nn.Conv2D(6, 6, 3, padding=1, groups=6)
        self.up = nn.Conv2DTranspose(6, 5, 2, stride=2, bias_attr=False)
        self.fc = nn.Linear(5, 4, bias_attr=False)
        self.norm.weight.set_value(np.float32([1.5, -1.0, 0.5, 2.0, -0.3, 1.0]))
        self.norm._mean.set_value(np.float32([0.1, -0.2, 0.0, 0.3, -0.1, 0.2]))
        self.eval()

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.conv(x)))
        x = nn.functional.relu6(self.depthwise(x))
        return self.fc(nn.functional.relu(self.up(x)).mean([2, 3]))


def batches(count=1, size=16):
    return [np.float32(np.random.RandomState(seed).randn(size, 3, 8, 8) + 0.3) for seed in range(count)]


def tensors(parts):
    return [paddle.to_tensor(part) for part in parts]


def outputs(network, name, parts):
    """The outputs of one layer over all batches, channels last: ``[values, channels]``."""
    found = []
    layer = dict(network.named_sublayers())[name]
    hook = layer.register_forward_post_hook(lambda _, __, y: found.append(np.moveaxis(y.numpy(), 1, -1)))
    with paddle.no_grad():
        for part in parts:
            network(paddle.to_tensor(part))
    hook.remove()
    return np.concatenate([item.reshape(-1, item.shape[-1]) for item in found]).astype("float64")


def by_hand(network, quantised, parts):
    """Nagel et al. 2019, appendix D: layer after layer, E[y] - E[y_q] with all before it corrected."""
    found = {}
    for name, layer in quantized_layers(quantised).items():
        shift = (outputs(network, name, parts) - outputs(quantised, name, parts)).mean(0)
        if layer.bias is None:
            layer.bias = layer.create_parameter([len(shift)], is_bias=True)
        layer.bias.set_value(np.float32(layer.bias.numpy() + shift))
        found[name] = shift
    return found


def test_one_batch_is_corrected_layer_by_layer_as_in_the_paper():
    network, parts = Unbiased(), batches()
    quantised = ptq_int8(network, tensors(parts), **OPTIONS)
    twin = ptq_int8(network, tensors(parts), **OPTIONS)
    expected = by_hand(network, twin, parts)
    got = correct_biases_(quantised, tensors(parts))
    assert list(got) == ["conv", "depthwise", "up", "fc"]
    assert any(np.abs(shift).max() > 0.01 for shift in expected.values())
    for name, shift in expected.items():
        np.testing.assert_allclose(got[name], shift, atol=2e-5)
        np.testing.assert_allclose(
            getattr(quantised, name).bias.numpy(), getattr(twin, name).bias.numpy(), atol=2e-5, err_msg=name
        )


def test_the_mean_over_several_batches_of_other_sizes():
    network, parts = Unbiased(), [*batches(3), np.float32(2 * batches(1, 5)[0])]
    quantised = ptq_int8(network, tensors(parts), **OPTIONS)
    before = {name: np.abs(_mean_error(network, quantised, name, parts)).max() for name in quantized_layers(quantised)}
    correct_biases_(quantised, tensors(parts))
    for name, error in before.items():
        assert np.abs(_mean_error(network, quantised, name, parts)).max() < 0.3 * error + 1e-4, name


def _mean_error(network, quantised, name, parts):
    return (outputs(network, name, parts) - outputs(quantised, name, parts)).mean(0)


def test_the_default_corrects_and_leaves_the_network_and_the_weights_alone():
    network, parts = Unbiased(), batches(2)
    before = weights_of(network)
    plain = ptq_int8(network, iter(tensors(parts)), bias_correction=False)
    made = ptq_int8(network, iter(tensors(parts)))
    after = weights_of(network)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert network.conv.bias is None
    assert set(made.state_dict()) - set(plain.state_dict()) == {"conv.bias", "up.bias", "fc.bias"}
    for key, value in weights_of(plain).items():
        assert key == "depthwise.bias" or np.array_equal(value, weights_of(made)[key])
    x = paddle.to_tensor(np.concatenate(parts))
    errors = [float((item(x) - network(x)).square().mean()) for item in (plain, made)]
    assert errors[1] < errors[0]
    assert not any(layer._forward_post_hooks for layer in quantized_layers(made).values())


@pytest.mark.parametrize("quantize_outputs", [False, True])
def test_a_layer_with_a_quantised_output_is_corrected_before_its_rounding(quantize_outputs):
    paddle.seed(1)
    network = nn.Sequential(nn.Conv2D(3, 4, 1, bias_attr=False), nn.Hardswish(), nn.Conv2D(4, 4, 1))
    network.eval()
    x = paddle.to_tensor(batches()[0])
    plain = ptq_int8(network, [x], weight_bits=4, quantize_outputs=quantize_outputs, bias_correction=False)
    made = ptq_int8(network, [x], weight_bits=4, quantize_outputs=quantize_outputs)
    weight = plain[0].weight_quanter(plain[0].weight)
    quantised = nn.functional.conv2d(plain[0].activation_quanter(x), weight)
    expected = (network[0](x) - quantised).mean([0, 2, 3])
    np.testing.assert_allclose(made[0].bias.numpy(), expected.numpy(), atol=1e-6)


class Twice(nn.Layer):
    """One layer called twice, two layers with one bias, and one that never runs."""

    def __init__(self):
        super().__init__()
        paddle.seed(2)
        self.head = nn.Linear(6, 6, bias_attr=False)
        self.left, self.right, self.never = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)
        self.right.bias = self.left.bias
        self.eval()

    def forward(self, x):
        y = self.head(x) + self.head(nn.functional.relu(3 * x))
        return self.left(y) + self.right(y)


def outputs_of(network, name, x):
    """The mean of each channel of a layer's output, channels last."""
    seen = []
    hook = getattr(network, name).register_forward_post_hook(lambda _, __, y: seen.append(y.numpy()))
    network(x)
    hook.remove()
    return seen[0].mean((0, 1))


def test_layers_that_run_twice_or_share_a_bias():
    network = Twice()
    x = paddle.to_tensor(np.float32(np.random.RandomState(0).randn(40, 5, 6)))  # [N, T, C]
    made = ptq_int8(network, [x], **OPTIONS)
    plain = copy_network(made)
    found = correct_biases_(made, [x])
    assert list(found) == ["head", "left", "right"]
    for name in ("left", "right"):
        before, after = (
            np.abs(outputs_of(network, name, x) - outputs_of(item, name, x)).max() for item in (plain, made)
        )
        assert after < 0.1 * before
    assert not np.allclose(made.left.bias.numpy(), made.right.bias.numpy())
    np.testing.assert_array_equal(network.left.bias.numpy(), network.right.bias.numpy())


def test_channels_last():
    paddle.seed(3)
    network = nn.Sequential(nn.Conv2D(3, 4, 3, data_format="NHWC", bias_attr=False))
    network.eval()
    x = paddle.to_tensor(np.moveaxis(batches()[0], 1, -1).copy())
    made = ptq_int8(network, [x], **OPTIONS)
    expected = (network(x) - made(x)).mean([0, 1, 2]).numpy()
    np.testing.assert_allclose(correct_biases_(made, [x])["0"], expected, atol=1e-6)


def test_a_checkpoint_brings_the_new_biases():
    network, parts = Unbiased(), batches()
    made = ptq_int8(network, tensors(parts))
    other = Unbiased(seed=5)
    load_pact_(other, made.state_dict())
    other.eval()
    x = paddle.to_tensor(parts[0])
    np.testing.assert_array_equal(other(x).numpy(), made(x).numpy())


@needs("paddle2onnx")
@pytest.mark.parametrize("quantize_outputs", [False, True])
def test_all_files_hold_the_corrected_biases(quantize_outputs, tmp_path):
    parts = batches(2, 32)
    made = ptq_int8(Unbiased(), tensors(parts), quantize_outputs=quantize_outputs)
    forms = export_forms(made, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    assert not forms.errors
    x = parts[0]
    files = {(item.kind, item.precision): item for item in forms.artefacts}
    expected = made(paddle.to_tensor(x)).numpy()
    program = PaddleInference(onednn=False).load(files["paddle", "int8"], threads=1)([x])[0]
    np.testing.assert_allclose(program, expected, atol=1e-5)
    scale = np.abs(expected).max()
    for engine in (OnnxRuntime(), OpenVino()):
        got = engine.load(files["onnx", "int8"], threads=1)([x])[0]
        off = np.abs(got - expected).max(axis=1) / scale
        assert off.max() < 0.03, engine.name
        assert np.mean(off < 1e-5) >= (0.4 if quantize_outputs else 0.7), (engine.name, off)
        plain = engine.load(files["onnx", "fp32"], threads=1)([x])[0]
        assert np.abs(plain - expected).max() / scale < 0.2
