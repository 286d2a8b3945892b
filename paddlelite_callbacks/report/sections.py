"""The parts of a report: gate, ladder, lines that were left out, and one of each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paddlelite_callbacks.report.blocks import (
    Block,
    Cell,
    Code,
    Column,
    Fold,
    Heading,
    Item,
    Items,
    Paragraph,
    Part,
    Picture,
    Table,
    clipped,
)
from paddlelite_callbacks.report.chosen import chosen
from paddlelite_callbacks.report.gate import Budget, Criterion, judge, most_accurate
from paddlelite_callbacks.report.hand_in import check_points
from paddlelite_callbacks.report.ladder_table import ladder_blocks, metric_cell, verdict_cell
from paddlelite_callbacks.report.record import Record, Unreadable
from paddlelite_callbacks.report.tables import (
    accuracy_block,
    are_shares,
    check_block,
    json_text,
    latency_block,
    latency_note,
    noted,
    number,
)

__all__ = ["gate_section", "ladder_section", "run_section", "shown_runs", "unreadable_section"]

_RUNS, _LADDER, _TABLE = 20, 60, 1000  # shown whole, in the ladder, in the table of all
_NAME, _NOTES, _LEFT_OUT = 120, 50, 100


def shown_runs(records: Sequence[Record], metric: str, budget: Budget | None) -> list[int]:
    """Return the indices of the runs to show in full.

    Args:
        records: of a folder.
        metric: that ranks them.
        budget: whose winner is among them.
    """
    return chosen(records, metric, most=_RUNS, winner=_winner(records, budget))


def gate_section(records: Sequence[Record], budget: Budget) -> list[Block]:
    """Return the gate section: limits, verdicts and margins.

    Args:
        records: at least one.
        budget: to hold them against.
    """
    blocks: list[Block] = [Heading(2, "Gate", "gate")]
    verdicts = [judge(record, budget) for record in records]
    passed = [record for record, verdict in zip(records, verdicts, strict=True) if verdict.passed]
    winner = _winner(records, budget)
    if winner is not None:
        verdict = verdicts[next(i for i, record in enumerate(records) if record is winner)]
        said = ("Most accurate of those that pass: ", Part(clipped(winner.name, _NAME), "strong"), f"{_file(winner)}.")
        blocks += [Paragraph(said, "verdict"), Paragraph(_margins(verdict.criteria))]
    elif not passed:
        blocks.append(Paragraph(Part("None passes the gate.", "bad"), "verdict"))
        if len(records) == 1:
            blocks.append(Paragraph(_margins(verdicts[0].criteria)))
    count = f"{len(passed)} of {len(records)} run{'s' * (len(records) != 1)} pass{'es' * (len(passed) == 1)}"
    names = ", ".join(clipped(record.name, _NAME) for record in passed[:10])
    more = f" and {len(passed) - 10} more" if len(passed) > 10 else ""
    blocks.append(Paragraph(f"{count}{f': {names}{more}' if names else ''}. Limits: {_limits(budget)}."))
    return blocks


def ladder_section(
    records: Sequence[Record], *, metric: str, budget: Budget | None, pictures: Sequence[str]
) -> list[Block]:
    """Return the ladder section: table and pictures.

    Args:
        records: at least one.
        metric: of the ladder.
        budget: of the gate column; ``None`` leaves it out.
        pictures: file names of those that were drawn.
    """
    blocks: list[Block] = [Heading(2, "Runs", "runs")]
    shares = are_shares(records, metric)
    places = chosen(records, metric, most=_LADDER, winner=_winner(records, budget))
    blocks += ladder_blocks([records[i] for i in places], metric=metric, budget=budget, shares=shares)
    named = {"pareto.png": f"{metric} against latency; the area of a bubble is its size", "curves.png": "training"}
    blocks += [Picture(name, text) for name, text in named.items() if name in pictures]
    if len(places) < len(records):
        blocks += [Heading(2, "All runs", "all"), _all_runs(records[-_TABLE:], metric, budget, shares)]
    if len(records) > _TABLE:
        blocks.append(Paragraph(f"The {len(records) - _TABLE} earlier ones stand in runs.jsonl."))
    return blocks


def unreadable_section(unreadable: Sequence[Unreadable]) -> list[Block]:
    """Return the section on unreadable lines, if any.

    Args:
        unreadable: of `scan_records`.
    """
    if not unreadable:
        return []
    lines = [Item(str(item)) for item in unreadable[:_LEFT_OUT]]
    if len(unreadable) > _LEFT_OUT:
        lines.append(Item(f"and {len(unreadable) - _LEFT_OUT} more"))
    said = "These lines of runs.jsonl are no records that this version can read; they are left out:"
    return [Heading(2, "Left out", "left-out"), Paragraph(said), Items(lines)]


def run_section(record: Record, folder: Path, budget: Budget | None, *, anchor: str) -> list[Block]:
    """Return the section of one run.

    Args:
        record: of the run.
        folder: of all runs.
        budget: of the gate; ``None`` leaves it out.
        anchor: of its heading.
    """
    name = clipped(record.name, _NAME)
    blocks: list[Block] = [Heading(2, name, anchor), Paragraph(f"{record.created}, {noted(record)}")]
    if record.failure is not None:
        blocks += [Paragraph((Part("Nothing was exported:", "strong"), f" {record.failure}"))]
        blocks += [Paragraph(f"Trained weights: {record.weights}")]
    for remark in record.remarks[:_NOTES]:
        blocks.append(Paragraph((Part("Not right on every engine:", "strong"), f" {remark}")))
    points = check_points(record, folder)
    blocks.append(Items([Item(Part(point.title, "strong"), point.met, point.details) for point in points]))
    if budget is not None and (verdict := judge(record, budget)).rows:
        blocks += [Heading(3, f"Gate by engine: {name}"), verdict.block(), Paragraph(verdict_cell(verdict))]
    for title, table, note in (
        ("Latency", latency_block(record), latency_note(record)),
        ("Accuracy of the files", accuracy_block(record), ""),
        ("Files against the network", check_block(record), ""),
    ):
        if table is not None:
            blocks += [Heading(3, f"{title}: {name}"), table, *([Paragraph(note)] if note else [])]
    notes = [Item(note) for note in record.notes[:_NOTES]]
    if len(record.notes) > _NOTES:
        notes.append(Item(f"and {len(record.notes) - _NOTES} more"))
    blocks += [Items(notes)] if notes else []
    if record.config:
        blocks.append(Fold("To train again: command, options, versions", [Code(json_text(record.config), "json")]))
    return blocks


def _winner(records: Sequence[Record], budget: Budget | None) -> Record | None:
    return most_accurate(records, budget) if budget is not None and budget.metric is not None else None


def _file(record: Record) -> str:
    best = record.best_latency()
    return "" if best is None else f", its {best.precision} file on {best.engine}"


def _margins(criteria: Sequence[Criterion]) -> Cell:
    parts: list[str | Part] = []
    for one in criteria:
        left = "" if one.margin is None else f" ({one.margin * one.scale:+.4g} left)"
        parts += [Part(f"{one}{left}", "good" if one.passed else "bad"), Part(", ", "gap")]
    return tuple(parts[:-1])


def _limits(budget: Budget) -> str:
    limits = [
        *([f"size {budget.size_mb:g} MB"] if budget.size_mb is not None else []),
        *([f"latency {budget.latency_ms:g} ms"] if budget.latency_ms is not None else []),
    ]
    if budget.metric_drop is not None and budget.baseline is not None:
        drop = f"{100 * budget.metric_drop:g} % of" if budget.relative else f"{budget.metric_drop:g} from"
        limits.append(f"loss of {budget.metric} {drop} {budget.baseline:.6g}")
    if budget.metric_limit is not None:
        limits.append(f"{budget.metric} {budget.metric_limit:.6g}")
    engine = "the fastest engine" if budget.engine is None else budget.engine
    return ", ".join(limits or ["none"]) + f"; of {engine}"


def _all_runs(records: Sequence[Record], metric: str, budget: Budget | None, shares: bool) -> Fold:
    columns = [Column("run"), Column("created", left=True), Column(metric), Column("exported MB")]
    columns += [Column("fastest ms"), Column("engine", left=True)]
    columns += [] if budget is None else [Column("gate", left=True, early=True)]
    rows = []
    for record in records:
        best = record.best_latency()
        fastest = ("\u2014", "") if best is None else (number(best.p50_ms, 2), f"{best.engine} {best.precision}")
        row: list[Cell] = [clipped(record.name, _NAME), clipped(record.created, 40)]
        row += [metric_cell(record, metric, shares), number(record.size_mb, 2), *fastest]
        if budget is not None:
            row.append(Part("pass", "good") if judge(record, budget).passed else Part("fail", "bad"))
        rows.append(row)
    return Fold(f"{len(records)} runs", [Table(columns, rows)])
