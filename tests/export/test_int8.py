"""The real int8 file against the fake-quantised network, in two engines that know nothing of Paddle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from installed import needs
from onnx_weights import int8_weights
from paddle import nn
from paddle.static import InputSpec
from places import HELPERS
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import (
    BenchOptions,
    ExportBenchCallback,
    ExportOptions,
    PACTConfig,
    PACTQuantCallback,
    prepare_pact_,
    ptq_int8,
)
from paddlelite_callbacks.benchmark.engines import OnnxRuntime, OpenVino, PaddleInference
from paddlelite_callbacks.benchmark.int8_advice import int8_notes
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.qdq import rewrite_as_qdq, write_int8_onnx
from paddlelite_callbacks.export.variants import export_forms, references
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.convert import convert_for_export_
from paddlelite_callbacks.utils.error_text import reason

onnx = pytest.importorskip("onnx")
SPEC = [InputSpec([None, 3, 8, 8], name="x")]


class Zoo(nn.Layer):
    """All that can stand around a quantised layer: norms with negative gammas, biases, activations, a sum, groups."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2D(3, 8, 3, padding=1, bias_attr=False)
        self.bn1 = nn.BatchNorm2D(8)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2D(8, 8, 3, padding=1, groups=8, bias_attr=False)
        self.bn2 = nn.BatchNorm2D(8)
        self.act = nn.Hardswish()
        self.conv3 = nn.Conv2D(8, 8, 1)
        self.bn3 = nn.BatchNorm2D(8)
        self.squeeze = nn.Conv2D(8, 4, 1)
        self.excite = nn.Conv2D(4, 8, 1)
        self.gate = nn.Hardsigmoid()
        self.up = nn.Conv2DTranspose(8, 6, 2, stride=2)
        self.bn4 = nn.BatchNorm2D(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.depthwise(x)))
        y = self.bn3(self.conv3(y)) + x
        scale = self.gate(self.excite(self.relu(self.squeeze(y.mean([2, 3], keepdim=True)))))
        return self.fc(self.relu(self.bn4(self.up(y * scale))).mean([2, 3]))


def trained(network, **options):
    """Quantise, fit for two epochs, and give the norms statistics and signs that folding can get wrong."""
    for layer in network.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            random = np.random.RandomState(layer.weight.shape[0])
            layer.weight.set_value(random.uniform(-1.5, 1.5, layer.weight.shape).astype("float32"))
            layer.bias.set_value(random.uniform(-0.5, 0.5, layer.weight.shape).astype("float32"))
    fit(hapi_model(network, learning_rate=0.01), [PACTQuantCallback(**options)], epochs=2, evaluate=False)
    network.eval()
    return network


def int8_file(network, folder: Path):
    duplicate = copy_network(network)
    convert_for_export_(duplicate)
    program = export_paddle(duplicate, folder, input_spec=SPEC, precision="int8")
    return write_int8_onnx(export_onnx(program, folder / "float.onnx"), folder / "model.int8.onnx")


def run(engine, artefact, x):
    return engine.load(artefact, threads=1)([x])[0]


OPTIONS = {
    "default": {},
    "outputs": {"quantize_outputs": True},
    "lsq": {"method": "lsq"},
    "four bits": {"weight_bits": 4, "activation_bits": 4},
    "skip": {"skip": ["conv1", "fc", "up"]},
    "convolutions": {"layer_types": ["Conv2D"]},
    "symmetric": {"activation_symmetric": True},
    "symmetric outputs": {"activation_symmetric": True, "quantize_outputs": True},
    "symmetric four bits": {"activation_symmetric": True, "weight_bits": 4, "activation_bits": 4},
}


class SwitchedOff(nn.Layer):
    """A norm has switched a channel off: its weights are tiny, its bias is not."""

    def __init__(self, factor):
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.Conv2D(8, 4, 1)
        for tensor, value in ((self.bn.weight, factor), (self.bn.bias, 3.0)):
            changed = tensor.numpy()
            changed[2] = value
            tensor.set_value(changed)

    def forward(self, x):
        return self.conv2(nn.functional.relu6(self.bn(self.conv1(x))))


