"""The user's metrics on the exported files, the best epoch's weights, fp16 files, deploy.json, fixed batches."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import paddle
import pytest
from exporting import grouped
from installed import needs
from paddle.static import InputSpec
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import Budget, ExportBenchCallback, GateError
from paddlelite_callbacks.benchmark.accuracy import measure_metrics
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.fp16 import write_fp16_onnx
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.report.record import read_records

FAST = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}


def outputs_of(path, images):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """One fit with all options on: several tests read what it left."""
    folder = tmp_path_factory.mktemp("all options, a space and \u4e2d\u6587")
    paddle.seed(3)
    model = hapi_model(TinyNet(width=16), learning_rate=0.3)
    states = []

    class Keep(paddle.callbacks.Callback):
        def on_eval_end(self, logs=None):
            states.append((float(logs["loss"][0]), weights_of(self.model.network)))

    callback = ExportBenchCallback(
        folder,
        **grouped(
            name="all",
            which="best",
            monitor="loss",
            mode="max",
            fp16=True,
            sidecar={"preprocess": {"mean": np.float32([0.5])}, "labels": ["a", "b", "c", "\u732b"]},
            budget=Budget(metric="acc", baseline=1.0, metric_drop=0.9),
            **FAST,
        ),
    )
    fit(model, [callback, Keep()], epochs=5)
    return folder, callback, model, states


@needs("paddle2onnx")
def test_accuracy_on_every_file_equals_a_loop(everything):
    folder, callback, _, _ = everything
    images, labels = Images().images, Images().labels
    rows = {(row.engine, row.precision): row for row in callback.record.file_metrics}
    assert list(rows) == [
        ("paddle", "fp32"),
        ("paddle-onednn", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("openvino", "fp32"),
        ("openvino", "fp16"),
    ]
    for precision, name in (("fp32", "model.onnx"), ("fp16", "model.fp16.onnx")):
        by_hand = float((outputs_of(folder / "all" / name, images).argmax(1) == labels).mean())
        assert rows["onnxruntime", precision].metrics == {"acc": pytest.approx(by_hand)}
        assert rows["onnxruntime", precision].samples == 16
    assert rows["paddle", "fp32"].metrics["acc"] == pytest.approx(callback.record.metrics["acc"])


@needs("paddle2onnx")
def test_the_best_epochs_weights_are_exported_and_the_last_stay_in_the_model(everything):
    folder, callback, model, states = everything
    losses = [loss for loss, _ in states]
    best = int(np.argmax(losses))
    assert best < 4, "the test needs a best epoch before the last"
    assert callback.record.epoch == best + 1
    assert callback.record.metrics["loss"] == losses[best]
    assert equal_weights(weights_of(model.network), states[-1][1])
    network = TinyNet(width=16)
    network.set_state_dict({key: paddle.to_tensor(value) for key, value in states[best][1].items()})
    network.eval()
    images = Images().images
    np.testing.assert_allclose(
        outputs_of(folder / "all" / "model.onnx", images), network(paddle.to_tensor(images)), atol=1e-5
    )


def test_the_log_of_every_epoch(everything):
    folder, callback, _, states = everything
    rows = [json.loads(line) for line in (folder / "all" / "train_log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["eval_loss"] for row in rows] == [loss for loss, _ in states]
    assert tuple(rows) == callback.record.history
    assert read_records(folder / "runs.jsonl") == [callback.record]


@needs("paddle2onnx")
def test_fp16_halves_the_weights_and_keeps_the_outputs(everything):
    folder, _, _, _ = everything
    half = onnx.load(str(folder / "all" / "model.fp16.onnx"))
    full = onnx.load(str(folder / "all" / "model.onnx"))
    images = Images().images
    a, b = (outputs_of(folder / "all" / name, images) for name in ("model.onnx", "model.fp16.onnx"))
    assert 0 < np.abs(a - b).max() < 1e-2 * np.abs(a).max()
    assert len(half.SerializeToString()) < len(full.SerializeToString())
    assert not [i for i in half.graph.initializer if i.data_type == onnx.TensorProto.FLOAT and np.prod(i.dims) >= 16]


@needs("paddle2onnx")
def test_a_weight_beyond_fp16_is_refused(tmp_path):
    network = TinyNet()
    with paddle.no_grad():
        network.fc.weight.set_value(network.fc.weight * 1e7)
    program = export_paddle(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    with pytest.raises(ExportError, match="fp16 number is 65504"):
        write_fp16_onnx(export_onnx(program, tmp_path / "m.onnx"), tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()


def test_deploy_json_says_what_is_needed(everything):
    folder, _, _, _ = everything
    content = json.loads((folder / "all" / "deploy.json").read_text(encoding="utf-8"))
    assert content["inputs"] == [{"name": "x", "shape": [None, 3, 8, 8], "dtype": "float32"}]
    name = "output_0" if (folder / "all" / "model.onnx").is_file() else None  # Paddle's program names none
    assert content["outputs"] == [{"name": name, "shape": [None, 4], "dtype": "float32"}]
    assert content["preprocess"] == {"mean": [0.5]}
    assert content["labels"] == ["a", "b", "c", "\u732b"]
    for entry in content["files"]:
        for name, checksum in entry["sha256"].items():
            assert hashlib.sha256((folder / "all" / name).read_bytes()).hexdigest() == checksum


@needs("paddle2onnx")
def test_the_gate_judges_every_engine_by_its_own_file(everything):
    _, callback, _, _ = everything
    rows = {(row.engine, row.precision): row for row in callback.verdict.rows}
    assert len(rows) == 6
    size, latency, drop = rows["onnxruntime", "fp16"].criteria
    files = {(a.kind, a.precision): a.size_mb for a in callback.record.artefacts}
    assert size.value == files["onnx", "fp16"]
    assert latency.value == callback.record.latencies[3].p50_ms
    assert drop.value == pytest.approx(1 - callback.record.file_metrics[3].metrics["acc"])
    assert callback.verdict.table().count("| pass |") == 6


@needs("paddle2onnx")
def test_a_fixed_batch_and_lists(tmp_path):
    callback = ExportBenchCallback(
        tmp_path,
        **grouped(name="n", dynamic_batch=False, batch_size=[3, 1], threads=[1, 2], engines=["onnxruntime"], **FAST),
    )
    fit(hapi_model(), [callback])
    assert onnxruntime.InferenceSession(str(tmp_path / "n" / "model.onnx")).get_inputs()[0].shape == [3, 3, 8, 8]
    assert callback.record.file_metrics[0].samples == 16
    assert callback.record.file_metrics[0].metrics["acc"] == pytest.approx(callback.record.metrics["acc"])
    errors = {(row.threads, row.batch_size): row.error for row in callback.record.latencies}
    assert errors[1, 3] is errors[2, 3] is None
    assert "takes exactly 3 images" in errors[1, 1]


def test_the_gate_ends_the_process_once_all_is_written(tmp_path, capsys):
    callback = ExportBenchCallback(
        tmp_path, **grouped(name="n", engines=["paddle"], gate="fail", budget=Budget(size_mb=1e-6), **FAST)
    )
    with pytest.raises(GateError) as error:
        fit(hapi_model(), [callback])
    assert error.value.code == 3
    assert isinstance(error.value, SystemExit)
    assert "n exceeds its budget: fail: size 0.0" in capsys.readouterr().err
    assert (tmp_path / "n" / "model.json").is_file()
    assert len(read_records(tmp_path / "runs.jsonl")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "fail"}, "needs a budget"),
        ({"gate": "stop"}, r"gate must be one of \['report', 'fail'\], got 'stop'"),
        ({"which": "first"}, "which must be one of"),
        ({"threads": []}, r"threads must be a whole number of at least 1, got \[\]"),
        ({"batch_size": [1, 0]}, r"batch_size must be .* got \[1, 0\]"),
        ({"sidecar": {"labels": "abc"}}, "labels must be a list of names"),
        ({"sidecar": {"label": []}}, r"\['label'\] of sidecar.* preprocess, postprocess, labels"),
        ({"sidecar": {"preprocess": {"f": print}}}, "sidecar must .*JSON"),
    ],
)
def test_wrong_options(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ExportBenchCallback(tmp_path, **grouped(**options))


def test_other_evaluation_data_none_and_data_that_fails(tmp_path):
    class Broken(Images):
        def __getitem__(self, index):
            raise RuntimeError("disk gone")

    def record_with(data, **options):
        callback = ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], eval_data=data, **FAST))
        model = hapi_model(**options)
        fit(model, [callback], evaluate=False)
        return callback.record, model

    record, model = record_with(Images(8))
    assert record.file_metrics[0].samples == 8
    assert record.file_metrics[0].metrics["acc"] == model.evaluate(Images(8), batch_size=8, verbose=0)["acc"]
    assert record.config["fit"]["batch_size"] == 8
    assert record_with(False)[0].file_metrics == ()
    assert record_with(None)[0].file_metrics == ()
    assert record_with(Images(8), metrics=False)[0].file_metrics == ()
    loader = [[Images(4).images, Images(4).labels], [Images(4).images]]  # the second batch has no labels
    assert record_with(loader)[0].notes[0].startswith("No accuracy of the file on paddle fp32: ")


def test_a_wrong_monitor_and_a_fit_without_evaluation(tmp_path):
    with pytest.raises(ValueError, match=r"monitor='f1'.*\['acc', 'loss'\]"):
        fit(hapi_model(), [ExportBenchCallback(tmp_path, **grouped(which="best", monitor="f1", **FAST))])
    callback = ExportBenchCallback(tmp_path, **grouped(which="best", engines=["paddle"], **FAST))
    fit(hapi_model(), [callback], evaluate=False)
    assert "found no evaluation" in callback.record.notes[-1]


def test_metrics_with_several_names_over_two_engines():
    class Both(paddle.metric.Metric):
        def __init__(self):
            super().__init__()
            self.seen = []

        def reset(self):
            self.seen = []

        def compute(self, a, b, label):
            return a - label, b - label

        def update(self, *values):
            self.seen.append(np.stack(values))

        def accumulate(self):
            return list(np.concatenate(self.seen, axis=1).mean(axis=(1, 2)))

        def name(self):
            return ["first", "second"]

    batches = [([np.ones([2, 1], "float32")], [np.zeros([2, 1], "float32")]) for _ in range(2)]
    files = {("a", "fp32"): lambda x: [x[0], 2 * x[0]], ("b", "fp32"): lambda x: [x[0], 3 * x[0]]}
    metric = Both()
    rows = measure_metrics(files, [metric], batches, verbose=0)
    assert [row.metrics for row in rows] == [{"first": 1.0, "second": 2.0}, {"first": 1.0, "second": 3.0}]
    assert metric.seen == []  # copies were used


def test_parts_that_only_training_uses_are_in_no_file(tmp_path):
    class Auxiliary(TinyNet):
        def __init__(self):
            super().__init__()
            self.aux = paddle.nn.Linear(4, 100_000)  # 2 MB
            self.dead = paddle.nn.Linear(4, 100_000)  # in no forward

        def forward(self, x):
            out = super().forward(x)
            return out + 0 * self.aux(out).sum() if self.training else out

    callback = ExportBenchCallback(tmp_path, **grouped(name="n", **FAST))
    fit(hapi_model(Auxiliary()), [callback])
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "n").iterdir()}
    assert sizes.pop("model.pdparams") > 2_000_000  # the trained weights, with all that training goes on from
    assert all(size < 50_000 for size in sizes.values())
    assert all(check.passed for check in callback.record.checks)
