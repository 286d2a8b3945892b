"""A report of many runs: bounded pictures and page, every run in a table, nobody waits for a drawing."""

from __future__ import annotations

import random
import struct
import threading
from dataclasses import replace

import pytest
from records import latency, record

from paddlelite_callbacks import Budget
from paddlelite_callbacks.export.compare import Check
from paddlelite_callbacks.report import write as run_report
from paddlelite_callbacks.report.chosen import chosen, front_of, point_of
from paddlelite_callbacks.report.record import append_record, read_records
from paddlelite_callbacks.report.write import write_report

BUDGET = Budget(size_mb=40, latency_ms=10, metric="acc", baseline=0.9)


def many(count, **change):
    stream = random.Random(0)
    runs = []
    for i in range(count):
        ms = (("paddle", stream.uniform(10, 90)), ("onnxruntime", stream.uniform(1, 9)))
        run = record(f"run {i}", acc=stream.random(), size=stream.uniform(1, 50), ms=ms)
        history = tuple({"epoch": e + 1, "loss": 1 / (e + 1), "eval_loss": 1 / (e + 2)} for e in range(5))
        runs.append(replace(run, history=history, config={"cwd": "/x"}, **change))
    return runs


def write(folder, runs):
    (folder / "runs.jsonl").write_text("".join(run.to_json_line() + "\n" for run in runs), encoding="utf-8")


def pixels(path):
    return struct.unpack(">II", path.read_bytes()[16:24])


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thousand")
    runs = many(1000)
    write(folder, runs)
    return folder, runs, write_report(folder, budget=BUDGET)


def test_a_thousand_runs_take_a_bounded_page_and_bounded_pictures(thousand):
    """It was 8.6 MB and a picture of 65,888 pixels at 970 runs."""
    folder, _, _ = thousand
    assert (folder / "report.html").stat().st_size < 2_000_000
    assert (folder / "report.md").stat().st_size < 500_000
    for name in ("pareto.png", "curves.png"):
        width, height = pixels(folder / name)
        assert width <= 1500
        assert height <= 1500


def test_every_run_stands_in_the_table_and_the_best_are_shown(thousand):
    _, runs, text = thousand
    table = text[text.index("1000 runs</summary>") :]
    assert all(f"\n| {run.name} | 2026" in table for run in runs)
    sections = [line[3:] for line in text.splitlines() if line.startswith("## run ")]
    assert len(sections) == 20
    assert sections[0] == "run 0"
    assert sections[-1] == "run 999"
    passing = [r for r in runs if r.size_mb <= 40 and r.metrics["acc"] >= 0.9 * 0.95]
    best = max(passing, key=lambda run: run.metrics["acc"])
    assert best.name in sections
    assert f"Most accurate of those that pass: **{best.name}**" in text
    assert f"{len(passing)} of 1000 runs pass" in text


def test_pictures_stand_before_a_long_table_and_behind_a_short_one(thousand, tmp_path):
    text = thousand[2]
    assert text.index("](pareto.png)") < text.index("](curves.png)") < text.index("| model |")
    write(tmp_path, many(3))
    text = write_report(tmp_path)
    assert text.index("| model |") < text.index("](pareto.png)")


def test_more_runs_than_the_table_holds(tmp_path):
    runs = [replace(run, history=()) for run in many(1003)]
    write(tmp_path, runs)
    text = write_report(tmp_path)
    table = text[text.index("1000 runs</summary>") :]
    assert "\n| run 3 | 2026" in table
    assert "\n| run 2 | 2026" not in table
    assert "The 3 earlier ones are in runs.jsonl" in text


