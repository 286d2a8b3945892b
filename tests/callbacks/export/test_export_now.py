"""`ExportBenchCallback.export`: what the end of ``fit`` does, for a network whose training is over."""

from __future__ import annotations

import numpy as np
import onnxruntime
import paddle
import pytest
from exporting import grouped
from installed import needs
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import Budget, ExportBenchCallback, GateError, PACTQuantCallback, load_pact_
from paddlelite_callbacks.report.record import read_records

FAST = {"warmup": 0, "repeats": 2, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@needs("paddle2onnx")
def test_a_checkpoint_of_pact_gives_the_files_and_figures_of_its_training(tmp_path):
    model, data = hapi_model(), Images()
    at_end = ExportBenchCallback(tmp_path, **grouped(name="fit", **FAST))
    fit(model, [PACTQuantCallback(), at_end])
    model.save(str(tmp_path / "trained"), training=True)
    network = TinyNet()
    load_pact_(network, tmp_path / "trained")
    later = ExportBenchCallback(tmp_path, **grouped(name="later", eval_data=data, **FAST))
    record = later.export(hapi_model(network), data)
    assert record is later.record
    assert record.metrics == at_end.record.metrics
    assert record.file_metrics == at_end.record.file_metrics
    for name in ("model.onnx", "model.int8.onnx"):
        mine, theirs = (run_onnx(tmp_path / run / name, data.images) for run in ("later", "fit"))
        np.testing.assert_array_equal(mine, theirs)
    sizes = [{(a.kind, a.precision): a.size_mb for a in r.artefacts} for r in (record, at_end.record)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # names of parameters hold running numbers
    assert [r.name for r in read_records(tmp_path / "runs.jsonl")] == ["fit", "later"]


@pytest.mark.parametrize("form", ["tensor", "array", "list", "data set", "loader", "batches"])
@pytest.mark.parametrize("whole", [False, True], ids=["network", "model"])
def test_images_in_every_form(form, whole, tmp_path):
    data = Images()
    forms = {
        "tensor": paddle.to_tensor(data.images),
        "array": data.images,
        "list": [data.images],
        "data set": data,
        "loader": paddle.io.DataLoader(data, batch_size=4),
        "batches": [(data.images, data.labels)] if whole else iter([[data.images]]),
    }
    network = TinyNet()
    network.conv1.eval()
    modes, weights = [layer.training for layer in network.sublayers()], weights_of(network)
    export = ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], **FAST))
    record = export.export(hapi_model(network) if whole else network, forms[form])
    assert all(check.passed for check in record.checks)
    assert record.name == "TinyNet"
    assert (record.metrics, record.file_metrics, record.history, record.epoch, record.log) == ({}, (), (), None, None)
    program = paddle.jit.load(str(tmp_path / "TinyNet" / "model"))
    program.eval()
    assert [layer.training for layer in network.sublayers()] == modes
    network.eval()
    np.testing.assert_allclose(program(forms["tensor"]).numpy(), network(forms["tensor"]).numpy(), rtol=1e-5, atol=1e-6)
    assert equal_weights(weights_of(network), weights)


def test_modes_stay_with_an_evaluation_too(tmp_path):
    network, data = TinyNet(), Images()
    network.train()
    network.bn1.eval()
    modes = [layer.training for layer in network.sublayers()]
    ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], eval_data=data, **FAST)).export(
        hapi_model(network), data
    )
    assert [layer.training for layer in network.sublayers()] == modes


def test_the_training_log_of_the_files_that_are_replaced_is_kept(tmp_path):
    model = hapi_model()
    export = ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], **FAST))
    fit(model, [export], epochs=2)
    log = (tmp_path / "TinyNet" / "train_log.jsonl").read_text()
    assert export.export(model, Images()).log is None
    assert (tmp_path / "TinyNet" / "train_log.jsonl").read_text() == log


def test_the_gate(tmp_path, capsys):
    budget = Budget(size_mb=1e-6)
    export = ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], budget=budget, **FAST))
    export.export(TinyNet(), Images())
    assert not export.verdict.passed
    strict = ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], budget=budget, gate="fail", **FAST))
    with pytest.raises(GateError) as raised:
        strict.export(TinyNet(), Images())
    assert raised.value.code == 3
    assert "size" in capsys.readouterr().err
    assert len(read_records(tmp_path / "runs.jsonl")) == 2


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (3, Images(), TypeError, "must be a paddle.Model or a paddle.nn.Layer, got int"),
        (TinyNet(), 3, TypeError, "must be a batch .* got int"),
        (TinyNet(), [], ValueError, "gives no batch"),
        (TinyNet(), np.zeros([0, 3, 8, 8], "float32"), ValueError, r"shape \[0, 3, 8, 8\], which is not a batch"),
        (TinyNet(), np.float32(3), TypeError, "must be a batch"),
    ],
    ids=["model", "data", "nothing", "no row", "a number"],
)
def test_what_cannot_be_exported(model, data, error, message, tmp_path):
    with pytest.raises(error, match=message):
        ExportBenchCallback(tmp_path / "out", **grouped(**FAST)).export(model, data)
    assert not (tmp_path / "out").exists()


def test_a_trained_callback_can_export_another_network_in_between(tmp_path):
    model, other = hapi_model(), TinyNet(width=8)
    export = ExportBenchCallback(tmp_path, **grouped(name="a", engines=["paddle"], **FAST))

    class Between(paddle.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                ExportBenchCallback(tmp_path, **grouped(name="b", engines=["paddle"], **FAST)).export(other, Images())

    fit(model, [export, Between()], epochs=2)
    records = {record.name: record for record in read_records(tmp_path / "runs.jsonl")}
    assert records["a"].epoch == 2
    assert records["b"].epoch is None
    assert len(records["a"].history) == 2
