"""A full disk at every step, a read-only folder: weights and log stand, the former export too, nothing is half."""

from __future__ import annotations

import builtins
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import paddle
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from places import HELPERS
from small_disk import ALONE, on_a_disk_of
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import Budget, ExportBenchCallback
from paddlelite_callbacks.benchmark import engines
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.report.record import append_record, read_records
from paddlelite_callbacks.utils.safe_load import read_saved

SPEC = [InputSpec([None, 3, 8, 8], "float32", "x")]
QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False}
QUICK |= {"preflight": False}  # what fails at the end; also on a Python that has no converter


class Full(OSError):
    pass


def unescaped(markdown: str) -> str:
    """Markdown as it is read: without the backslashes before signs."""
    return re.sub(r"\\([^\w\s])", r"\1", markdown)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


STEPS = {  # what is about to be written or renamed, in the order of a run
    "program": ("paddle.jit", "save"),
    "onnx": ("paddlelite_callbacks.export.variants", "export_onnx"),
    "fp16": ("paddlelite_callbacks.export.variants", "write_fp16_onnx"),
    "check": ("paddlelite_callbacks.callbacks.export.pipeline", "load_files"),
    "sidecar": ("paddlelite_callbacks.callbacks.export.pipeline", "write_sidecar"),
    "timing": ("paddlelite_callbacks.callbacks.export.pipeline", "time_files"),
    "checksums": ("paddlelite_callbacks.export.paddle_program.Artefact", "sha256"),
    "rename": ("pathlib.Path", "replace"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults \u4e2d")
    model = hapi_model()
    fit(model, [callback_in(folder)])
    return folder, model, contents(folder / "n")


def callback_in(folder, **options):
    return ExportBenchCallback(
        folder, **grouped(name="n", engines=["paddle", "onnxruntime"], fp16=True, **QUICK, **options)
    )


@pytest.mark.parametrize("what", ["a folder", "another's", "another's folder"])
def test_records_that_cannot_be_added_to_are_refused_before_training(what, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    if what == "another's":
        (out / "runs.jsonl").touch()
    else:
        (out / ("runs.jsonl" if what == "a folder" else "TinyNet")).mkdir()
    real = os.access  # root may write anywhere, so the answer of the system is given by hand
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and Path(path).parent != out)
    model = hapi_model()
    before = model.network.fc.weight.numpy().copy()
    said = {"a folder": r"runs\.jsonl is not a file", "another's": r"runs\.jsonl is not writable"}
    with pytest.raises(PermissionError, match=said.get(what, "TinyNet is not writable: give another name")):
        fit(model, [ExportBenchCallback(out, **grouped(**QUICK))])
    np.testing.assert_array_equal(model.network.fc.weight.numpy(), before)


IN_A_HOME = """
import os, sys, warnings; warnings.simplefilter("ignore")
from pathlib import Path
from toy import TinyNet, fit, hapi_model
from paddlelite_callbacks import ExportBenchCallback
quick = dict(warmup=0, repeats=1, verbose=0, peak_memory=False, roofline=False)
callback = ExportBenchCallback(sys.argv[1], **quick)
fit(hapi_model(), [callback])
assert all(check.passed for check in callback.record.checks), callback.record.checks
sys.stdout.write(" ".join(sorted(a.path.rpartition("/")[2] for a in callback.record.artefacts if a.path)))
"""


@pytest.mark.skipif(not ALONE, reason="no name spaces for users here")
@needs("paddle2onnx", "matplotlib")
def test_a_home_that_cannot_be_written_to_is_no_obstacle(tmp_path):
    """Paddle writes the source of what it traces to ``~/.cache``."""
    (tmp_path / "home").mkdir()
    mount = 'mount -t tmpfs -o ro tmpfs "$1/home" && exec "$2" -c "$3" "$1/out"'
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*alone, str(tmp_path), sys.executable, IN_A_HOME],
        capture_output=True, text=True, check=False, env=environment, cwd=HELPERS,
    )  # fmt: skip
    assert done.stdout.strip().endswith("model.json model.onnx"), done.stderr
    assert (tmp_path / "out" / "report.html").is_file()


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("name", ["out", "größe"])
def test_an_ascii_locale(name, tmp_path):
    """What can be written is, and said in letters that there are; a path that cannot be opened is refused at once."""
    code = IN_A_HOME.replace("verbose=0", "verbose=1")
    environment = {**os.environ, **ASCII}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        capture_output=True, text=True, check=False, env=environment, cwd=HELPERS,
    )  # fmt: skip
    if name == "out":
        assert done.returncode == 0, done.stderr
        assert "TinyNet: 0.00 MB" in done.stdout
    else:
        assert "is not UTF-8 as this process writes paths (encoding ascii)" in done.stderr
        assert "PYTHONUTF8=1" in done.stderr
        assert not (tmp_path / name).exists()


