"""Show what layers in float cost and win: a table, and a picture of the curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from paddlelite_callbacks.report.blocks import Cell, Column, Part, Table, clipped
from paddlelite_callbacks.report.drawing import COLOURS, figure_of, fitted, saved_figure, styled, text_options
from paddlelite_callbacks.report.record import LayerPoint, Record
from paddlelite_callbacks.report.tables import number

__all__ = ["layer_curve_block", "layer_curve_png"]

_ROWS, _NAMES, _WIDTH = 100, 8, 60
_LARGEST = 1e12  # largest value that is drawn


def layer_curve_block(record: Record) -> Table | None:
    """Return the table of files that were tried to keep a limit; ``None`` without.

    Args:
        record: Record of the run.
    """
    if not record.layer_curve:
        return None
    columns = [Column("put back"), Column("to", left=True), Column("metric"), Column("ms"), Column("layers", left=True)]
    rows: list[list[Cell]] = []
    for point in sorted(record.layer_curve, key=_place)[:_ROWS]:
        names = ", ".join(clipped(name, _WIDTH) for name in point.layers[:_NAMES])
        more = f" and {len(point.layers) - _NAMES} more" if len(point.layers) > _NAMES else ""
        count: Cell = Part(f"{len(point.layers)} (shipped)", "strong") if point.chosen else str(len(point.layers))
        rows.append([count, point.to, number(point.metric, 4), number(point.latency_ms, 2), f"{names}{more}" or "none"])
    return Table(columns, rows)


def layer_curve_png(records: Sequence[Record], path: Path) -> bool:
    """Draw metric and latency of the latest run against the layers put back.

    Args:
        records: Records of a folder.
        path: Path of the PNG.

    Returns:
        Whether there was anything to draw.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    shown = next((record for record in reversed(records) if len(record.layer_curve) > 1), None)
    if shown is None:
        return False
    points = sorted((point for point in shown.layer_curve if _drawable(point.metric)), key=_place)
    figure = figure_of(4.0, needed_for="the picture of layers in float")
    style = text_options()
    for row, (title, value) in enumerate((("metric", _metric), ("latency, ms", _latency))):
        axes = figure.add_axes((0.18, 0.58 - 0.46 * row, 0.79, 0.34))
        drawn = [(len(p.layers), value(p), p) for p in points if _drawable(value(p))]
        for place, to in enumerate(dict.fromkeys(p.to for p in points)):
            own = [(x, y) for x, y, p in drawn if p.to == to]
            axes.plot(*(zip(*own, strict=True) if own else ([], [])), ".", color=COLOURS[place], label=f"to {to}")
        chosen = [(x, y) for x, y, p in drawn if p.chosen]
        axes.plot(*(zip(*chosen, strict=True) if chosen else ([], [])), "o", color="#37b24d", mfc="none", ms=11)
        styled(axes, shares=row == 0 and all(0 <= y <= 1 for _, y, _ in drawn))
        axes.set_title(title, fontsize=9.5, **style)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=8)
        if row == 0:
            axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.set_xlabel(f"layers put back; ring: shipped ({fitted(shown.name, 30)})", fontsize=9.5, **style)
    saved_figure(figure, path)
    return True


def _place(point: LayerPoint) -> tuple[bool, int, float]:
    return point.to == "float", len(point.layers), point.metric


def _metric(point: LayerPoint) -> float:
    return point.metric


def _latency(point: LayerPoint) -> float:
    return math.nan if point.latency_ms is None else point.latency_ms


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST
