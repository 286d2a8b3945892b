"""Write the report of a folder of runs: Markdown, HTML page and pictures."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from paddlelite_callbacks.errors import MissingDependencyError
from paddlelite_callbacks.report.blocks import (
    Block,
    Heading,
    Paragraph,
    one_line,
)
from paddlelite_callbacks.report.budget import Budget, budget_of
from paddlelite_callbacks.report.curves import curves_png
from paddlelite_callbacks.report.html import html_page
from paddlelite_callbacks.report.ladder_table import ladder_markdown
from paddlelite_callbacks.report.layer_curve import layer_curve_png
from paddlelite_callbacks.report.markdown import markdown
from paddlelite_callbacks.report.pareto import ladder_png
from paddlelite_callbacks.report.record import Record, Unreadable, scan_records
from paddlelite_callbacks.report.retime import append_joint_timing
from paddlelite_callbacks.report.sections import (
    gate_section,
    ladder_section,
    run_section,
    shown_runs,
    unreadable_section,
)
from paddlelite_callbacks.utils.atomic_files import locked, staged_file

__all__ = [
    "first_metric",
    "last_budget",
    "report_blocks",
    "with_unique_names",
    "write_ladder",
    "write_report",
    "write_whole",
]

_log = logging.getLogger(__name__)
_drawing = threading.Lock()  # matplotlib is not thread-safe
_PAGE = "report.html"


class _NewerStandsError(Exception):
    """Another process wrote a report of more runs meanwhile."""


def write_report(folder: str | Path, *, budget: Budget | None = None, metric: str | None = None) -> str:
    """Write the report of all runs in ``folder``.

    It is made from a copy of the records, so that runs which end meanwhile do not wait: each writes its own, and the
    one of the most records stays. Lines that cannot be parsed are listed in the report. Pictures and page are of
    bounded size for any number of runs: the first, the best and the latest are shown in full, the others in a table.

    Args:
        folder: Folder with ``runs.jsonl``.
        budget: Budget of the gate; ``None`` takes that of the latest run.
        metric: Metric of the ladder; ``None`` takes the budget's, else the first that is not a loss.

    Returns:
        The report as Markdown.

    Raises:
        ValueError: There is no ``runs.jsonl``, or it holds no run.
        OSError: The folder is not writable.

    Example:
        >>> write_report("runs/1", metric="acc")  # doctest: +SKIP
    """
    folder = Path(folder)
    path = folder / "runs.jsonl"
    if not path.is_file():
        raise ValueError(
            f"No record file {path}: give the folder of ExportBenchCallback(folder), after a fit has ended."
        )
    with _drawing, tempfile.TemporaryDirectory() as work:
        with locked(path):
            content = path.read_bytes()
        found = scan_records(content)
        if not found:
            raise ValueError(f"{path} holds no run: let ExportBenchCallback write one.")
        records = with_unique_names([item for item in found if isinstance(item, Record)])
        unreadable = [item for item in found if isinstance(item, Unreadable)]
        budget = budget or last_budget(records)
        metric = metric or (budget.metric if budget else None) or first_metric(records)
        pictures, troubles = _pictures(records, Path(work), metric, budget)
        blocks = report_blocks(
            records, folder, metric=metric, budget=budget, pictures=list(pictures), unreadable=unreadable
        )
        blocks[1:1] = [Paragraph(trouble) for trouble in troubles]
        text, title = markdown(blocks), f"{folder.resolve().name}: runs"
        page = html_page(blocks, pictures, title=title, drawn_from=len(content))
        _put_in_place(folder, path, text, page, pictures, len(content))
    return text


def report_blocks(
    records: Sequence[Record],
    folder: Path,
    *,
    metric: str,
    budget: Budget | None,
    pictures: Sequence[str] = (),
    unreadable: Sequence[Unreadable] = (),
) -> list[Block]:
    """Return the blocks of the whole report.

    Args:
        records: One per row, in this order.
        folder: Folder of the runs.
        metric: Metric of the ladder.
        budget: Budget of the gate; ``None`` leaves it out.
        pictures: File names of the drawn pictures.
        unreadable: Lines of the record file that were left out.
    """
    blocks: list[Block] = [Heading(1, f"{folder.resolve().name}: {len(records)} run{'s' * (len(records) != 1)}")]
    if budget is not None and records:
        blocks += gate_section(records, budget)
    if records:
        blocks += ladder_section(records, metric=metric, budget=budget, pictures=pictures)
    blocks += unreadable_section(unreadable)
    shown = shown_runs(records, metric, budget)
    if len(shown) < len(records):
        few = f"{len(shown)} of {len(records)} runs follow: the first, the best, the latest; the table has the others."
        blocks.append(Paragraph(few))
    for place in shown:
        blocks += run_section(records[place], folder, budget, anchor=f"run-{place + 1}")
    return blocks


def last_budget(records: Sequence[Record]) -> Budget | None:
    """Return the latest run's budget.

    Args:
        records: Records in their order.
    """
    for record in reversed(records):
        given = record.config.get("budget")
        if not isinstance(given, dict):
            continue
        try:
            return budget_of(given)
        except (ValueError, TypeError) as error:
            _log.warning("The budget in the record %r is left out: %s", one_line(record.name), one_line(error))
    return None


def first_metric(records: Sequence[Record]) -> str:
    """Return the first metric that is not a loss, or ``"loss"``.

    Args:
        records: Records in their order.
    """
    names = (name for record in reversed(records) for name in (*record.metrics, *record.file_figures))
    return next((name for name in names if "loss" not in name), "loss")


def with_unique_names(records: Sequence[Record]) -> list[Record]:
    """Number repeated run names.

    Args:
        records: Records in their order.
    """
    counts: dict[str, int] = {}
    named = []
    for record in records:
        counts[record.name] = number = counts.get(record.name, 0) + 1
        # a later run of the same name replaced these files, which the checksums reveal
        named.append(record if number == 1 else replace(record, name=f"{record.name} ({number})"))
    return named


def _pictures(
    records: list[Record], work: Path, metric: str, budget: Budget | None
) -> tuple[dict[str, Path], list[str]]:
    """Draw all pictures into ``work``; return them, and reasons for missing ones."""
    pictures, troubles = {}, []
    for name in ("pareto.png", "curves.png", "layers.png"):
        try:
            if _drawn(name, records, work / name, metric, budget):
                pictures[name] = work / name
        except MissingDependencyError as error:
            _log.warning("The report has no pictures: %s", error)
            break
        except OSError:
            raise
        except Exception as error:  # matplotlib rejects a recorded value: the report mentions it
            troubles.append(f"{name} could not be drawn: {type(error).__name__}: {error}")
            _log.warning("%s", one_line(troubles[-1]))
    return pictures, troubles


def _drawn(name: str, records: list[Record], path: Path, metric: str, budget: Budget | None) -> bool:
    if name == "curves.png":
        return curves_png(records, path)
    if name == "layers.png":
        return layer_curve_png(records, path)
    ladder_png(records, path, metric=metric, budget=budget)
    return True


def _put_in_place(folder: Path, path: Path, text: str, page: str, pictures: dict[str, Path], size: int) -> None:
    """Move the report into place, unless a newer one is there."""
    try:
        with ExitStack() as staged:
            staged.enter_context(staged_file(folder / _PAGE)).write_text(page, encoding="utf-8")  # the last to be moved
            staged.enter_context(staged_file(folder / "report.md")).write_text(text, encoding="utf-8")
            for name, drawn in pictures.items():
                shutil.copyfile(drawn, staged.enter_context(staged_file(folder / name)))
            with locked(path):
                if size < _drawn_from(folder / _PAGE) <= path.stat().st_size:
                    raise _NewerStandsError
                staged.close()
    except _NewerStandsError:
        _log.debug("The report of %s was drawn from more runs meanwhile.", folder)


def _drawn_from(page: Path) -> int:
    """Return the record bytes that a page was made from; 0 if unknown."""
    try:
        with page.open("rb") as file:
            match = re.search(rb'<meta name="drawn-from" content="(\d{1,18})">', file.read(2000))
    except OSError:
        return 0
    return int(match[1]) if match else 0


def write_ladder(
    folder: Path, records: Sequence[Record], *, metric: str, budget: Budget | None = None, title: str = ""
) -> str:
    """Write ``ladder.md``, ``.jsonl`` and ``.png``; return the Markdown.

    If ``folder`` holds the ``runs.jsonl`` of these records, their joint timing (see `timed_together`) is added there
    and the report is written again, so that ladder and report show the same latencies.

    Args:
        folder: Target folder; created if missing.
        records: One per row.
        metric: Metric shown as accuracy.
        budget: Budget of the gate column.
        title: Title of the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = ladder_markdown(records, metric=metric, budget=budget)
    write_whole(folder / "ladder.md", text)
    write_whole(folder / "ladder.jsonl", "".join(record.to_json_line() + "\n" for record in records))
    ladder_png(records, folder / "ladder.png", metric=metric, title=title, budget=budget)
    if append_joint_timing(folder / "runs.jsonl", records) and (folder / "report.md").is_file():
        write_report(folder)
    return text


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with staged_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
