"""Copy the tables of the committed results into READMEs and ``docs/``.

    python examples/results/into_pages.py

A result is a Markdown file ``examples/results/<folder>/<name>.md``. It replaces the text between
``<!-- <folder>/<name> -->`` and ``<!-- /<folder>/<name> -->``. With ``#<row>`` after the name, only the header of the
table and the row with that first cell are copied.
"""

from __future__ import annotations

import re
from pathlib import Path

from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["filled", "pages"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MARK = re.compile(r"(<!-- (\w+/\w+)(?:#([^>]+?))? -->\n)(?:.*?\n)?(<!-- /\2(?:#\3)? -->)", flags=re.DOTALL)


def pages() -> list[Path]:
    """Return the READMEs and all pages of ``docs/``."""
    return [ROOT / "README.md", ROOT / "README_zh.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """Return ``text`` with the committed results between its marks.

    Args:
        text: Markdown text.

    Raises:
        ValueError: A mark has no result, or the result has no such row.
    """

    def fill(mark: re.Match[str]) -> str:
        file = HERE / f"{mark[2]}.md"
        if not file.is_file():
            raise ValueError(f"There is no result {mark[2]!r}: {file} does not exist. Write it, or remove the mark.")
        table = file.read_text(encoding="utf-8").strip()
        return f"{mark[1]}{table if mark[3] is None else _row(table, mark[3])}\n{mark[4]}"

    return MARK.sub(fill, text)


def _row(table: str, name: str) -> str:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [line for line in lines[2:] if line.split("|")[1].strip() == name]
    if not rows:
        names = [line.split("|")[1].strip() for line in lines[2:]]
        raise ValueError(f"The result has no row {name!r}; it has {names}: correct the mark, or measure the row.")
    return "\n".join([*lines[:2], rows[0]])


def main() -> None:
    """Update each page whose results changed."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            with staged_file(page) as partial:
                partial.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
