"""Write results of commands: tables for people, JSON for programs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from paddlelite_callbacks.errors import require

__all__ = ["NAMES", "program_name", "write_json", "write_text"]

NAMES = ("paddlelite-callbacks", "plcb")  # installed commands


def program_name() -> str:
    """Return the command name of this process, for usage texts and messages."""
    called = Path(sys.argv[0]).stem if sys.argv else ""
    return called if called in NAMES else "python -m paddlelite_callbacks"


def write_json(value: Any) -> None:
    """Write ``value`` as one line of JSON, with unencodable characters escaped."""
    line = json.dumps(value, ensure_ascii=False) + "\n"
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(value) + "\n"
    sys.stdout.write(line)
    sys.stdout.flush()


def write_text(text: str) -> None:
    """Write ``text``, with Markdown tables drawn by rich on a terminal.

    In a pipe, a file, or without rich they stay Markdown. ``NO_COLOR`` and ``TERM=dumb`` are obeyed.
    """
    if not _draws():
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    console_module = require("rich.console", needed_for="tables on a terminal")
    console = console_module.Console(file=sys.stdout, highlight=False)
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if is_table:
            console.print(_rich_table(lines))
        else:
            sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _draws() -> bool:
    isatty = getattr(sys.stdout, "isatty", None)
    if isatty is None or not isatty() or os.environ.get("TERM") == "dumb":
        return False
    return importlib.util.find_spec("rich") is not None


def _rich_table(lines: Iterable[str]) -> Any:
    head, rule, *rows = (_cells(line) for line in lines)
    table = require("rich.table", needed_for="tables on a terminal").Table()
    text = require("rich.text", needed_for="tables on a terminal").Text  # plain: brackets in names are not markup
    for title, mark in zip(head, rule, strict=False):
        table.add_column(text(title), justify="right" if mark.endswith(":") else "left", overflow="fold")
    for row in rows:
        styles = {"pass": "green", "fail": "bold red"}
        table.add_row(*(text(cell, style=styles.get(cell.partition(":")[0], "")) for cell in row))
    return table


def _cells(line: str) -> list[str]:
    """Split a line of a Markdown table at the bars that are not escaped."""
    cells, escaped = [""], False
    for letter in line.strip().removeprefix("|").removesuffix("|"):
        if letter == "|" and not escaped:
            cells.append("")
        else:
            cells[-1] += letter
        escaped = letter == "\\" and not escaped
    return [_unescaped(cell.strip()) for cell in cells]


def _unescaped(cell: str) -> str:
    letters = iter(cell)
    return "".join(next(letters, "") if letter == "\\" else letter for letter in letters)
