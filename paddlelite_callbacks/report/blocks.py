"""What a report consists of: headings, paragraphs, lists, tables, pictures. `markdown` and `html` write it.

Texts come from records, so from anywhere: they are kept as they are here, and made harmless where they are written.
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
# controls, halves of surrogate pairs, and what turns the direction of writing
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_LONGEST = 4000  # characters of a text; the record holds all of it


class Part(NamedTuple):
    """A piece of text with a role.

    Args:
        text: as it is to be read.
        kind: ``""``, ``"code"``, ``"strong"``, ``"good"``, ``"bad"``, ``"fail"`` (strong and bad), ``"soft"``
            (beside what matters), or ``"gap"``: what stands between two coloured pieces where there are no colours.
    """

    text: str
    kind: str = ""


Cell = str | Part | Sequence[str | Part]


@dataclass(frozen=True)
class Column:
    """A table column.

    Args:
        title: its head.
        left: whether it holds words, not numbers.
        early: whether a page shows it right behind the first column, where it is seen without scrolling.
    """

    title: str
    left: bool = False
    early: bool = False


@dataclass(frozen=True)
class Table:
    """A table; its first column names the row.

    Args:
        columns: their heads.
        rows: as many cells each.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Heading:
    """A heading.

    Args:
        level: from 1.
        text: of one line.
        anchor: by which a page's contents list finds it; ``""`` leaves it out of the list.
    """

    level: int
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph.

    Args:
        text: of one paragraph.
        kind: ``""``, or ``"verdict"`` for what a page shows large.
    """

    text: Cell
    kind: str = ""


@dataclass(frozen=True)
class Chip:
    """A criterion with its verdict.

    Args:
        title: what was judged.
        value: that was measured, with its unit.
        limit: that it is held against, with its unit.
        margin: what is left, or how far beyond.
        met: whether the criterion is met.
    """

    title: str
    value: str
    limit: str
    margin: str
    met: bool

    @property
    def verdict(self) -> str:
        """Return the verdict and the margin in words."""
        return ", ".join(filter(None, ("pass" if self.met else "fail", self.margin)))


@dataclass(frozen=True)
class Chips:
    """A row of criteria, each in its colour and with a word.

    Args:
        chips: one a criterion.
    """

    chips: Sequence[Chip]


@dataclass(frozen=True)
class Item:
    """A list item.

    Args:
        text: of the item.
        met: draws a box that is ticked or not; ``None`` draws none.
        inner: items below it.
    """

    text: Cell
    met: bool | None = None
    inner: Sequence[Cell] = ()


@dataclass(frozen=True)
class Items:
    """A list.

    Args:
        items: texts, or items with more to them.
    """

    items: Sequence[Item]


@dataclass(frozen=True)
class Picture:
    """A picture beside the report.

    Args:
        name: of the file.
        text: what it shows, for who cannot see it.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Code:
    """Preformatted text.

    Args:
        text: of it.
        language: of the text.
    """

    text: str
    language: str = ""


@dataclass(frozen=True)
class Fold:
    """A section that is folded on the page.

    Args:
        title: to click on.
        blocks: inside.
    """

    title: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Chips | Items | Table | Picture | Code | Fold


def one_line(text: object, *, end: str = " ") -> str:
    """Replace line ends and unprintable characters in ``text``.

    Args:
        text: anything, of any length.
        end: stands for the ends of lines.
    """
    return _UNPRINTABLE.sub("\ufffd", _ENDS_OF_LINES.sub(lambda _: end, shortened(str(text), _LONGEST)))


def clipped(text: object, most: int) -> str:
    """Return one line of at most ``most`` characters, with an ellipsis if cut.

    Args:
        text: anything.
        most: characters.
    """
    line = one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}\u2026"


def shortened(text: str, most: int) -> str:
    """Return at most ``most`` characters, and say how many were cut.

    Args:
        text: of any length.
        most: characters to keep.
    """
    return text if len(text) <= most else f"{text[:most]}\u2026 ({len(text) - most} more characters)"


def parts_of(cell: Cell) -> list[Part]:
    """Return the parts of ``cell``, each on one line.

    Args:
        cell: of a table, a list or a paragraph.
    """
    pieces = [cell] if isinstance(cell, (str, Part)) else cell
    parts = [piece if isinstance(piece, Part) else Part(piece) for piece in pieces]
    return [part._replace(text=one_line(part.text, end="\\n" if part.kind == "code" else " ")) for part in parts]


def plain(cell: Cell) -> str:
    """Return the text of ``cell``.

    Args:
        cell: of a table, a list or a paragraph.
    """
    return "".join(part.text for part in parts_of(cell))
