"""The ladder of several records as Markdown, JSON lines and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from paddlelite_callbacks.direction import falls_with_quality
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.files import staged_file
from paddlelite_callbacks.report.gate import Budget, judge, most_accurate
from paddlelite_callbacks.report.record import Record

__all__ = ["ladder_markdown", "ladder_png", "write_ladder", "write_whole"]

_DASH = "\u2014"


class _Point(NamedTuple):
    ms: float
    metric: float
    mb: float
    name: str


def ladder_markdown(records: Sequence[Record], *, metric: str, budget: Budget | None = None) -> str:
    """Return the guide's table: model, accuracy, parameters, exported MB, median ms per engine, verdict of the gate.

    A figure that could not be had is a dash with a footnote. Below stand what each row won against the first, the
    winner of the gate, and how all was measured.

    Args:
        records: one a row, in this order, the big model first.
        metric: key of ``Record.metrics``, shown in per cent where all values are within [0, 1].
        budget: of the gate; ``None`` leaves the column out.
    """
    engines = list(dict.fromkeys(row.engine for record in records for row in record.latencies))
    head = ["model", metric, "parameters", "exported MB", *(f"{name} ms" for name in engines)]
    notes: dict[str, int] = {}
    rows = []
    for record in records:
        milliseconds = [_milliseconds(record, name, notes) for name in engines]
        row = [record.name, _metric(record, metric, records), f"{record.parameters / 1e6:.2f} M", _size(record, notes)]
        rows.append([*row, *milliseconds, *([] if budget is None else [str(judge(record, budget))])])
    if budget is not None:
        head.append("gate")
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (3 + len(engines)) + ("---|" if budget else "")]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += ["", *(f"{_DASH}{number}: {text}." for text, number in notes.items())]
    lines += _won(records, metric)
    if budget is not None and budget.metric is not None:
        winner = most_accurate(records, budget)
        lines += ["", f"Most accurate of those that pass: **{winner.name}**." if winner else "None passes the gate."]
    return "\n".join([*lines, "", _how_measured(records), ""])


def ladder_png(records: Sequence[Record], path: Path, *, metric: str, title: str = "", narrow: bool = False) -> None:
    """Draw accuracy against latency (fastest engine), the area of a bubble its exported size; written whole or not.

    Args:
        records: those without a latency or the metric are left out.
        path: of the PNG.
        metric: key of ``Record.metrics``.
        title: above the picture.
        narrow: for a phone: the names stand below.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", needed_for="the picture of the ladder")
    require("matplotlib.backends.backend_agg", needed_for="the picture of the ladder")
    points = _points(records, metric)
    height = 4.4 + 0.42 * len(points)
    inches = (4.5, height) if narrow else (9.0, max(5.0, 0.42 * len(points)))
    figure = figure_module.Figure(figsize=inches, dpi=160 if narrow else 120)  # no pyplot: nobody's state changes
    axes = figure.add_axes((0.17, 1 - 3.6 / height, 0.79, 3.1 / height) if narrow else (0.11, 0.12, 0.51, 0.78))
    top = max((size for _, _, size, _ in points), default=1.0)
    colours = ["#4c6ef5", "#f59f00", "#37b24d", "#e64980", "#7048e8", "#1098ad", "#f76707", "#868e96"]
    for i, (x, y, size, _) in enumerate(points):
        axes.scatter(x, y, s=60 + 2400 * size / top, color=colours[i % len(colours)], alpha=0.55, edgecolor="white")
        axes.scatter(x, y, s=8, color="black", zorder=3)
        near = sum(_close(points[k], points[i], points) for k in range(i))  # numbers of bubbles in one place fan out
        axes.annotate(
            str(i + 1), (x, y), xytext=(8 + 11 * near, 8), textcoords="offset points", fontsize=10, fontweight="bold"
        )
    shares = _shares(records, metric)
    lines = [
        f"{i + 1}  {name}: {f'{100 * y:.2f} %' if shares else f'{y:.4g}'}, {x:.2f} ms, {size:.2f} MB"
        for i, (x, y, size, name) in enumerate(points)
    ]
    place = (0.04, 1 - 4.25 / height) if narrow else (0.645, 0.5)
    across = "top" if narrow else "center"
    figure.text(*place, "\n\n".join(lines), ha="left", va=across, fontsize=9, linespacing=1.2)
    if points and max(p[0] for p in points) > 4 * min(p[0] for p in points):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.margins(x=0.2, y=0.2)
    axes.set_xlabel("median latency, fastest engine, batch 1 (ms)")
    axes.set_ylabel(metric)
    figure.suptitle(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with staged_file(path) as partial:
        figure.savefig(partial)


def write_ladder(
    folder: Path, records: Sequence[Record], *, metric: str, budget: Budget | None = None, title: str = ""
) -> str:
    """Write ``ladder.md``, ``ladder.jsonl`` and ``ladder.png`` into ``folder``; returns the Markdown.

    Args:
        folder: that they go into; made if missing.
        records: one per row.
        metric: shown as accuracy.
        budget: of the gate column.
        title: of the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = ladder_markdown(records, metric=metric, budget=budget)
    write_whole(folder / "ladder.md", text)
    write_whole(folder / "ladder.jsonl", "".join(record.to_json_line() + "\n" for record in records))
    ladder_png(records, folder / "ladder.png", metric=metric, title=title)
    return text


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` under another name first, so that no half of it is ever seen."""
    with staged_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _points(records: Sequence[Record], metric: str) -> list[_Point]:
    points = []
    for record in records:
        milliseconds, value = _fastest_ms(record), record.metric(metric)
        if milliseconds is not None and value is not None:
            points.append(_Point(milliseconds, value, record.size_mb or 0.0, record.name))
    return points


def _close(a: _Point, b: _Point, points: Sequence[_Point]) -> bool:
    """Whether two points would carry their numbers in the same place of the picture."""
    width = max(p.ms for p in points) - min(p.ms for p in points) or 1.0
    height = max(p.metric for p in points) - min(p.metric for p in points) or 1.0
    return abs(a.ms - b.ms) < 0.05 * width and abs(a.metric - b.metric) < 0.05 * height


def _won(records: Sequence[Record], metric: str) -> list[str]:
    """Say, a line a record, how it stands against the first: size, latency of the fastest engine, metric."""
    lines = []
    for record in records[1:]:
        gains = [*_ratio(records[0].size_mb, record.size_mb, "smaller", "larger")]
        gains += _ratio(_fastest_ms(records[0]), _fastest_ms(record), "faster", "slower")
        value, first = record.metric(metric), records[0].metric(metric)
        if value is not None and first is not None:
            change = value - first
            gains.append(
                f"{metric} {100 * change:+.2f} points" if _shares(records, metric) else f"{metric} {change:+.4g}"
            )
        lines.append(f"- **{record.name}** against {records[0].name}: {', '.join(gains)}.")
    return lines


def _fastest_ms(record: Record) -> float | None:
    best = record.best_latency()
    return None if best is None else best.p50_ms


def _ratio(old: float | None, new: float | None, better: str, worse: str) -> list[str]:
    if not old or not new:
        return []
    return [f"{old / new:.1f}x {better}" if new <= old else f"{new / old:.1f}x {worse}"]


def _shares(records: Sequence[Record], metric: str) -> bool:
    """Whether ``metric`` is a share, shown in per cent; an error (RMSE, NME) between 0 and 1 need not be one."""
    values = [record.metric(metric) for record in records]
    return all(0 <= value <= 1 for value in values if value is not None) and not falls_with_quality(metric)


def _metric(record: Record, metric: str, records: Sequence[Record]) -> str:
    value = record.metric(metric)
    if value is None:
        return _DASH
    return f"{100 * value:.2f} %" if _shares(records, metric) else f"{value:.4g}"


def _size(record: Record, notes: dict[str, int]) -> str:
    if record.failure is not None:
        number = notes.setdefault(f"{record.name}: nothing was exported: {record.failure}", len(notes) + 1)
        return f"{_DASH}{number}"
    return _DASH if record.size_mb is None else f"{record.size_mb:.2f}"


def _milliseconds(record: Record, engine: str, notes: dict[str, int]) -> str:
    row = record.latency_of(engine)
    if row is None:
        return _DASH
    if row.p50_ms is None:
        number = notes.setdefault(f"{engine}: {row.error}", len(notes) + 1)
        return f"{_DASH}{number}"
    differs = record.differing(engine, row.precision)
    if differs is not None:
        number = notes.setdefault(
            f"{engine} {row.precision} of {record.name}, does not count: {differs}", len(notes) + 1
        )
        return f"({row.p50_ms:.2f}) {_DASH}{number}"
    return f"{row.p50_ms:.2f}"


def _how_measured(records: Sequence[Record]) -> str:
    rows = [row for record in records for row in record.latencies if row.p50_ms is not None]
    if not rows:
        return "No latency was measured."
    row, machine = rows[0], records[-1].machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    return (
        f"Median of {row.repeats} runs after {row.warmup} warm-up runs, engines in turn, batch {row.batch_size}, "
        f"{row.threads} thread{'s' if row.threads > 1 else ''}, {machine.cpu} ({' '.join(machine.flags)}); Python "
        f"{machine.python}, {versions}. Exported MB: parameters and program of the Paddle export, 1 MB = 1e6 bytes."
    )
