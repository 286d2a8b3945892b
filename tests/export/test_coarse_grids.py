"""Integers of coarse grids are written on a finer one: ONNX Runtime rounds biases to multiples of the step."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from installed import needs
from onnx_weights import int8_weights
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks import PACTConfig, prepare_pact_
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.export.variants import export_forms, references

pytestmark = needs("paddle2onnx")


def file_of(folder, seed, bits):
    """A small regression network on dim images with a few bright spots."""
    paddle.seed(seed)
    layers = []
    for before, after in ((1, 8), (8, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2D(before, after, 3, stride=2, padding=1), nn.BatchNorm2D(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2D(3), nn.Flatten(), nn.Linear(288, 10))
    random = np.random.RandomState(seed)
    x = (random.rand(16, 1, 48, 48) * 0.2).astype("float32")
    for image in x:
        for top, left in random.randint(0, 43, (5, 2)):
            image[0, top : top + 5, left : left + 5] = 1
    network(paddle.to_tensor(x))
    prepare_pact_(network, PACTConfig(weight_bits=bits))
    network(paddle.to_tensor(x))
    network.eval()
    forms = export_forms(network, folder, input_spec=[InputSpec([None, 1, 48, 48], name="x")])
    return network, x, next(a for a in forms.artefacts if (a.kind, a.precision) == ("onnx", "int8"))


@pytest.mark.parametrize(("bits", "finer"), [(8, 1), (4, 8), (2, 64)])
def test_coarse_grids_are_written_on_a_finer_one_with_the_same_values(tmp_path, bits, finer):
    onnx = pytest.importorskip("onnx")
    network, _, file = file_of(tmp_path, 0, bits)
    model = onnx.load(str(file.path))
    held = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    steps = {node.input[0]: held[node.input[1]] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    first = next(name for name, value in int8_weights(model).items() if value.shape == (288, 10))
    quantizer = network[-1].weight_quanter
    np.testing.assert_array_equal(held[first], finer * quantizer.integers(network[-1].weight).numpy())
    values = held[first].astype("float32") * steps[first]
    on_grid = quantizer.integers(network[-1].weight).numpy() * quantizer.steps(network[-1].weight).numpy()
    np.testing.assert_array_equal(values, on_grid.astype("float32"))
    assert np.abs(held[first].astype("int16")).max() <= 64


def test_onnx_runtime_comes_nearer_to_the_network(tmp_path):
    onnx = pytest.importorskip("onnx")
    network, x, file = file_of(tmp_path, 0, bits=4)
    expected = references(network, [x])["int8"].outputs[0]

    def distance():
        got = ENGINES["onnxruntime"].load(file, threads=1)([x])[0]
        return float(np.median(np.abs(got - expected).max(axis=1)))

    finer = distance()
    model = onnx.load(str(file.path))
    held = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            for name, factor in zip(node.input[:2], (1 / 8, 8), strict=True):
                value = onnx.numpy_helper.to_array(held[name])
                held[name].CopyFrom(onnx.numpy_helper.from_array((value * factor).astype(value.dtype), name))
    file.path.write_bytes(model.SerializeToString())
    assert finer < 0.7 * distance()
