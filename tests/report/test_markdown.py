"""No Markdown file of the repository holds leftovers of editing: stray quotes, markers, conflicts, torn tables."""

from __future__ import annotations

import re

import pytest
from places import ROOT

FILES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("build", "runs") for part in path.relative_to(ROOT).parts)
)


def without_fences(text: str) -> str:
    return re.sub(r"^( *)(```+|~~~+)[^\n]*\n.*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)


def leftovers(text: str) -> list[str]:
    """Return what looks like a leftover, each with the place."""
    found = [f"merge conflict: {line}" for line in text.splitlines() if re.match(r"(<{7}|>{7}|\|{7})( |$)|={7}$", line)]
    plain = without_fences(text)
    found += [f"fence without its end: {line}" for line in plain.splitlines() if re.match(r" *(```|~~~)", line)]
    opened, closed = (re.findall(rf"<!-- {end}(\w[\w/-]*) -->", plain) for end in ("", "/"))
    found += [f"marker without its pair: {name}" for name in set(opened) ^ set(closed)]
    plain = re.sub(r"<!--.*?-->", "", plain, flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*[-*] |\||#)", plain):  # paragraphs, items of lists, rows, headings
        prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", block, flags=re.DOTALL)
        prose = re.sub(r"<[a-z/][^<>]*>", "", prose)
        for count, name in (
            (prose.count('"'), "quote"),
            (prose.count("**"), "bold mark"),
            (prose.count("`") and 1, "code mark"),
        ):
            if count % 2:
                found.append(f"{name} without its pair: {block.strip()[:80]!r}")
        for pattern, name in (
            (r"(?<=\S) #{2,6} \w", "heading inside a line"),
            (r"\{\{|\}\}|\{%|%\}|\{[a-z_]+\}|%\([a-z_]+\)s|%s\b", "placeholder"),
            (r"\b(TODO|FIXME|XXX|TBD|lorem ipsum)\b|\?\?\?", "note to oneself"),
            (r"\]\([^)]*$|\]\(\s*\)", "link without its end"),
            (r"\ufffd|\x00", "broken character"),
        ):
            if match := re.search(pattern, prose):
                found.append(f"{name} {match[0]!r}: {block.strip()[:80]!r}")
    for table in re.findall(r"(?:^ *\|.*\n?)+", plain, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        if len(widths) > 1:
            found.append(f"rows of {sorted(widths)} bars: {table.splitlines()[0][:80]!r}")
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_holds_no_leftover(path):
    assert leftovers((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        '200 fits in one process" to before "## Files from others"\n',
        "a ``code\n\nb`` c\n",
        "x\n<<<<<<< HEAD\ny\n=======\nz\n>>>>>>> other\n",
        "<!-- digits/ladder -->\n| a |\n|---|\n",
        "| a | b |\n|---|---|\n| 1 |\n",
        "It is {name} who\n",
        "**bold\n\nnext\n",
        "TODO: say why\n",
        "see [the part](#the-part\n",
        "```python\nx = 1\n",
    ],
)
def test_leftovers_are_seen(text):
    assert leftovers(text)


def test_what_may_stand_is_no_leftover():
    text = 'A "word", `"` and **this**.\n\n```python\nf"{x}" # TODO\n```\n\n| a | `x \\| y` |\n|---|---|\n| 1 | 2 |\n'
    assert leftovers(text) == []
