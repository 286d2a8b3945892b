"""Merged clips: the values of ONNX Runtime without optimisations, bit for bit, and as few clips as the values allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlelite_callbacks.export.fuse_onnx import fuse_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
FLOAT = onnx.TensorProto.FLOAT


def chain(*steps, extra=(), opset=17):
    """Return a model of elementwise steps; a tuple is a clip. ``extra`` are steps whose results are outputs, too."""
    nodes, stored, name = [], [], "x"
    for number, step in enumerate(steps):
        inputs, kind, attributes = [name], step, {}
        if isinstance(step, tuple):
            kind = "Clip"
            for end, limit in zip("ab", step, strict=True):
                inputs.append("" if limit is None else f"{end}{number}")
                if limit is not None:
                    stored.append(onnx.numpy_helper.from_array(np.float32(limit), inputs[-1]))
        if kind == "MaxPool":
            attributes = {"kernel_shape": [2, 2]}
        name = f"t{number}"
        nodes.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
    results = dict.fromkeys([*(f"t{number}" for number in extra), name])
    outputs = [onnx.helper.make_tensor_value_info(one, FLOAT, [None] * 4) for one in results]
    x = onnx.helper.make_tensor_value_info("x", FLOAT, [1, 2, 40, 40])
    graph = onnx.helper.make_graph(nodes, "g", [x], outputs, stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run(model):
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.RandomState(0).uniform(-12, 12, [1, 2, 40, 40]).astype("float32")
    x[0, 0, 0, :5] = [0, -3, 3, -1.5, 6]
    return session.run(None, {"x": x})


def same(model, made):
    onnx.checker.check_model(made)
    for expected, got in zip(run(model), run(made), strict=True):
        np.testing.assert_array_equal(got, expected)


def kinds(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        (["Relu", (0.0, 4.0)], ["Clip"]),
        (["Relu", (-4.0, 4.0), (0.0, 3.0)], ["Clip"]),
        ([(-4.0, 4.0), (-4.0, 4.0)], ["Clip"]),
        ([(-4.0, 4.0), "Relu"], ["Clip"]),
        ([(-4.0, None), "Relu"], ["Relu"]),
        (["Relu", "Relu"], ["Relu"]),
        ([(1.0, 2.0), (5.0, 6.0)], ["Clip"]),  # the ranges do not meet: a constant
        (["Sigmoid", (0.0, 1.0), "Tanh"], ["Sigmoid", "Tanh"]),
        (["Sigmoid", (0.0, 0.7)], ["Sigmoid", "Clip"]),
        ([(-3.0, 5.0), "MaxPool", (-3.5, 5.0), "Tanh"], ["Clip", "MaxPool", "Tanh"]),
        ([(-3.0, 5.0), "MaxPool", (-2.5, 5.0), "Tanh"], ["Clip", "MaxPool", "Clip", "Tanh"]),
        ([(-3.0, 5.0), "HardSwish", (-2.0, 4.0), "Tanh"], ["HardSwish", "Clip", "Tanh"]),
        ([(-8.0, 3.0), "HardSwish", "Tanh"], ["HardSwish", "Clip", "Tanh"]),
        ([(-2.0, 5.0), "HardSwish", "Tanh"], ["Clip", "HardSwish", "Tanh"]),  # it cuts the bent part
        ([(-4.0, 2.0), "HardSwish", "Tanh"], ["Clip", "HardSwish", "Tanh"]),
        ([(-2.0, 2.0), "HardSwish", (-0.4, 2.0), "Tanh"], ["Clip", "HardSwish", "Tanh"]),
        (["Relu", "HardSwish", (0.0, None), "Tanh"], ["Relu", "HardSwish", "Tanh"]),
        (["Exp", (0.0, 3.0)], ["Exp", "Clip"]),  # nothing is known
    ],
)
def test_as_few_clips_as_the_values_allow(steps, left):
    model = chain(*steps)
    made = fuse_onnx(model)
    assert kinds(made) == left
    same(model, made)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["Relu", "HardSwish", "Sigmoid", "MaxPool", "Tanh"]),
            st.tuples(st.sampled_from([None, -6.0, -3.0, -1.0, 0.0]), st.sampled_from([None, 0.5, 2.0, 3.0, 6.0])),
        ),
        min_size=2,
        max_size=7,
    ),
    st.integers(0, 5),
)
def test_any_chain_keeps_its_values(steps, read):
    model = chain(*steps, extra=[read] if read < len(steps) else [])
    same(model, fuse_onnx(model))


def test_a_value_that_is_read_twice_stays():
    model = chain("Relu", (0.0, 4.0), extra=[0])
    made = fuse_onnx(model)
    assert kinds(made) == ["Relu", "Clip"]
    same(model, made)


def test_a_limit_that_is_computed_stays():
    model = chain("Relu", (0.0, 4.0))
    graph = model.graph
    graph.node[1].input[2] = "computed"
    graph.node.insert(1, onnx.helper.make_node("ReduceMax", ["x"], ["computed"], keepdims=0))
    made = fuse_onnx(model)
    assert kinds(made) == ["ReduceMax", "Relu", "Clip"] or kinds(made) == kinds(model)
    same(model, made)