@needs("paddle2onnx")
@pytest.mark.parametrize("options", [{}, {"quantize_outputs": True}, {"weight_bits": 4}], ids=["8", "outputs", "4"])
@pytest.mark.parametrize("factor", [1e-6, -1e-12, 1e-20])
def test_a_channel_that_its_norm_switched_off_keeps_its_bias(factor, options, tmp_path):
    """ONNX Runtime stores biases as int32 in steps of the weights, which were too small for it."""
    paddle.seed(0)
    network, x = SwitchedOff(factor), Images(64).images
    network.eval()
    quantised = ptq_int8(network, [paddle.to_tensor(x)], **options)
    with paddle.no_grad():
        expected = quantised(paddle.to_tensor(x)).numpy()
    artefact = int8_file(quantised, tmp_path)
    for engine in (OpenVino(), OnnxRuntime()):
        off = np.abs(run(engine, artefact, x) - expected).max() / np.abs(expected).max()
        assert off < 0.02, engine.name


@needs("paddle2onnx")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_engines_give_what_was_simulated(options, tmp_path):
    network = trained(Zoo(), **options)
    x = Images(64).images
    expected = network(paddle.to_tensor(x)).numpy()
    artefact = int8_file(network, tmp_path)
    for engine in (OpenVino(), OnnxRuntime()):
        got = run(engine, artefact, x)
        off = np.abs(got - expected).max(axis=1) / np.abs(expected).max()
        # A value on a rounding threshold may fall on its other side: nearly all rows are exact, none is far off. ONNX
        # Runtime also rounds biases to the input's step times the weight's, which is twice as wide on half the range.
        exact = 0.9 if "quantize_outputs" not in options else 0.75 if engine.name == "openvino" else 0.5
        assert np.mean(off < 1e-5) >= exact, (engine.name, off)
        assert off.max() < (0.04 if "activation_symmetric" in options else 0.02)  # steps are twice as wide there
    np.testing.assert_array_equal(got.argmax(1), expected.argmax(1))


@needs("paddle2onnx")
@pytest.mark.parametrize("outputs", [False, True])
def test_top1_of_a_thousand_inputs(outputs, tmp_path):
    """All agree, save where the two best scores are nearer than rounding alone moves them."""
    network = trained(Zoo(), quantize_outputs=outputs)
    artefact, x = int8_file(network, tmp_path), Images(1000).images
    reference = references(network, [x])["int8"]
    expected, noise = reference.outputs[0], reference.noise[0]
    best = np.sort(expected, axis=1)
    for engine in (OpenVino(), OnnxRuntime()):
        other = run(engine, artefact, x).argmax(1) != expected.argmax(1)
        assert other.mean() <= 0.002, engine.name
        assert ((best[:, -1] - best[:, -2])[other] < 4 * noise).all()


@needs("paddle2onnx")
def test_integers_and_scales_are_those_of_training(tmp_path):
    network = trained(Zoo())
    model = onnx.load(str(int8_file(network, tmp_path).path))
    shipped = list(int8_weights(model).values())
    for name in ("conv1", "depthwise", "conv3", "squeeze", "excite", "fc"):
        layer = getattr(network, name)
        steps = layer.weight_quanter.steps(layer.weight).numpy()
        simulated = np.round(layer.weight_quanter(layer.weight).numpy() / steps).astype("int8")
        axes = (1, 2, 3) if simulated.ndim == 4 else ()
        same = [w for w in shipped if w.shape == simulated.shape and _equal_up_to_channel_signs(w, simulated, axes)]
        assert same, name
    assert {node.op_type for node in model.graph.node}.isdisjoint({"BatchNormalization", "Round", "Identity"})
    weights = int8_weights(model)  # dequantised at load where ONNX Runtime computes in float
    assert all(node.input[0] in weights for node in model.graph.node if node.op_type == "Cast")
    scales = {
        round(float(onnx.numpy_helper.to_array(item)), 9) for item in model.graph.initializer if len(item.dims) == 0
    }
    for name in ("conv1", "depthwise", "conv3", "fc"):
        assert round(float(np.float32(getattr(network, name).activation_quanter.step())), 9) in scales


