"""The package speaks the field's words: first lines of docstrings, and words that are not used, each with another."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

# What is not written in docstrings and messages of the package -> what is written in its place.
BANNED = {
    r"\btorn\b": "truncated",
    r"\banew\b": "again",
    r"\bhand(?:s|ed)? (?:it |them |what \w+ )?out\b": "export, return",
    r"\breckon\w*\b": "compute, count",
    r"\bundisturbed\b": "without side effects",
    r"\bbehind (?:a|the|each|every) batch\b": "after a batch",
    r"\b(?:is|are|be) told of\b": "registered with",
    r"\bnone of the \w+'s figures\b": "unknown metric",
    r"\bheld against\b": "compared with",
    r"\bstands? still\b": "is frozen",
    r"\btakes? up\b": "load",
    r"\brandom streams?\b": "random generators",
    r"\bfree sizes?\b": "dynamic sizes",
    r"\bspoke?n? of\b": "mentioned",
    r"(?<!ere )\bis no (?:tensor|layer|file|folder|list|dictionary|callable|classifier|JSON|program)\b": "is not a",
    r"\bappears only when whole\b": "written atomically",
    r"\bwhole or not at all\b": "atomically",
    r"\bnot yours to\b": "not writable",
    r"\bto its liking\b": "accepted",
    r"\bthe big model\b": "the large model",
    r"\bon noise\b": "on random inputs",
    r"\bfor noise\b": "for random inputs",
}
MOST = 80
PACKAGE = ROOT / "paddlelite_callbacks"


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string that a reader may see, its formatted parts left out."""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            text = node.value
        else:
            continue
        if " " in text.strip():
            yield node.lineno, re.sub(r"\s+", " ", text)


def documented(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
            yield type(node).__name__, node.body[0].lineno, doc.splitlines()[0]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def test_first_lines_are_short_sentences(trees):
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} {first}"
        for path, tree in trees.items()
        for _, line, first in documented(tree)
        if len(first) >= MOST or not first.endswith((".", "``.", '"""', "..."))
    ]
    assert not wrong


def test_first_lines_of_functions_begin_with_a_verb(trees):
    """The imperative, not what is true of the function, nor an article: "Return the file", not "The file that"."""
    starts = re.compile(r"(?:The|A|An|What|Which|How|Where|When|Of|If|From|By|So|In|This|It|There|Does|Is)\b")
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} {first}"
        for path, tree in trees.items()
        for kind, line, first in documented(tree)
        if kind == "FunctionDef" and starts.match(first)
    ]
    assert not wrong


def test_no_test_imports_a_private_name_of_the_package():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name.name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paddlelite_callbacks")
        for name in node.names
        if re.match(r"_[^_]", name.name)
    ]
    assert not found


@pytest.mark.parametrize(("word", "instead"), BANNED.items(), ids=list(BANNED.values()))
def test_words_that_the_field_does_not_use(trees, word, instead):
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {text[max(0, hit.start() - 40) : hit.end() + 30]!r}: {instead}"
        for path, tree in trees.items()
        for line, text in strings(tree)
        if (hit := re.search(word, text))
    ]
    assert not found
