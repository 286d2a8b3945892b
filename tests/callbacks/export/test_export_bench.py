"""ExportBenchCallback through whole fits: what stands on disk, in the record and in the log afterwards."""

from __future__ import annotations

import numpy as np
import onnxruntime
import paddle
import paddle.nn.functional as F
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import BenchOptions, Budget, DistillCallback, ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.report.record import read_records
from paddlelite_callbacks.utils.safe_load import read_saved

FAST = {"warmup": 0, "repeats": 2, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}


def arrays(state):
    return {key: value.numpy() for key, value in state.items()}


def loaded(prefix):
    program = paddle.jit.load(str(prefix))
    program.eval()
    return program


@needs("paddle2onnx")
def test_all_engines_and_the_record(tmp_path):
    model = hapi_model()
    callback = ExportBenchCallback(tmp_path, **grouped(name="tiny", budget=Budget(metric="acc", baseline=0.5), **FAST))
    fit(model, [callback])
    record = callback.record
    assert sorted(file.name for file in (tmp_path / "tiny").iterdir()) == [
        "deploy.json",
        "model.json",
        "model.onnx",
        "model.pdiparams",
        "model.pdparams",
        "train_log.jsonl",
    ]
    assert [row.engine for row in record.latencies] == ["paddle", "paddle-onednn", "onnxruntime", "openvino"]
    assert all(row.p50_ms > 0 and row.error is None for row in record.latencies)
    assert all(check.passed and check.max_abs_diff < 1e-5 and check.top1_agreement == 1 for check in record.checks)
    assert [(a.kind, a.precision) for a in record.artefacts] == [("paddle", "fp32"), ("onnx", "fp32")]
    files = [tmp_path / "tiny" / name for name in ("model.json", "model.pdiparams")]
    assert record.size_mb == sum(file.stat().st_size for file in files) / 1e6
    assert record.parameters == sum(int(p.size) for p in model.network.parameters() if p.trainable)
    result = model.evaluate(Images(), batch_size=8, verbose=0)
    assert record.metrics == {"loss": result["loss"][0], "acc": result["acc"]}
    assert callback.verdict.passed == (result["acc"] >= 0.475)
    assert read_records(tmp_path / "runs.jsonl") == [record]
    assert record.artefacts[0].artefact().sha256() == record.artefacts[0].sha256
    assert "tiny: 0." in callback.summary()
    assert "gate: " in callback.summary()


def test_a_second_fit_replaces_the_files_and_appends_the_record(tmp_path):
    model = hapi_model()
    for _ in range(2):
        fit(model, [ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], **FAST))])
    first, second = read_records(tmp_path / "runs.jsonl")
    assert first.artefacts[0].sha256["model.pdiparams"] != second.artefacts[0].sha256["model.pdiparams"]
    assert second.artefacts[0].artefact().sha256() == second.artefacts[0].sha256
    x = paddle.to_tensor(Images().images)
    model.network.eval()
    np.testing.assert_allclose(loaded(tmp_path / "TinyNet" / "model")(x), model.network(x), atol=1e-6)


def test_a_failing_export_sets_the_older_one_aside(tmp_path):
    """The new weights stand, and beside them no file of other weights; nothing of the older training is lost."""

    class Fragile(TinyNet):
        broken = False

        def forward(self, x):
            if self.broken and not paddle.in_dynamic_mode():
                raise NotImplementedError("eager only")
            return super().forward(x)

    model, home = hapi_model(Fragile()), tmp_path / "n"
    fit(model, [ExportBenchCallback(tmp_path, **grouped(name="n", **FAST))])
    before = {file.name: file.read_bytes() for file in home.iterdir()}
    (home / "mine.txt").write_text("mine")
    model.network.broken = True
    with pytest.raises(ExportError, match=r"Fragile cannot be exported .* eager only"):
        fit(model, [ExportBenchCallback(tmp_path, **grouped(name="n", preflight=False, **FAST))])
    assert {file.name: file.read_bytes() for file in (home / "previous_export").iterdir()} == before
    assert sorted(path.name for path in home.iterdir()) == [
        "mine.txt",
        "model.pdparams",
        "previous_export",
        "train_log.jsonl",
    ]
    assert equal_weights(weights_of(model.network), arrays(read_saved(home / "model.pdparams")))
    assert len(read_records(tmp_path / "runs.jsonl")) == 2
    model.network.broken = False  # a third fit heals
    fit(model, [ExportBenchCallback(tmp_path, **grouped(name="n", **FAST))])
    assert sorted(path.name for path in home.iterdir()) == sorted([*before, "mine.txt"])


def test_a_file_that_computes_something_else_fails_the_export(tmp_path):
    class TwoFaced(TinyNet):
        def forward(self, x):
            out = super().forward(x)
            return out if paddle.in_dynamic_mode() else out + 1

    with pytest.raises(ExportError, match=r"computes something else than the network: paddle differs by 1 of [\d.]+ "):
        fit(hapi_model(TwoFaced()), [ExportBenchCallback(tmp_path, **grouped(**FAST))])
    assert sorted(path.name for path in (tmp_path / "TwoFaced").iterdir()) == ["model.pdparams", "train_log.jsonl"]


