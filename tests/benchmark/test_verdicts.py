"""A verdict per file and engine: saturated int8 products, an engine's defect, references, older records."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from places import HELPERS
from records import record
from toy import Images, fit, hapi_model

from paddlelite_callbacks import Budget, ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.benchmark import exact_reference as exact
from paddlelite_callbacks.benchmark.engines import OnnxRuntime, OpenVino
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.benchmark.verdicts import file_verdicts
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.report.gate import judge
from paddlelite_callbacks.report.ladder_table import ladder_markdown
from paddlelite_callbacks.report.markdown import escaped
from paddlelite_callbacks.report.record import Record

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False}
X86 = platform.machine().lower() in ("x86_64", "amd64")

FULL_RANGE = """
import sys, warnings; warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[2])
from bright import bright
from toy import Images, fit, hapi_model
from paddlelite_callbacks import ExportBenchCallback, PACTQuantCallback
quick = dict(warmup=0, repeats=1, verbose=0, peak_memory=False, roofline=False)
for half in (False, True):
    export = ExportBenchCallback(sys.argv[1], name="half" if half else "full", **quick)
    fit(hapi_model(bright(), learning_rate=0.0), [PACTQuantCallback(reduce_range=half), export], data=Images(32, 16))
"""


def run_on_avx2(code: str, folder: Path) -> None:
    """Run a process whose OpenVINO and Paddle use AVX2 alone, as on a CPU without VNNI."""
    here = str(HELPERS)
    subprocess.run(
        [sys.executable, "-c", code, str(folder), here],
        check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def on_avx2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("avx2")
    run_on_avx2(FULL_RANGE, folder)
    full, half = (Record.from_json_line(line) for line in (folder / "runs.jsonl").open())
    return folder, full, half


@needs("paddle2onnx", "openvino")
@pytest.mark.skipif(not X86, reason="only x86 multiplies in pairs of 16 bits")
def test_a_full_range_file_is_right_by_definition_and_wrong_on_a_cpu_without_vnni(on_avx2):
    folder, full, half = on_avx2
    verdicts = {(v.engine, v.precision): v for v in full.verdicts}
    assert verdicts["openvino", "int8"].agrees is False
    assert verdicts["onnxruntime-unoptimised", "int8"].agrees
    assert (folder / "full" / "model.int8.onnx").is_file()
    (remark,) = full.remarks
    assert remark.startswith("model.int8.onnx is correct by definition; this CPU has no VNNI: ")
    assert f"openvino is off by {next(c for c in full.checks if (c.engine, c.precision) == KEY).distance}" in remark
    assert "use reduce_range=True (" in remark
    report = (folder / "report.md").read_text()
    assert f"**Not right on every engine:** {escaped(remark)}" in report
    assert not half.remarks
    assert all(v.agrees for v in half.verdicts)


KEY = ("openvino", "int8")


@needs("paddle2onnx", "openvino")
@pytest.mark.skipif(not X86, reason="only x86 multiplies in pairs of 16 bits")
def test_what_differs_does_not_count_at_the_gate_and_the_reference_gives_the_accuracy(on_avx2):
    _, full, half = on_avx2
    timed = next(row for row in full.main_latencies() if (row.engine, row.precision) == KEY)
    assert timed.p50_ms > 0  # shown
    assert full.best_latency().engine != "openvino"
    fast = replace(full, latencies=tuple(replace(r, p50_ms=0.001) if r is timed else r for r in full.latencies))
    assert fast.best_latency() == full.best_latency()
    verdict = judge(fast, Budget(engine="openvino", metric="acc", metric_limit=0.0))
    assert not verdict.passed
    assert "openvino does not agree with the network on the int8 file" in str(verdict)
    assert f"({timed.p50_ms:.2f}) " in ladder_markdown([full], metric="acc")
    assert judge(half, Budget(engine="openvino")).passed
    exact_metric = full.metric_of("acc", "onnxruntime-unoptimised", "int8")
    assert exact_metric == pytest.approx(full.metrics["acc"])


class Recogniser(nn.Layer):
    """Convolutions of stride (2, 1), an LSTM, a score per step."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(*(layer for i in (3, 8) for layer in (narrow(i), nn.ReLU())))
        self.rnn, self.fc = nn.LSTM(32, 8, direction="bidirectional"), nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.rnn(self.convs(x).transpose([0, 3, 1, 2]).flatten(2))[0])


def narrow(channels):
    return nn.Conv2D(channels, 8, 3, stride=(2, 1), padding=1)


