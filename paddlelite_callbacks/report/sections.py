"""Build the sections of a report: gate, ladder, unreadable lines, runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.report.blocks import (
    Block,
    Cell,
    Chip,
    Chips,
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
from paddlelite_callbacks.report.intervals import INTERVAL, Interval, interval_of, tied
from paddlelite_callbacks.report.ladder_table import ladder_blocks, metric_cell, verdict_cell
from paddlelite_callbacks.report.layer_curve import layer_curve_block
from paddlelite_callbacks.report.record import Record, Unreadable
from paddlelite_callbacks.report.tables import (
    accuracy_block,
    accuracy_note,
    are_shares,
    check_block,
    json_text,
    latency_block,
    latency_note,
    noted,
    number,
)

__all__ = ["gate_section", "ladder_section", "run_section", "shown_runs", "unreadable_section"]

_RUNS, _LADDER, _TABLE = 20, 60, 1000  # runs shown in full, in the ladder, in the table of all
_SHORT = 12  # rows of a ladder that stands before the pictures
_NAME, _NOTES, _LEFT_OUT = 120, 50, 100


def shown_runs(records: Sequence[Record], metric: str, budget: Budget | None) -> list[int]:
    """Return the indices of the runs to show in full.

    Args:
        records: Records of a folder.
        metric: Metric that ranks them.
        budget: Budget whose winner is included.
    """
    return chosen(records, metric, most=_RUNS, winner=_winner(records, budget))


def gate_section(records: Sequence[Record], budget: Budget) -> list[Block]:
    """Return the gate section: verdict, one chip per criterion, and the judged file.

    Args:
        records: At least one record.
        budget: Limits.
    """
    blocks: list[Block] = [Heading(2, "Gate", "gate")]
    verdicts = [judge(record, budget) for record in records]
    passed = [record for record, verdict in zip(records, verdicts, strict=True) if verdict.passed]
    winner = _winner(records, budget)
    if winner is not None:
        best = "Most accurate" if budget.metric is not None else "Fastest"
        shown, verdict = winner, Part("pass", "good")
        said: Cell = (
            verdict,
            Part(": ", "gap"),
            f"{best} of those that pass: ",
            Part(clipped(winner.name, _NAME), "strong"),
        )
    else:
        shown = min(zip(records, verdicts, strict=True), key=lambda pair: sum(not c.passed for c in pair[1].criteria))[
            0
        ]
        nearest = (
            f" The nearest is {clipped(shown.name, _NAME)}" if len(records) > 1 else f" {clipped(shown.name, _NAME)}"
        )
        said = (Part("fail", "bad"), Part(": ", "gap"), "None passes the gate.", nearest)
    blocks.append(Paragraph((*said, *_file(shown, budget), "."), "verdict"))
    criteria = verdicts[next(i for i, record in enumerate(records) if record is shown)].criteria
    blocks += [Chips([_chip(one, budget.metric) for one in criteria])] if criteria else []
    blocks += _accuracy(shown, passed, budget)
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
        records: At least one record.
        metric: Metric of the ladder.
        budget: Budget of the gate column; ``None`` leaves it out.
        pictures: File names of the drawn pictures.
    """
    blocks: list[Block] = [Heading(2, "Runs", "runs")]
    shares = are_shares(records, metric)
    named = {
        "pareto.png": f"{metric} against median latency, with the Pareto front and the limits of the budget; the table "
        "has the figures",
        "curves.png": "training curves by epoch: evaluation solid, training dashed",
        "layers.png": "metric and latency against the number of layers put back to float or 8 bits",
    }
    drawn = [Picture(name, text) for name, text in named.items() if name in pictures]
    places = chosen(records, metric, most=_LADDER, winner=_winner(records, budget))
    ladder = ladder_blocks([records[i] for i in places], metric=metric, budget=budget, shares=shares)
    blocks += [*drawn, *ladder] if len(places) > _SHORT else [*ladder, *drawn]  # nobody scrolls to behind a long table
    if len(places) < len(records):
        blocks += [Heading(2, "All runs", "all"), _all_runs(records[-_TABLE:], metric, budget, shares)]
    if len(records) > _TABLE:
        blocks.append(Paragraph(f"The {len(records) - _TABLE} earlier ones are in runs.jsonl."))
    return blocks


