"""The report of a folder of runs: what it says, what it leaves alone, and that it needs nothing from outside."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from exporting import grouped
from installed import needs
from records import record
from toy import TinyNet, fit, hapi_model

from paddlelite_callbacks import Budget, ExportBenchCallback
from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.report.blocks import Code, Column, Fold, Heading, Item, Items, Part, Table
from paddlelite_callbacks.report.gate import judge, most_accurate
from paddlelite_callbacks.report.hand_in import check_points
from paddlelite_callbacks.report.html import html_page
from paddlelite_callbacks.report.markdown import markdown
from paddlelite_callbacks.report.record import Record, append_record, read_records
from paddlelite_callbacks.report.write import first_metric, write_report

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "preflight": False, "peak_memory": False, "roofline": False}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project \u4e2d <&>")
    budget = Budget(metric="acc", baseline=1.0)
    for name, width, report in (("big", 32, False), ("light | slim", 8, False), ("big", 32, True)):
        callback = ExportBenchCallback(
            folder, **grouped(name=name, engines=["paddle", "onnxruntime"], budget=budget, report=report, **QUICK)
        )
        fit(hapi_model(TinyNet(width=width)), [callback], epochs=3)
    return folder


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order; collects addresses."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.anchors, self.words = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.anchors += [value for key, value in attrs if key == "id"]
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@needs("paddle2onnx")
def test_the_report_says_all_of_every_run(project):
    text = (project / "report.md").read_text(encoding="utf-8")
    assert sorted(p.name for p in project.iterdir()) == [
        "big", "curves.png", "light | slim", "pareto.png", "report.html", "report.md", "runs.jsonl",
    ]  # fmt: skip
    assert text.startswith("# project \u4e2d <&>")
    records = read_records(project / "runs.jsonl")
    (ladder,) = [block for block in text.split("\n\n") if block.startswith("| model |")]
    assert len(ladder.splitlines()) == 2 + len(records)
    assert text.index("## Gate") < text.index("| model |")  # the verdict comes first
    assert "big (2)" in text
    for run in records:
        assert f"{run.metrics['acc']:.6g}" in text
    assert text.count("- [x] **Size, log, path**") == 3
    assert text.count("- [x] **Result and model**") == 2  # the second "big" wrote over the first one's files
    assert text.count("is another file by now (a later run of this name?)") == 2
    assert text.count("**Exact command and config to train again**") == 3
    assert f"command: `{records[0].command}`" in text
    assert '"learning_rate": 0.05' in text


def test_the_page_is_whole_self_contained_and_escaped(project):
    page = Page((project / "report.html").read_text(encoding="utf-8"))
    pictures = [address for address in page.addresses if not address.startswith("#")]
    assert len(pictures) == 2  # one of each serves a telephone and a wide page
    assert all(address.startswith("data:image/png;base64,iVBOR") for address in pictures)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.anchors)
    assert f"{project.name}: 3 runs" in page.words
    assert any("light | slim" in word for word in page.words)
    assert '<meta name="viewport"' in (project / "report.html").read_text(encoding="utf-8")


def test_drawing_again_changes_no_record_and_takes_the_last_budget(project):
    before = (project / "runs.jsonl").read_bytes()
    text = (project / "report.md").read_text(encoding="utf-8")
    assert write_report(project) == text
    assert (project / "runs.jsonl").read_bytes() == before
    assert "| gate |" in text


def test_two_writers_at_once_leave_a_report_with_every_row(tmp_path):
    append_record(tmp_path / "runs.jsonl", record("seed"))
    code = (
        "import sys, pathlib\n"
        "from dataclasses import replace\n"
        "from paddlelite_callbacks.report.record import append_record, read_records\n"
        "from paddlelite_callbacks.report.write import write_report\n"
        "path = pathlib.Path(sys.argv[1]); line = read_records(path / 'runs.jsonl')[0]\n"
        "for i in range(4):\n"
        "    append_record(path / 'runs.jsonl', replace(line, name=f'{sys.argv[2]}{i}')); write_report(path)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), who]) for who in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    names = {run.name for run in read_records(tmp_path / "runs.jsonl")}
    assert len(names) == 9
    text = (tmp_path / "report.md").read_text()
    assert all(f"\n## {name}\n" in text for name in names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pareto.png", "report.html", "report.md", "runs.jsonl"]


def test_check_points_that_are_not_met(tmp_path):
    bare = record()
    result, size, command = check_points(bare, tmp_path)
    assert not any(point.met for point in (result, size, command))
    assert "no training log" in size.details
    assert "no command recorded" in command.details
    script = tmp_path / "train.py"
    script.write_text("x = 1")
    checksum = "9c1c1dff2b7d0b1a"
    pinned = replace(bare, command="python train.py", config={"script": str(script), "script_sha256": checksum})
    assert "changed or gone since the run" in check_points(pinned, tmp_path)[2].details[-1]


def test_lines_of_the_first_version_still_load():
    old = {
        "schema": 1, "name": "n", "created": "2026-01-01T00:00:00+00:00", "parameters": 3, "command": "c", "notes": [],
        "artefacts": [
            {"kind": "paddle", "precision": "fp32", "path": "/x", "size_mb": 1.0, "sha256": {}, "error": None}
        ],
        "latencies": [
            {"engine": "paddle", "precision": "fp32", "threads": 1, "batch_size": 1, "warmup": 1, "repeats": 3,
             "p50_ms": 2.0, "p90_ms": 2.0, "min_ms": 1.0, "mean_ms": 2.0, "error": None}
        ],
        "checks": [{"engine": "paddle", "precision": "fp32", "passed": True}], "metrics": {"acc": 0.5},
        "machine": {"cpu": "c", "cores": 2, "flags": [], "system": "s", "python": "3", "packages": {}},
    }  # fmt: skip
    loaded = Record.from_json_line(json.dumps(old))
    assert loaded.best_latency().p50_ms == 2.0
    assert loaded.file_metrics == loaded.history == ()
    assert Record.from_json_line(loaded.to_json_line()) == loaded
    assert first_metric([loaded]) == "acc"


def test_the_gate_believes_the_file_more_than_the_training():
    run = replace(
        record(acc=0.93),
        file_metrics=(
            FileMetrics(engine="onnxruntime", precision="fp32", metrics={"acc": 0.5}, samples=9),
            FileMetrics(engine="paddle", precision="fp32", metrics={"acc": 0.93}, samples=9),
        ),
    )
    budget = Budget(size_mb=20, latency_ms=100, metric_drop=0.05, metric="acc", baseline=0.94)
    verdict = judge(run, budget)  # onnxruntime is the fastest
    assert not verdict.passed
    assert verdict.criteria[2].value == pytest.approx(0.44 / 0.94)
    assert judge(run, replace(budget, engine="paddle")).passed
    other = record("other", acc=0.9)
    assert most_accurate([run, other], budget).name == "other"
    lines = verdict.table().splitlines()
    assert lines[0] == "| engine | file | size MB (left) | latency ms (left) | drop % (left) | gate |"
    assert lines[2] == "| paddle | fp32 | 10 (+10) | 50 (+50) | 1.064 (+3.936) | pass |"
    assert lines[3].startswith("| onnxruntime | fp32 | unknown: no such file | 5 (+95) | 46.81 (-41.81) | **fail**")


def test_what_a_report_consists_of_as_page_and_as_markdown():
    blocks = [
        Heading(1, "a <b>"),
        Table([Column("x"), Column("y"), Column("gate", left=True, early=True)], [(Part("1 | 3", "code"), "z*", "no")]),
        Items([Item(("one ", Part("two", "strong")), inner=["in"]), Item("three", met=False)]),
        Fold("more", [Code("<&>\n```", "json")]),
    ]
    page = html_page(blocks, {}, title="t", drawn_from=7)
    Page(page)
    assert "<h1>a &lt;b&gt;</h1>" in page
    assert '<th scope="row"><code>1 | 3</code></th><td class="text">no</td><td>z*</td>' in page  # the gate comes early
    assert '<pre tabindex="0"><code>&lt;&amp;&gt;\n```</code></pre></details>' in re.sub(r"\n+(?=</details>)", "", page)
    assert re.search(r"<li>one <strong>two</strong><ul><li>in</li></ul></li><li class=.tick.>.*open.* three", page)
    assert '<meta name="drawn-from" content="7">' in page
    assert markdown(blocks) == (
        "# a \\<b>\n\n| x | y | gate |\n|---|---:|---|\n| 1 \\| 3 | z\\* | no |\n\n"
        "- one **two**\n  - in\n- [ ] three\n\n"
        "<details><summary>more</summary>\n\n````json\n<&>\n```\n````\n\n</details>\n"
    )
