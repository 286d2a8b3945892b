"""Format the measurements of one run as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.report.blocks import Cell, Column, Part, Table, one_line, shortened
from paddlelite_callbacks.report.intervals import INTERVAL, interval_of
from paddlelite_callbacks.report.markdown import table_lines
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.utils.metric_direction import falls_with_quality
from paddlelite_callbacks.utils.peak_memory import PeakMemory

__all__ = [
    "DASH",
    "accuracy_block",
    "accuracy_note",
    "are_shares",
    "check_block",
    "check_table",
    "json_text",
    "latency_block",
    "latency_note",
    "latency_table",
    "noted",
    "number",
    "percent",
]

DASH = "\u2014"
_ROWS, _FIGURES = 60, 12  # limits of a run's tables
_JSON = 20_000  # characters


def noted(record: Record) -> str:
    """Return a line on network, weights and machine.

    Args:
        record: Record of one run.
    """
    macs = "" if record.macs is None else f", {number(record.macs / 1e6, 1)} M multiply-accumulates an image"
    epoch = "" if record.epoch is None else f", weights of epoch {record.epoch}"
    products = list(record.roofline_gflops.items())[:_FIGURES]
    rooflines = ", ".join(f"{number(gflops, 0)} GFLOP/s on {n} thread{'s' * (n != '1')}" for n, gflops in products)
    governor = f", governor {record.machine.governor}" if record.machine.governor else ""
    machine = f"{record.machine.processor}, {record.machine.cores} cores{governor}"
    product = f"; fastest matrix product: {rooflines}" if rooflines else ""
    memory = f"; {_memory(record.peak_memory)}" if record.peak_memory is not None else ""
    return one_line(f"{number(record.parameters / 1e6, 2)} M parameters{macs}{epoch}; {machine}{product}{memory}")


def _memory(peak: PeakMemory) -> str:
    """Describe the peak memory of an export as multiples of the network's size."""

    def of(megabytes: float) -> str:
        times = peak.times(megabytes)
        return f"{number(megabytes, 0)} MB" + (f" ({number(times, 1)} x)" if times is not None else "")

    engines = "" if peak.engines_mb is None else f", {of(peak.engines_mb)} with all engines loaded"
    children = f", {of(peak.children_mb)} in converters of their own" if peak.children_mb else ""
    return (
        f"peak memory of the export, network {number(peak.network_mb, 1)} MB: {of(peak.writing_mb)} while writing"
        f"{engines}{children}"
    )


def latency_block(record: Record) -> Table | None:
    """Return the latency table, one row per engine, file and setting.

    Args:
        record: Record of one run.
    """
    figures = ["threads", "batch", "p50 ms", "p90 ms", "spread", "images/s", "load ms", "peak MB", "roofline"]
    columns = [Column("engine"), Column("file", left=True), *map(Column, figures), Column("reason", left=True)]
    rows = [
        (
            *(row.engine, row.precision, str(row.threads), str(row.batch_size)),
            *(number(row.p50_ms, 2), number(row.p90_ms, 2), percent(row.spread), number(row.images_per_s, 1)),
            *(number(row.load_ms, 0), number(row.peak_mb, 1), percent(row.roofline), _said(row, record)),
        )
        for row in record.latencies[:_ROWS]
    ]
    return Table(columns, rows) if rows else None


def _said(row: Latency, record: Record) -> str:
    differs = record.differing(row.engine, row.precision)
    return row.error or ("" if differs is None else f"does not count: {differs}")


def latency_note(record: Record) -> str:
    """Return the note on columns and conditions of `latency_block`.

    Args:
        record: Record of one run.
    """
    spread = "spread: distance of the quartiles over the median; load and peak: in a process of its own"
    share = "roofline: share of this machine's fastest matrix product (above 100 % by algorithms that multiply less)"
    joint = sorted({row.joint for row in record.latencies if row.joint})
    timed = f"; timed in turn with other runs' files, in one process: {', '.join(joint)}" if joint else ""
    return f"{spread}; {share}{timed}."


def accuracy_block(record: Record) -> Table | None:
    """Return the table of metrics measured on the files.

    Args:
        record: Record of one run.
    """
    if not record.file_metrics:
        return None
    names = list(dict.fromkeys(name for row in record.file_metrics for name in row.metrics))[:_FIGURES]
    columns = [Column("engine"), Column("file", left=True), *map(Column, [*names, "images"])]
    rows: list[tuple[Cell, ...]] = [
        ("live network", DASH, *(number(record.metrics.get(name), 6) for name in names), DASH, "")
    ]
    rows += [
        (
            *(row.engine, row.precision, *(_with_interval(record, row, name) for name in names)),
            *(str(row.samples), row.error or ""),
        )
        for row in record.file_metrics[:_ROWS]
    ]
    return Table([*columns, Column("reason", left=True)], rows)


