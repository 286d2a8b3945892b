"""Runs timed together: ladder, report, gate and records of a folder tell the same latencies, and how they were got."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from records import latency, record
from toy import Images, fit, hapi_model

from paddlelite_callbacks import ExportBenchCallback
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.report.ladder_table import ladder_markdown
from paddlelite_callbacks.report.record import append_record, read_records
from paddlelite_callbacks.report.retime import append_joint_timing, timed_together
from paddlelite_callbacks.report.write import write_ladder, write_report

JOINT = "2026-01-02T00:00:00+00:00 abc"


def joint(run, *ms):
    """The run with such latencies of a joint timing."""
    rows = [replace(row, p50_ms=p50, joint=JOINT) for row, p50 in zip(run.latencies, ms, strict=True)]
    return replace(run, latencies=tuple(rows))


def row_of(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |")).split(" | ")


def test_ladder_and_report_of_one_folder_show_the_same_latencies(tmp_path):
    """They told 2.3x faster and 1.2x slower of the same two networks: one timed together, the other apart."""
    apart = [
        record("big", ms=(("paddle", 50.0), ("onnxruntime", 5.0))),
        record("light", ms=(("paddle", 60.0), ("onnxruntime", 6.0))),
    ]
    for run in apart:
        append_record(tmp_path / "runs.jsonl", run)
    before = write_report(tmp_path)
    assert "- **light** against big: same size, 1.2x slower (timed apart), acc +0.00 points." in before
    together = [joint(apart[0], 46.0, 4.6), joint(apart[1], 20.0, 2.0)]
    ladder = write_ladder(tmp_path, together, metric="acc")
    report = (tmp_path / "report.md").read_text()
    for text in (ladder, (tmp_path / "ladder.md").read_text(), report):
        assert "- **light** against big: same size, 2.3x faster, acc +0.00 points." in text
        assert row_of(text, "big")[4:] == ["46.00", "4.60 |"]
        assert f"files of all rows in turn, in one process ({JOINT})" in text
    assert "slower" not in report
    assert read_records(tmp_path / "runs.jsonl") == together
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4  # nothing is rewritten
    assert write_report(tmp_path) == report
    assert f"timed in turn with other runs' files, in one process: {JOINT}" in report
    lines = (tmp_path / "runs.jsonl").read_bytes()
    write_ladder(tmp_path, together, metric="acc")
    assert (tmp_path / "runs.jsonl").read_bytes() == lines  # known already


def test_the_gate_takes_the_joint_timing(tmp_path, capsys):
    run = record("a", ms=(("paddle", 50.0), ("onnxruntime", 5.0)))
    append_record(tmp_path / "runs.jsonl", run)
    assert append_joint_timing(tmp_path / "runs.jsonl", [joint(run, 50.0, 30.0)]) == 1
    assert main(["gate", str(tmp_path), "--latency-ms", "10"]) == 3
    assert "latency 30 > 10 ms" in capsys.readouterr().out


def test_a_later_run_of_the_same_name_keeps_its_own_timing(tmp_path):
    path, first = tmp_path / "runs.jsonl", record("a")
    second = replace(first, created="2026-01-03T00:00:00+00:00")
    for run in (first, second):
        append_record(path, run)
    append_joint_timing(path, [joint(first, 1.0, 2.0)])
    assert read_records(path) == [joint(first, 1.0, 2.0), second]
    append_joint_timing(path, [joint(first, 3.0, 4.0)])
    assert read_records(path) == [joint(first, 3.0, 4.0), second]  # the last joint timing
    assert append_joint_timing(path, [joint(record("other"), 1.0, 2.0), second]) == 0
    assert append_joint_timing(tmp_path / "none.jsonl", [joint(first, 1.0, 2.0)]) == 0


def test_a_joint_timing_whose_run_is_gone_is_a_record_itself(tmp_path):
    run = replace(joint(record("a"), 1.0, 2.0), retimes=True)
    append_record(tmp_path / "runs.jsonl", run)
    assert read_records(tmp_path / "runs.jsonl") == [replace(run, retimes=False)]


def test_figures_that_were_not_measured_in_turn_are_marked(tmp_path):
    big, light, late = (record(name) for name in ("big", "light", "late"))
    mixed = replace(joint(light, 40.0, 4.0), latencies=(light.latencies[0], joint(light, 40.0, 4.0).latencies[1]))
    text = ladder_markdown([joint(big, 50.0, 8.0), mixed, late], metric="acc")
    assert row_of(text, "big")[4:] == ["50.00", "8.00 |"]
    assert row_of(text, "light")[4:] == ["50.00\u2020", "4.00 |"]
    assert row_of(text, "late")[4:] == ["50.00\u2020", "5.00\u2020 |"]
    assert "\u2020: timed by itself, not in turn with the others." in text
    assert "- **light** against big: same size, 2.0x faster, acc" in text
    assert "- **late** against big: same size, 1.6x faster (timed apart), acc" in text


def test_two_joint_timings_are_not_compared_with_each_other():
    other = replace(
        record("light"), latencies=tuple(replace(row, joint="another") for row in record("light").latencies)
    )
    text = ladder_markdown([joint(record("big"), 50.0, 10.0), other], metric="acc")
    assert "2.0x faster (timed apart)" in text
    assert "files of several runs in turn" in text


def test_rows_of_several_machines_are_said_to_be():
    here = record("here")
    there = replace(record("there"), machine=replace(here.machine, cpu="another"))
    assert "Not all rows are of one machine" in ladder_markdown([here, there], metric="acc")
    assert "Not all rows" not in ladder_markdown([here, here], metric="acc")
    slow = replace(record("slow"), latencies=(replace(latency("paddle", 9.0), threads=4),))
    assert "Not all rows were measured with these settings" in ladder_markdown([here, slow], metric="acc")


def test_exported_files_timed_together_are_recorded_with_all_else(tmp_path):
    """Two settings: those of the joint timing are renewed, the others stay."""
    records = []
    for name in ("a", "b"):
        callback = ExportBenchCallback(
            tmp_path,
            name=name,
            engines=["paddle"],
            verbose=0,
            benchmark=BenchOptions(threads=[1, 2], warmup=0, repeats=1, peak_memory=False),
        )
        fit(hapi_model(), [callback])
        records.append(callback.record)
    options = BenchOptions(engines=["paddle"], warmup=0, repeats=3)
    again = timed_together(records, [Images(1).images], options, verbose=0)
    (first, second), (old, other) = again[0].latencies, records[0].latencies
    assert (first.threads, first.repeats, second) == (1, 3, other)
    assert first.joint == again[1].latencies[0].joint is not None
    assert first.roofline == pytest.approx(old.roofline * old.p50_ms / first.p50_ms)
    two = timed_together(records, [Images(1).images], replace(options, threads=2), verbose=0)
    assert [row.joint is None for row in two[0].latencies] == [True, False]
    eight = timed_together(records, [Images(1).images], replace(options, batch_size=8), verbose=0)
    assert [(row.batch_size, row.joint is None) for row in eight[0].latencies] == [(8, False), (1, True), (1, True)]
    assert eight[0].best_latency().batch_size == 8
    write_ladder(tmp_path, again, metric="acc")
    assert read_records(tmp_path / "runs.jsonl") == again
    report = (tmp_path / "report.md").read_text()
    assert "(timed apart)" not in report
    assert first.joint in report
    assert json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[-1])["retimes"] is True
