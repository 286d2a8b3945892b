"""The report in a real browser: nothing leaves its box, nothing acts, every word can be read, at three widths."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from browser import Browser, needs_chromium
from records import latency, record

from paddlelite_callbacks import Budget
from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.report.blocks import Heading, Paragraph
from paddlelite_callbacks.report.html import html_page
from paddlelite_callbacks.report.record import append_record
from paddlelite_callbacks.report.write import write_report

pytestmark = needs_chromium
NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "</style><script>document.title='gone'</script>",
    "</title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "\u202e\u0000\ud800",
    "\u4e2d\u6587" * 40,
    "w" * 300,
    "a b " * 100,
]
WIDTHS = [(400, False), (1280, False), (1920, False), (400, True), (1280, True), (1920, True)]

# Elements that stand out of the page, or of the box that scrolls them; texts that are cut off without a scroll bar.
OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || element.closest('.table, pre') && !element.matches('.table, pre')) return false;
  return box.left < -1 || box.right > document.documentElement.clientWidth + 1
    || element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display != 'inline'
       && !element.matches('.table, pre');
}).map(element => element.outerHTML.slice(0, 120))
"""
# Of all elements with text: the contrast of the text with what is behind it (WCAG 2: (L1 + 0.05) / (L2 + 0.05)).
CONTRASTS = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = rgb => { const [r, g, b] = rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = element => { for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor); if (colour.length < 4 || colour[3] > 0) return colour; }
    return [255, 255, 255]; };
  return Math.min(...[...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())).map(e => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05); }));
})()
"""
GATE_CELLS = """
[...document.querySelectorAll('table')].filter(t => t.tHead.textContent.includes('gate')).flatMap(table => {
  const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent == 'gate');
  const frame = table.parentElement.getBoundingClientRect();
  return [...table.rows].map(row => row.cells[at].getBoundingClientRect())
    .filter(box => box.width).map(box => box.left >= frame.left - 1 && box.right <= frame.right + 1);
})
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs with names of all kinds, passing and failing, with every section that a report can have."""
    made, stream = tmp_path_factory.mktemp("a report"), random.Random(0)
    engines = ("paddle", "paddle-onednn", "onnxruntime", "openvino")
    for i, name in enumerate(["big", "light", *NASTY]):
        ms = tuple((engine, stream.uniform(1, 60)) for engine in engines)
        run = record(name, acc=stream.randrange(440, 500) / 500, size=stream.uniform(1, 40), ms=ms, agree=engines)
        run = replace(
            run,
            latencies=(*run.latencies[:3], latency("openvino", None, error=name)),
            file_metrics=tuple(
                FileMetrics(engine=engine, precision="fp32", metrics=run.metrics, samples=500) for engine in engines
            ),
            history=tuple(
                {"epoch": e, "loss": 1 / e, "eval_loss": 1.1 / e, "eval_acc": 1 - 1 / e} for e in range(1, 6)
            ),
            notes=(name, "a note"),
            remarks=(name,),
            command=name,
            config={"cwd": name, "script": "/x/" + name[:40], "options": {name: [name] * 3}},
            failure=name if i == 5 else None,
        )
        append_record(made / "runs.jsonl", run)
    with (made / "runs.jsonl").open("a") as file:
        file.write('{"schema": 1, "name": "<script>alert(1)</script>"}\n')
    write_report(made, budget=Budget(size_mb=20, latency_ms=30, metric="acc", baseline=0.95))
    return made


@pytest.mark.parametrize(("width", "dark"), WIDTHS)
def test_nothing_stands_out_of_its_box_and_nothing_acts(browser, folder, width, dark):
    assert browser.open(folder / "report.html", width, dark=dark) == []
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate("document.querySelectorAll('script, iframe, object, embed, form').length") == 0
    assert browser.evaluate("document.title").endswith(": runs")
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.evaluate(OVERFLOWING) == []


@pytest.mark.parametrize("width", [400, 1280, 1920])
def test_words_in_tables_stay_whole(browser, folder, width):
    """A short coloured word, or a name of one word, is never broken; a long name leaves room for the rest."""
    browser.open(folder / "report.html", width)
    broken = browser.evaluate(
        "[...document.querySelectorAll('.table .good, .table .bad, .table tbody th')]"
        ".filter(e => e.textContent.length < 18 && (e.tagName == 'SPAN' || !/[ -]/.test(e.textContent.trim())))"
        ".filter(e => { const style = getComputedStyle(e);"
        " const inside = e.tagName == 'SPAN' ? e.getBoundingClientRect().height : (() => {"
        " const range = document.createRange(); range.selectNodeContents(e);"
        " return range.getBoundingClientRect().height; })();"
        " return inside > 1.6 * parseFloat(style.lineHeight); }).map(e => e.textContent)"
    )
    assert broken == []
    heads = browser.evaluate(
        "[...document.querySelectorAll('.table')].filter(t => t.clientWidth)"
        ".map(t => t.querySelector('tbody th').getBoundingClientRect().width / t.clientWidth)"
    )
    assert max(heads) < 0.6


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_what_is_behind_it(browser, folder, dark):
    """4.5 is what WCAG AA asks of normal text."""
    browser.open(folder / "report.html", 1280, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    dark_paper = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0] < 100")
    assert dark_paper is dark
    assert browser.evaluate(CONTRASTS) >= 4.5


@pytest.mark.parametrize("width", [1280, 1920])
def test_the_gate_column_is_seen_without_scrolling(browser, folder, width):
    browser.open(folder / "report.html", width)
    seen = browser.evaluate(GATE_CELLS)
    assert len(seen) > 20
    assert all(seen)


def test_colour_is_never_alone(browser, folder):
    """Each coloured piece has a word of its own and a mark."""
    browser.open(folder / "report.html", 1280)
    marks = browser.evaluate(
        "[...document.querySelectorAll('.good, .bad')].map(e => [e.className, e.textContent,"
        " getComputedStyle(e, '::before').content])"
    )
    assert {kind for kind, _, _ in marks} == {"good", "bad"}
    assert all(text.strip() and ("\u2713" if kind == "good" else "\u2717") in mark for kind, text, mark in marks)
    chips = browser.evaluate("[...document.querySelectorAll('.chips li')].map(e => e.textContent)")
    assert len(chips) == 3
    assert all("pass, " in text or "fail, " in text for text in chips)


def test_contents_headings_and_pictures_are_told_to_who_cannot_see(browser, folder):
    browser.open(folder / "report.html", 1280)
    links = browser.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href').slice(1))")
    assert links[:3] == ["gate", "runs", "left-out"]
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.id)") == links
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    assert levels.count(1) == 1
    pictures = browser.evaluate("[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt.length])")
    assert len(pictures) == 2
    assert all(drawn and words > 20 for drawn, words in pictures)
    assert browser.evaluate("[...document.querySelectorAll('pre')].every(one => one.closest('details'))")


@pytest.mark.parametrize("text", NASTY)
def test_names_are_shown_as_they_are(browser, tmp_path, text):
    page = html_page([Heading(1, text), Heading(2, text, "x"), Paragraph(text)], {}, title=text)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    assert browser.open(tmp_path / "page.html", 400) == []
    shown = browser.evaluate("[...document.querySelectorAll('h1, h2, p, nav a')].map(e => e.textContent)")
    assert len(shown) == 4
    assert len(set(shown)) == 1
    if text.isprintable():
        assert shown[0] == text.strip() or shown[0] == text
    assert browser.evaluate("document.body.children.length") == 3


def test_the_checks_see_what_is_wrong(browser, tmp_path):
    """A page with each of the faults: what overflows, acts, asks a network, or cannot be read."""
    page = html_page([Heading(1, "t"), Paragraph("x")], {}, title="t")
    policy = page[page.index("<meta http-equiv") : page.index('<meta name="drawn-from')]
    bad = '<div style="width:3000px">wide</div><p style="color:#888;background:#999">grey</p><script>alarm()</script>'
    (tmp_path / "bad.html").write_text(page.replace(policy, "").replace("</main>", f"{bad}</main>"))
    assert any("alarm" in trouble for trouble in browser.open(tmp_path / "bad.html", 400))
    assert any("3000px" in one for one in browser.evaluate(OVERFLOWING))
    assert browser.evaluate(CONTRASTS) < 2
    (tmp_path / "kept.html").write_text(page.replace("</main>", f"{bad}</main>"))
    assert any("Content Security Policy" in trouble for trouble in browser.open(tmp_path / "kept.html", 400))
