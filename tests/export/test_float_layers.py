"""Layers that are left in float between quantised ones: ONNX Runtime does not quantise their weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import paddle
from installed import needs
from onnx import numpy_helper
from onnx_graphs import inputs_of, maps
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks import export_forms, ptq_int8
from paddlelite_callbacks.export.float_layers import keep_in_float_
from paddlelite_callbacks.export.float_onnx import read_float_onnx
from paddlelite_callbacks.export.onnx_graph import OnnxGraph
from paddlelite_callbacks.export.onnx_quantize import ActivationRange, GraphScheme, quantize_graph

pytestmark = needs("onnxruntime")


def answer(model, inputs, *, optimised=True):
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def quantised(tmp_path, *, outlier=300.0, **options):
    onnx.save(maps(outlier=outlier), tmp_path / "net.onnx")
    source = read_float_onnx(tmp_path / "net.onnx")
    ranges = dict.fromkeys(["ar", "br", "cr"], ActivationRange(alpha=8.0, signed=False))
    ranges |= {"x": ActivationRange(alpha=4.0, signed=True), "b": ActivationRange(alpha=8.0, signed=True)}
    return quantize_graph(source, ranges, GraphScheme(quantize_outputs=True, skip=["third"], **options))


def test_a_float_layer_between_quantisers_computes_in_float(tmp_path):
    inputs = inputs_of(maps())
    made = quantised(tmp_path)
    exact = answer(made, inputs, optimised=False)
    np.testing.assert_allclose(answer(made, inputs), exact, atol=1e-3 * np.abs(exact).max())


def test_with_one_scale_onnxruntime_quantises_its_weight(tmp_path):
    """The defect that this cures; on the day it is mended, the scale per channel can go."""
    inputs, made = inputs_of(maps()), quantised(tmp_path)
    for node in made.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0].endswith(".by_channel"):
            node.input[1:] = ["br.quantized.scale", "br.quantized.zero_point"]
            del node.attribute[:]
    exact = answer(made, inputs, optimised=False)
    assert np.abs(answer(made, inputs) - exact).max() > 0.1 * np.abs(exact).max()


def test_no_value_changes_and_each_tensor_gets_one(tmp_path):
    made = quantised(tmp_path)
    stored = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    (node,) = (n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.output[0].endswith(".by_channel"))
    scale, zero = (stored[name] for name in node.input[1:3])
    assert (scale.shape, zero.shape, zero.dtype) == ((8,), (8,), np.uint8)
    assert len(set(scale.tolist())) == 1
    again = OnnxGraph(made)
    assert keep_in_float_(again) == 0


class Middle(nn.Layer):
    """A channel that is always zero, and large weights on it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2D(3 if i == 0 else 4, 4, 3, padding=1) for i in range(3))
        self.relu, self.fourth = nn.ReLU(), nn.Conv2D(4, 2, 1)
        for tensor, at, value in ((self.first.weight, 3, 0.0), (self.first.bias, 3, 0.0)):
            changed = tensor.numpy()
            changed[at] = value
            tensor.set_value(changed)
        changed = self.second.weight.numpy()
        changed[:, 3] = 300.0
        self.second.weight.set_value(changed)

    def forward(self, x):
        return self.fourth(self.relu(self.third(self.relu(self.second(self.relu(self.first(x)))))))


@needs("paddle2onnx", "openvino")
def test_the_same_holds_for_networks_of_paddle(tmp_path):
    paddle.seed(0)
    network, x = Middle(), np.random.RandomState(0).randn(8, 3, 8, 8).astype("float32")
    quantised = ptq_int8(network, [paddle.to_tensor(x)], quantize_outputs=True, skip=["second"])
    forms = export_forms(quantised, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")], sample=[x])
    assert not forms.errors
    with paddle.no_grad():
        expected = quantised(paddle.to_tensor(x)).numpy()
    got = answer(str(tmp_path / "model.int8.onnx"), {"x": x})
    assert np.median(np.abs(got - expected)) < 0.01 * np.abs(expected).max()
