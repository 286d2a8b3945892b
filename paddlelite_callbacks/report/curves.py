"""Training curves of several runs as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddlelite_callbacks.report.blocks import clipped
from paddlelite_callbacks.report.pareto import figure_of, saved_figure, text_options
from paddlelite_callbacks.report.record import Record

__all__ = ["curve_names", "curves_png"]

_PANELS, _RUNS, _POINTS, _NAME = 4, 8, 500, 40
_LARGEST = 1e12  # of what is drawn
_COLOURS = ("#4c6ef5", "#f59f00", "#37b24d", "#e64980", "#7048e8", "#1098ad", "#f76707", "#868e96")


def curve_names(records: Sequence[Record]) -> list[str]:
    """Return the names of metrics with curves, the loss first.

    Args:
        records: with their histories.
    """
    names = dict.fromkeys(
        key.removeprefix("eval_") for record in records for row in record.history for key in row if key != "epoch"
    )
    return sorted(names, key=lambda name: name != "loss")  # in their order otherwise


def curves_png(records: Sequence[Record], path: Path, *, narrow: bool = False) -> bool:
    """Draw a panel a metric, a colour a run: evaluation solid, training dashed.

    Args:
        records: the last eight that have a history are drawn.
        path: of the PNG.
        narrow: for a phone: panels below each other.

    Returns:
        Whether there was anything to draw.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    shown = [record for record in records if record.history][-_RUNS:]
    names = curve_names(shown)[:_PANELS]
    if not names:
        return False
    rows, columns = (len(names), 1) if narrow else (-(-len(names) // 2), min(2, len(names)))
    size = (4.5, 2.8 * rows + 0.3 * len(shown) + 0.4) if narrow else (9.0, 3.2 * rows + 0.6)
    figure = figure_of(size, narrow=narrow, needed_for="the training curves", layout="constrained")
    style, lines = text_options(), dict[int, Any]()
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for place, record in enumerate(shown):
            for key, dashes in ((f"eval_{name}", "-"), (name, "--")):
                if points := _points(record, key):
                    colour = _COLOURS[place]
                    (line,) = axes.plot(*zip(*points, strict=True), dashes, marker=".", color=colour, linewidth=1.4)
                    lines.setdefault(place, line)
        axes.set_title(clipped(name, _NAME), fontsize=10, **style)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("evaluation solid, training dashed", fontsize=9)
    if lines:
        places, labels = sorted(lines), [f"run {place}" for place in sorted(lines)]
        legend = figure.legend(
            [lines[place] for place in places],
            labels,
            loc="outside lower center",
            ncols=1 if narrow else 4,
            fontsize=9,
            frameon=False,
        )
        for text, place in zip(legend.get_texts(), places, strict=True):  # a label that begins with _ is left out
            text.set(text=clipped(shown[place].name, _NAME), **style)
    saved_figure(figure, path)
    return True


def _points(record: Record, key: str) -> list[tuple[float, float]]:
    """Return epochs and values, at most a fixed number."""
    rows = [(row.get("epoch", math.nan), row.get(key, math.nan)) for row in record.history]
    points = [(epoch, value) for epoch, value in rows if abs(epoch) < _LARGEST and abs(value) < _LARGEST]
    step = -(-len(points) // _POINTS)
    return points[:: max(step, 1)]
