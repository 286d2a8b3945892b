"""Ready files in int8 in one call: checked, judged and recorded like an export; layers put back for a limit."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnxruntime
import paddle
import pytest
from installed import needs
from onnx import numpy_helper
from onnx_graphs import inputs_of, maps, tokens, torch_style, two_inputs
from paddle.static import InputSpec
from PIL import Image
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import BenchOptions, Budget, quantize
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.export.saturation import saturating_channels
from paddlelite_callbacks.recipes.quantize_state import Measured
from paddlelite_callbacks.report.record import read_records

pytestmark = needs("onnxruntime", "openvino", "onnxslim")
QUICK = BenchOptions(engines=["onnxruntime"], warmup=0, repeats=2, peak_memory=False, roofline=False)
ARGUMENTS = ["--warmup", "0", "--repeats", "2", "--no-memory"]


def saved(model, folder, name="net.onnx"):
    onnx.save(model, folder / name)
    return folder / name


def outputs(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A trained network as a program of Paddle 3, and its data."""
    paddle.seed(0)
    network, data = TinyNet(width=8), Images(96)
    fit(hapi_model(network, optimizer="Adam", learning_rate=0.02), data=data, epochs=12, evaluate=False)
    network.eval()
    prefix = tmp_path_factory.mktemp("program") / "net"
    paddle.jit.save(network, str(prefix), input_spec=[InputSpec([None, 3, 8, 8], name="image")])
    with paddle.no_grad():
        logits = network(paddle.to_tensor(data.images)).numpy()
    return prefix, data, logits


@needs("paddle2onnx")
def test_a_paddle_program_is_quantised_and_recorded_like_an_export(program, tmp_path):
    prefix, data, logits = program
    options = BenchOptions(warmup=0, repeats=2, peak_memory=False, roofline=False)
    made = quantize(
        prefix, data, Budget(size_mb=1), metric_drop=0.1, folder=tmp_path, calibration_images=32, benchmark=options,
        verbose=0,
    )  # fmt: skip
    assert sorted(path.name for path in made.folder.iterdir()) == ["deploy.json", "model.int8.onnx", "model.onnx"]
    evaluated = np.setdiff1d(np.arange(96), np.unique(np.linspace(0, 95, 32).round().astype(int)))
    accuracy = np.mean(logits.argmax(1)[evaluated] == data.labels[evaluated])
    assert accuracy > 0.6
    (record,) = read_records(tmp_path / "runs.jsonl")
    assert record == made.record
    assert (record.name, record.precision, made.budget.metric) == ("net", "int8", "acc")
    assert made.budget.baseline == pytest.approx(accuracy)
    by_file = {(row.engine, row.precision): row for row in record.file_metrics}
    assert set(by_file) == {(e, p) for e in ("onnxruntime", "openvino") for p in ("fp32", "int8")}
    for (_, precision), row in by_file.items():
        got = outputs(made.folder / f"model{'.int8' * (precision == 'int8')}.onnx", data.images[evaluated])
        assert row.samples == len(evaluated)
        assert row.metrics["acc"] == pytest.approx(np.mean(got.argmax(1) == data.labels[evaluated]), abs=0.02)
        assert row.metrics["agreement"] == pytest.approx(
            np.mean(got.argmax(1) == logits[evaluated].argmax(1)), abs=0.02
        )
    np.testing.assert_allclose(outputs(made.folder / "model.onnx", data.images), logits, atol=1e-5)
    assert all(check.passed for check in record.checks)
    assert made.verdict.passed
    assert record.size_mb == pytest.approx((made.folder / "model.int8.onnx").stat().st_size / 1e6)
    sidecar = json.loads((made.folder / "deploy.json").read_text())
    assert sidecar["inputs"] == [{"name": "image", "shape": [None, 3, 8, 8], "dtype": "float32"}]
    assert sidecar["quantization"]["weight_bits"] == 8
    assert {file["precision"]: file["verdicts"]["openvino"] for file in sidecar["files"]} == {
        "fp32": "agrees", "int8": "agrees"
    }  # fmt: skip
    report = (tmp_path / "report.md").read_text()
    assert "no int8 program of Paddle is written" in report
    assert "result (on the files): acc" in report
    assert saturating_channels(made.folder / "model.int8.onnx").channels == 0
    assert not list(tmp_path.glob(".*quantize*"))
    with pytest.raises(ValueError, match="holds int8 weights: give the fp32 file that it was made from"):
        quantize(made.folder / "model.int8.onnx", data, folder=tmp_path / "again", verbose=0)