@needs("paddle2onnx", "openvino")
def test_a_recogniser_is_kept_whatever_one_engine_makes_of_it(tmp_path):
    """OpenVINO 2026.4 is off behind the LSTM of a quantised file; what it gives is computed here again."""
    paddle.seed(0)
    data = paddle.io.TensorDataset([paddle.randn([64, 3, 16, 16]), paddle.randint(0, 4, [64, 16])])
    model = hapi_model(Recogniser(), metrics=False, optimizer="Adam", learning_rate=2e-3)
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", report=False, **QUICK))
    fit(model, [PACTQuantCallback(weight_bits=7), callback], data=data, epochs=3, evaluate=False)
    names = {path.name for path in (tmp_path / "n").iterdir()}
    assert {"model.json", "model.pdiparams", "model.onnx", "model.int8.onnx", "model.pdparams"} <= names
    path = tmp_path / "n" / "model.int8.onnx"
    file = Artefact(kind="onnx", path=path, files=(path,), precision="int8")
    images = data.tensors[0][:8]
    model.network.eval()
    expected = model.network(images).numpy()
    as_written, openvino = (
        engine.load(file, threads=1)([images.numpy()])[0] for engine in (OnnxRuntime(optimised=False), OpenVino())
    )
    np.testing.assert_allclose(as_written, expected, atol=1e-5)
    verdicts = {(v.engine, v.precision): v for v in callback.record.verdicts}
    assert verdicts["onnxruntime", "int8"].agrees
    assert not [key for key, v in verdicts.items() if v.agrees is None]
    if np.abs(openvino - expected).max() < 1e-4:  # mended
        assert verdicts[KEY].agrees
        assert not callback.record.remarks
        return
    assert verdicts[KEY].agrees is False
    (remark,) = callback.record.remarks
    assert "The file is correct: OpenVINO computes LSTM and GRU inexactly in files with quantised layers." in remark
    assert "onnxruntime agrees: deploy this file there; engines=['paddle', 'paddle-onednn', 'onnxruntime']" in remark


@needs("paddle2onnx", "onnxruntime")
def test_without_onnx_runtime_a_file_is_held_against_onnx_in_numpy(tmp_path, monkeypatch):
    """As where OpenVINO alone is installed; the NumPy reference gives what ONNX Runtime gives."""
    model = hapi_model()
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", report=False, **QUICK))
    fit(model, [PACTQuantCallback(), callback])
    path = tmp_path / "n" / "model.int8.onnx"
    file, images = Artefact(kind="onnx", path=path, files=(path,), precision="int8"), Images(4).images
    assert exact.exact_engine("onnx").name == "onnxruntime-unoptimised"
    with monkeypatch.context() as patch:
        patch.setattr(exact, "find_spec", lambda name: None if name == "onnxruntime" else name)
        engine = exact.exact_engine("onnx")
        assert engine.name == "onnx.reference"
        found = engine.load(file, threads=1)([images])
    expected = OnnxRuntime(optimised=False).load(file, threads=1)([images])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)


def test_verdicts_in_words():
    def check(got, **tolerances):
        return compare_outputs([np.ones((8, 2))], [np.full((8, 2), got)], engine="e", **tolerances)

    assert check(1.0).verdict == "agrees"
    assert check(1.5).verdict == "differs by 0.5 of 1 (allowed 0.0011)"
    middle = check(1.5, noise=[1.0], middle=[0.01])  # one row may be so far off, not all
    assert middle.verdict == "differs by 0.5 of 1 (half of the rows are off by 0.5 and more, allowed 0.0411)"
    assert check(np.nan).verdict == "differs: NaN or Inf in output 0"
    row = Latency(engine="a", precision="fp32", threads=1, batch_size=1, warmup=0, repeats=1, error="not installed")
    ran = replace(row, engine="e", error="cannot be timed")
    verdicts = file_verdicts([check(1.0)], [row, ran])
    assert [(v.engine, v.agrees, v.text) for v in verdicts] == [
        ("e", True, "agrees"),
        ("a", None, "could not run, because not installed"),
    ]


def test_a_record_from_before_the_verdicts_is_read():
    whole = json.loads(record("old").to_json_line())
    for name in ("weights", "failure", "remarks"):
        del whole[name]
    for check in whole["checks"]:
        del check["largest"]
    old = Record.from_json_line(json.dumps(whole))
    assert (old.weights, old.failure, old.remarks) == (None, None, ())
    assert [v.agrees for v in old.verdicts if v.agrees is not None] == [check.passed for check in old.checks]


def test_strict_is_quiet_about_engines_that_nobody_asked_for(tmp_path, monkeypatch):
    from paddlelite_callbacks.benchmark import engines
    from paddlelite_callbacks.errors import ExportError

    monkeypatch.setattr(engines.ENGINES["openvino"], "package", "no-such-package", raising=False)
    monkeypatch.setattr(engines.ENGINES["onnxruntime"], "package", "no-such-package", raising=False)
    fit(hapi_model(), [ExportBenchCallback(tmp_path, **grouped(report=False, strict=True, **QUICK))])
    named = ExportBenchCallback(
        tmp_path, **grouped(report=False, strict=True, engines=["paddle", "openvino"], preflight=False, **QUICK)
    )
    with pytest.raises(ExportError, match="openvino fp32 could not run, because no-such-package not installed"):
        fit(hapi_model(), [named])
