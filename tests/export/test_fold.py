"""Files made small: batch norms folded, programs lean, small int8 layers in float; what is computed stays the same."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet

from paddlelite_callbacks import ptq_int8
from paddlelite_callbacks.benchmark.engines import PaddleInference
from paddlelite_callbacks.export.fold_bn import Shift, fold_batch_norms_, folded
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.convert import convert_for_export_, store_small_in_float_

SPEC = [InputSpec([None, 3, 8, 8], name="x")]
X = Images(16).images


class Net(nn.Layer):
    """A norm behind a convolution with bias, one behind a sum, one that runs twice, one behind a tapped convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8)
        self.conv2, self.bn2 = nn.Conv2D(8, 8, 3, padding=1, groups=8, bias_attr=False), nn.BatchNorm2D(8)
        self.sum_norm = nn.BatchNorm2D(8)
        self.conv3, self.bn3 = nn.Conv2D(8, 8, 1), nn.BatchNorm2D(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = nn.functional.relu(self.bn1(self.conv1(x)))
        x = self.sum_norm(x + self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(self.bn3(self.conv3(x))))
        return self.fc(x.mean([2, 3]))


class Tapped(TinyNet):
    def forward(self, x):
        x = self.conv1(x)
        return self.fc((self.relu(self.bn1(x)) + x).mean([2, 3]))


def settled(network, seed=0):
    random = np.random.RandomState(seed)
    for layer in network.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            size = layer.weight.shape
            layer.weight.set_value(random.uniform(-1.5, 1.5, size).astype("float32"))
            layer.bias.set_value(random.uniform(-0.5, 0.5, size).astype("float32"))
            layer._mean.set_value(random.uniform(-0.5, 0.5, size).astype("float32"))
            layer._variance.set_value(random.uniform(0.2, 2, size).astype("float32"))
    network.eval()
    return network


def near(expected):
    return lambda outputs: np.allclose(outputs[0], expected, atol=1e-5)


def test_norms_directly_behind_a_convolution_are_folded_and_no_other():
    network = settled(Net())
    expected = network(paddle.to_tensor(X)).numpy()
    state = {key: value.numpy().copy() for key, value in network.state_dict().items()}
    result = folded(lambda: copy_network(network), [paddle.to_tensor(X[:2])], near(expected[:2]))
    np.testing.assert_allclose(result(paddle.to_tensor(X)).numpy(), expected, atol=1e-6)
    names = ("bn1", "bn2", "bn3", "sum_norm")
    kinds = {name: type(layer) for name, layer in result.named_sublayers() if name in names}
    assert kinds == {"bn1": Shift, "bn2": Shift, "sum_norm": nn.BatchNorm2D, "bn3": nn.BatchNorm2D}
    assert all(np.array_equal(value.numpy(), state[key]) for key, value in network.state_dict().items())
    random = np.random.RandomState(0)
    weight = random.uniform(-1.5, 1.5, 8) / np.sqrt(network.bn1._variance.numpy() + 1e-5)
    np.testing.assert_allclose(
        result.conv1.weight.numpy(), state["conv1.weight"] * weight.reshape([-1, 1, 1, 1]), rtol=1e-5
    )


def test_a_convolution_whose_output_is_used_twice_keeps_its_norm():
    network = settled(Tapped())
    expected = network(paddle.to_tensor(X)).numpy()
    result = folded(lambda: copy_network(network), [paddle.to_tensor(X)], near(expected))
    np.testing.assert_array_equal(result(paddle.to_tensor(X)).numpy(), expected)
    assert type(result.bn1) is nn.BatchNorm2D


def test_int8_layers_keep_their_integers_up_to_signs():
    network = ptq_int8(settled(Net()), [paddle.to_tensor(X)])
    plain = copy_network(network)
    convert_for_export_(plain)
    x = paddle.to_tensor(X)
    joined = copy_network(plain)
    assert fold_batch_norms_(joined, [x]) == 2
    before, after = plain.conv1.weight_int8.numpy().astype(int), joined.conv1.weight_int8.numpy().astype(int)
    signs = np.sign(plain.bn1.weight.numpy()).reshape([-1, 1, 1, 1])
    np.testing.assert_array_equal(after, before * signs)
    off = np.abs(joined(x).numpy() - plain(x).numpy()).max(axis=1)
    assert np.median(off) < 1e-5  # a row may meet a value on a rounding threshold


def test_small_int8_layers_are_stored_in_float_with_the_same_values():
    class Mixed(nn.Layer):
        def __init__(self):
            super().__init__()
            self.small, self.large = nn.Conv2D(3, 16, 1), nn.Conv2D(16, 64, 3)

        def forward(self, x):
            return self.large(self.small(x))

    network = ptq_int8(Mixed(), [paddle.to_tensor(X)])
    convert_for_export_(network)
    expected, weight = network(paddle.to_tensor(X)).numpy(), network.small.weight().numpy()
    assert store_small_in_float_(network) == 1
    np.testing.assert_array_equal(network.small.weight().numpy(), weight)
    np.testing.assert_array_equal(network(paddle.to_tensor(X)).numpy(), expected)
    kinds = {key: str(value.dtype) for key, value in network.state_dict().items() if "weight" in key}
    assert kinds["small.weight_on_grid"] == "paddle.float32"
    assert kinds["large.weight_int8"] == "paddle.int8"


@pytest.mark.parametrize("quantised", [False, True])
def test_a_lean_program_is_smaller_and_every_reader_takes_it(quantised, tmp_path, monkeypatch):
    network = settled(Net())
    if quantised:
        network = ptq_int8(network, [paddle.to_tensor(X)])
        convert_for_export_(network)
    expected = network(paddle.to_tensor(X)).numpy()
    lean = export_paddle(network, tmp_path / "lean", input_spec=SPEC)
    with monkeypatch.context() as patch:
        patch.setattr("paddlelite_callbacks.export.paddle_program.make_program_lean", lambda _: None)
        whole = export_paddle(network, tmp_path / "whole", input_spec=SPEC)
    assert lean.path.stat().st_size < 0.75 * whole.path.stat().st_size
    assert lean.files[1].stat().st_size == whole.files[1].stat().st_size
    for onednn in (False, True):
        a, b = (PaddleInference(onednn=onednn).load(file, threads=1) for file in (lean, whole))
        for rows in (1, 16):
            np.testing.assert_array_equal(a([X[:rows]])[0], b([X[:rows]])[0])
    loaded = paddle.jit.load(str(tmp_path / "lean" / "model"))
    loaded.eval()
    np.testing.assert_allclose(loaded(paddle.to_tensor(X)).numpy(), expected, atol=1e-6)
    if not quantised:
        pytest.importorskip("paddle2onnx")
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(export_onnx(lean, tmp_path / "m.onnx").path))
        np.testing.assert_allclose(session.run(None, {"x": X})[0], expected, atol=1e-5)