def _equal_up_to_channel_signs(a, b, axes) -> bool:
    if not axes:
        return np.array_equal(a, b)
    signs = np.sign((a.astype(int) * b).sum(axis=axes, keepdims=True))
    return np.array_equal(a, b * np.where(signs == 0, 1, signs))


@needs("paddle2onnx")
def test_with_quantised_outputs_onnxruntime_computes_every_inner_convolution_in_int8(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    counts = []
    for outputs in (False, True):
        artefact = int8_file(trained(Zoo(), quantize_outputs=outputs, layer_types=["Conv2D"]), tmp_path / str(outputs))
        options = runtime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"optimised{outputs}.onnx")
        options.log_severity_level = 3
        runtime.InferenceSession(str(artefact.path), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        counts.append(kinds.count("QLinearConv"))
    assert counts[1] == 5  # also the last, "excite", behind which a Linear runs
    assert counts[0] < counts[1]


@needs("paddle2onnx")
def test_forms_of_a_quantised_network(tmp_path):
    network = trained(Zoo())
    forms = export_forms(network, tmp_path, input_spec=SPEC)
    assert not forms.errors
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.int8.onnx",
        "model.json",
        "model.onnx",
        "model.pdiparams",
    ]
    assert [(a.kind, a.precision) for a in forms.artefacts] == [("paddle", "int8"), ("onnx", "fp32"), ("onnx", "int8")]
    program, plain, _ = forms.artefacts
    x = Images(8).images
    quantised = network(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(run(PaddleInference(onednn=False), program, x), quantised, atol=1e-5)
    loaded = paddle.jit.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded(paddle.to_tensor(x)).numpy(), quantised, atol=1e-5)
    assert np.abs(run(OnnxRuntime(), plain, x) - quantised).max() > 1e-4  # quantizers are off in it


