"""The float file of a network that learned with quantizers is that network, clips included; advice knows accuracies."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnxruntime
import paddle
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import Images, fit, hapi_model

from paddlelite_callbacks import ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.benchmark.int8_advice import int8_notes
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.export.variants import Variants, export_forms, write_forms

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}

IMAGE = InputSpec([None, 3, 8, 8], "float32", "x")


class Dense(nn.Layer):
    """Two linear layers, of which everything can be reckoned by hand."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.second = nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4)

    def forward(self, x):
        return self.second(self.relu(self.first(x.flatten(1))))


def trained(method: str, **options) -> nn.Layer:
    paddle.seed(0)
    model = hapi_model(Dense(), metrics=False)
    fit(model, [PACTQuantCallback(method=method, **options)], evaluate=False, epochs=2)
    for layer in (model.network.first, model.network.second):  # alphas that clip much
        alpha = layer.activation_quanter.alpha
        alpha.set_value(alpha * 0.3)
    model.network.eval()
    return model.network


def by_hand(network: nn.Layer, x: np.ndarray) -> np.ndarray:
    """Clip to ``[low, high] alpha / high``; weights ``round(w / step) step`` within the grid; in NumPy."""
    x = x.reshape(len(x), -1).astype("float64")
    for layer, relu in ((network.first, True), (network.second, False)):
        low, high = (float(value) for value in layer.activation_quanter.grid.numpy())
        step = float(layer.activation_quanter.alpha) / high
        steps = layer.weight_quanter.steps(layer.weight).numpy().astype("float64")
        integers = layer.weight_quanter.integers(layer.weight).numpy().astype("float64")
        x = np.clip(x, low * step, high * step) @ (integers * steps) + layer.bias.numpy()
        x = np.maximum(x, 0) if relu else x
    return x


@needs("paddle2onnx")
@pytest.mark.parametrize("method", ["pact", "lsq"])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_float_file_clips_where_training_did(method, bits, tmp_path):
    network, images = trained(method, weight_bits=bits), Images(8).images * 3
    forms = export_forms(network, tmp_path, input_spec=[IMAGE], sample=[images])
    assert not forms.errors
    got = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"x": images})[0]
    expected = by_hand(network, images)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    variants = Variants(network, [paddle.to_tensor(images)])
    np.testing.assert_allclose(variants.references["fp32"].outputs[0], expected, rtol=1e-4, atol=1e-5)
    half = write_forms(variants, tmp_path, input_spec=[IMAGE], onnx=True, fp16=True).artefacts[-1]
    assert half.precision == "fp16"
    assert 0 < variants.references["fp16"].noise[0] < 0.05 * np.abs(expected).max()
    in_half = onnxruntime.InferenceSession(str(half.path)).run(None, {"x": images})[0]
    assert np.abs(in_half - expected).max() <= variants.references["fp16"].noise[0] + 1e-5
    own = network(paddle.to_tensor(images)).numpy()
    assert np.abs(got - own).max() < 0.03 * np.abs(own).max()  # the rounding of activations alone
    unclipped = images.reshape(8, -1)
    for layer, relu in ((network.first, True), (network.second, False)):
        unclipped = unclipped @ layer.weight.numpy() + layer.bias.numpy()
        unclipped = np.maximum(unclipped, 0) if relu else unclipped
    assert np.abs(unclipped - own).max() > 0.3 * np.abs(own).max()  # what was written before


class Levels(nn.Layer):
    """One head on two levels, a batch norm to fold, outputs quantised."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2D(3, 4, 3, padding=1), nn.BatchNorm2D(4), nn.ReLU()
        self.head, self.fc = nn.Conv2D(4, 4, 1), nn.Linear(4, 4)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(self.head(x).mean([2, 3]) + self.head(8 * x).mean([2, 3]))


@needs("paddle2onnx", "openvino")
@pytest.mark.parametrize("outputs", [False, True])
def test_all_files_of_a_shared_head_agree_and_the_norm_is_folded(outputs, tmp_path):
    paddle.seed(0)
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", fp16=True, **QUICK))
    fit(hapi_model(Levels()), [PACTQuantCallback(quantize_outputs=outputs), callback], epochs=2)
    assert all(v.agrees for v in callback.record.verdicts)
    import onnx

    nodes = [node.op_type for node in onnx.load(tmp_path / "n" / "model.onnx").graph.node]
    assert "BatchNormalization" not in nodes
    assert nodes.count("Clip") >= 3


def row(engine, precision, ms, **more):
    return Latency(engine=engine, precision=precision, threads=1, batch_size=1, warmup=1, repeats=1, p50_ms=ms, **more)


def on_file(engine, precision, **metrics):
    return FileMetrics(engine=engine, precision=precision, metrics=metrics, samples=1)


LOST = [row("openvino", "fp32", 1.0), row("openvino", "int8", 2.0)]


def test_no_file_that_loses_is_advised():
    worse = [on_file("openvino", "fp32", acc=0.816), on_file("openvino", "int8", acc=0.988)]
    (note,) = int8_notes(LOST, file_metrics=worse)
    assert "ship model.onnx" not in note
    assert "model.onnx is the faster file, but loses: acc 0.816 against 0.988. Ship model.int8.onnx." in note
    error = [on_file("openvino", "fp32", rmse=2.0), on_file("openvino", "int8", rmse=1.0)]  # smaller is better
    assert "loses: rmse 2 against 1" in int8_notes(LOST, file_metrics=error)[0]
    assert "ship model.onnx for speed" in int8_notes(LOST, file_metrics=_swapped(worse))[0]
    assert "were not measured" in int8_notes(LOST)[0]
    won = [row("openvino", "fp32", 2.0), row("openvino", "int8", 1.0)]
    assert "and loses: acc 0.816 against 0.988" in int8_notes(won, file_metrics=_swapped(worse))[0]


def _swapped(metrics):
    return [replace(one, metrics=other.metrics) for one, other in zip(metrics, metrics[::-1], strict=True)]


def test_advice_goes_by_the_fastest_call_and_leaves_out_what_differs_and_noise():
    rows = [row("openvino", "fp32", 5.0, min_ms=1.0), row("openvino", "int8", 2.0, min_ms=1.5)]
    assert "int8 is slower" in int8_notes(rows)[0]
    assert int8_notes(rows, noisy=True) == ()
    assert int8_notes(rows, agreeing=[("openvino", "fp32")]) == ()
    both = [*rows, row("onnxruntime", "fp32", 4.0), row("onnxruntime", "int8", 3.0)]
    agreeing = [("openvino", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    assert "int8 (onnxruntime, 3.00 ms) takes 0.75" in int8_notes(both, agreeing=agreeing)[0]


@needs("paddle2onnx", "onnxruntime")
def test_accuracy_of_the_files_is_shown_where_fit_evaluated_nothing(tmp_path):
    data = Images()
    options = {**QUICK, "report": True, "engines": ["paddle", "onnxruntime"]}
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", eval_data=data, **options))
    model = hapi_model(Levels())
    fit(model, [callback], evaluate=False)
    accuracy = model.evaluate(data, batch_size=8, verbose=0)["acc"]
    assert callback.record.metrics == {}
    assert callback.record.metric("acc") == pytest.approx(accuracy)
    assert callback.summary().count(f", acc {accuracy:.4g}") == 2
    report = (tmp_path / "report.md").read_text()
    assert re.search(rf"\| n \| {100 * accuracy:.2f} % \(\d+\.\d–\d+\.\d, n {len(data)}\) \|", report)
    assert f"result (on the files): acc {accuracy:.6g}" in report
    assert "- [x] **Result and model**" in report
