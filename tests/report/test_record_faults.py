"""Records with strange bytes, names and figures: no line is lost, none harms another, NaN passes no gate."""

from __future__ import annotations

import json
import math

import pytest
from records import record
from small_disk import ALONE, on_a_disk_of

from paddlelite_callbacks import Budget
from paddlelite_callbacks.report.gate import judge, most_accurate
from paddlelite_callbacks.report.hand_in import check_points
from paddlelite_callbacks.report.record import Record, append_record, read_records
from paddlelite_callbacks.report.write import write_report

BUDGET = Budget(metric="acc", baseline=0.9)
NAN, INF = math.nan, math.inf


def line(name="net", **change) -> bytes:
    return json.dumps({**json.loads(record(name).to_json_line()), **change}, ensure_ascii=False).encode() + b"\n"


def names(path) -> list[str]:
    return [one.name for one in read_records(path)]


@pytest.mark.parametrize("torn", [b'{"schema": 1, "name": "\xe4\xb8', b"\0" * 40, b"\xff\xfe", b'{"schema": 1'])
@pytest.mark.parametrize("last", [True, False])
def test_a_line_torn_in_the_middle_of_a_letter_harms_no_other(torn, last, tmp_path, caplog):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(line("a") + torn + (b"" if last else b"\n" + line("b")))
    append_record(path, record("c"))
    assert names(path) == (["a", "c"] if last else ["a", "b", "c"])
    assert "line 2 is truncated" in caplog.text


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\ufeff"])
def test_a_name_with_another_end_of_line(character, tmp_path, caplog):
    path = tmp_path / "runs.jsonl"
    for name in (f"a{character}b", "c"):
        append_record(path, record(name))
    assert names(path) == [f"a{character}b", "c"]
    assert not caplog.text


def test_what_editors_do_to_a_file(tmp_path, caplog):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line("a").replace(b"\n", b"\r\n") + b"\r\n" + line("b"))
    assert names(path) == ["a", "b"]
    path.write_bytes(b"")
    append_record(path, record("only"))
    assert names(path) == ["only"]
    assert not caplog.text


@pytest.mark.parametrize("metrics", [{"acc": "0.9"}, [0.9], None])
def test_metrics_that_are_no_numbers_are_refused(metrics):
    with pytest.raises(ValueError, match="The record 'net' does not fit schema 1"):
        Record.from_json_line(line(metrics=metrics).decode())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("stored", [True, False])
def test_a_metric_that_is_not_finite(value, stored, tmp_path):
    """It is shown as a dash, wins nothing, and meets no check point; the report is drawn."""
    runs = [record("good", acc=0.5), record("bad", acc=value)]
    for one in runs:
        append_record(tmp_path / "runs.jsonl", one)
    if stored:
        runs = read_records(tmp_path / "runs.jsonl")
    good, bad = runs
    assert bad.metric("acc") is None
    assert good.metric("acc") == 0.5
    assert "drop unknown (acc is not a finite number)" in str(judge(bad, BUDGET))
    everything = Budget(metric="acc", metric_drop=None)
    for order in (runs, runs[::-1]):
        assert most_accurate(order, everything).name == "good"
    assert not check_points(bad, tmp_path)[0].met
    text = write_report(tmp_path, budget=BUDGET)
    assert "| bad | \u2014 |" in text
    assert "| good | 50.00 % |" in text


@pytest.mark.parametrize(
    ("acc", "baseline", "passed"),
    [
        (-1.0, -1.0, True),
        (-1.05, -1.0, True),  # 5 % of |baseline|
        (-1.06, -1.0, False),
        (-0.5, -1.0, True),
        (0.0, 0.5, False),
    ],
)
def test_a_negative_metric(acc, baseline, passed):
    assert judge(record(acc=acc), Budget(metric="acc", baseline=baseline)).passed == passed


def test_a_drop_is_shown_in_the_metrics_own_unit_where_it_is_absolute():
    points = Budget(metric="acc", baseline=75.0, metric_drop=3.0, relative=False, size_mb=None, latency_ms=None)
    verdict = judge(record(acc=70.0), points)
    assert str(verdict) == "fail: drop 5 > 3"
    assert verdict.table().splitlines()[0] == "| engine | file | drop (left) | gate |"
    assert "| 5 (-2) |" in verdict.table()
    share = Budget(metric="acc", baseline=75.0, size_mb=None, latency_ms=None)
    assert str(judge(record(acc=72.0), share)) == "pass: drop 4 <= 5 %"


RECORD_ON_A_SMALL_DISK = """
import sys
from dataclasses import replace
from pathlib import Path
from records import record
from paddlelite_callbacks.report.record import append_record, read_records
path = Path(sys.argv[1]) / "runs.jsonl"
append_record(path, record("a"))
before = path.read_bytes()
try:
    append_record(path, replace(record("b"), notes=("x" * 100_000,)))
except OSError as error:
    assert path.read_bytes() == before
    append_record(path, record("c"))
    sys.stdout.write(f"{error}: {[one.name for one in read_records(path)]}")
"""


@pytest.mark.skipif(not ALONE, reason="no name spaces for users here")
def test_a_line_that_did_not_fit_leaves_no_half(tmp_path):
    done = on_a_disk_of(24, tmp_path, RECORD_ON_A_SMALL_DISK)
    assert done.stdout == "[Errno 28] No space left on device: ['a', 'c']", done.stderr