@needs("paddle2onnx")
def test_the_files_of_a_real_backbone_are_small(tmp_path):
    class Wide(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(3, 256, 3, padding=1)
            self.conv2 = nn.Conv2D(256, 256, 3, padding=1)

        def forward(self, x):
            return self.conv2(self.conv(x)).mean([2, 3])

    network = Wide()
    plain = export_paddle(network, tmp_path / "fp32", input_spec=SPEC)
    prepare_pact_(network)
    network(paddle.to_tensor(Images(4).images))
    (tmp_path / "int8").mkdir()
    forms = export_forms(network, tmp_path / "int8", input_spec=SPEC)
    sizes = {(item.kind, item.precision): item.size_mb for item in forms.artefacts}
    assert sizes["onnx", "int8"] / sizes["onnx", "fp32"] <= 0.27
    assert sizes["paddle", "int8"] / plain.size_mb <= 0.3


@needs("paddle2onnx")
def test_a_float_file_is_refused(tmp_path):
    plain = export_onnx(export_paddle(TinyNet(), tmp_path, input_spec=SPEC), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="no quantizer"):
        write_int8_onnx(plain, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


@needs("paddle2onnx")
def test_the_callback_hands_the_int8_file_out(tmp_path):
    export = ExportBenchCallback(
        tmp_path, name="tiny", verbose=0, benchmark=BenchOptions(warmup=1, repeats=3, peak_memory=False, roofline=False)
    )
    fit(hapi_model(), [export, PACTQuantCallback()], epochs=2)
    assert (tmp_path / "tiny" / "model.int8.onnx").is_file()
    record = export.record
    assert {(c.engine, c.precision) for c in record.checks if c.passed} >= {
        ("onnxruntime", "int8"),
        ("openvino", "int8"),
        ("onnxruntime", "fp32"),
        ("paddle", "int8"),
    }
    noisy = any(note.startswith("Noise") for note in record.notes)
    assert noisy != any(note.startswith(("int8 (", "int8 is slower")) for note in record.notes)  # noise: no advice
    line = json.loads((tmp_path / "runs.jsonl").read_text())
    assert [(a["kind"], a["precision"]) for a in line["artefacts"]][1:] == [("onnx", "fp32"), ("onnx", "int8")]


def row(engine, precision, p50_ms):
    return Latency(engine=engine, precision=precision, threads=1, batch_size=1, warmup=1, repeats=1, p50_ms=p50_ms)


def test_the_result_says_where_int8_loses():
    won = int8_notes(
        [
            row("onnxruntime", "fp32", 10.0),
            row("onnxruntime", "int8", 20.0),
            row("openvino", "fp32", 11.0),
            row("openvino", "int8", 4.0),
            row("paddle", "int8", 50.0),
        ]
    )
    assert "takes 0.40 of the time of the best fp32 file (onnxruntime, 10.00 ms)" in won[0]
    assert "On onnxruntime int8 takes 2.00 of fp32's time" in won[1]
    lost = int8_notes([row("openvino", "fp32", 1.0), row("openvino", "int8", 2.0)])
    assert len(lost) == 1
    assert "slower than fp32 on every engine" in lost[0]
    assert int8_notes([row("openvino", "fp32", 1.0), row("paddle", "int8", 2.0)]) == ()


@needs("paddle2onnx")
def test_ptq_calibrates_on_the_float_network_and_ships(tmp_path):
    network = Zoo()
    network.eval()
    x = Images(32).images
    state = {key: value.numpy().copy() for key, value in network.state_dict().items()}
    quantised = ptq_int8(network, [paddle.to_tensor(x[:16]), paddle.to_tensor(x[16:])], calibration="percentile")
    assert all(np.array_equal(value.numpy(), state[key]) for key, value in network.state_dict().items())
    assert type(network.conv1) is nn.Conv2D
    tops = [np.percentile(np.abs(part), 99.9) for part in (x[:16], x[16:])]
    assert float(quantised.conv1.activation_quanter.alpha) == pytest.approx(np.mean(tops), rel=1e-5)
    seen = network.relu(network.bn1(network.conv1(paddle.to_tensor(x)))).numpy()
    assert quantised.depthwise.activation_quanter.levels() == (0, 255)
    assert float(quantised.depthwise.activation_quanter.alpha) == pytest.approx(np.percentile(seen, 99.9), rel=0.05)
    expected = quantised(paddle.to_tensor(x)).numpy()
    got = run(OpenVino(), int8_file(quantised, tmp_path), x)
    assert np.mean(np.abs(got - expected).max(axis=1) < 1e-5 * np.abs(expected).max()) >= 0.9
    assert np.abs(expected - network(paddle.to_tensor(x)).numpy()).max() < 0.05 * np.abs(expected).max()
    with pytest.raises(ValueError, match="at least one batch"):
        ptq_int8(network, [])


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from toy import fit, hapi_model
from paddlelite_callbacks import ExportBenchCallback, PACTQuantCallback
import paddlelite_callbacks.export.variants as forms
def stuck(*_):
    print("writing", flush=True)
    time.sleep(60)
forms.write_int8_onnx = stuck
fit(hapi_model(), [PACTQuantCallback(), ExportBenchCallback({folder!r}, name="tiny", verbose=0, preflight=False)])
"""


@needs("paddle2onnx")
@pytest.mark.slow
def test_kill_9_during_the_export_leaves_no_half_set(tmp_path):
    def export():
        fit(
            hapi_model(),
            [
                PACTQuantCallback(),
                ExportBenchCallback(
                    tmp_path,
                    name="tiny",
                    engines=["paddle", "onnxruntime"],
                    verbose=0,
                    export=ExportOptions(report=False),
                    benchmark=BenchOptions(warmup=1, repeats=1, peak_memory=False, roofline=False),
                ),
            ],
        )

    export()
    before = {file.name: file.read_bytes() for file in (tmp_path / "tiny").iterdir()}
    code = KILLED.format(tests=str(HELPERS), folder=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while "writing" not in child.stdout.readline():
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    time.sleep(0.1)
    aside = tmp_path / "tiny" / "previous_export"  # beside the new weights, which are written first
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == before
    assert len([file for file in (tmp_path / "tiny").iterdir() if file.is_file()]) == 2
    export()
    assert {file.name for file in (tmp_path / "tiny").iterdir()} == set(before)
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == ["runs.jsonl", "tiny"]


def test_export_of_layers_that_never_ran_keeps_them_in_float():
    class Idle(TinyNet):
        def __init__(self):
            super().__init__()
            self.aside = nn.Linear(2, 2)

    network = Idle()
    prepare_pact_(network, PACTConfig())
    network(paddle.to_tensor(Images(4).images))
    assert convert_for_export_(copy_network(network)) == ["conv1", "conv2", "fc"]


class RunsTwice(nn.Layer):
    """A convolution and its batch norm that run twice, and one that is known by two names."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8)
        self.twice, self.norm2 = nn.Conv2D(8, 8, 3, padding=1), nn.BatchNorm2D(8)
        self.alias = self.twice
        self.fc = nn.Linear(8, 4)
        self.norm2.weight.set_value(np.float32([-1, 0.5, 2, -0.3, 1, 1, 0.7, -2]))

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.first(x)))
        x = nn.functional.relu(self.norm2(self.twice(x)))
        return self.fc(self.norm2(self.alias(x)).mean([2, 3]))