@needs("paddle2onnx")
@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_at_each_step(step, exported, monkeypatch):
    """The weights and the log of the new training stand, the older export beside them, and the record says why."""
    import importlib

    folder, model, first = exported
    place, name = STEPS[step]
    try:
        owner = importlib.import_module(place)
    except ImportError:
        module, _, kind = place.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises((OSError, RuntimeError), match="No space left"):
            fit(model, [callback_in(folder)])
    assert contents(folder / "n" / "previous_export") == first
    assert sorted(path.name for path in (folder / "n").iterdir()) == [
        "model.pdparams",
        "previous_export",
        "train_log.jsonl",
    ]
    assert weights_in(folder / "n" / "model.pdparams").keys() == model.network.state_dict().keys()
    for key, value in weights_in(folder / "n" / "model.pdparams").items():
        np.testing.assert_array_equal(value, model.network.state_dict()[key].numpy())
    run = read_records(folder / "runs.jsonl")[-1]
    assert "No space left" in run.failure
    assert run.weights == str(folder / "n" / "model.pdparams")
    assert not run.artefacts
    if step != "rename":  # the report is renamed too
        assert f"**Nothing was exported:** {run.failure}" in unescaped(
            (folder / "report.md").read_text(encoding="utf-8")
        )
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_disk_that_is_full_before_the_weights_are_written(exported, monkeypatch):
    folder, model, _ = exported
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(paddle, "save", full)
        with pytest.raises(OSError, match="No space left"):
            fit(model, [callback_in(folder)])
    assert contents(folder) == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def full(*_, **__):
    raise Full(28, "No space left on device")


def weights_in(path):
    return {key: value.numpy() for key, value in read_saved(path).items()}


def test_a_full_disk_while_the_record_is_written(exported, monkeypatch):
    """The files are in place, the older lines untouched, and the next line is whole again."""
    folder, *_ = exported
    lines = (folder / "runs.jsonl").read_bytes()
    real = builtins.open

    class Torn:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            raise Full(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    def torn(path, mode="r", *arguments, **options):
        file = real(path, mode, *arguments, **options)
        return Torn(file) if "runs.jsonl" in str(path) and "a" in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode="r", *a, **k: torn(self, mode, *a, **k))
        with pytest.raises(OSError, match="No space left"):
            append_record(folder / "runs.jsonl", read_records_plain(folder, lines))
    assert (folder / "runs.jsonl").read_bytes().startswith(lines)
    (first, *_) = read_records(folder / "runs.jsonl")
    append_record(folder / "runs.jsonl", first)
    assert read_records(folder / "runs.jsonl")[-1] == first


def read_records_plain(folder, lines):
    from paddlelite_callbacks.report.record import Record

    return Record.from_json_line(lines.decode().splitlines()[0])


