"""Widths of split channels on small maps: bit-equal values, and no part that onnx2tf takes for channels-last."""

from __future__ import annotations

import numpy as np
import pytest
from installed import needs

from paddlelite_callbacks.export.fuse_onnx import fuse_onnx
from paddlelite_callbacks.export.onnx_graph import tensor_shapes

onnx = pytest.importorskip("onnx")


def halves(shape, *, sizes=None, axis=1, between=(), outputs=("y",), joined="a,b"):
    """Split, something on one part, and a concatenation of the parts."""
    make = onnx.helper.make_node
    stored = [] if sizes is None else [onnx.numpy_helper.from_array(np.asarray(sizes, "int64"), "sizes")]
    parts = ["a", "b"] if sizes is None else ["a", "b", "c"][: len(sizes)]
    nodes = [make("Split", ["x"] if sizes is None else ["x", "sizes"], parts, axis=axis)]
    nodes += [make(kind, [before], [after]) for kind, before, after in between]
    nodes.append(make("Concat", joined.split(","), ["y"], axis=axis))
    value = onnx.helper.make_tensor_value_info
    given = value("x", onnx.TensorProto.FLOAT, shape)
    results = [value(name, onnx.TensorProto.FLOAT, [None] * 4) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "g", [given], results, stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def joined_twice(shape, outputs=("y",)):
    """Join two activations of a map over the channels."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [make("Relu", ["x"], ["a"]), make("Sigmoid", ["x"], ["b"]), make("Concat", ["a", "b"], ["y"], axis=1)]
    results = [value(name, onnx.TensorProto.FLOAT, [None] * 4) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", onnx.TensorProto.FLOAT, shape)], results)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def run(model, x):
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})


def widths(model, kind):
    """Channels of each part of each node of a kind, as shape inference sees them."""
    shapes = tensor_shapes(model)
    found = [item for item in model.graph.node if item.op_type == kind]
    return [[shapes[name][1] for name in (item.output if kind == "Split" else item.input)] for item in found]


SHUFFLED = [("Relu", "a", "r")]
CUT = {  # onnx2tf's own condition: C > 4, H > 4, W <= 8, and equal parts
    "halves of a map": (halves([2, 160, 8, 6], between=SHUFFLED, joined="b,r"), [[80, 64, 16]], [[64, 16, 80]]),
    "few channels": (halves([2, 12, 5, 2], between=SHUFFLED, joined="b,r"), [[6, 5, 1]], [[5, 1, 6]]),
    "thirds of which two are joined": (
        halves([2, 320, 8, 8], sizes=[80, 80, 160], between=[("Relu", "a", "r")], joined="b,r"),
        [[80, 64, 16, 160]],
        [[64, 16, 80]],
    ),
    "an axis from behind": (
        halves([2, 160, 8, 6], axis=-3, between=SHUFFLED, joined="b,r"),
        [[80, 64, 16]],
        [[64, 16, 80]],
    ),
    "joined with itself": (halves([2, 64, 7, 4], joined="b,b,a"), [[32, 16, 16]], [[16, 16, 16, 16, 32]]),
    "parts of other nodes": (joined_twice([2, 80, 7, 7]), [[64, 16]], [[64, 16, 80]]),
    "parts that are outputs": (joined_twice([2, 80, 7, 7], ("y", "a")), [[64, 16]], [[64, 16, 80]]),
    "parts that other nodes read": (
        halves([2, 40, 9, 5], between=[("Relu", "a", "r"), ("Sigmoid", "b", "s")], joined="s,r"),
        [[20, 20], [16, 4]],
        [[16, 4, 20]],
    ),
    "a free batch": (halves(["rows", 64, 7, 4], between=SHUFFLED, joined="b,r"), [[32, 16, 16]], [[16, 16, 32]]),
}
LEFT = {
    "one part": halves([2, 160, 8, 7], joined="a"),
    "joined maps of nine columns": joined_twice([2, 80, 7, 9]),
    "nine columns": halves([2, 160, 8, 9], between=SHUFFLED, joined="b,r"),
    "four rows": halves([2, 160, 4, 6], between=SHUFFLED, joined="b,r"),
    "columns of a free number": halves([2, 160, 8, "columns"], between=SHUFFLED, joined="b,r"),
    "rows instead of channels": halves([2, 160, 8, 6], axis=2, between=SHUFFLED, joined="b,r"),
    "unequal parts": halves([2, 160, 8, 6], sizes=[100, 60], between=SHUFFLED, joined="b,r"),
}


@needs("onnxruntime")
@pytest.mark.parametrize(("model", "split", "joined"), CUT.values(), ids=CUT.keys())
def test_a_part_is_taken_as_two_unequal_pieces(model, split, joined):
    made = fuse_onnx(model)
    onnx.checker.check_model(made, full_check=True)
    assert widths(made, "Split") == split
    assert widths(made, "Concat") == joined
    shape = [dim.dim_value or 3 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.RandomState(0).randn(*shape).astype("float32")
    np.testing.assert_array_equal(run(made, x)[0], run(model, x)[0])


@pytest.mark.parametrize("model", LEFT.values(), ids=LEFT.keys())
def test_other_parts_stay(model):
    before = model.SerializeToString()
    assert fuse_onnx(model).SerializeToString() == before
