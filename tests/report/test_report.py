"""The gate by hand-made records, the record file under faults, and the ladder as it is read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from installed import needs
from records import latency, record
from toy import Images, fit, hapi_model

from paddlelite_callbacks import Budget, ExportBenchCallback
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.report.gate import judge, most_accurate
from paddlelite_callbacks.report.ladder_table import ladder_markdown
from paddlelite_callbacks.report.pareto import ladder_png
from paddlelite_callbacks.report.record import Record, append_record, read_records
from paddlelite_callbacks.report.retime import timed_together
from paddlelite_callbacks.report.write import write_ladder

BUDGET = Budget(size_mb=20, latency_ms=10, metric_drop=0.05, metric="acc", baseline=0.94)


def test_the_gate_by_hand():
    verdict = judge(record(), BUDGET)
    assert verdict.passed
    size, milliseconds, drop = verdict.criteria
    assert (size.value, size.margin) == (10.0, 10.0)
    assert (milliseconds.value, milliseconds.margin) == (5.0, 5.0)  # of the fastest engine
    assert drop.value == pytest.approx(0.04 / 0.94)
    assert str(verdict) == "pass: size 10 <= 20 MB, latency 5 <= 10 ms, drop 4.255 <= 5 %"


@pytest.mark.parametrize(
    ("change", "budget", "said"),
    [
        ({"size": 20.1}, {}, "size 20.1 > 20 MB"),
        ({"ms": (("paddle", 50.0),)}, {}, "latency 50 > 10 ms"),
        ({"agree": ("paddle",)}, {}, "latency 50 > 10 ms"),  # a fast engine that computes something else does not count
        ({}, {"engine": "paddle"}, "latency 50 > 10 ms"),
        ({"agree": ()}, {}, "latency unknown (no engine ran the exported file and agreed with the network)"),
        ({}, {"engine": "openvino"}, "latency unknown"),
        ({"acc": 0.89}, {}, "drop 5.319 > 5 %"),
        ({}, {"metric": "ap"}, "drop unknown (no metric 'ap' among ['acc']: name one of these"),
        ({"agree": ("paddle",)}, {"engine": "onnxruntime"}, "latency unknown (onnxruntime does not agree"),
        ({"acc": float("nan")}, {}, "drop unknown"),
        ({"acc": 0.88}, {"relative": False}, "drop 6 > 5 %"),
    ],
)
def test_what_fails_the_gate(change, budget, said):
    verdict = judge(record(**change), replace(BUDGET, **budget))
    assert not verdict.passed
    assert str(verdict).startswith("fail: ")
    assert said in str(verdict)


def test_lower_may_be_better_and_a_better_model_has_a_negative_drop():
    lower = replace(BUDGET, mode="min", baseline=0.8)
    assert judge(record(acc=0.84), lower).criteria[2].value == pytest.approx(0.05)
    assert judge(record(acc=0.99), BUDGET).criteria[2].value == pytest.approx(-0.05 / 0.94)


def test_limits_are_inclusive_and_may_be_left_out():
    assert judge(record(size=20.0), BUDGET).passed
    only_size = Budget(size_mb=20, latency_ms=None, metric_drop=None)
    assert [criterion.name for criterion in judge(record(), only_size).criteria] == ["size_mb"]


def test_the_most_accurate_of_those_that_pass():
    too_big = record("big", acc=0.99, size=50)
    records = [too_big, record("a", acc=0.91), record("small", acc=0.93, size=5), record("b", acc=0.93)]
    assert most_accurate(records, BUDGET).name == "small"
    assert most_accurate([too_big], BUDGET) is None
    with pytest.raises(ValueError, match="needs Budget"):
        most_accurate(records, Budget())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_mb": 0}, "size_mb must be a positive finite number or None, got 0"),
        ({"latency_ms": float("nan")}, "latency_ms must be"),
        ({"metric_drop": -0.1}, "metric_drop must be"),
        ({"baseline": 0.9}, "baseline needs metric"),
        ({"baseline": 0, "metric": "acc"}, "needs a baseline other than 0"),
    ],
)
def test_wrong_budgets(options, message):
    with pytest.raises(ValueError, match=message):
        Budget(**options)


def test_a_record_comes_back_as_it_was(tmp_path):
    records = [record("a"), record("\u4e2d\u6587", acc=0.5)]
    for item in records:
        append_record(tmp_path / "runs.jsonl", item)
    assert read_records(tmp_path / "runs.jsonl") == records


def test_a_torn_line_harms_no_other(tmp_path, caplog):
    path = tmp_path / "runs.jsonl"
    append_record(path, record("a"))
    path.write_bytes(path.read_bytes() + path.read_bytes()[:50])  # a writer that died in its line
    append_record(path, record("b"))
    assert [item.name for item in read_records(path)] == ["a", "b"]
    assert "line 2 is truncated" in caplog.text


def test_two_processes_that_write_at_once(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_record(path, record("seed"))
    code = (
        "import sys, pathlib\n"
        "from paddlelite_callbacks.report.record import append_record, read_records\n"
        "path = pathlib.Path(sys.argv[1]); line = read_records(path)[0]\n"
        "for _ in range(100): append_record(path, line)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(read_records(path)) == 201


def test_another_schema_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reads records of schema 1"):
        Record.from_json_line('{"schema": 99}')
    with pytest.raises(ValueError, match="does not fit schema 1"):
        Record.from_json_line('{"schema": 1, "name": "x"}')
    with pytest.raises(ValueError, match="No record file"):
        read_records(tmp_path / "none.jsonl")


def test_the_ladder_as_markdown():
    big = record("big", acc=0.94, size=100, ms=(("paddle", 400.0), ("onnxruntime", 60.0)))
    light = record("light", acc=0.92, size=8, ms=(("paddle", 80.0), ("onnxruntime", 6.0)))
    torn = replace(
        light, name="torn", latencies=(latency("paddle", 80.0), latency("onnxruntime", None, error="no file"))
    )
    lines = ladder_markdown([big, light, torn], metric="acc", budget=BUDGET).splitlines()
    assert lines[0] == "| model | acc | parameters | exported MB | paddle ms | onnxruntime ms | gate |"
    assert lines[2].startswith("| big | 94.00 % | 1.00 M | 100.00 | 400.00 | 60.00 | fail: size 100 > 20 MB")
    assert lines[3].startswith("| light | 92.00 % | 1.00 M | 8.00 | 80.00 | 6.00 | pass")
    assert "| \u20141 |" in lines[4]
    text = "\n".join(lines)
    assert "\u20141: onnxruntime: no file." in text
    assert "- **light** against big: 12.5x smaller, 10.0x faster (timed apart), acc -2.00 points." in text
    assert "Most accurate of those that pass: **light**." in text
    assert "Median of 3 runs after 1 warm-up run, engines in turn, each row by itself, batch 1, 1 thread" in text


def test_the_ladder_is_written_whole(tmp_path):
    records = [record("big", size=100), record("light", acc=0.8)]
    text = write_ladder(tmp_path, records, metric="acc", title="t")
    assert (tmp_path / "ladder.md").read_text() == text
    assert read_records(tmp_path / "ladder.jsonl") == records
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ladder.jsonl", "ladder.md", "ladder.png"]
    ladder_png([], tmp_path / "empty.png", metric="acc")


@needs("paddle2onnx")
def test_files_of_several_runs_are_timed_in_turn(tmp_path):
    records = []
    for name in ("a", "b"):
        callback = ExportBenchCallback(
            tmp_path,
            name=name,
            verbose=0,
            benchmark=BenchOptions(warmup=0, repeats=1, peak_memory=False, roofline=False),
        )
        fit(hapi_model(), [callback])
        records.append(callback.record)
    options = BenchOptions(engines=["paddle", "onnxruntime"], warmup=1, repeats=4)
    again = timed_together(records, [Images(1).images], options, verbose=0)
    for old, new in zip(records, again, strict=True):
        assert [row.engine for row in new.latencies] == [row.engine for row in old.latencies]
        repeats = {row.engine: row.repeats for row in new.latencies}
        assert repeats == {"paddle": 4, "onnxruntime": 4, "paddle-onednn": 1, "openvino": 1}
        assert replace(new, latencies=old.latencies) == old
    assert np.isfinite([row.p50_ms for row in again[0].latencies]).all()
    (tmp_path / "a" / "model.onnx").unlink()
    with pytest.raises(ValueError, match=r"model\.onnx'\] are missing"):
        timed_together(records, [Images(1).images], options, verbose=0)
