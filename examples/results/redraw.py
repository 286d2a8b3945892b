"""Write the tables and pictures of committed ladders again, from their stored lines; nothing is trained.

    python examples/results/redraw.py

A ladder is a folder ``examples/results/<name>`` with ``ladder.jsonl`` (lines of records) and ``ladder.png``.
"""

from __future__ import annotations

from pathlib import Path

from paddlelite_callbacks.report.record import read_records
from paddlelite_callbacks.report.write import first_metric, last_budget, write_ladder

__all__ = ["ladders", "redraw"]

HERE = Path(__file__).resolve().parent
TITLES = {"digits": "Handwritten digits: resnet18 to MobileNetV3_small_x1_0"}


def ladders() -> list[Path]:
    """Return the folders of committed ladders."""
    return sorted(path.parent for path in HERE.glob("*/ladder.png"))


def redraw(ladder: Path, folder: Path) -> None:
    """Write table, lines and picture of a stored ladder with the present code.

    Args:
        ladder: Folder with ``ladder.jsonl``.
        folder: Target folder; may be ``ladder``.
    """
    records = read_records(ladder / "ladder.jsonl")
    title = TITLES.get(ladder.name, ladder.name)
    write_ladder(folder, records, metric=first_metric(records), budget=last_budget(records), title=title)


def main() -> None:
    """Write every ladder again."""
    for ladder in ladders():
        redraw(ladder, ladder)


if __name__ == "__main__":
    main()
