"""Layers with ``weight_norm`` or ``spectral_norm``: PACT quantises the weight that they compute with."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from installed import needs
from paddle import nn
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import BenchOptions, ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.prepare import prepare_pact_

NORMS = {"weight": nn.utils.weight_norm, "spectral": nn.utils.spectral_norm}


def normed(norm):
    network = TinyNet()
    for layer in (network.conv1, network.conv2, network.fc):
        NORMS[norm](layer)
    return network


def effective(layer, norm):
    """The weight by its formula, in NumPy."""
    if norm == "weight":
        v, g = layer.weight_v.numpy(), layer.weight_g.numpy()
        shape = [-1, *[1] * (v.ndim - 1)]
        return v / np.sqrt((v**2).sum(tuple(range(1, v.ndim)), keepdims=True)) * g.reshape(shape)
    axis = 1 if layer.weight_orig.ndim == 2 else 0
    matrix = np.moveaxis(layer.weight_orig.numpy(), axis, 0)
    matrix = matrix.reshape(len(matrix), -1)
    return layer.weight_orig.numpy() / (layer.weight_u.numpy() @ matrix @ layer.weight_v.numpy())


def on_grid(weight, axis, high):
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    step = np.abs(weight).max(others, keepdims=True) / high
    return np.round(weight / step) * step


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["pact", "lsq"])
def test_the_effective_weight_is_quantised_and_what_it_is_made_of_is_trained(norm, method):
    network = normed(norm)
    before = {key: value.numpy().copy() for key, value in network.state_dict().items()}
    fit(hapi_model(network, optimizer="SGD", learning_rate=0.1), [PACTQuantCallback(method=method)])
    after = {key: value.numpy() for key, value in network.state_dict().items() if "quanter" not in key}
    assert after.keys() == before.keys()
    for name in ("conv1", "conv2", "fc"):
        parts = [key for key in after if key.startswith(f"{name}.weight_") and key.endswith(("g", "orig"))]
        assert any(np.abs(after[key] - before[key]).max() > 0 for key in parts)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bits", [4, 8])
def test_one_layer_against_the_formula(norm, bits):
    layer = NORMS[norm](nn.Conv2D(3, 4, 3, padding=1))
    network, x = nn.Sequential(layer), paddle.to_tensor(Images(4).images)
    network.train()
    network(x)
    prepare_pact_(network, PACTConfig(weight_bits=bits, reduce_range=False, alpha_percentile=100))
    network(x)  # calibrates
    network.eval()
    quanted = network[0]
    weight = on_grid(effective(quanted, norm), 0, 2 ** (bits - 1) - 1)
    expected = F.conv2d(quanted.activation_quanter(x), paddle.to_tensor(weight), quanted.bias, padding=1)
    np.testing.assert_allclose(network(x).numpy(), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_the_undo_gives_the_layers_back_as_they_were(norm):
    network, x = normed(norm), paddle.to_tensor(Images(4).images)
    network.eval()
    keys, expected = list(network.state_dict()), network(x).numpy()
    prepare_pact_(network).close()
    assert list(network.state_dict()) == keys
    np.testing.assert_array_equal(network(x).numpy(), expected)


@needs("onnxruntime")
@pytest.mark.parametrize("norm", NORMS)
def test_the_files_compute_with_the_last_weights(norm, tmp_path):
    network = normed(norm)
    export = ExportBenchCallback(
        tmp_path, name="run", verbose=0, benchmark=BenchOptions(repeats=1, warmup=0, peak_memory=False, roofline=False)
    )
    fit(hapi_model(network), [PACTQuantCallback(), export], epochs=2)
    checks = [check for check in export.record.checks if check.engine in ("paddle", "onnxruntime")]
    assert {check.precision for check in checks} == {"fp32", "int8"}
    assert all(check.passed for check in checks)


def test_attributes_of_a_converted_layer_stay_readable():
    class Reads(TinyNet):
        def forward(self, x):
            assert self.conv1._kernel_size == [3, 3]
            return super().forward(x) * self.conv1.gain

    network = Reads()
    network.conv1.gain = 2.0
    fit(hapi_model(network), [PACTQuantCallback()])
    assert network.conv1.activation_quanter.calibrated