def test_programs_with_branches_and_other_files_are_left_whole(tmp_path):
    class Branch(nn.Layer):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = self.fc(x)
            if y.sum() > 0:
                y = y + 1
            return y.clip(-1, 1)

    network = Branch()
    program = export_paddle(network, tmp_path, input_spec=[InputSpec([None, 4], name="x")])
    predict = PaddleInference(onednn=False).load(program, threads=1)
    for x in (np.ones([2, 4], "float32"), -np.ones([2, 4], "float32")):
        np.testing.assert_allclose(predict([x])[0], network(paddle.to_tensor(x)).numpy(), atol=1e-6)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"a": [1, 2]}, indent=2))
    from paddlelite_callbacks.export.slim_program import make_program_lean

    before = other.read_bytes()
    make_program_lean(other)
    assert other.read_bytes() == before


@pytest.mark.slow
def test_lite_hrnet_30_is_small(tmp_path):
    from paddlelite_callbacks import models
    from paddlelite_callbacks.export.variants import export_forms

    network = models.keypoint_net(models.lite_hrnet_30())
    network.eval()
    spec = [InputSpec([None, 3, 256, 192], name="x")]
    x = np.zeros([1, 3, 64, 64], "float32")
    forms = export_forms(network, tmp_path, input_spec=spec, onnx=False, sample=[x])
    assert forms.artefacts[0].size_mb <= 8.0
