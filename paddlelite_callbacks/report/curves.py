"""Draw training curves of several runs in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddlelite_callbacks.report.drawing import COLOURS, figure_of, fitted, saved_figure, styled, text_options
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.utils.metric_direction import falls_with_quality

__all__ = ["curve_names", "curves_png"]

_PANELS, _RUNS, _POINTS, _NAME = 4, 8, 500, 30
_LARGEST = 1e12  # largest value that is drawn
_TOP, _PANEL, _BELOW, _ROW = 0.12, 1.9, 0.5, 0.22  # inches: the heading, a panel with its title, below, a legend line


def curve_names(records: Sequence[Record]) -> list[str]:
    """Return the names of metrics with curves, loss first.

    Args:
        records: Records with their histories.
    """
    names = dict.fromkeys(
        key.removeprefix("eval_") for record in records for row in record.history for key in row if key != "epoch"
    )
    return sorted(names, key=lambda name: name != "loss")  # otherwise in their order


def curves_png(records: Sequence[Record], path: Path) -> bool:
    """Draw training curves, one panel per metric and one colour per run.

    Evaluation is solid, training dashed.

    Args:
        records: Records; the last eight with a history are drawn.
        path: Path of the PNG.

    Returns:
        Whether there was anything to draw.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    shown = [record for record in records if record.history][-_RUNS:]
    names = curve_names(shown)[:_PANELS]
    if not names:
        return False
    legend = _ROW * -(-len(shown) // 2) + 0.1
    height = _TOP + _PANEL * len(names) + _BELOW + legend
    figure = figure_of(height, needed_for="the training curves")
    style, lines = text_options(), dict[int, Any]()
    for number, name in enumerate(names):
        bottom = legend + _BELOW + _PANEL * (len(names) - 1 - number)
        axes = figure.add_axes((0.18, bottom / height, 0.79, (_PANEL - 0.5) / height))
        drawn: list[float] = []
        for place, record in enumerate(shown):
            for key, dashes in ((f"eval_{name}", "-"), (name, "--")):
                if points := _points(record, key):
                    colour, marker = COLOURS[place], "." if len(points) < 40 else ""
                    (line,) = axes.plot(*zip(*points, strict=True), dashes, marker=marker, color=colour, linewidth=1.3)
                    lines.setdefault(place, line)
                    drawn += [value for _, value in points]
        styled(axes, shares=not falls_with_quality(name) and all(0 <= value <= 1 for value in drawn))
        axes.set_title(fitted(name, 50), fontsize=9.5, **style)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=8)
        axes.yaxis.get_major_locator().set_params(nbins=5)
    axes.set_xlabel("epoch", fontsize=9.5)
    figure.text(0.5, 1 - 0.12 / height, "evaluation solid, training dashed", fontsize=9, ha="center", va="center")
    for i, place in enumerate(sorted(lines)):
        y = (legend - 0.05 - _ROW * (i // 2 + 0.5)) / height
        x = 0.06 + 0.47 * (i % 2)
        style_of = {"color": COLOURS[place], "linewidth": 2, "transform": figure.transFigure}
        figure.add_artist(_line()([x, x + 0.05], [y, y], **style_of))
        figure.text(x + 0.065, y, fitted(shown[place].name, _NAME), fontsize=9, va="center", **style)
    saved_figure(figure, path)
    return True


def _line() -> Any:
    from matplotlib.lines import Line2D

    return Line2D


def _points(record: Record, key: str) -> list[tuple[float, float]]:
    """Return epochs and values, at most a fixed number."""
    rows = [(row.get("epoch", math.nan), row.get(key, math.nan)) for row in record.history]
    points = [(epoch, value) for epoch, value in rows if abs(epoch) < _LARGEST and abs(value) < _LARGEST]
    step = -(-len(points) // _POINTS)
    return points[:: max(step, 1)]
