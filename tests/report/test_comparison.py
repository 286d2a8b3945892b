"""Two folders of runs against each other: which runs are paired, what is said to differ, and what is no difference."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from browser import Browser, needs_chromium
from records import latency, record

from paddlelite_callbacks import Budget
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.report.budget import stored_budget
from paddlelite_callbacks.report.comparison import compare_folders
from paddlelite_callbacks.report.record import append_record

BUDGET = Budget(size_mb=20, latency_ms=10, metric="acc", baseline=0.95)


def of_500(run):
    """The same run, evaluated with 500 images on one engine."""
    rows = (FileMetrics(engine="onnxruntime", precision="fp32", metrics=run.metrics, samples=500),)
    return replace(run, file_metrics=rows)


def quartiles(run, low, high):
    """The same run with other quartiles of each latency, as shares of the median."""
    rows = (replace(row, p25_ms=low * row.p50_ms, p75_ms=high * row.p50_ms) for row in run.latencies)
    return replace(run, latencies=tuple(rows))


def folders_of(tmp_path, old, new):
    for name, runs in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        for run in runs:
            append_record(tmp_path / name / "runs.jsonl", run)
    return tmp_path / "old", tmp_path / "new"


def row_of(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_runs_are_paired_by_name_and_their_figures_compared(tmp_path):
    light = of_500(record("light", acc=0.9, size=10.0, ms=(("paddle", 50.0), ("onnxruntime", 5.0))))
    better = of_500(record("light", acc=0.95, size=5.0, ms=(("paddle", 20.0), ("onnxruntime", 2.0))))
    config = {"budget": stored_budget(BUDGET)}
    old, new = folders_of(
        tmp_path, [light, record("gone")], [replace(better, config={**config, "seed": 1}), record("come")]
    )
    found = compare_folders(old, new)
    assert [pair.name for pair in found.pairs] == ["light"]
    assert found.only == (("gone",), ("come",))
    assert (found.metric, found.budget) == ("acc", BUDGET)
    text = found.markdown()
    row = row_of(text, "light")
    assert "90.00 % (87.1\u201392.3, n 500) \u2192 95.00 % (92.7\u201396.6, n 500): +5.00 points |" in row
    assert "| 10.00 \u2192 5.00: 2.0x smaller | 5.00 \u2192 2.00: 2.5x faster | fail \u2192 pass |" in row
    assert "| light | paddle | fp32 | 50.00 \u2192 20.00: 2.5x faster |" in text
    assert "  - `seed`: \u2014 \u2192 1" in text
    assert "## Only in A\n\ngone." in text
    assert "## Only in B\n\ncome." in text


def test_what_is_no_difference_is_said_to_be_none(tmp_path):
    run = quartiles(of_500(record("a", acc=0.9)), 0.8, 1.2)
    near = quartiles(of_500(record("a", acc=0.91, ms=(("paddle", 55.0), ("onnxruntime", 6.0)))), 0.8, 1.2)
    text = compare_folders(*folders_of(tmp_path, [run], [near])).markdown()
    assert "+1.00 points, a tie |" in row_of(text, "a")
    assert "| 5.00 \u2192 6.00: the same (quartiles overlap)" in row_of(text, "a")
    assert "10.00 \u2192 10.00: the same" in row_of(text, "a")
    assert "## Options that differ\n\nNone." in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ((0.8, 1.2), (0.99, 1.01), "the same (quartiles overlap)"),  # 4 to 6 ms, 5.94 to 6.06 ms
        ((0.99, 1.01), (0.99, 1.01), "1.2x slower"),
    ],
)
def test_latencies_differ_where_their_quartiles_do_not_overlap(tmp_path, old, new, said):
    runs = (quartiles(record("a", ms=(("onnxruntime", ms),)), *share) for ms, share in ((5.0, old), (6.0, new)))
    text = compare_folders(*folders_of(tmp_path, *([run] for run in runs))).markdown()
    assert f"| 5.00 \u2192 6.00: {said} |" in row_of(text, "a")


def test_latencies_of_another_machine_are_not_compared(tmp_path):
    here = record("a")
    there = replace(
        here, machine=replace(here.machine, cpu="another", packages={**here.machine.packages, "openvino": "1"})
    )
    text = compare_folders(*folders_of(tmp_path, [here], [there])).markdown()
    assert "5.00 \u2192 5.00: another machine" in row_of(text, "a")
    assert "Where the machine differs, latencies cannot be compared." in text
    assert f"CPU {here.machine.cpu} \u2192 another" in text
    assert " \u2192 1." in text


def test_the_latest_record_of_a_name_counts_and_one_run_each_is_a_pair(tmp_path):
    old, new = folders_of(tmp_path, [record("a", acc=0.5), record("a", acc=0.6)], [record("b", acc=0.7)])
    (pair,) = compare_folders(old, new).pairs
    assert (pair.before.metrics["acc"], pair.after.metrics["acc"]) == (0.6, 0.7)
    assert "| a \u2192 b |" in compare_folders(old, new).markdown()
    append_record(new / "runs.jsonl", record("c"))
    assert compare_folders(old, new).only == (("a",), ("b", "c"))


def test_where_less_is_better_a_rise_is_worse(tmp_path):
    old, new = folders_of(tmp_path, *([replace(record("a"), metrics={"rmse": value})] for value in (0.4, 0.5)))
    page = compare_folders(old, new).html()
    assert '<span class="bad">+0.1</span>' in page
    assert '<span class="good">-0.1</span>' in compare_folders(new, old).html()


def test_a_run_without_latency_or_metric_is_shown_with_dashes(tmp_path):
    bare = replace(
        record("a"), latencies=(latency("paddle", None, error="no"),), metrics={}, failure="no disk", artefacts=()
    )
    text = compare_folders(*folders_of(tmp_path, [bare], [record("a")])).markdown()
    assert row_of(text, "a") == "| a | \u2014 \u2192 90.00 % | \u2014 \u2192 10.00 | \u2014 \u2192 5.00 |"


@pytest.mark.parametrize("content", [None, b"", b"{}\n"])
def test_a_folder_without_runs_is_refused(tmp_path, content):
    old, new = folders_of(tmp_path, [record("a")], [])
    if content is not None:
        (new / "runs.jsonl").write_bytes(content)
    for folders in ((old, new), (new, old)):
        with pytest.raises(ValueError, match="No record file" if content is None else "holds no run"):
            compare_folders(*folders)


def test_the_command_as_text_json_and_page(tmp_path, capsys):
    a = of_500(record("a", acc=0.9))
    old, new = folders_of(tmp_path, [a, record("x|y")], [replace(a, metrics={"acc": 0.91}), record("x|y", size=2.0)])
    with (new / "runs.jsonl").open("a") as file:
        file.write("{}\n")
    assert main(["compare", str(old), str(new)]) == 0
    said = capsys.readouterr().out
    assert said == compare_folders(old, new).markdown()
    assert "B: 1 line of runs.jsonl could not be read" in said
    assert main(["compare", str(old), str(new), "--json", "--html", str(tmp_path / "c.html")]) == 0
    told = json.loads(capsys.readouterr().out)
    first, second = told["runs"]
    assert (first["name"], second["name"]) == ("a", "x|y")
    assert first["metric_change"] == pytest.approx(0.01)
    assert second["size_ratio"] == pytest.approx(0.2)
    assert first["latency_ratio"] == 1
    assert first["a"]["images"] == 500
    assert first["a"]["interval"] == pytest.approx([0.8706, 0.9234], abs=1e-4)
    assert (told["only_a"], told["only_b"], told["unreadable"]) == ([], [], {"a": 0, "b": 1})
    assert "<h1>old against new</h1>" in (tmp_path / "c.html").read_text(encoding="utf-8")
    assert main(["compare", str(old), str(new), "--metric", "Acc"]) == 1
    assert "No run has the metric 'Acc'; available: ['acc']" in capsys.readouterr().err
    assert main(["compare", str(old), str(tmp_path / "none")]) == 1


@needs_chromium
def test_the_page_in_a_browser(tmp_path):
    names = ["<script>alert(1)</script>", "w" * 300, "\u4e2d\u6587" * 50]
    runs = [replace(of_500(record(name)), config={name: name}) for name in names]
    old, new = folders_of(tmp_path, runs, [replace(run, config={}, metrics={"acc": 0.8}) for run in runs])
    (tmp_path / "c.html").write_text(compare_folders(old, new).html(), encoding="utf-8")
    with Browser() as browser:
        for width in (400, 1280, 1920):
            assert browser.open(tmp_path / "c.html", width) == []
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.evaluate("document.querySelectorAll('tbody tr').length") == 9
