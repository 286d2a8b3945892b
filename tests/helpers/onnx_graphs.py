"""Small float ONNX models as exporters of other frameworks write them, with seeded weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


class Maker:
    """Collects nodes and weights of one model."""

    def __init__(self, seed: int = 0):
        self.random = np.random.RandomState(seed)
        self.nodes: list = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        fan = max(int(np.prod(shape[1:])), 1)
        value = self.random.randn(*shape) * (np.sqrt(2 / fan) if scale is None else scale)
        self.weights[name] = value.astype("float32")
        return name

    def constant(self, name: str, value) -> str:
        self.weights[name] = np.asarray(value)
        return name

    def add(self, kind: str, inputs: list[str], output: str, *, name: str = "", **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def model(self, inputs: dict[str, list], outputs: dict[str, list], *, opset: int = 17, listed: bool = False):
        ends = [[helper.make_tensor_value_info(n, FLOAT, s) for n, s in e.items()] for e in (inputs, outputs)]
        stored = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        if listed:  # as exporters wrote before IR version 4
            kind = helper.np_dtype_to_tensor_dtype
            ends[0] += [helper.make_tensor_value_info(n, kind(v.dtype), v.shape) for n, v in self.weights.items()]
        graph = helper.make_graph(self.nodes, "graph", ends[0], ends[1], stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if listed else 8)


def torch_style(*, size: int = 16, width: int = 16, classes: int = 5, opset: int = 17, seed: int = 0) -> ModelProto:
    """Convolutions, depthwise and not, a batch norm, a residual sum, ``Gemm`` with ``transB``."""
    m = Maker(seed)
    m.weight("stem.weight", width, 3, 3, 3), m.weight("stem.bias", width, scale=0.1)
    for name, value in (("gamma", 1.0), ("beta", 0.0), ("mean", 0.0), ("var", 1.0)):
        noise = 0.3 * m.random.rand(width) if name == "var" else 0.3 * m.random.randn(width)
        m.constant(f"bn.{name}", (value + noise).astype("float32"))
    m.weight("dw.weight", width, 1, 3, 3), m.weight("pw.weight", width, width, 1, 1)
    (
        m.weight("pw.bias", width, scale=0.1),
        m.weight("fc.weight", classes, width),
        m.weight("fc.bias", classes, scale=0.1),
    )
    pads = {"pads": [1] * 4, "kernel_shape": [3, 3]}
    m.add("Conv", ["x", "stem.weight", "stem.bias"], "c0", name="/stem/Conv", strides=[2, 2], **pads)
    m.add("BatchNormalization", ["c0", "bn.gamma", "bn.beta", "bn.mean", "bn.var"], "b0", name="/bn/BatchNorm")
    m.add("Relu", ["b0"], "r0", name="/relu/Relu")
    m.add("Conv", ["r0", "dw.weight"], "c1", name="/dw/Conv", group=width, **pads)
    m.add("HardSwish", ["c1"], "h1", name="/act/HardSwish")
    m.add("Conv", ["h1", "pw.weight", "pw.bias"], "c2", name="/pw/Conv", kernel_shape=[1, 1])
    m.add("Add", ["c2", "r0"], "s", name="/Add")
    m.add("GlobalAveragePool", ["s"], "p", name="/pool/GlobalAveragePool")
    m.add("Flatten", ["p"], "f", name="/Flatten", axis=1)
    m.add("Gemm", ["f", "fc.weight", "fc.bias"], "y", name="/fc/Gemm", transB=1)
    return m.model({"x": ["n", 3, size, size]}, {"y": ["n", classes]}, opset=opset)


def tensorflow_style(*, size: int = 16, classes: int = 5, seed: int = 0) -> ModelProto:
    """Channels last outside, ``Relu6`` as ``Clip`` with constants as nodes, ``MatMul`` and ``Add``."""
    m = Maker(seed)
    m.add("Transpose", ["x"], "t", name="StatefulPartitionedCall/model/Conv2D__6", perm=[0, 3, 1, 2])
    for name, value in (("zero", 0.0), ("six", 6.0)):
        tensor = numpy_helper.from_array(np.asarray(value, "float32"), f"{name}_value")
        m.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
    kernel = numpy_helper.from_array((m.random.randn(8, 3, 3, 3) * 0.3).astype("float32"), "kernel_value")
    m.nodes.append(helper.make_node("Constant", [], ["model/conv/Conv2D/ReadVariableOp:0"], value=kernel))
    m.add("Conv", ["t", "model/conv/Conv2D/ReadVariableOp:0"], "c", name="model/conv/Conv2D", auto_pad="SAME_UPPER")
    m.add("Clip", ["c", "zero", "six"], "r", name="model/relu6")
    m.add("GlobalAveragePool", ["r"], "g", name="model/pool")
    m.add("Squeeze", ["g", m.constant("axes", np.asarray([2, 3], "int64"))], "q", name="model/squeeze")
    m.weight("model/dense/MatMul/ReadVariableOp:0", 8, classes), m.weight("model/dense/bias", classes, scale=0.1)
    m.add("MatMul", ["q", "model/dense/MatMul/ReadVariableOp:0"], "mm", name="model/dense/MatMul")
    m.add("Add", ["mm", "model/dense/bias"], "y", name="model/dense/BiasAdd")
    return m.model({"x": ["n", size, size, 3]}, {"y": ["n", classes]})


def gemm_forms(*, seed: int = 0) -> ModelProto:
    """``Gemm`` with ``alpha`` and ``beta``, one with ``transA``, one with a bias of one number."""
    m = Maker(seed)
    m.weight("a.weight", 12, 10), m.weight("a.bias", 12)
    m.weight("b.weight", 12, 7), m.weight("b.bias", 1), m.weight("c.weight", 4, 6)
    m.add("Gemm", ["x", "a.weight", "a.bias"], "a", name="a", alpha=0.5, beta=2.0, transB=1)
    m.add("Relu", ["a"], "r")
    m.add("Gemm", ["r", "b.weight", "b.bias"], "y", name="b")
    m.add("Gemm", ["z", "c.weight"], "w", name="c", transA=1)
    return m.model({"x": ["n", 10], "z": [4, 3]}, {"y": ["n", 7], "w": [3, 6]})


def tokens(*, seed: int = 0) -> ModelProto:
    """Matrix products of three axes, as in transformers: with a bias, without, and of two activations."""
    m = Maker(seed)
    m.weight("q.weight", 8, 8), m.weight("q.bias", 8, scale=0.1), m.weight("v.weight", 8, 8)
    m.add("MatMul", ["x", "q.weight"], "q0", name="/q/MatMul")
    m.add("Add", ["q.bias", "q0"], "q", name="/q/Add")
    m.add("MatMul", ["x", "v.weight"], "v", name="/v/MatMul")
    m.add("Transpose", ["q"], "k", perm=[0, 2, 1])
    m.add("MatMul", ["q", "k"], "a", name="/attention/MatMul")
    m.add("Softmax", ["a"], "s", axis=-1)
    m.add("MatMul", ["s", "v"], "y", name="/out/MatMul")
    return m.model({"x": ["n", 6, 8]}, {"y": ["n", 6, 8]})


def shared_weight(*, seed: int = 0) -> ModelProto:
    """One weight in two convolutions, on maps of different ranges."""
    m = Maker(seed)
    m.weight("w.weight", 3, 3, 3, 3), m.weight("bias", 3, scale=0.1)
    m.add("Conv", ["x", "w.weight", "bias"], "a", name="first", pads=[1] * 4)
    m.add("Sigmoid", ["a"], "s")
    m.add("Conv", ["s", "w.weight"], "y", name="second", pads=[1] * 4)
    return m.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 3, 8, 8]})


def two_inputs(*, seed: int = 0) -> ModelProto:
    """Two inputs of dynamic sizes, a transposed convolution, a convolution over one axis."""
    m = Maker(seed)
    m.weight("up.weight", 3, 4, 2, 2), m.weight("up.bias", 4, scale=0.1), m.weight("line.weight", 4, 2, 3)
    m.add("ConvTranspose", ["image", "up.weight", "up.bias"], "u", name="up", strides=[2, 2])
    m.add("GlobalAveragePool", ["u"], "g")
    m.add("Squeeze", ["g", m.constant("axes", np.asarray([3], "int64"))], "h")
    m.add("Conv", ["signal", "line.weight"], "l", name="line", pads=[1, 1])
    m.add("Mul", ["l", "h"], "y")
    return m.model({"image": ["n", 3, "h", "w"], "signal": ["n", 2, "t"]}, {"y": ["n", 4, "t"]})


def old_exporter(*, seed: int = 0) -> ModelProto:
    """Opset 9 with the weights among the inputs and attributes that are inputs today."""
    m = Maker(seed)
    m.weight("conv.weight", 6, 3, 3, 3), m.weight("conv.bias", 6, scale=0.1), m.weight("fc.weight", 6, 4)
    m.add("Conv", ["x", "conv.weight", "conv.bias"], "c", name="conv", pads=[1] * 4)
    m.add("Clip", ["c"], "r", min=0.0, max=6.0)
    m.add("ReduceMean", ["r"], "p", axes=[2, 3], keepdims=1)
    m.add("Squeeze", ["p"], "q", axes=[2, 3])
    m.add("MatMul", ["q", "fc.weight"], "y", name="fc")
    return m.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 4]}, opset=9, listed=True)


def maps(*, outlier: float = 0.0, size: int = 12, width: int = 8, seed: int = 0) -> ModelProto:
    """Four convolutions that give maps; ``outlier`` is a weight of ``third`` on a channel that is always zero.

    In float it changes nothing; quantised it makes the steps of that layer coarse.
    """
    m = Maker(seed)
    m.weight("first.weight", width, 3, 3, 3), m.weight("first.bias", width, scale=0.1)
    m.weight("second.weight", width, width, 3, 3), m.weight("third.weight", width, width, 3, 3)
    m.weight("fourth.weight", 2, width, 1, 1), m.weight("fourth.bias", 2, scale=0.1)
    if outlier:
        m.weights["second.weight"][3] = 0
        m.weights["third.weight"][:, 3] = outlier
    pads = {"pads": [1] * 4}
    m.add("Conv", ["x", "first.weight", "first.bias"], "a", name="first", **pads)
    m.add("Relu", ["a"], "ar")
    m.add("Conv", ["ar", "second.weight"], "b", name="second", **pads)
    m.add("Relu", ["b"], "br")
    m.add("Conv", ["br", "third.weight"], "c", name="third", **pads)
    m.add("Relu", ["c"], "cr")
    m.add("Conv", ["cr", "fourth.weight", "fourth.bias"], "y", name="fourth")
    return m.model({"x": ["n", 3, size, size]}, {"y": ["n", 2, size, size]})


def inputs_of(model: ModelProto, rows: int = 8, *, seed: int = 1, free: int = 8) -> dict[str, np.ndarray]:
    """Seeded inputs; symbolic sizes besides the batch are ``free``."""
    random, weights = np.random.RandomState(seed), {item.name for item in model.graph.initializer}
    found = {}
    for item in model.graph.input:
        if item.name not in weights:
            dims = item.type.tensor_type.shape.dim
            sizes = [d.dim_value or (rows if i == 0 else free) for i, d in enumerate(dims)]
            found[item.name] = random.randn(*sizes).astype("float32")
    return found


STYLES: dict[str, Callable[..., ModelProto]] = {
    maker.__name__: maker
    for maker in (torch_style, tensorflow_style, gemm_forms, tokens, shared_weight, two_inputs, old_exporter)
}
