"""Rewrites of float graphs: the values of ONNX Runtime without optimisations, and graphs that must stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from installed import needs

from paddlelite_callbacks.export.fuse_onnx import exact_factor, fuse_onnx

onnx = pytest.importorskip("onnx")
FLOAT = onnx.TensorProto.FLOAT
RANDOM = np.random.RandomState(0)


def node(kind, inputs, outputs, **attributes):
    return onnx.helper.make_node(kind, inputs.split(","), outputs.split(","), **attributes)


def model_of(nodes, constants, shape=(2, 6, 4, 4), outputs=("y",)):
    given = onnx.helper.make_tensor_value_info("x", FLOAT, list(shape))
    ranks = {"y": 4, "r": 2}
    results = [
        onnx.helper.make_tensor_value_info(name, FLOAT, [f"{name}{axis}" for axis in range(ranks[name])])
        for name in outputs
    ]
    stored = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", [given], results, stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def kinds(model):
    return [item.op_type for item in model.graph.node]


def run(model, x):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def random(*shape):
    return RANDOM.randn(*shape).astype("float32")


def upsampled(weight=None, bias=None, **attributes):
    attributes = {"group": 6, "strides": [2, 2], "kernel_shape": [2, 2], **attributes}
    constants = {"w": np.ones((6, 1, 2, 2), "float32") if weight is None else weight}
    constants |= {} if bias is None else {"b": bias}
    return model_of(
        [node("ConvTranspose", ",".join(["x", *constants]), "u", **attributes), node("Relu", "u", "y")], constants
    )


def repeated(axes=(3, 5), repeats=(1, 1, 1, 2, 1, 3), wanted=(-1, 6, 8, 12)):
    """Repeat rows and columns along new axes, as Paddle writes nearest upsampling."""
    return model_of(
        [
            node("Relu", "x", "r"),
            node("Unsqueeze", "r,axes", "u"),
            node("Tile", "u,repeats", "t"),
            node("Reshape", "t,wanted", "y"),
        ],
        {"axes": np.asarray(axes), "repeats": np.asarray(repeats), "wanted": np.asarray(wanted)},
    )


def multiplied(shape, weight, axes):
    """A product without a bias between a pooling and ``Unsqueeze``."""
    nodes = [
        node("GlobalAveragePool", "x", "p"),
        node("Reshape", "p,shape", "f"),
        node("MatMul", "f,w", "m"),
        node("Unsqueeze", "m,axes", "u"),
        node("Relu", "u", "y"),
    ]
    return model_of(nodes, {"shape": np.asarray(shape), "axes": np.asarray(axes), "w": weight})


def excited(kind="Gemm", pool="GlobalAveragePool", axes=(2, 3), transposed=1, read=False, **attributes):
    sizes = [(4, 6), (6, 4)] if transposed else [(6, 4), (4, 6)]
    constants = {
        "shape": np.asarray([2, -1]),
        "axes": np.asarray(axes),
        "w1": random(*sizes[0]),
        "w2": random(*sizes[1]),
    }
    constants |= {"b1": random(4), "b2": random(6)}
    attributes = {"transB": transposed, **attributes}
    nodes = [
        node(pool, "x", "p"),
        node("Reshape", "p,shape", "f"),
        node(kind, "f,w1,b1", "a", **attributes),
        node("Relu", "a", "r"),
        node(kind, "r,w2,b2", "c", **attributes),
        node("Sigmoid", "c", "s"),
        node("Unsqueeze", "s,axes", "g"),
        node("Mul", "x,g", "y"),
    ]
    return model_of(nodes, constants, outputs=("y", "r") if read else ("y",))


FITTING = {
    "upsampling": (upsampled(), ["Resize", "Relu"]),
    "upsampling by three and two": (
        upsampled(np.ones((6, 1, 3, 2), "float32"), strides=[3, 2], kernel_shape=[3, 2]),
        ["Resize", "Relu"],
    ),
    "repeated rows and columns": (repeated(), ["Relu", "Resize"]),
    "repeated rows": (repeated(repeats=(1, 1, 1, 2, 1, 1), wanted=(-1, 6, 8, 4)), ["Relu", "Resize"]),
    "squeeze and excitation": (excited(), ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]),
    "of weights as they are": (
        excited(transposed=0),
        ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"],
    ),
    "without a bias": (multiplied([2, -1], random(6, 4), [2, 3]), ["GlobalAveragePool", "Conv", "Relu"]),
    "convolutions behind other readers": (
        model_of(
            [
                node("Add", "x,x", "s"),
                node("Relu", "s", "a"),
                node("Conv", "s,w", "b"),
                node("Conv", "a,w", "c"),
                node("Sigmoid", "b", "d"),
                node("Conv", "s,v", "e"),
                node("Sum", "c,d,e,x", "y"),
            ],
            {"w": random(6, 6, 1, 1), "v": random(6, 6, 1, 1)},
        ),
        ["Add", "Conv", "Conv", "Relu", "Conv", "Sigmoid", "Sum"],
    ),
}
OTHER = {
    "other values": upsampled(np.full((6, 1, 2, 2), 0.5, "float32")),
    "one value": upsampled(np.where(np.arange(24).reshape(6, 1, 2, 2) == 7, 2, 1).astype("float32")),
    "a bias": upsampled(bias=np.zeros(6, "float32")),
    "overlap": upsampled(np.ones((6, 1, 3, 3), "float32"), kernel_shape=[3, 3]),
    "padding": upsampled(pads=[1, 1, 1, 1]),
    "output padding": upsampled(output_padding=[1, 1]),
    "fewer groups": upsampled(np.ones((6, 1, 2, 2), "float32"), group=3),
    "repeated maps": repeated(axes=(2, 4), wanted=(-1, 6, 8, 12)),
    "repeated blocks": repeated(repeats=(1, 1, 2, 1, 3, 1), wanted=(-1, 6, 8, 12)),
    "repeated and joined otherwise": repeated(wanted=(-1, 6, 12, 8)),
    "scaled products": excited(alpha=0.5),
    "a convolution whose weights are computed": model_of(
        [node("Relu", "x", "a"), node("Sigmoid", "w", "v"), node("Conv", "x,v", "b"), node("Add", "a,b", "y")],
        {"w": random(6, 6, 1, 1)},
    ),
    "other axes": model_of(
        [
            node("GlobalAveragePool", "x", "p"),
            node("Reshape", "p,shape", "f"),
            node("Gemm", "f,w,b", "g"),
            node("Unsqueeze", "g,axes", "y"),
        ],
        {"shape": np.asarray([2, -1]), "axes": np.asarray([0, 1]), "w": random(6, 4), "b": random(4)},
    ),
    "a value that is read": excited(read=True),
    "a matrix an image": multiplied([2, -1], random(2, 6, 4), [2]),
    "rows of their own": multiplied([2, 1, -1], random(6, 4), [3]),
    "rows that are no images": model_of(
        [
            node("GlobalAveragePool", "x", "p"),
            node("Reshape", "p,shape", "f"),
            node("Gemm", "f,w,b", "g"),
            node("Unsqueeze", "g,axes", "u"),
            node("Relu", "u", "y"),
        ],
        {"shape": np.asarray([4, 3]), "axes": np.asarray([2, 3]), "w": random(3, 4), "b": random(4)},
    ),
}


@needs("onnxruntime")
@pytest.mark.parametrize(("model", "expected"), FITTING.values(), ids=FITTING.keys())
def test_the_values_stay(model, expected):
    x, made = random(2, 6, 4, 4), fuse_onnx(model)
    onnx.checker.check_model(made)
    assert kinds(made) == expected
    for got, was in zip(run(made, x), run(model, x), strict=True):
        np.testing.assert_allclose(got, was, rtol=1e-6, atol=1e-6 * np.abs(was).max())


def resized(height, width, *, mode="nearest", transformation="asymmetric", source="x", rows=2, shape=("rows", 6, 4, 5)):
    nodes = [
        node("Relu", "x", "r"),
        node("Shape", source, "s"),
        node("Slice", "s,first,last,axes", "n"),
        node("Concat", "n,size", "sizes", axis=0),
    ]
    attributes = {"mode": mode, "coordinate_transformation_mode": transformation}
    attributes |= {"nearest_mode": "floor"} if mode == "nearest" else {}
    nodes.append(node("Resize", "r,,,sizes", "y", **attributes))
    constants = {"first": [0], "last": [rows], "axes": [0], "size": [height, width][: 4 - rows]}
    return model_of(nodes, {name: np.asarray(value, "int64") for name, value in constants.items()}, shape)


@needs("onnxruntime")
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transformation", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
def test_resizing_to_a_fixed_size_needs_no_size_at_run_time(mode, transformation):
    for height, width in ((8, 10), (7, 7), (3, 13), (1, 1), (9, 4), (4, 5)):
        model = resized(height, width, mode=mode, transformation=transformation, source="r")
        made, x = fuse_onnx(model), random(3, 6, 4, 5)
        assert kinds(made) == ["Relu", "Resize"]
        np.testing.assert_array_equal(run(made, x)[0], run(model, x)[0])
        assert run(made, x)[0].shape == (3, 6, height, width)


def test_every_factor_leads_to_its_size():
    for before in range(1, 300):
        after = np.arange(1, 400)
        found = [exact_factor(before, int(size)) for size in after]
        reached = np.array([-1 if factor is None else int(np.float32(before) * factor) for factor in found])
        assert set(reached) <= {-1, *after}
        assert ((reached == after) | (reached == -1)).all()
        assert (reached[before - 1 :: before] > 0).all()  # whole factors


@pytest.mark.parametrize(
    "model",
    [
        resized(8, 8, source="x"),  # sizes of another tensor
        resized(8, 8, source="r", shape=("rows", 6, "height", "width")),
        resized(8, 8, source="r", rows=1),  # channels are given too
    ],
    ids=["of another tensor", "of free sizes", "of channels"],
)
def test_sizes_that_are_not_known_are_still_computed(model):
    assert "Shape" in kinds(fuse_onnx(model))


@pytest.mark.parametrize("model", OTHER.values(), ids=OTHER.keys())
def test_what_only_looks_alike_stays(model):
    before = model.SerializeToString()
    assert fuse_onnx(model).SerializeToString() == before


def test_a_batch_of_any_size_stays_free():
    model = excited()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_param = "batch"
    constants = {item.name: item for item in model.graph.initializer}
    constants["shape"].CopyFrom(onnx.numpy_helper.from_array(np.asarray([0, -1]), "shape"))
    made, x = fuse_onnx(model), random(5, 6, 4, 4)
    assert "Reshape" not in kinds(made)
    np.testing.assert_allclose(run(made, x)[0], run(model, x)[0], rtol=1e-5, atol=1e-6)