def test_the_work_grows_in_proportion_to_the_runs(tmp_path):
    """Counted, not timed: the calls that drawing 200 and 800 runs take."""
    import cProfile
    import pstats

    def calls(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        write(folder, many(count))
        profile = cProfile.Profile()
        profile.runcall(write_report, folder, budget=BUDGET)
        return pstats.Stats(profile).total_calls

    calls(100)  # imports, fonts
    few, more, most = calls(200), calls(400), calls(800)
    assert most - more < 2.5 * (more - few)  # 2 if linear, 4 if quadratic


def test_one_huge_record_does_not_make_a_huge_page(tmp_path):
    big = replace(
        record("x" * 10**6),
        notes=tuple("n" * 10**4 for _ in range(500)),
        config={f"key{i}": "v" * 1000 for i in range(1000)},
        latencies=tuple(latency(f"engine{i}", 1.0) for i in range(3000)),
        checks=tuple(Check(engine=f"engine{i}", precision="fp32", passed=True) for i in range(3000)),
        metrics={f"metric{i}": 0.5 for i in range(3000)},
        history=tuple({"epoch": i, **{f"m{j}": 0.5 for j in range(10)}} for i in range(3000)),
    )
    write(tmp_path, [record("a"), big])
    write_report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert max(pixels(tmp_path / "pareto.png")) <= 1500


def test_which_runs_are_chosen():
    runs = [record(f"{i}", acc=i / 100, ms=(("paddle", float(i + 1)),), agree=("paddle",)) for i in range(50)]
    assert chosen(runs, "acc", most=50) == list(range(50))
    assert chosen(runs, "acc", most=6) == [0, 45, 46, 47, 48, 49]  # all are of the front
    worse = [*runs, *(record(f"w{i}", acc=0.0, ms=(("paddle", 60.0),), agree=("paddle",)) for i in range(50))]
    assert chosen(worse, "acc", most=6) == [0, 48, 49, 97, 98, 99]
    assert chosen(worse, "acc", most=6, winner=worse[20]) == [0, 20, 48, 49, 98, 99]
    points = [point_of(run, "acc") for run in worse]
    by_hand = [
        i for i, p in enumerate(points) if not any(q.ms <= p.ms and q.metric >= p.metric and q is not p for q in points)
    ]
    assert sorted(front_of(points, "acc")) == by_hand == list(range(50))
    assert front_of([point_of(run, "acc") for run in runs], "top1_err") == [0]  # where less is better


def test_a_run_that_ends_waits_for_no_drawing(tmp_path, monkeypatch):
    """Another thread draws, and cannot go on; the record is added meanwhile, and that drawing is not the last word."""
    path = tmp_path / "runs.jsonl"
    append_record(path, record("a"))
    begun, go_on = threading.Event(), threading.Event()
    page = run_report.html_page

    def slow_page(*args, **options):
        begun.set()
        assert go_on.wait(60)
        return page(*args, **options)

    monkeypatch.setattr(run_report, "html_page", slow_page)
    drawing = threading.Thread(target=write_report, args=(tmp_path,))
    drawing.start()
    assert begun.wait(60)
    append_record(path, record("b"))  # would wait for ever
    assert len(read_records(path)) == 2
    go_on.set()
    drawing.join()
    assert "## b" not in (tmp_path / "report.md").read_text()
    assert "## b" in write_report(tmp_path)


def test_a_report_of_fewer_runs_never_replaces_one_of_more(tmp_path, monkeypatch):
    """A process that began to draw earlier ends later."""
    path = tmp_path / "runs.jsonl"
    append_record(path, record("a"))
    pictures = run_report._pictures

    def late(*args):
        monkeypatch.setattr(run_report, "_pictures", pictures)
        monkeypatch.setattr(run_report, "_drawing", threading.Lock())  # as if it were another process
        append_record(path, record("b"))
        write_report(tmp_path)
        return pictures(*args)

    monkeypatch.setattr(run_report, "_pictures", late)
    text = write_report(tmp_path)
    assert "## b" not in text
    assert "## b" in (tmp_path / "report.md").read_text()
    assert "## b" in (tmp_path / "report.html").read_text() or ">b<" in (tmp_path / "report.html").read_text()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])  # taken out by hand: the shorter file is the truth
    write_report(tmp_path)
    assert "## b" not in (tmp_path / "report.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pareto.png", "report.html", "report.md", "runs.jsonl"]
