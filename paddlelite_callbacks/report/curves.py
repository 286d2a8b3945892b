"""Training curves of several runs as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.files import staged_file
from paddlelite_callbacks.report.record import Record

__all__ = ["curve_names", "curves_png"]

_PANELS, _RUNS = 4, 8
_COLOURS = ("#4c6ef5", "#f59f00", "#37b24d", "#e64980", "#7048e8", "#1098ad", "#f76707", "#868e96")


def curve_names(records: Sequence[Record]) -> list[str]:
    """Return the figures that there are curves of, without ``eval_``, the loss first.

    Args:
        records: with their histories.
    """
    names = dict.fromkeys(
        key.removeprefix("eval_") for record in records for row in record.history for key in row if key != "epoch"
    )
    return sorted(names, key=lambda name: (name != "loss", list(names).index(name)))


def curves_png(records: Sequence[Record], path: Path, *, narrow: bool = False) -> bool:
    """Draw a panel a figure, a colour a run: evaluation solid, training dashed; written whole or not at all.

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
    figure_module = require("matplotlib.figure", needed_for="the training curves")
    require("matplotlib.backends.backend_agg", needed_for="the training curves")
    rows, columns = (len(names), 1) if narrow else (-(-len(names) // 2), min(2, len(names)))
    size = (4.5, 2.8 * rows + 0.3 * len(shown) + 0.4) if narrow else (9.0, 3.2 * rows + 0.6)
    figure = figure_module.Figure(figsize=size, dpi=160 if narrow else 120, layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for colour, record in zip(_COLOURS, shown, strict=False):
            for key, style in ((f"eval_{name}", "-"), (name, "--")):
                points = [(row["epoch"], row[key]) for row in record.history if row.get(key) is not None]
                if points:
                    label = record.name if style == "-" or f"eval_{name}" not in record.history[-1] else None
                    axes.plot(*zip(*points, strict=True), style, marker=".", color=colour, label=label, linewidth=1.4)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("evaluation solid, training dashed", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if narrow else 4, fontsize=9, frameon=False)
    with staged_file(path) as partial:
        figure.savefig(partial)
    return True
