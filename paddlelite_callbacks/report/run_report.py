"""The report of a folder of runs: ``report.md``, ``report.html`` and their pictures, drawn anew from ``runs.jsonl``."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from paddlelite_callbacks.errors import MissingDependencyError
from paddlelite_callbacks.files import locked
from paddlelite_callbacks.report.checkpoints import check_points
from paddlelite_callbacks.report.curves import curves_png
from paddlelite_callbacks.report.details import accuracy_table, check_table, latency_table, noted
from paddlelite_callbacks.report.gate import Budget, judge
from paddlelite_callbacks.report.html import html_page
from paddlelite_callbacks.report.record import Record, read_records
from paddlelite_callbacks.report.render import ladder_markdown, ladder_png, write_whole

__all__ = ["report_markdown", "write_report"]

_log = logging.getLogger(__name__)


def write_report(folder: Path, *, budget: Budget | None = None, metric: str | None = None) -> str:
    """Draw the report of all runs in ``folder``; ``runs.jsonl`` is only read, and writers to it wait meanwhile.

    Args:
        folder: with ``runs.jsonl``.
        budget: of the gate; ``None`` takes the one that the last run was made with.
        metric: that the ladder shows; ``None`` takes the budget's, else the runs' first that is no loss.

    Returns:
        The Markdown.

    Raises:
        ValueError: there is no ``runs.jsonl``, or it holds no run.
        OSError: the folder cannot be written to.
    """
    path = folder / "runs.jsonl"
    if not path.is_file():
        raise ValueError(
            f"No record file {path}: give the folder that ExportBenchCallback(folder) was given, once a fit has ended."
        )
    with locked(path):
        records = read_records(path)
        if not records:
            raise ValueError(f"{path} holds no run: let ExportBenchCallback write one.")
        budget = budget or last_budget(records)
        metric = metric or (budget.metric if budget else None) or first_metric(records)
        records = with_unique_names(records)
        with tempfile.TemporaryDirectory() as work:
            pictures = _pictures(records, folder, Path(work), metric)
            text = report_markdown(records, folder, metric=metric, budget=budget, pictures=list(pictures))
            write_whole(folder / "report.md", text)
            title = folder.resolve().name
            write_whole(folder / "report.html", html_page(text, pictures, title=f"{title}: runs"))
    return text


def report_markdown(
    records: Sequence[Record], folder: Path, *, metric: str, budget: Budget | None, pictures: Sequence[str] = ()
) -> str:
    """Return the report: ladder, pictures, gate by engine, check points and all figures of every run.

    Args:
        records: a row each, in this order.
        folder: of the runs.
        metric: of the ladder.
        budget: of the gate; ``None`` leaves it out.
        pictures: file names of those that were drawn.
    """
    parts = [f"# {folder.resolve().name}: {len(records)} run{'s' * (len(records) != 1)}", ""]
    parts += [ladder_markdown(records, metric=metric, budget=budget)]
    named = {"pareto.png": f"{metric} against latency; the area of a bubble is its size", "curves.png": "training"}
    parts += [f"![{text}]({name})\n" for name, text in named.items() if name in pictures]
    for record in records:
        parts += [*_run(record, folder, budget), ""]
    return "\n".join(parts)


def last_budget(records: Sequence[Record]) -> Budget | None:
    """Return the budget of the last run that had one; ``None`` without."""
    given = [record.config["budget"] for record in records if record.config.get("budget")]
    known = {field.name for field in fields(Budget)}
    kept = {key: value for key, value in given[-1].items() if key in known} if given else {}
    if kept.get("baseline") is None and kept.get("metric_drop") is not None:
        del kept["metric_drop"]  # the default, which a record holds like a given one
        if kept.get("metric") is not None and kept.get("metric_limit") is None:
            kept["metric_drop"] = None  # of an older version, which judged no metric then
    return Budget(**kept) if given else None


def first_metric(records: Sequence[Record]) -> str:
    """Return the first metric of the last run that is no loss, or ``"loss"``."""
    names = [name for record in reversed(records) for name in (*record.metrics, *record.file_figures)]
    return next((name for name in names if "loss" not in name), "loss")


def with_unique_names(records: Sequence[Record]) -> list[Record]:
    """Return the records with a number behind names that come again: all runs are shown, none replaces another."""
    seen: Counter[str] = Counter()
    named = []
    for record in records:
        seen[record.name] += 1
        # a later run of the same name wrote over these files, which the check points find by their checksums
        named.append(record if seen[record.name] == 1 else replace(record, name=f"{record.name} ({seen[record.name]})"))
    return named


def _run(record: Record, folder: Path, budget: Budget | None) -> list[str]:
    lines = [f"## {record.name}", "", f"{record.created}, {noted(record)}", ""]
    if record.failure is not None:
        lines += [f"**Nothing was exported:** {record.failure}", "", f"Trained weights: {record.weights}", ""]
    for remark in record.remarks:
        lines += [f"**Not right on every engine:** {remark}", ""]
    for point in check_points(record, folder):
        lines.append(f"- [{'x' if point.met else ' '}] **{point.title}**")
        lines += [f"  - {detail}" for detail in point.details]
    if budget is not None and (verdict := judge(record, budget)).rows:
        lines += ["", f"### Gate by engine: {record.name}", "", verdict.table(), "", f"{verdict}"]
    for title, table in (
        ("Latency", latency_table(record)),
        ("Accuracy of the files", accuracy_table(record)),
        ("Files against the network", check_table(record)),
    ):
        if table:
            lines += ["", f"### {title}: {record.name}", "", *table]
    lines += ["", *(f"- {note}" for note in record.notes)] if record.notes else []
    if record.config:
        lines += ["", "```json", json.dumps(record.config, indent=1, ensure_ascii=False), "```"]
    return lines


def _pictures(records: list[Record], folder: Path, work: Path, metric: str) -> dict[str, tuple[Path, Path]]:
    pictures = {}
    try:
        for narrow, home in ((False, folder), (True, work)):
            ladder_png(records, home / "pareto.png", metric=metric, narrow=narrow)
        pictures["pareto.png"] = folder / "pareto.png", work / "pareto.png"
        if all(curves_png(records, home / "curves.png", narrow=n) for n, home in ((False, folder), (True, work))):
            pictures["curves.png"] = folder / "curves.png", work / "curves.png"
    except MissingDependencyError as error:
        _log.warning("The report has no pictures: %s", error)
    return pictures