def unreadable_section(unreadable: Sequence[Unreadable]) -> list[Block]:
    """Return the section on unreadable lines, if any.

    Args:
        unreadable: Results of `scan_records`.
    """
    if not unreadable:
        return []
    lines = [Item(str(item)) for item in unreadable[:_LEFT_OUT]]
    if len(unreadable) > _LEFT_OUT:
        lines.append(Item(f"and {len(unreadable) - _LEFT_OUT} more"))
    said = "This version cannot read these lines of runs.jsonl; they are left out:"
    return [Heading(2, "Left out", "left-out"), Paragraph(said), Items(lines)]


def run_section(record: Record, folder: Path, budget: Budget | None, *, anchor: str) -> list[Block]:
    """Return the section of one run.

    Args:
        record: Record of the run.
        folder: Folder of all runs.
        budget: Budget of the gate; ``None`` leaves it out.
        anchor: Anchor of its heading.
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
        ("Accuracy of the files", accuracy_block(record), accuracy_note(record)),
        ("Files against the network", check_block(record), ""),
        ("Layers put back", layer_curve_block(record), ""),
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
    """Return the most accurate record that passes; without a metric, the fastest."""
    if budget is None:
        return None
    if budget.metric is not None:
        return most_accurate(records, budget)
    timed = [(best.p50_ms, i) for i, record in enumerate(records) if (best := record.best_latency()) is not None]
    passing = (
        records[i] for _, i in sorted((ms, i) for ms, i in timed if ms is not None) if _passes(records[i], budget)
    )
    return next(passing, None)


def _passes(record: Record, budget: Budget) -> bool:
    return judge(record, budget).passed


def _file(record: Record, budget: Budget) -> tuple[str | Part, ...]:
    """Return the file and engine of a verdict."""
    best = _counting(record, budget)
    if best is None:
        return ()
    kinds = ("pdmodel", "paddle") if best.engine.startswith("paddle") else ("onnx",)
    paths = [a.path for a in record.artefacts if a.kind in kinds and a.precision == best.precision and a.path]
    path: tuple[str | Part, ...] = (", ", Part(paths[0], "code")) if paths else ()
    return (f", its {best.precision} file on {best.engine}", *path)


def _chip(one: Criterion, metric: str | None) -> Chip:
    title = f"drop of {metric}" if one.name == "metric_drop" else one.title
    unit, limit = f" {one.unit}".rstrip(), f"{one.limit * one.scale:.4g}"
    bound = "at least" if one.at_least else "at most"
    if one.value is None or one.margin is None:
        return Chip(title, "unknown", f"{bound} {limit}{unit}", one.reason or "not measured", one.passed)
    side = ("above it" if one.passed else "below it") if one.at_least else ("left" if one.passed else "too much")
    margin = f"{abs(one.margin * one.scale):.4g}{' points' if one.share else unit} {side}"
    return Chip(title, f"{one.value * one.scale:.4g}{unit}", f"{bound} {limit}{unit}", margin, one.passed)


def _accuracy(record: Record, passed: Sequence[Record], budget: Budget) -> list[Block]:
    """Return the interval of the judged accuracy, and passing runs that tie with it."""
    metric, best = budget.metric, _counting(record, budget)
    if metric is None:
        return []
    file = None if best is None else (best.engine, best.precision)
    value = None if file is None else record.metric_of(metric, *file)
    interval = interval_of(record, metric, file=None if value is None else file)
    value = record.metric(metric) if value is None else value
    if interval is None or value is None:
        return []
    said = f"{metric} {100 * value:.2f} % on {interval.samples} images; {INTERVAL}: {_percents(interval)}."
    ties = [clipped(other.name, _NAME) for other in passed if other is not record and tied(record, other, metric)]
    more = f" and {len(ties) - 10} more" if len(ties) > 10 else ""
    also = f" A tie (the intervals overlap) with {', '.join(ties[:10])}{more}." if ties else ""
    return [Paragraph(said + also)]


def _percents(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def _counting(record: Record, budget: Budget) -> Latency | None:
    """Return the latency row that is judged."""
    return record.best_latency() if budget.engine is None else record.latency_of(budget.engine)


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
