"""Render a report as one self-contained HTML file, with all texts escaped."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from paddlelite_callbacks.report.blocks import Block, Column, one_line, parts_of, plain

__all__ = ["html_page"]


def html_page(blocks: Sequence[Block], pictures: Mapping[str, Path], *, title: str, drawn_from: int = 0) -> str:
    """Render blocks as an HTML page.

    Args:
        blocks: Blocks of the report, beginning with its heading.
        pictures: PNG file by the name of its block.
        title: Title of the page.
        drawn_from: Size in bytes of the record file that the report was made of.
    """
    inside = {name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()}
    return _template().render(blocks=list(blocks), pictures=inside, title=title, drawn_from=drawn_from)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals |= {
        "kind_of": lambda block: type(block).__name__,
        "line": one_line,
        "longest_word": _longest_word,
        "order_of": _order_of,
        "parts_of": parts_of,
        "plain": plain,
    }
    return environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def _order_of(columns: Sequence[Column]) -> list[int]:
    """Return the column order: the first, early ones, others."""
    return sorted(range(len(columns)), key=lambda i: (i > 0, not columns[i].early))


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)