@pytest.mark.parametrize("engine", ["paddle", "onnxruntime"])
def test_a_real_limit_on_file_sizes(engine, tmp_path):
    """The kernel refuses to write beyond 20 kB (``RLIMIT_FSIZE``), as a full disk would, in the middle of a file."""
    code = (
        "import pathlib, resource, signal, sys, warnings; warnings.simplefilter('ignore')\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from toy import TinyNet, fit, hapi_model\n"
        "from paddlelite_callbacks import ExportBenchCallback\n"
        "quick = dict(name='n', engines=[sys.argv[3]], warmup=0, repeats=1, verbose=0)\n"
        "quick |= dict(peak_memory=False, roofline=False, report=False, preflight=False)\n"
        "fit(hapi_model(TinyNet()), [ExportBenchCallback(sys.argv[1], **quick)])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: fit(hapi_model(TinyNet(width=256)), [ExportBenchCallback(sys.argv[1], **quick)])\n"
        "except (OSError, RuntimeError) as error: print('refused', type(error).__name__)\n"
    )
    here = str(HELPERS)
    command = [sys.executable, "-c", code, str(tmp_path), here, engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "refused" in done.stdout, done.stderr[-500:]
    assert (tmp_path / "n" / "model.pdiparams").stat().st_size < 2000  # the first one's
    (run,) = read_records(tmp_path / "runs.jsonl")
    assert run.artefacts[0].artefact().sha256() == run.artefacts[0].sha256
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_report_that_cannot_be_drawn_costs_nothing_else(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise Full(28, "No space left on device")

    monkeypatch.setattr("paddlelite_callbacks.report.write.staged_file", full)
    callback = callback_in(tmp_path)
    fit(hapi_model(), [callback])
    assert read_records(tmp_path / "runs.jsonl") == [callback.record]
    assert "The report was not written: [Errno 28] No space left on device" in caplog.text
    assert "python -m paddlelite_callbacks report" in caplog.text


def test_a_read_only_folder_is_refused_before_training(tmp_path, monkeypatch):
    """Root may write anywhere, so the answer of the system is given by hand."""
    (tmp_path / "locked").mkdir(mode=0o500)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and "locked" not in str(path))
    steps = []

    class Count(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            steps.append(step)

    with pytest.raises(PermissionError, match=r"is not writable .* give another folder"):
        fit(hapi_model(), [ExportBenchCallback(tmp_path / "locked" / "out", **grouped(**QUICK)), Count()])
    assert not steps


@needs("paddle2onnx")
def test_an_engine_that_is_not_there_and_one_that_breaks(tmp_path, monkeypatch):
    monkeypatch.setattr(engines.ENGINES["openvino"], "package", "no-such-package", raising=False)

    def breaks(self, artefact, *, threads):
        raise MemoryError("out of memory")

    monkeypatch.setattr(engines.OnnxRuntime, "load", breaks)
    callback = ExportBenchCallback(tmp_path, **grouped(report=False, **QUICK))
    fit(hapi_model(), [callback])
    errors = {row.engine: row.error for row in callback.record.latencies}
    assert errors["paddle"] is errors["paddle-onednn"] is None
    assert errors["onnxruntime"] == "MemoryError: out of memory"
    assert errors["openvino"].startswith("no-such-package not installed: pip install")
    onnx = callback.record.artefacts[1]  # written, but nothing here could say whether it is right: not handed out
    assert onnx.path is None
    assert onnx.error.startswith("no engine could run the file (onnxruntime: MemoryError")
    assert not list(tmp_path.glob("*/*.onnx"))


@needs("paddle2onnx")
def test_several_inputs_sizes_that_vary_and_outputs_in_a_dictionary(tmp_path):
    class Varied(TinyNet):
        def forward(self, x, y):
            out = super().forward(x) + super().forward(y)
            return out if self.training else {"b": out, "a": x.mean(axis=[1, 2, 3])}

    class Pairs(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, image[:, ::-1].copy(), label

    network = Varied()
    specs = [InputSpec([None, 3, None, None], name=name) for name in ("first", "second")]
    model = paddle.Model(network, specs)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=network.parameters()), paddle.nn.CrossEntropyLoss())
    callback = ExportBenchCallback(
        tmp_path / "a b", **grouped(name="v", input_spec=specs, batch_size=[1, 3], report=False, **QUICK)
    )
    fit(model, [callback], data=Pairs(), evaluate=False)
    assert len(callback.record.checks) == 4
    assert all(check.passed for check in callback.record.checks)
    assert len([row for row in callback.record.latencies if row.error is None]) == 8
    session = onnxruntime.InferenceSession(str(tmp_path / "a b" / "v" / "model.onnx"))
    assert [item.name for item in session.get_inputs()] == ["first", "second"]
    network.eval()
    x, y = (np.random.RandomState(i).randn(2, 3, 12, 10).astype("float32") for i in range(2))  # other sizes
    expected = network(paddle.to_tensor(x), paddle.to_tensor(y))
    for got, key in zip(session.run(None, {"first": x, "second": y}), sorted(expected), strict=True):
        np.testing.assert_allclose(got, expected[key], atol=1e-5)


class Product(nn.Layer):
    """Paddle's oneDNN takes the blocked layout of a convolution for plain in a 4-D product behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2D(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(paddle.matmul(paddle.ones([8, 8]), self.conv(x)).mean([2, 3]))


@pytest.mark.parametrize("chosen", [None, ["paddle-onednn"], ["paddle", "onnxruntime"]])
def test_an_engine_that_computes_a_right_program_wrongly(chosen, tmp_path):
    """The files are right and stay; the engine's verdict stands beside them, and its latency does not count."""
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=chosen, budget=Budget(), **QUICK))
    fit(hapi_model(Product()), [callback])
    record, said = callback.record, callback.summary()
    report = unescaped((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert (tmp_path / "n" / "model.json").is_file()
    if chosen == ["paddle", "onnxruntime"]:
        assert all(check.passed for check in record.checks)
        assert not record.remarks
        return
    verdicts = {(v.engine, v.precision): v for v in record.verdicts}
    assert verdicts["paddle-onednn", "fp32"].agrees is False
    assert verdicts["paddle.jit.load", "fp32"].agrees
    (remark,) = record.remarks
    assert re.match(r"model\.json: paddle-onednn differs by [\d.]+ of [\d.]+ \(allowed [\d.]+\)\. ", remark)
    assert "Paddle's default kernels (oneDNN) are not" in remark
    assert f"**Not right on every engine:** {remark}" in report
    for text in (said, report):
        assert verdicts["paddle-onednn", "fp32"].text in text
        assert remark in text
    (program,) = (f for f in json.loads((tmp_path / "n" / "deploy.json").read_text())["files"] if f["kind"] == "paddle")
    assert program["verdicts"]["paddle-onednn"] == verdicts["paddle-onednn", "fp32"].text
    if chosen:
        assert record.best_latency() is None
        assert "latency unknown (no engine ran the exported file and agreed with the network)" in str(callback.verdict)
        assert remark.endswith("paddle.jit.load agrees with the network.")
    else:
        assert record.best_latency().engine != "paddle-onednn"
        assert callback.verdict.passed
        assert "paddle and paddle.jit.load" not in remark
        assert "paddle agrees: deploy this file there; engines=['paddle', 'onnxruntime', 'openvino']" in remark
    (row,) = (r for r in record.latencies if r.engine == "paddle-onednn")
    assert row.p50_ms > 0
    with pytest.raises(
        ExportError, match=r"strict=True.*paddle-onednn fp32 differs by.*The correct files are written to"
    ):
        fit(
            hapi_model(Product()),
            [ExportBenchCallback(tmp_path, **grouped(name="s", engines=chosen, strict=True, report=False, **QUICK))],
        )
    assert (tmp_path / "s" / "model.json").is_file()
    assert [run.name for run in read_records(tmp_path / "runs.jsonl")] == ["n", "s"]


def test_a_network_without_a_definite_output_is_told_from_a_wrong_file(tmp_path):
    """Engines are as far from each other as the network is from itself when its input moves in the last bits."""

    class Unsettled(TinyNet):
        def forward(self, x):
            out = super().forward(x)
            return paddle.sin(out * 1e7)

    model = hapi_model(Unsettled(), learning_rate=0.0)
    callback = ExportBenchCallback(tmp_path, **grouped(report=False, strict=True, **QUICK))
    with pytest.raises(ExportError, match=r"moves by .* no two engines can agree: .*batch-norm statistics"):
        fit(model, [callback])


def test_a_wrong_program_is_found_without_an_engine_of_its_kind(tmp_path, monkeypatch):
    def no_onnx(*_, **__):
        raise ExportError("not today")

    monkeypatch.setattr("paddlelite_callbacks.export.variants.export_onnx", no_onnx)
    callback = ExportBenchCallback(tmp_path, **grouped(engines=["onnxruntime"], **QUICK))
    said = r"something else than the network: paddle\.jit\.load differs by 1 of .*forward\(\) .*under paddle\.jit"
    with pytest.raises(ExportError, match=said):
        fit(hapi_model(TwoFaced()), [callback])
    assert sorted(path.name for path in (tmp_path / "TwoFaced").iterdir()) == ["model.pdparams", "train_log.jsonl"]
    assert callback.record.failure.count("not today") == 1


class TwoFaced(TinyNet):
    def forward(self, x):
        out = super().forward(x)
        return out if paddle.in_dynamic_mode() else out + 1


@needs("paddle2onnx")
def test_one_wrong_file_costs_only_itself(tmp_path, monkeypatch):
    """The ONNX file is of another network: it goes, the program stays."""
    from paddlelite_callbacks.export import variants as forms

    right, other = forms.export_onnx, export_paddle(TinyNet(), tmp_path / "other", input_spec=SPEC)
    monkeypatch.setattr(forms, "export_onnx", lambda program, path, **options: right(other, path, **options))
    callback = ExportBenchCallback(tmp_path / "out", **grouped(name="n", **QUICK))
    fit(hapi_model(), [callback])
    assert sorted(path.name for path in (tmp_path / "out" / "n").iterdir()) == [
        "deploy.json",
        "model.json",
        "model.pdiparams",
        "model.pdparams",
        "train_log.jsonl",
    ]
    (missing,) = (a for a in callback.record.artefacts if a.path is None)
    assert re.match(
        r"model\.onnx computes something else than the network: onnxruntime differs by .*; openvino differs by .*; "
        r"onnxruntime-unoptimised differs by",
        missing.error,
    )
    assert missing.error in callback.summary()
    errors = {row.engine: row.error for row in callback.record.latencies}
    assert errors["paddle"] is errors["paddle-onednn"] is None
    assert errors["onnxruntime"] == errors["openvino"] == f"not exported: {missing.error}"
    assert {v.engine: v.agrees for v in callback.record.verdicts} == {
        "paddle": True,
        "paddle-onednn": True,
        "onnxruntime": False,
        "openvino": False,
        "onnxruntime-unoptimised": False,
    }


EXPORT_ON_A_SMALL_DISK = """
import os, sys
from pathlib import Path
from paddle.static import InputSpec
from toy import TinyNet
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
disk, spec = Path(sys.argv[1]), [InputSpec([None, 3, 8, 8], "float32", "x")]
def filled_but(kilobytes):
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            os.truncate(disk / "filler", max(0, file.tell() - 1024 * kilobytes))
filled_but(4)
try:
    export_paddle(TinyNet(), disk / "torn", input_spec=spec)
except ExportError as error:
    print("torn:", error)
(disk / "filler").unlink()
program = export_paddle(TinyNet(), disk / "whole", input_spec=spec)
filled_but(0)
try:
    export_onnx(program, disk / "whole" / "model.onnx")
except OSError as error:
    print("full:", error, sorted(path.name for path in (disk / "whole").iterdir()))
"""


@needs("paddle2onnx")
@pytest.mark.skipif(not ALONE, reason="no name spaces for users here")
def test_a_disk_that_is_really_full(tmp_path):
    """paddle.jit.save says nothing of it, and the converter of much else."""
    done = on_a_disk_of(120, tmp_path, EXPORT_ON_A_SMALL_DISK)
    torn, full = done.stdout.splitlines()[-2:]
    assert re.match(r"torn: .*/model\.json is truncated .* MB are free there: check whether the disk is full", torn)
    assert "full: [Errno 28] No space left on device: " in full
    assert full.endswith("/whole/model.onnx' ['model.json', 'model.pdiparams']")
