"""Render a report as Markdown, with all recorded text escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from paddlelite_callbacks.report.blocks import (
    Block,
    Cell,
    Chips,
    Code,
    Fold,
    Heading,
    Items,
    Paragraph,
    Part,
    Picture,
    Table,
    one_line,
    parts_of,
)

__all__ = ["escaped", "markdown", "table_lines"]

# Everywhere: code, emphasis, links, formulas, strikethrough, tags, entities, escapes
_MARKS = re.compile(r"[\\`*$\[~]|<(?=[a-zA-Z/!?])|&(?=#|[a-zA-Z]+;)|(?<![^\W_])_|_(?![^\W_])")
_AT_START = re.compile(r"(?:#{1,6}(?= |$)|[-+](?= |$)|>|=+$|-+$|\d{1,9}[.)](?= |$))")


def markdown(blocks: Sequence[Block]) -> str:
    """Render blocks as Markdown.

    Args:
        blocks: Blocks of a report.
    """
    return "\n".join(line for block in blocks for line in (*_lines(block), "")).rstrip("\n") + "\n"


def escaped(text: object) -> str:
    """Escape ``text`` for one line of Markdown.

    Args:
        text: Any object.
    """
    line = _MARKS.sub(lambda match: "\\" + match[0], one_line(text).replace("\t", " ").strip())
    if start := _AT_START.match(line):
        mark = start[0].rstrip(".)")  # of a number, the dot after it
        at = len(mark) if mark and mark[0].isdigit() else 0
        line = line[:at] + "\\" + line[at:]
    return line


def table_lines(table: Table) -> list[str]:
    """Render a table as Markdown lines.

    Args:
        table: Table with at least one column.
    """
    marks = ["---" if column.left or not i else "---:" for i, column in enumerate(table.columns)]
    return [
        _row([_cell(column.title) for column in table.columns]),
        f"|{'|'.join(marks)}|",
        *(_row([_cell(cell) for cell in row]) for row in table.rows),
    ]


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"{'#' * block.level} {escaped(block.text)}"
    elif isinstance(block, Paragraph):
        yield _text(block.text)
    elif isinstance(block, Chips):
        for chip in block.chips:
            said = f": {chip.value} ({chip.limit}): {chip.verdict}"
            yield f"- {_text((Part(chip.title, 'strong'), said))}"
    elif isinstance(block, Items):
        for item in block.items:
            box = "" if item.met is None else f"[{'x' if item.met else ' '}] "
            yield f"- {box}{_text(item.text)}"
            yield from (f"  - {_text(inner)}" for inner in item.inner)
    elif isinstance(block, Table):
        yield from table_lines(block)
    elif isinstance(block, Picture):
        yield f"![{escaped(block.text)}]({block.name})"
    elif isinstance(block, Code):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
        yield f"{fence}{block.language}\n{block.text}\n{fence}"
    elif isinstance(block, Fold):
        yield f"<details><summary>{_html(block.title)}</summary>\n"
        for inner in block.blocks:
            yield from (*_lines(inner), "")
        yield "</details>"


def _text(cell: Cell) -> str:
    parts = parts_of(cell)
    text = "".join(_part(part) for part in parts).strip() or "\u2014"
    return f"\\{text}" if text.startswith("|") else text  # it would begin a table


def _part(part: Part) -> str:
    if part.kind == "code":
        fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", part.text)), default=0))
        space = " " if part.text.startswith("`") or part.text.endswith("`") else ""
        return f"{fence}{space}{part.text}{space}{fence}" if part.text.strip() else ""
    if part.kind == "gap":
        return part.text
    lead, trail = (" " if part.text[side : side + 1 or None].isspace() else "" for side in (0, -1))
    text = escaped(part.text)
    text = f"**{text}**" if part.kind in ("strong", "fail") and text else text
    return f"{lead}{text}{trail}" if text else lead


def _cell(cell: Cell) -> str:
    # in code a bar after a backslash ends the cell, whatever precedes it
    parts = [part._replace(kind="") if part.kind == "code" and "|" in part.text else part for part in parts_of(cell)]
    return "".join(_part(part) for part in parts).strip().replace("|", "\\|")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _html(text: str) -> str:
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