@needs("paddle2onnx")
@pytest.mark.parametrize("options", [{}, {"quantize_outputs": True, "method": "lsq"}])
def test_a_layer_that_runs_twice(options, tmp_path):
    """Its integers stand in the file once, and its batch norm is not folded twice into them."""
    paddle.seed(0)
    model = hapi_model(RunsTwice(), metrics=False)
    fit(model, [PACTQuantCallback(**options)], evaluate=False, epochs=2)
    network, images = copy_network(model.network), Images(8).images
    forms = export_forms(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], "float32", "x")], sample=[images])
    assert not forms.errors
    (file,) = [a for a in forms.artefacts if (a.kind, a.precision) == ("onnx", "int8")]
    got = OnnxRuntime(optimised=False).load(file, threads=1)([images])[0]
    np.testing.assert_allclose(got, network(paddle.to_tensor(images)).numpy(), atol=1e-5)


@needs("paddle2onnx")
def test_a_file_that_is_no_model_costs_only_itself(tmp_path, monkeypatch):
    model = hapi_model(metrics=False)
    fit(model, [PACTQuantCallback()], evaluate=False)

    def twice(model):
        rewritten = rewrite_as_qdq(model)
        rewritten.graph.node.append(rewritten.graph.node[0])
        return rewritten

    monkeypatch.setattr("paddlelite_callbacks.export.qdq.rewrite_as_qdq", twice)
    spec = [InputSpec([None, 3, 8, 8], "float32", "x")]
    forms = export_forms(copy_network(model.network), tmp_path, input_spec=spec, sample=[Images(2).images])
    assert "ONNX model" in forms.errors["onnx", "int8"]
    assert [(a.kind, a.precision) for a in forms.artefacts] == [("paddle", "int8"), ("onnx", "fp32")]


@needs("openvino")
def test_openvino_says_why():
    message = (
        "Exception from src/inference/src/cpp/core.cpp:132:\nException from src/a.cpp:59:\nCheck failed.\nThe why.\n"
    )
    assert reason(RuntimeError(message)) == "RuntimeError: Check failed. The why."
    assert reason(RuntimeError("Exception from src/a.cpp:59:")) == "RuntimeError: Exception from src/a.cpp:59:"
    assert reason(ValueError("first\nsecond")) == "ValueError: first"