@needs("paddle2onnx")
def test_a_pact_trained_network_is_exported_small_and_stays_trainable(tmp_path):
    def net():
        return TinyNet(width=64)

    plain, quantised = hapi_model(net()), hapi_model(net())
    fit(plain, [ExportBenchCallback(tmp_path, **grouped(name="fp32", engines=["paddle"], **FAST))])
    callback = ExportBenchCallback(tmp_path, **grouped(name="int8", **FAST))
    fit(quantised, [callback, PACTQuantCallback()])
    sizes = [(tmp_path / name / "model.pdiparams").stat().st_size for name in ("fp32", "int8")]
    assert sizes[1] < 0.3 * sizes[0]
    assert callback.record.precision == "int8"
    assert [(check.engine, check.precision) for check in callback.record.checks] == [
        ("paddle", "int8"),
        ("paddle-onednn", "int8"),
        *((engine, precision) for engine in ("onnxruntime", "openvino") for precision in ("fp32", "int8")),
    ]
    assert callback.record.best_latency().precision == "int8"
    assert all(check.passed for check in callback.record.checks)
    before = weights_of(quantised.network)
    fit(quantised, [PACTQuantCallback()])
    assert not equal_weights(before, weights_of(quantised.network))


def test_all_together_the_teacher_is_in_no_file(tmp_path):
    model, teacher = hapi_model(), TinyNet(width=64)
    fit(
        model,
        [ExportBenchCallback(tmp_path, **grouped(name="all", **FAST)), DistillCallback(teacher), PACTQuantCallback()],
    )
    assert (tmp_path / "all" / "model.pdiparams").stat().st_size < 4096  # the teacher alone has 150 kB


class TwoInputs(nn.Layer):
    def __init__(self, as_dict=False):
        super().__init__()
        self.a, self.b, self.as_dict = TinyNet(), TinyNet(outputs=2), as_dict

    def forward(self, x, y):
        parts = {"zz": self.a(x), "aa": self.b(y)}
        return parts if self.as_dict and not self.training else tuple(parts.values())


class Pairs(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, image[:, ::-1].copy(), label


@needs("paddle2onnx")
@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_outputs(as_dict, tmp_path):
    network = TwoInputs(as_dict)
    model = paddle.Model(network, [InputSpec([None, 3, 8, 8], name="x"), InputSpec([None, 3, 8, 8], name="y")])
    model.prepare(
        paddle.optimizer.SGD(0.1, parameters=network.parameters()), lambda a, b, label: F.cross_entropy(a, label)
    )
    callback = ExportBenchCallback(tmp_path, **grouped(name="two", **FAST))
    fit(model, [callback], data=Pairs(), evaluate=False)
    assert all(check.passed for check in callback.record.checks)
    assert len(callback.record.checks) == 4
    network.eval()
    x, y = paddle.randn([3, 3, 8, 8]), paddle.randn([3, 3, 8, 8])
    wanted = network(x, y)
    wanted = [wanted[key] for key in sorted(wanted)] if as_dict else wanted
    for got, expected in zip(loaded(tmp_path / "two" / "model")(x, y), wanted, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


@needs("paddle2onnx")
def test_fixed_sizes_by_input_spec(tmp_path):
    callback = ExportBenchCallback(
        tmp_path, **grouped(name="fixed", input_spec=[InputSpec([1, 3, 8, 8], name="image")], batch_size=1, **FAST)
    )
    fit(hapi_model(), [callback])
    assert all(check.passed for check in callback.record.checks)
    inputs = onnxruntime.InferenceSession(str(tmp_path / "fixed" / "model.onnx")).get_inputs()
    assert [(item.name, item.shape) for item in inputs] == [("image", [1, 3, 8, 8])]


@needs("paddle2onnx")
def test_without_the_onnx_converter_paddles_file_is_still_made(tmp_path):
    class Rare(TinyNet):
        def forward(self, x):
            return paddle.lgamma(super().forward(x).abs() + 1)

    callback = ExportBenchCallback(tmp_path, **grouped(name="rare", **FAST))
    fit(hapi_model(Rare()), [callback])
    record = callback.record
    assert [check.engine for check in record.checks] == ["paddle", "paddle-onednn"]
    assert record.latency_of("onnxruntime").error.startswith("paddle2onnx ended with")
    assert record.artefacts[1].error == record.latency_of("openvino").error


def test_wrong_folders_and_names(tmp_path):
    with pytest.raises(ValueError, match=r"must be a plain name, got '\.\./x'"):
        ExportBenchCallback(tmp_path, name="../x")
    with pytest.raises(ValueError, match="repeats must be a whole number"):
        ExportBenchCallback(tmp_path, benchmark=BenchOptions(repeats=0))
    (tmp_path / "file").write_text("")
    model = hapi_model()
    before = weights_of(model.network)
    with pytest.raises(PermissionError, match=r"is not writable .* give another folder"):
        fit(model, [ExportBenchCallback(tmp_path / "file" / "out")])
    assert equal_weights(before, weights_of(model.network))  # refused before training
    with pytest.raises(RuntimeError, match=r"summary\(\).* call model\.fit"):
        ExportBenchCallback(tmp_path).summary()


def test_the_progress_bar_shows_what_is_done(tmp_path, capsys):
    fit(
        hapi_model(),
        [
            ExportBenchCallback(
                tmp_path,
                engines=["paddle"],
                benchmark=BenchOptions(warmup=1, repeats=2, peak_memory=False, roofline=False),
            )
        ],
    )
    shown = capsys.readouterr()
    assert "CPU latency" in shown.err
    assert "TinyNet: 0.0" in shown.out + shown.err


@pytest.mark.parametrize("name", ["runs.jsonl", "report.md", "a\0b"])
def test_names_of_the_reports_files_and_no_names(name, tmp_path):
    with pytest.raises(ValueError, match=r"must be a plain name, got .*'run1'.* \['runs\.jsonl'"):
        ExportBenchCallback(tmp_path, name=name)
