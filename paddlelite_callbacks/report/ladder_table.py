"""Compare several records in a table, with gains and measuring conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paddlelite_callbacks.report.blocks import Block, Cell, Column, Item, Items, Paragraph, Part, Table, clipped
from paddlelite_callbacks.report.gate import Budget, Verdict, judge, most_accurate
from paddlelite_callbacks.report.intervals import INTERVAL, interval_of, tied
from paddlelite_callbacks.report.markdown import markdown
from paddlelite_callbacks.report.pareto import ladder_png
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.report.tables import DASH, are_shares, number
from paddlelite_callbacks.utils.numbers import counted

__all__ = ["ladder_blocks", "ladder_markdown", "ladder_png", "metric_cell", "ratio_words", "verdict_cell"]

_NAME, _ENGINES = 120, 12
_ALONE = "\u2020"  # after a latency that was not measured in turn with the others


def ladder_markdown(records: Sequence[Record], *, metric: str, budget: Budget | None = None) -> str:
    """Return the guide's table of runs as Markdown.

    Columns are model, accuracy, parameters, exported MB, median ms per engine and verdict of the gate. A missing value
    is a dash with a footnote. The gains of each row over the first, the winner of the gate and the measuring conditions
    follow.

    Args:
        records: One per row, in this order, the large model first.
        metric: Key of ``Record.metrics``, shown in per cent if all values are within [0, 1].
        budget: Budget of the gate; ``None`` leaves the column out.
    """
    table, *notes = ladder_blocks(records, metric=metric, budget=budget)
    if budget is not None and budget.metric is not None:
        winner = most_accurate(records, budget)
        said: Cell = "None passes the gate."
        if winner is not None:
            said = ("Most accurate of those that pass: ", Part(clipped(winner.name, _NAME), "strong"), ".")
        notes.insert(-1, Paragraph(said))
    return markdown([table, *notes])


def ladder_blocks(
    records: Sequence[Record], *, metric: str, budget: Budget | None = None, shares: bool | None = None
) -> list[Block]:
    """Return the ladder's table, footnotes, gains and conditions.

    Args:
        records: See `ladder_markdown`.
        metric: See `ladder_markdown`.
        budget: See `ladder_markdown`.
        shares: Whether to show the metric in per cent; ``None`` infers it from the records.
    """
    shares = are_shares(records, metric) if shares is None else shares
    engines = list(dict.fromkeys(row.engine for record in records for row in record.latencies))
    alone = any(row.joint for record in records for row in record.main_latencies())
    columns = [Column("model"), Column(metric), Column("parameters"), Column("exported MB")]
    columns += [Column(f"{name} ms") for name in engines[:_ENGINES]]
    columns += [] if budget is None else [Column("gate", left=True, early=True)]
    notes: dict[str, int] = {}
    rows: list[list[Cell]] = []
    for record in records:
        figures: list[Cell] = [metric_cell(record, metric, shares), f"{number(record.parameters / 1e6, 2)} M"]
        figures += [_size(record, notes)]
        figures += [_milliseconds(record, name, notes, alone) for name in engines[:_ENGINES]]
        verdict = [] if budget is None else [verdict_cell(judge(record, budget))]
        rows.append([clipped(record.name, _NAME), *figures, *verdict])
    blocks: list[Block] = [Table(columns, rows)]
    blocks += [Paragraph(f"{DASH}{count}: {text}.") for text, count in notes.items()]
    if len(engines) > _ENGINES:
        blocks.append(Paragraph(f"{len(engines) - _ENGINES} more engines are in the records."))
    if any(_ALONE in str(cell) for row in rows for cell in row):
        blocks.append(Paragraph(f"{_ALONE}: timed by itself, not in turn with the others."))
    if any(interval_of(record, metric) is not None for record in records):
        blocks.append(Paragraph(f"{metric}: in brackets the {INTERVAL} and the number of images; a tie: they overlap."))
    won = [Item(_won(records[0], record, metric, shares)) for record in records[1:]]
    return [*blocks, *([Items(won)] if won else []), Paragraph(_how_measured(records))]


def metric_cell(record: Record, metric: str, shares: bool, *, interval: bool = True) -> Cell:
    """Format the metric of a record with its interval; a dash without one.

    Args:
        record: Record of one run.
        metric: Name of the metric.
        shares: Whether to show it in per cent.
        interval: Whether to append the interval and the number of images, where known.
    """
    value = record.metric(metric)
    if value is None:
        return DASH
    text = f"{100 * value:.2f} %" if shares else f"{value:.4g}"
    found = interval_of(record, metric) if interval else None
    if found is None:
        return text
    bounds = (
        f"{100 * found.low:.1f}\u2013{100 * found.high:.1f}" if shares else f"{found.low:.3g}\u2013{found.high:.3g}"
    )
    return (text, Part(f" ({bounds}, n {found.samples})", "soft"))


def verdict_cell(verdict: Verdict) -> Cell:
    """Format pass or fail of every criterion.

    Args:
        verdict: Verdict of one run.
    """
    word = Part("pass", "good") if verdict.passed else Part("fail", "bad")
    cell = [word, Part(": ", "gap")]
    for criterion in verdict.criteria:
        cell += [Part(str(criterion), "good" if criterion.passed else "bad"), Part(", ", "gap")]
    return tuple(cell[:-1])


def _won(first: Record, record: Record, metric: str, shares: bool) -> Cell:
    """Compare a record with the first: size, latency, metric."""
    gains = [*ratio_words(first.size_mb, record.size_mb, "smaller", "larger", "same size"), *_faster(first, record)]
    value, reference = record.metric(metric), first.metric(metric)
    if value is not None and reference is not None:
        change = value - reference
        tie = " (a tie)" if tied(first, record, metric) else ""
        gains.append((f"{metric} {100 * change:+.2f} points" if shares else f"{metric} {change:+.4g}") + tie)
    against = f" against {clipped(first.name, _NAME)}: {', '.join(gains) or 'nothing to compare'}."
    return (Part(clipped(record.name, _NAME), "strong"), against)


def _faster(first: Record, record: Record) -> list[str]:
    """Compare the fastest engines, by joint timing where there is one."""
    words = ("faster", "slower", "same latency")
    joint = {row.joint for row in first.main_latencies() if row.joint}
    for timing in sorted(joint & {row.joint for row in record.main_latencies() if row.joint}, reverse=True):
        old, new = first.best_latency(joint=timing), record.best_latency(joint=timing)
        if old is not None and new is not None:
            return ratio_words(old.p50_ms, new.p50_ms, *words)
    old, new = first.best_latency(), record.best_latency()
    if old is None or new is None:
        return []
    return [f"{text} (timed apart)" for text in ratio_words(old.p50_ms, new.p50_ms, *words)]


def ratio_words(old: float | None, new: float | None, better: str, worse: str, same: str) -> list[str]:
    """Return how many times smaller or larger ``new`` is; empty if one is missing.

    Args:
        old: a figure.
        new: another.
        better: said of a smaller one.
        worse: said of a larger one.
        same: said within 5 %.
    """
    if old is None or new is None or not (0 < old < math.inf and 0 < new < math.inf):
        return []
    ratio, word = (old / new, better) if new <= old else (new / old, worse)
    return [f"{number(ratio, 1)}x {word}" if ratio >= 1.05 else same]


def _size(record: Record, notes: dict[str, int]) -> str:
    if record.failure is not None:
        name = clipped(record.name, _NAME)
        count = notes.setdefault(f"{name}: nothing was exported: {record.failure}", len(notes) + 1)
        return f"{DASH}{count}"
    return number(record.size_mb, 2)


def _milliseconds(record: Record, engine: str, notes: dict[str, int], alone: bool) -> str:
    row = record.latency_of(engine)
    if row is None:
        return DASH
    if row.p50_ms is None or not math.isfinite(row.p50_ms):
        count = notes.setdefault(f"{engine}: {row.error}", len(notes) + 1)
        return f"{DASH}{count}"
    figure = number(row.p50_ms, 2) + (_ALONE if alone and row.joint is None else "")
    differs = record.differing(engine, row.precision)
    if differs is None:
        return figure
    name = clipped(record.name, _NAME)
    count = notes.setdefault(f"{engine} {row.precision} of {name}, does not count: {differs}", len(notes) + 1)
    return f"({figure}) {DASH}{count}"


def _how_measured(records: Sequence[Record]) -> str:
    rows = [row for record in records for row in record.main_latencies() if row.p50_ms is not None]
    if not rows:
        return "No latency was measured."
    row, machine = rows[0], records[-1].machine
    versions = ", ".join(f"{name} {version}" for name, version in list(machine.packages.items())[:20])
    settings = {(item.threads, item.batch_size, item.repeats, item.warmup) for item in rows}
    machines = {(record.machine.cpu, record.machine.flags) for record in records}
    joint = sorted({item.joint for item in rows if item.joint})
    together = {1: "files of all rows in turn, in one process"}.get(len(joint), "files of several runs in turn")
    turns = f"{together} ({', '.join(joint)})" if joint else "engines in turn, each row by itself"
    notes = [
        *(["Not all rows were measured with these settings: see each run."] if len(settings) > 1 else []),
        *(["Not all rows are of one machine, so their latencies cannot be compared."] if len(machines) > 1 else []),
    ]
    said = (
        f"Median of {counted(row.repeats, 'run')} after {counted(row.warmup, 'warm-up run')}, {turns}, batch "
        f"{row.batch_size}, "
        f"{counted(row.threads, 'thread')}, {machine.processor}; Python "
        f"{machine.python}, {versions}. Exported MB: parameters and program of the Paddle export, 1 MB = 1e6 bytes."
    )
    return " ".join([said, *notes])
