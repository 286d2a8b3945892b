"""Two quantizers on different grids in turn: the files compute both, as training did; ONNX Runtime would merge them."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks import PACTConfig, prepare_pact_
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.export.variants import export_forms

pytestmark = needs("paddle2onnx")


class Net(nn.Layer):
    """Convolutions that read the result of another one directly, behind a ReLU, a pooling, a sum and a concat."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2D(a, 8, 3, padding=1) for a in (3, 8, 8))
        self.pooled, self.summed, self.joined = (nn.Conv2D(a, 8, 1) for a in (8, 8, 16))
        self.pool, self.head = nn.MaxPool2D(2), nn.Linear(8, 5)

    def forward(self, x):
        x = self.second(self.first(x))
        y = self.third(nn.functional.relu(x))
        y = self.pooled(self.pool(y))
        z = self.summed(y + self.pool(x))
        return self.head(self.joined(paddle.concat([y, z], axis=1)).mean([2, 3]))


@needs("onnxruntime", "openvino")
def test_engines_keep_both_grids(tmp_path):
    onnx = pytest.importorskip("onnx")
    paddle.seed(3)
    network = Net()
    prepare_pact_(network, PACTConfig(quantize_outputs=True))
    x = np.random.RandomState(0).randn(8, 3, 12, 12).astype("float32")
    network.train()
    network(paddle.to_tensor(x))  # calibrates
    network.eval()
    for number, layer in enumerate(network.sublayers()):  # as training moves them
        if hasattr(layer, "activation_quanter"):
            layer.activation_quanter.alpha.set_value(layer.activation_quanter.alpha * (0.7 + 0.02 * number))
    expected = network(paddle.to_tensor(x)).numpy()
    forms = export_forms(network, tmp_path, input_spec=[InputSpec([None, 3, 12, 12], name="x")])
    file = next(a for a in forms.artefacts if (a.kind, a.precision) == ("onnx", "int8"))
    model = onnx.load(str(file.path))
    made = {name: node for node in model.graph.node for name in node.output}

    def distance(engine):
        got = ENGINES[engine].load(file, threads=1)([x])[0]
        return float(np.abs(got - expected).mean() / np.abs(expected).mean())

    parted = [node for node in model.graph.node if node.op_type == "Min"]
    assert parted
    assert all(made[node.input[0]].op_type == "DequantizeLinear" for node in parted)
    apart = distance("onnxruntime")
    assert apart < 0.02
    assert distance("openvino") < 0.02
    for node in parted:  # without them
        for reader in model.graph.node:
            reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
        model.graph.node.remove(node)
    file.path.write_bytes(model.SerializeToString())
    assert distance("onnxruntime") > 2 * apart