def _with_interval(record: Record, row: FileMetrics, name: str) -> Cell:
    text, found = number(row.metrics.get(name), 6), interval_of(record, name, file=(row.engine, row.precision))
    return text if found is None else (text, Part(f" ({found.low:.4f}\u2013{found.high:.4f})", "soft"))


def accuracy_note(record: Record) -> str:
    """Explain the brackets of `accuracy_block`; ``""`` where it has none.

    Args:
        record: Record of one run.
    """
    keys = [(name, (row.engine, row.precision)) for row in record.file_metrics for name in row.metrics]
    has = any(interval_of(record, name, file=file) is not None for name, file in keys[: _ROWS * _FIGURES])
    return f"In brackets: the {INTERVAL} of the accuracy." if has else ""


def check_block(record: Record) -> Table | None:
    """Return the table of differences and verdicts.

    Args:
        record: Record of one run.
    """
    figures = ["largest difference", "mean difference", "same top-1", "allowed"]
    columns = [Column("engine"), Column("file", left=True), *map(Column, figures), Column("verdict", left=True)]
    rows: list[tuple[str, ...]] = [
        (
            *(check.engine, check.precision, _short(check.max_abs_diff), _short(check.mean_abs_diff)),
            *(percent(check.top1_agreement), _short(check.tolerance), check.verdict),
        )
        for check in record.checks[:_ROWS]
    ]
    unable = [verdict for verdict in record.verdicts if verdict.agrees is None][:_ROWS]
    rows += [(verdict.engine, verdict.precision, *[DASH] * 4, verdict.text) for verdict in unable]
    return Table(columns, rows) if rows else None


def latency_table(record: Record) -> list[str]:
    """Return `latency_block` and its note as lines of Markdown.

    Args:
        record: Record of one run.
    """
    table = latency_block(record)
    return [] if table is None else [*table_lines(table), "", latency_note(record)]


def check_table(record: Record) -> list[str]:
    """Return `check_block` as lines of Markdown.

    Args:
        record: Record of one run.
    """
    return _lines(check_block(record))


def json_text(values: Mapping[str, Any]) -> str:
    """Format ``values`` as JSON, one line per key, of bounded length.

    Args:
        values: JSON values.
    """
    lines = []
    for key, value in values.items():
        try:
            lines.append(f" {_json(key)}: {_json(value)}")
        except (ValueError, TypeError, RecursionError) as error:  # a number of 5,000 digits, for instance
            lines.append(f" {_json(key)}: {_json(f'cannot be shown: {error}')}")
    return shortened("{\n" + ",\n".join(lines) + "\n}", _JSON)


def are_shares(records: Sequence[Record], metric: str) -> bool:
    """Whether ``metric`` is a share, shown in per cent.

    Args:
        records: Records with or without the metric.
        metric: Name of the metric.
    """
    values = [record.metric(metric) for record in records]
    return all(0 <= value <= 1 for value in values if value is not None) and not falls_with_quality(metric)


def number(value: float | None, digits: int) -> str:
    """Format ``value`` with ``digits`` decimals; a dash for ``None``.

    Args:
        value: Value to format.
        digits: Number of decimals.
    """
    if value is None or math.isnan(value):
        return DASH
    return f"{value:.{digits}f}" if abs(value) < 1e9 else f"{value:.4g}"


def percent(value: float | None) -> str:
    """Format a share in per cent; a dash for ``None``.

    Args:
        value: Share, 1 for 100 %.
    """
    return DASH if value is None or math.isnan(value) else f"{number(100 * value, 1)} %"


def _short(value: float | None) -> str:
    return DASH if value is None or math.isnan(value) else f"{value:.3g}"


def _lines(table: Table | None) -> list[str]:
    return [] if table is None else table_lines(table)


def _json(value: Any) -> str:
    text = shortened(json.dumps(value, ensure_ascii=False), _JSON)
    return "".join(char if char.isprintable() else "".join(_escape(char)) for char in text)


def _escape(char: str) -> Sequence[str]:
    code = ord(char)
    if code < 0x10000:
        return [f"\\u{code:04x}"]
    high, low = divmod(code - 0x10000, 0x400)  # JSON's surrogate pairs
    return [f"\\u{0xD800 + high:04x}", f"\\u{0xDC00 + low:04x}"]