@pytest.mark.parametrize(
    ("make", "metric"),
    [(torch_style, "agreement"), (maps, "fidelity"), (tokens, "fidelity"), (two_inputs, "fidelity")],
    ids=["classes", "maps", "tokens", "two inputs"],
)
def test_without_labels_files_are_held_against_the_float_model(make, metric, tmp_path):
    model = make()
    inputs = inputs_of(model, 40)
    made = quantize(
        saved(model, tmp_path), inputs, folder=tmp_path / "out", calibration_images=16, benchmark=QUICK, verbose=0
    )
    assert made.budget.metric == metric
    rows = {row.precision: row.metrics[metric] for row in made.record.file_metrics}
    assert rows["fp32"] == pytest.approx(1.0)
    assert 0.9 < rows["int8"] <= 1.0
    if metric == "fidelity":
        rest = np.setdiff1d(np.arange(40), np.unique(np.linspace(0, 39, 16).round().astype(int)))
        batch = {name: array[rest] for name, array in inputs.items()}
        pair = [
            onnxruntime.InferenceSession(str(made.folder / name)).run(None, batch)[0]
            for name in ("model.onnx", "model.int8.onnx")
        ]
        lost = np.sqrt(np.mean((pair[1] - pair[0]) ** 2) / np.mean(pair[0] ** 2))
        assert rows["int8"] == pytest.approx(1 - lost, abs=2e-3)


# ---- accuracy-aware


def broken(tmp_path, outlier, **options):
    """Quantise a network in which one layer has an outlier among its weights."""
    data = np.random.RandomState(3).randn(96, 3, 12, 12).astype("float32")
    return quantize(
        saved(maps(outlier=outlier), tmp_path), data, folder=tmp_path / "out", calibration_images=32, benchmark=QUICK,
        quantize_outputs=True, verbose=0, **options,
    )  # fmt: skip


