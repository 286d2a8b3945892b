"""Blocks of a report: headings, paragraphs, lists, tables, pictures.

`markdown` and `html` render them.

Texts come from records and are not trusted: they are kept unchanged here, and escaped by the renderers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "Block",
    "Cell",
    "Chip",
    "Chips",
    "Code",
    "Column",
    "Fold",
    "Heading",
    "Item",
    "Items",
    "Paragraph",
    "Part",
    "Picture",
    "Table",
    "clipped",
    "one_line",
    "parts_of",
    "plain",
    "shortened",
]

_ENDS_OF_LINES = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+")
# control characters, halves of surrogate pairs, and bidirectional controls
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_LONGEST = 4000  # characters of a text; the record holds the whole


class Part(NamedTuple):
    """Piece of text with a role.

    Args:
        text: Text to show.
        kind: ``""``, ``"code"``, ``"strong"``, ``"good"``, ``"bad"``, ``"fail"`` (strong and bad), ``"soft"`` (less
            important), or ``"gap"``: a separator of two coloured pieces for renderers without colours.
    """

    text: str
    kind: str = ""


Cell = str | Part | Sequence[str | Part]


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Args:
        title: Header.
        left: Whether it is left-aligned: words, not numbers.
        early: Whether a page shows it next to the first column, visible without scrolling.
    """

    title: str
    left: bool = False
    early: bool = False


@dataclass(frozen=True)
class Table:
    """Table whose first column names the row.

    Args:
        columns: Columns.
        rows: Cells of each row, one per column.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Heading:
    """Heading.

    Args:
        level: Level, from 1.
        text: Text of one line.
        anchor: Anchor for a page's table of contents; ``""`` leaves the heading out of it.
    """

    level: int
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Paragraph.

    Args:
        text: Text of the paragraph.
        kind: ``""``, or ``"verdict"`` for large print.
    """

    text: Cell
    kind: str = ""


@dataclass(frozen=True)
class Chip:
    """Criterion with its verdict.

    Args:
        title: Name of the criterion.
        value: Measured value with its unit.
        limit: Limit with its unit.
        margin: Distance to the limit.
        met: Whether the criterion is met.
    """

    title: str
    value: str
    limit: str
    margin: str
    met: bool

    @property
    def verdict(self) -> str:
        """Return verdict and margin in words."""
        return ", ".join(filter(None, ("pass" if self.met else "fail", self.margin)))


@dataclass(frozen=True)
class Chips:
    """Row of criteria, each in its colour and with a word.

    Args:
        chips: One per criterion.
    """

    chips: Sequence[Chip]


@dataclass(frozen=True)
class Item:
    """Item of a list.

    Args:
        text: Text of the item.
        met: Draws a checked or unchecked box; ``None`` draws none.
        inner: Nested items.
    """

    text: Cell
    met: bool | None = None
    inner: Sequence[Cell] = ()


@dataclass(frozen=True)
class Items:
    """List.

    Args:
        items: Texts, or items with more options.
    """

    items: Sequence[Item]


@dataclass(frozen=True)
class Picture:
    """Picture beside the report.

    Args:
        name: File name.
        text: Alternative text.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Code:
    """Preformatted text.

    Args:
        text: Content.
        language: Language of the content, for highlighting.
    """

    text: str
    language: str = ""


@dataclass(frozen=True)
class Fold:
    """Collapsible section of a page.

    Args:
        title: Title to click.
        blocks: Content.
    """

    title: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Chips | Items | Table | Picture | Code | Fold


def one_line(text: object, *, end: str = " ") -> str:
    """Replace line ends and unprintable characters in ``text``.

    Args:
        text: Any object, of any length.
        end: Replacement of line ends.
    """
    return _UNPRINTABLE.sub("\ufffd", _ENDS_OF_LINES.sub(lambda _: end, shortened(str(text), _LONGEST)))


def clipped(text: object, most: int) -> str:
    """Return one line of at most ``most`` characters, with an ellipsis if cut.

    Args:
        text: Any object.
        most: Largest number of characters.
    """
    line = one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}\u2026"


def shortened(text: str, most: int) -> str:
    """Return at most ``most`` characters, and say how many were cut.

    Args:
        text: Text of any length.
        most: Number of characters to keep.
    """
    return text if len(text) <= most else f"{text[:most]}\u2026 ({len(text) - most} more characters)"


def parts_of(cell: Cell) -> list[Part]:
    """Return the parts of ``cell``, each on one line.

    Args:
        cell: Cell of a table, list or paragraph.
    """
    pieces = [cell] if isinstance(cell, (str, Part)) else cell
    parts = [piece if isinstance(piece, Part) else Part(piece) for piece in pieces]
    return [part._replace(text=one_line(part.text, end="\\n" if part.kind == "code" else " ")) for part in parts]


def plain(cell: Cell) -> str:
    """Return the text of ``cell``.

    Args:
        cell: Cell of a table, list or paragraph.
    """
    return "".join(part.text for part in parts_of(cell))
