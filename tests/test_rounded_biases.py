"""ONNX Runtime rounds biases: a right file passes nevertheless, a wrong one does not."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks import PACTConfig, prepare_pact_
from paddlelite_callbacks.deploy.engines import ENGINES
from paddlelite_callbacks.deploy.forms import export_forms, references
from paddlelite_callbacks.deploy.int8 import int8_weights
from paddlelite_callbacks.deploy.loading import checked, load_files
from paddlelite_callbacks.deploy.options import BenchOptions
from paddlelite_callbacks.deploy.refuse import refuse_wrong

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


def test_a_right_file_passes_where_rounded_biases_move_every_image(tmp_path):
    options, moved = BenchOptions(engines=("onnxruntime", "openvino")), 0
    for seed in range(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        network, x, file = file_of(folder, seed, bits=4)
        expected = references(network, [x])
        got = ENGINES["onnxruntime"].load(file, threads=1)([x])
        alone = checked("onnxruntime", file, got, expected["int8"], options)
        moved += not alone.passed
        files = load_files([file], [x], expected, options)
        refuse_wrong(network, [x], files.checks)
        shown = next(check for check in files.checks if check.engine == "onnxruntime")
        assert shown.max_abs_diff == pytest.approx(alone.max_abs_diff)  # what it differs by is still said
    assert moved >= 1


@pytest.mark.parametrize("change", ["bias", "weight"])
def test_a_wrong_file_does_not_pass(tmp_path, change):
    onnx = pytest.importorskip("onnx")
    network, x, file = file_of(tmp_path, 0, bits=4)
    model = onnx.load(str(file.path))
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    made_by = {name: node for node in model.graph.node for name in node.output}
    name = conv.input[2] if change == "bias" else made_by[conv.input[1]].input[1]
    held = next(item for item in model.graph.initializer if item.name == name)
    held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held) * np.float32(1.3), name))
    file.path.write_bytes(model.SerializeToString())
    files = load_files([file], [x], references(network, [x]), BenchOptions(engines=("onnxruntime",)))
    assert not files.checks[0].passed


@pytest.mark.parametrize(("bits", "finer"), [(8, 1), (4, 8), (2, 64)])
def test_coarse_grids_are_written_on_a_finer_one_with_the_same_values(tmp_path, bits, finer):
    onnx = pytest.importorskip("onnx")
    network, _, file = file_of(tmp_path, 0, bits)
    model = onnx.load(str(file.path))
    held = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    steps = {node.input[0]: held[node.input[1]] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    first = next(name for name, value in int8_weights(model).items() if value.shape == (288, 10))
    quanter = network[-1].weight_quanter
    np.testing.assert_array_equal(held[first], finer * quanter.integers(network[-1].weight).numpy())
    values = held[first].astype("float32") * steps[first]
    on_grid = quanter.integers(network[-1].weight).numpy() * quanter.steps(network[-1].weight).numpy()
    np.testing.assert_array_equal(values, on_grid.astype("float32"))
    assert bits == 8 or np.abs(held[first].astype("int16")).max() <= 64