def test_the_broken_layer_is_found_and_put_back_to_float(tmp_path):
    made = broken(tmp_path, 300.0, metric_drop=0.1)
    assert (made.in_float, made.raised) == (("third",), ())
    assert made.verdict.passed
    curve = made.record.layer_curve
    assert [point.layers for point in curve if point.chosen] == [("third",)]
    assert {point.to for point in curve} == {"float"}
    assert min(point.metric for point in curve) < 0.5
    stored = {
        item.name: numpy_helper.to_array(item).dtype
        for item in onnx.load(made.folder / "model.int8.onnx").graph.initializer
        if len(item.dims) == 4 and not item.name.endswith(".shaped")  # scales of weights that are dequantised at load
    }
    assert sorted(str(kind) for kind in stored.values()) == ["float32", "int8", "int8", "int8"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Layers put back: net" in report
    assert "| **1 (shipped)** | float |" in report
    assert (tmp_path / "out" / "layers.png").is_file()


def products_in_float(path, tmp_path):
    """Nodes of ONNX Runtime's own optimised graph that compute products in float."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ran = onnx.load(options.optimized_model_filepath).graph
    return [node for node in ran.node if node.op_type in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")]


@pytest.mark.parametrize("quantize_outputs", [False, True])
def test_layers_that_onnxruntime_computes_in_float_are_named(quantize_outputs, tmp_path):
    data = np.random.RandomState(3).randn(40, 3, 16, 16).astype("float32")
    made = quantize(
        saved(torch_style(), tmp_path), data, folder=tmp_path / "out", calibration_images=16, benchmark=QUICK,
        quantize_outputs=quantize_outputs, verbose=0,
    )  # fmt: skip
    (figures,) = (one for one in made.record.artefacts if one.precision == "int8")
    in_float = products_in_float(made.folder / "model.int8.onnx", tmp_path)
    assert len(figures.float_layers) == len(in_float)
    assert (len(in_float) > 0) != quantize_outputs
    assert set(figures.float_layers) <= {"stem", "dw", "pw", "fc"}
    notes = [one for one in made.record.notes if "quantised layers in float" in one]
    assert len(notes) == (not quantize_outputs)
    assert all(name in note for name in figures.float_layers[:5] for note in notes)


def test_with_four_bits_the_broken_layer_is_put_back_to_eight(tmp_path):
    made = broken(tmp_path, 4.0, metric_drop=0.5, weight_bits=4)
    assert (made.in_float, made.raised) == ((), ("third",))
    assert {point.to for point in made.record.layer_curve} == {"8 bits"}


def test_where_eight_bits_do_not_suffice_float_does(tmp_path):
    made = broken(tmp_path, 300.0, metric_drop=0.1, weight_bits=4)
    assert (made.in_float, made.raised) == (("third",), ("first", "fourth", "second"))
    assert [point.to for point in made.record.layer_curve][:3] == ["8 bits", "8 bits", "float"]


def test_what_no_int8_file_keeps_is_said(tmp_path):
    made = broken(tmp_path, 300.0, metric_drop=0.0001)
    assert not made.verdict.passed
    assert any("No int8 file was found that keeps fidelity" in note for note in made.record.notes)


class Interrupted(paddle.metric.Metric):
    """One minus the mean error; the process is interrupted at one of its evaluations."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.evaluations = at, [0]
        self.reset()

    def __deepcopy__(self, memo):
        twin = type(self)(self.at)
        twin.evaluations = self.evaluations
        return twin

    def reset(self):
        self.errors = []

    def update(self, error):
        self.errors.append(float(error))

    def compute(self, output, wanted):
        return (output - wanted).abs().mean()

    def accumulate(self):
        self.evaluations[0] += 1
        if self.evaluations[0] == self.at:
            raise KeyboardInterrupt
        return 1 - float(np.mean(self.errors))

    def name(self):
        return "closeness"


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    path, inputs = saved(maps(outlier=300.0), tmp_path), np.random.RandomState(3).randn(48, 3, 12, 12)
    data = [inputs.astype("float32"), outputs(path, inputs.astype("float32"))]
    options = {"calibration_images": 16, "benchmark": QUICK, "quantize_outputs": True, "metric_drop": 0.05}
    whole, first, second = Interrupted(), Interrupted(at=4), Interrupted()
    expected = quantize(path, data, folder=tmp_path / "whole", metric=whole, verbose=0, **options)
    with pytest.raises(KeyboardInterrupt):
        quantize(path, data, folder=tmp_path / "out", metric=first, verbose=0, **options)
    assert (tmp_path / "out" / ".net.quantize.json").is_file()
    assert not (tmp_path / "out" / "net").exists()
    made = quantize(path, data, folder=tmp_path / "out", metric=second, verbose=0, **options)
    assert made.in_float == expected.in_float == ("third",)
    assert [p.layers for p in made.record.layer_curve] == [p.layers for p in expected.record.layer_curve]
    assert whole.evaluations[0] - second.evaluations[0] == 2  # the float model's is measured again
    assert not (tmp_path / "out" / ".net.quantize.json").exists()
    assert made.budget.metric == "closeness"


def test_a_resumed_search_keeps_the_places_of_its_quantisers_and_other_data_begin_again(tmp_path):
    path, inputs = saved(maps(outlier=300.0), tmp_path), np.random.RandomState(3).randn(48, 3, 12, 12)
    data = [inputs.astype("float32"), outputs(path, inputs.astype("float32"))]
    options = {"calibration_images": 16, "benchmark": QUICK, "metric_drop": 0.05, "folder": tmp_path / "out"}
    held = tmp_path / "out" / ".net.quantize.json"
    with pytest.raises(KeyboardInterrupt):
        quantize(path, data, metric=Interrupted(at=4), verbose=0, **options)
    state = json.loads(held.read_text())
    assert state["quantize_outputs"] in (True, False)  # as it was timed
    with pytest.raises(KeyboardInterrupt):
        quantize(path, [data[0][::-1].copy(), data[1]], metric=Interrupted(at=2), verbose=0, **options)
    assert json.loads(held.read_text())["settings"] != state["settings"]
    for chosen in (True, False):
        held.write_text(json.dumps(state | {"quantize_outputs": chosen}))
        made = quantize(path, data, metric=Interrupted(), verbose=0, **options)
        assert made.record.config["quantize"]["quantize_outputs"] is chosen


def test_measurements_of_other_settings_or_a_torn_file_are_not_taken(tmp_path):
    from paddlelite_callbacks.quant.layer_search import SearchPoint

    path, layers = tmp_path / "state.json", frozenset({"b", "a"})
    state = Measured(path, {"images": 3})
    state.keep_sensitivity({"a": 0.5})
    state.keep_point("float", SearchPoint(layers=layers, metric=0.25, latency_ms=None))
    assert Measured(path, {"images": 3}).quantize_outputs is None
    state.keep_outputs(True)
    again = Measured(path, {"images": 3})
    assert (again.resumed, again.sensitivity, again.quantize_outputs) == (True, {"a": 0.5}, True)
    assert again.point("float", layers) == SearchPoint(layers=layers, metric=0.25, latency_ms=None)
    assert again.point("8 bits", layers) is None
    assert not Measured(path, {"images": 4}).resumed
    path.write_text(path.read_text()[:-20])
    assert not Measured(path, {"images": 3}).resumed
    state.delete()
    assert not path.exists()


# ---- command line


@pytest.fixture
def pictures(tmp_path):
    random = np.random.RandomState(0)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            pixels = (random.rand(20, 24, 3) * 255).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def test_the_command(pictures, tmp_path, capsys):
    given = ["quantize", str(saved(torch_style(), tmp_path)), "--data", str(pictures), "--out", str(tmp_path / "out")]
    given += [*ARGUMENTS, "--engines", "OnnxRuntime", "--calibration-images", "8"]
    assert main([*given, "--json", "--size-mb", "1"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert (told["name"], told["passed"], told["metric"], told["in_float"]) == ("net", True, "acc", [])
    assert told["value"] == told["record"]["file_metrics"][1]["metrics"]["acc"]
    sidecar = json.loads((tmp_path / "out" / "net" / "deploy.json").read_text())
    assert sidecar["preprocess"]["mean"] == [123.675, 116.28, 103.53]
    assert main([*given, "--size-mb", "0.000001", "--name", "small", "--mean", "0", "--std", "255"]) == 3
    said = capsys.readouterr().out
    assert "small: fail: size" in said
    assert "4 layers to quantise, 16 images" in said
    assert len(read_records(tmp_path / "out" / "runs.jsonl")) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engines", "paddle"], "quantize writes ONNX files, which ['paddle'] cannot read"),
        (["--engine", "mnn"], "'mnn' is none of ['onnxruntime', 'openvino']"),
        (["--skip", "stam"], "skip=['stam'] matches no layer; the layers are ['stem', 'dw', 'pw', 'fc']"),
        (["--weight-bits", "9"], "weight_bits must be"),
        (["--calibration", "best"], "calibration must be one of"),
        (["--calibration-images", "0"], "calibration_images must be a whole number of at least 1, got 0"),
        (["--mean", "red"], "--mean and --std must be numbers separated by commas, got 'red'"),
        (["--size", "99"], "takes 16 x 16 pixels, not 99"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_the_command_refuses(arguments, said, pictures, tmp_path, capsys):
    given = ["quantize", str(saved(torch_style(), tmp_path)), "--data", str(pictures), "--out", str(tmp_path / "out")]
    assert main([*given, *ARGUMENTS, *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "net").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"model": 3}, TypeError, "model must be the path of an ONNX file or a Paddle program, got int"),
        ({"metric_drop": 1.0}, ValueError, "metric_drop must be a share of the float metric in [0, 1), got 1.0"),
        ({"most_files": 1}, ValueError, "most_files must be a whole number of at least 2, got 1"),
        ({"images": 0}, ValueError, "images must be a whole number of at least 1, got 0"),
        ({"skip": "stem"}, TypeError, "skip must be a list of globs, got 'stem'"),
        ({"skip": ["*"]}, ValueError, "Nothing is left to quantise"),
        ({"bias_correction": 1}, TypeError, "bias_correction must be True or False, got 1"),
        ({"metric": paddle.metric.Accuracy()}, ValueError, "metric=Accuracy needs labels, and the data have none"),
        ({"budget": Budget(metric="f1", metric_drop=None)}, ValueError, "Unknown metric 'f1' in the budget"),
        ({"preprocess": {"size": 16}}, ValueError, "preprocess is for pictures"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(options, error, said, tmp_path):
    model = torch_style()
    given = {"model": saved(model, tmp_path), "data": inputs_of(model, 8), "folder": tmp_path / "out", **options}
    with pytest.raises(error, match=re.escape(said)):
        quantize(given.pop("model"), given.pop("data"), benchmark=QUICK, verbose=0, **given)


def test_labels_beyond_the_classes_are_named(tmp_path):
    model = torch_style()
    data = [*inputs_of(model, 8).values(), np.arange(8)]
    with pytest.raises(ValueError, match="The labels go up to 7, the file has 5 classes"):
        quantize(saved(model, tmp_path), data, folder=tmp_path / "out", benchmark=QUICK, verbose=0)
