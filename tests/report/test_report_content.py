"""No content of a record stops a report, acts in it, or changes its structure; a bad record is named and left out."""

from __future__ import annotations

import html.parser
import json
import logging
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from records import record

from paddlelite_callbacks import Budget
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.report.blocks import Chip, Chips, Column, Heading, Item, Items, Paragraph, Part, Table
from paddlelite_callbacks.report.html import html_page
from paddlelite_callbacks.report.markdown import escaped, markdown
from paddlelite_callbacks.report.record import Record, append_record, read_records, scan_records
from paddlelite_callbacks.report.write import report_blocks, write_ladder, write_report

BUDGET = Budget(metric="acc", baseline=0.9)
NASTY = [
    "a\nb",
    "| x | y |",
    "# heading",
    "\n# heading\n\n- item",
    "```\ncode",
    "`",
    "a\u2028b\u2029c\x0bd\x0ce\x1cf\x85g\rh",
    "$\\frac{",
    "$$",
    "^_$\\foo",
    "_hidden_",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "</style></head>",
    "{{ 7 * 7 }} {% raw %}",
    "[link](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "<!-- comment",
    "&lt;b&gt; &amp;",
    "\x00\x07\x1b[31m",
    "\ud800",
    "\u202eabc",
    "\\|",
    "`\\|`",
    "1. one",
    "- [x] done",
    "---",
    "===",
    "**bold** __bold__ ~~gone~~",
    "\u732b\U0001f408",
    "",
    " ",
    "x" * 100_000,
]
UNSHOWN = "\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff"
TEXT = st.sampled_from(NASTY) | st.text(max_size=40) | st.text("|#`*_<>&$\\[]()\n \t~-+=1.", max_size=30)
HUGE = st.sampled_from([10**400, -(10**400), 1e308, -1e308, 5e-324, 0, -1, 2**63, math.inf, math.nan])
JSON = st.recursive(
    st.none() | st.booleans() | HUGE | st.floats() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def full(name="net"):
    """A record with something in each of its fields."""
    run = record(name)
    return replace(
        run,
        command="python train.py --name 'a  b'",
        notes=("a note",),
        file_metrics=(FileMetrics(engine="paddle", precision="fp32", metrics={"acc": 0.9}, samples=4),),
        macs=10**6,
        roofline_gflops={"1": 100.0},
        history=({"epoch": 1, "loss": 1.0, "eval_loss": 0.9, "eval_acc": 0.5},),
        epoch=1,
        config={"cwd": "/x", "script": "/x/train.py", "budget": {"size_mb": 20.0, "metric": "acc", "baseline": 0.9}},
        log="/x/log.jsonl",
    )


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = [place for place in places(json.loads(full().to_json_line())) if place]


def changed(place, new, *, delete=False, name="changed"):
    data = json.loads(full(name).to_json_line())
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    if delete:
        del holder[place[-1]]
    else:
        holder[place[-1]] = new
    return json.dumps(data).encode()


class Page(html.parser.HTMLParser):
    """A page as a browser reads it: tags in order, no script, no handler, no address outside."""

    TAGS = frozenset(
        (
            *("html", "head", "meta", "title", "style", "body", "nav", "ul", "li", "a", "h1", "h2", "h3", "p", "div"),
            *("table", "thead", "tbody", "tr", "th", "td", "span", "strong", "code", "pre", "details", "summary"),
            *("main", "img"),
        )
    )

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.words, self.heads = [], [], 0
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        assert tag in self.TAGS, tag
        self.heads += tag in ("h1", "h2", "h3")
        for key, value in attrs:
            assert not key.startswith("on"), (key, value)
            if key in ("src", "srcset", "href"):
                assert value.startswith(("data:image/png;base64,", "#")), value
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_comment(self, data):
        raise AssertionError(data)

    def handle_data(self, data):
        self.words.append(data)


def drawn(*lines, **options):
    """Draw the report of such a file, with a good run before and behind; return page and Markdown."""
    good = [full(name).to_json_line().encode() for name in ("first-good", "last-good")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.jsonl"
        path.write_bytes(b"\n".join([good[0], *lines, good[1]]) + b"\n")
        before = path.read_bytes()
        text = write_report(Path(folder), **options)
        assert path.read_bytes() == before
        page = (Path(folder) / "report.html").read_text(encoding="utf-8")
        assert (Path(folder) / "report.md").read_text(encoding="utf-8") == text
    for name in ("first-good", "last-good"):
        assert f"\n## {name}\n" in text
        assert re.search(rf"^\| {name} \| 90\.00 % \|", text, flags=re.MULTILINE) or options.get("metric") != "acc"
    return Page(page), text


AT_ONCE = 5  # with the good runs before and behind, all of them are shown whole and in each picture
FIELDS = [
    (("name",), "a\n# b"),
    (("metrics",), [1]),
    (("metrics", "acc"), True),
    (("latencies", 0, "p50_ms"), 10**400),
    (("history", 0, "epoch"), 1e300),
    (("history", 0), {"loss": 1.0}),
    (("artefacts", 0, "path"), "a/\x00"),
    (("artefacts", 0, "path"), "/" + "x" * 5000),
    (("config", "script"), 5),
    (("config", "budget"), {"size_mb": "20", "engine": 3}),
    (("config", "budget"), {"size_mb": 10**400}),
    (("machine", "flags"), "avx"),
    (("parameters",), 10**400),
]
SLOW = settings(  # each example draws a report
    max_examples=2,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


def several(strategy):
    """Lists of what goes into one report: drawing the pictures takes nearly all of the time."""
    return st.lists(strategy, min_size=AT_ONCE, max_size=AT_ONCE)


@SLOW
@given(several(st.tuples(st.sampled_from(PLACES), JSON)))
@example(FIELDS[:5])
@example(FIELDS[5:10])
@example(FIELDS[10:])
def test_a_field_of_any_content(fields):
    """The two good runs are drawn, and each other one too, or it is named with its line."""
    page, text = drawn(*(changed(*field, name=f"changed-{line}") for line, field in enumerate(fields, 2)))
    for line, (place, _) in enumerate(fields, 2):
        assert f"\n## changed-{line}\n" in text or f"- line {line} " in text or place == ("name",)
    assert page.heads >= 3


@SLOW
@given(several(st.sampled_from(PLACES)))
def test_a_field_that_is_missing(places):
    _, text = drawn(*(changed(place, None, delete=True, name=f"changed-{n}") for n, place in enumerate(places, 2)))
    for line in range(2, 2 + len(places)):
        assert f"\n## changed-{line}\n" in text or re.search(rf"^- line {line} .*cannot be read", text, re.MULTILINE)


@SLOW
@given(several(st.lists(TEXT, min_size=12, max_size=12)))
@example([NASTY[:12], NASTY[12:24], NASTY[-12:]])
def test_texts_of_any_content_are_read_and_never_act(many):
    """The page and the Markdown have as many parts as those of records with plain texts."""

    def run(texts):
        a, b, c, d, e, f, g, h, i, j, k, m = texts
        old = full(a)
        return replace(
            old,
            created=b,
            command=c,
            notes=(d, e),
            metrics={f: 0.5, "acc": 0.5},
            latencies=(replace(old.latencies[0], error=g), replace(old.latencies[1], engine=h)),
            file_metrics=(FileMetrics(engine=i, precision=j, metrics={k: 0.1}, error=m),),
            history=({"epoch": 1, f: 1.0, f"eval_{k}": 2.0},),
            config={"cwd": m or "/", a: b, "nested": [c, {d: e}]},
            log=g,
        )

    columns = list(zip(*many, strict=True))  # texts that are the same stay so: engines are columns of one table
    plain = [[f"plain{columns[n].index(text)}-{n}" for n, text in enumerate(texts)] for texts in many]
    (strange, text), (_, other) = (
        drawn(*(run(texts).to_json_line().encode("utf-8", "backslashreplace") for texts in given), budget=BUDGET)
        for given in (many, plain)
    )
    assert shape(text) == shape(other)
    words = re.sub(r"[\s\ufffd]+", "", "".join(strange.words))
    for note in [note for texts in many for note in texts[3:5]]:
        kept = re.sub(rf"[\s\x00-\x1f\x7f-\x9f{UNSHOWN}]+", "", note)
        assert kept[:4000] in words


def shape(text):
    """Headings, tables and items of lists, in their order; fenced code is one part."""
    text = re.sub(r"^(````*)json\n.*?\n\1$", "CODE", text, flags=re.MULTILINE | re.DOTALL)
    kinds = []
    for line in text.split("\n"):
        found = re.match(r"(#+ |\||- \[[ x]\]|  - |- |!\[|</?details>|CODE|$)", line)
        kind = found[0] if found else "text"
        kinds.append((kind, len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) if kind == "|" else 0))
    return kinds


LINES = [
    b"[]",
    b"5",
    b'"text"',
    b"null",
    b"true",
    b"{}",
    b'{"schema": 2, "name": "new"}',
    b'{"schema": 1}',
    b'{"schema": "1", "name": "x"}',
    b'{"schema": 1, "name": {"a": 1}}',
    b"[" * 100_000,
    b'{"schema": 1, "a": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    b'{"schema": 1, "name": ' + b"9" * 10_000 + b"}",
    b"\xff\xfe\x00",
    b"\0" * 50,
    b'{"schema": 1, "name": "torn',
    b"| a | b |",
    b"# heading",
    b"<script>alert(1)</script>",
    json.dumps({**json.loads(record("deep").to_json_line()), "config": {"a": [[[[[{}]]]]]}}).encode()[:-9],
]


@pytest.fixture(scope="module")
def of_lines():
    """The report of a file that has all of `LINES` between two good ones."""
    return drawn(*LINES)[1]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_line_of_any_content_is_named_and_left_out(number, of_lines):
    assert "## Left out" in of_lines
    assert of_lines.count(f"\n- line {number + 2} ") == 1
    assert "# " + Path("x").name not in of_lines
    assert scan_records(LINES[number])[0].line == 1


def test_a_config_nested_too_deeply_is_left_out_and_a_deep_one_is_shown():
    def nested(depth):
        value: object = "inside"
        for _ in range(depth):
            value = {"a": [value]}
        data = {**json.loads(record("deep").to_json_line()), "config": {"x": value}}
        return json.dumps(data).encode()

    assert '"inside"' in drawn(nested(20))[1]
    assert "line 2 ('deep') cannot be read" in drawn(nested(60))[1]


def test_only_bad_lines_still_make_a_report(tmp_path):
    (tmp_path / "runs.jsonl").write_bytes(b"5\n")
    text = write_report(tmp_path)
    assert "0 runs" in text
    assert "line 1 cannot be read" in text
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_what_is_left_out_says_why(caplog):
    _, text = drawn(changed(("metrics", "acc"), "high"), changed(("latencies", 1, "threads"), None), b"{}")
    for said in (
        "line 2 ('changed') cannot be read: The record 'changed' does not fit schema 1: metrics.acc is 'high', not a",
        "line 3 ('changed') cannot be read: The record 'changed' does not fit schema 1: latencies\\[1].threads is None",
        "line 4 cannot be read: This version reads records of schema 1",
    ):
        assert said in text


@pytest.mark.parametrize("text", NASTY)
def test_one_line_of_markdown(text):
    assert "\n" not in escaped(text)
    assert len(escaped(text)) < 20_000


@pytest.mark.parametrize("name", ["$\\frac{", "$$", "_x", "$a$ $b", "a\nb", "\x00", "\ud800", "\u732b" * 20, "%", "\\"])
def test_names_in_pictures(name, tmp_path, recwarn):
    """Matplotlib takes dollars for mathematics, and leaves out labels that begin with an underscore."""
    run = replace(full(name), metrics={name: 0.5}, history=({"epoch": 1, name: 0.5, f"eval_{name}": 0.4},))
    text = write_ladder(tmp_path, [run, run], metric=name, title=name)
    assert text.count("\n- ") == 1
    append_record(tmp_path / "runs.jsonl", run)
    text = write_report(tmp_path, metric=name)
    assert "could not be drawn" not in text
    assert (tmp_path / "pareto.png").is_file()
    assert (tmp_path / "curves.png").is_file()
    assert read_records(tmp_path / "runs.jsonl")[0].name == name  # half a surrogate pair too
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def test_markdown_as_a_reader_of_it_sees_it():
    """A real parser finds the texts again, and nothing else."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False}).disable("linkify")

    def blocks_of(a, b):
        return [
            Heading(2, a),
            Paragraph(a),
            Items([Item(a, inner=[b]), Item(("x ", Part(b, "strong")), met=True)]),
            Table([Column(a), Column(b)], [(a, b), (b, (a, Part(b, "bad")))]),
            Chips([Chip(a or "x", b, a, b, True), Chip("size", a, b, "", False)]),
        ]

    plain = [token.type for token in parser.parse(markdown(blocks_of("a", "b"))) if token.type != "inline"]

    @settings(max_examples=300, deadline=None)
    @given(TEXT, TEXT)
    def check(a, b):
        blocks = blocks_of(a, b)
        tokens = [token for token in parser.parse(markdown(blocks)) if token.type != "inline"]
        assert [token.type for token in tokens] == plain
        inner = [child.type for token in parser.parse(markdown(blocks)) for child in token.children or ()]
        assert set(inner) <= {"text", "strong_open", "strong_close", "text_special", "softbreak"}, inner

    check()


def test_a_page_of_any_blocks_is_whole():
    @settings(max_examples=100, deadline=None)
    @given(TEXT, TEXT)
    def check(a, b):
        blocks = [Heading(1, a), Heading(2, b, "x"), Paragraph((a, Part(b, "code"))), Table([Column(a)], [(b,)])]
        Page(html_page(blocks, {}, title=a))

    check()


def test_blocks_of_no_runs(tmp_path):
    assert len(report_blocks([], tmp_path, metric="acc", budget=BUDGET)) == 1


def test_a_command_is_shown_whole_and_its_lines_are_told():
    run = replace(full("changed"), command="python -c 'a\nb  c' " + "x" * 3000)
    _, text = drawn(run.to_json_line().encode())
    assert "command: `python -c 'a\\nb  c' " + "x" * 3000 + "`" in text


def test_the_gate_does_not_fall_back_on_an_older_record(tmp_path, capsys):
    """The latest record of a name cannot be read: what stands before it is no answer."""
    path = tmp_path / "runs.jsonl"
    path.write_bytes(full("changed").to_json_line().encode() + b"\n" + changed(("metrics",), 5) + b"\n")
    append_record(path, full("other"))
    limits = ["gate", str(tmp_path), "--size-mb", "20"]
    assert main([*limits, "--run", "changed"]) == 3
    assert "changed: fail: its latest record cannot be judged: line 2" in capsys.readouterr().out
    assert main([*limits, "--all"]) == 3
    assert main(limits) == 0
    assert main([*limits, "--run", "other"]) == 0
    path.write_bytes(full("a").to_json_line().encode() + b'\n{"schema": 1, "torn\n')
    assert main([*limits, "--all"]) == 3
    assert "line 2: fail: its latest record cannot be judged: line 2 is truncated" in capsys.readouterr().out
    path.write_bytes(b"{}\n")
    assert main(limits) == 1
    assert "can be judged: line 1 cannot be read" in capsys.readouterr().err


def test_records_of_a_later_version_are_read_without_what_is_unknown(caplog):
    data = {**json.loads(full().to_json_line()), "later": {"a": 1}}
    data["latencies"][0]["later"] = 5
    with caplog.at_level(logging.WARNING):
        assert Record.from_json_line(json.dumps(data)) == full()
    assert not caplog.records
