"""The forms of an int8 graph that ONNX Runtime fuses, against the sums they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from installed import needs

from paddlelite_callbacks.export.qdq import rewrite_as_qdq

onnx = pytest.importorskip("onnx")
STEP, IN, OUT = 0.05, 32, 8
RANDOM = np.random.RandomState(0)
INTEGERS = RANDOM.randint(-64, 65, (IN, OUT)).astype("int8")
STEPS = RANDOM.uniform(0.001, 0.002, OUT).astype("float32")
BIAS = RANDOM.randn(OUT).astype("float32")


class Written:
    """A graph as the converter writes it: ``Mul, Round, Clip, Mul`` for a quantizer, ``Cast, Mul`` for a weight."""

    def __init__(self, shape):
        self.nodes, self.constants, self.shape = [], {}, shape

    def add(self, kind, inputs, output, **attributes):
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name, value):
        self.constants[name] = np.asarray(value)
        return name

    def quantizer(self, x, name, step=STEP):
        scaled = self.add("Mul", [x, self.constant(f"{name}.inverse", np.float32(1 / step))], f"{name}.scaled")
        rounded = self.add("Round", [scaled], f"{name}.rounded")
        ends = [self.constant(f"{name}.{end}", np.float32(v)) for end, v in (("low", -128), ("high", 127))]
        clipped = self.add("Clip", [rounded, *ends], f"{name}.clipped")
        return self.add("Mul", [clipped, self.constant(f"{name}.step", np.float32(step))], name)

    def weight(self, name="w"):
        cast = self.add("Cast", [self.constant(name, INTEGERS)], f"{name}.cast", to=onnx.TensorProto.FLOAT)
        return self.add("Mul", [cast, self.constant(f"{name}.steps", STEPS.reshape(1, -1))], f"{name}.value")

    def rewritten(self, output):
        given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, self.shape)
        result = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [*self.shape[:-1], OUT])
        stored = [onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = onnx.helper.make_graph(self.nodes, "g", [given], [result], stored)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        made = rewrite_as_qdq(model)
        onnx.checker.check_model(made)
        return made


def simulated(x, step=STEP):
    return np.clip(np.round(x / step), -128, 127) * step


def kinds(model):
    return [node.op_type for node in model.graph.node]


def run(model, x, folder, *, optimised=True):
    """Return the outputs of ONNX Runtime and the kinds of node that it runs."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0], kinds(onnx.load(options.optimized_model_filepath))


def linear(shape, *, bias=True):
    written = Written(shape)
    y = written.add("MatMul", [written.quantizer("x", "q"), written.weight()], "y")
    if bias:
        y = written.add("Add", [y, written.constant("b", BIAS)], "z")
    return written.rewritten(y)


LINEAR = {
    "matrix": ((4, IN), True, "QGemm"),
    "any batch": (("batch", IN), True, "QGemm"),
    "no bias": ((4, IN), False, "QGemm"),
    "sequence": ((2, 3, IN), True, "MatMulIntegerToFloat"),
    "sequences of any number": (("batch", 3, IN), True, "MatMulIntegerToFloat"),
}


@needs("onnxruntime")
@pytest.mark.parametrize(("shape", "bias", "fused"), LINEAR.values(), ids=LINEAR.keys())
def test_a_linear_layer_runs_in_int8(shape, bias, fused, tmp_path):
    x = np.random.RandomState(1).randn(*[5 if isinstance(size, str) else size for size in shape]).astype("float32")
    got, ran = run(linear(shape, bias=bias), x, tmp_path)
    expected = simulated(x) @ (INTEGERS * STEPS) + (BIAS if bias else 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)  # the bias is not rounded
    assert fused in ran
    assert "DequantizeLinear" not in ran


def test_the_bias_stays_exact():
    for shape in ((4, IN), (2, 3, IN)):
        model = linear(shape)
        stored = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer]
        assert any(np.array_equal(np.abs(item), np.abs(BIAS)) for item in stored if item.shape == BIAS.shape)


def test_a_product_of_two_activations_stays():
    written = Written((IN, IN))
    square = written.add("MatMul", [written.quantizer("x", "q"), "x"], "square")
    y = written.add("MatMul", [written.quantizer(square, "p"), written.weight()], "y")
    assert kinds(written.rewritten(y)).count("MatMul") == 1


@needs("onnxruntime")
@pytest.mark.parametrize(("second", "left"), [(STEP, 1), (0.07, 2)], ids=["same grid", "other grid"])
def test_a_quantizer_behind_one_of_the_same_grid_is_left_out(second, left, tmp_path):
    written = Written((4, IN))
    twice = written.quantizer(written.quantizer("x", "q"), "p", step=second)
    model = written.rewritten(written.add("MatMul", [twice, written.weight()], "y"))
    assert kinds(model).count("QuantizeLinear") == left
    x = np.random.RandomState(2).randn(4, IN).astype("float32")
    expected = simulated(simulated(x), second) @ (INTEGERS * STEPS)
    np.testing.assert_allclose(run(model, x, tmp_path)[0], expected, rtol=1e-5, atol=1e-5)
