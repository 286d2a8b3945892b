"""The picture of several runs: the metric against the latency, with the front and the budget's limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.report.blocks import clipped
from paddlelite_callbacks.report.budget import Budget
from paddlelite_callbacks.report.chosen import Point, chosen, front_of, point_of
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.report.tables import are_shares
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["MOST", "PLAIN", "figure_of", "ladder_png", "saved_figure", "text_options"]

MOST = 24  # runs in one picture
PLAIN = {"parse_math": False, "usetex": False}  # a name may hold dollar signs
_COLOURS = ["#4c6ef5", "#f59f00", "#37b24d", "#e64980", "#7048e8", "#1098ad", "#f76707", "#868e96"]
_NAME = 48  # characters
_CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS"),
)


def ladder_png(
    records: Sequence[Record],
    path: Path,
    *,
    metric: str,
    title: str = "",
    narrow: bool = False,
    budget: Budget | None = None,
) -> None:
    """Draw metric against latency, with bubbles by exported size, atomically.

    Of more than `MOST` runs the first, the best and the latest are drawn.

    Args:
        records: those without a latency or the metric are left out.
        path: of the PNG.
        metric: key of ``Record.metrics``.
        title: above the picture.
        narrow: for a phone: the names stand below.
        budget: whose limits are drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    placed = [record for record in records if point_of(record, metric) is not None]
    drawn = [placed[i] for i in chosen(placed, metric, most=MOST)]
    points = [point for point in (point_of(record, metric) for record in drawn) if point is not None]
    shares = are_shares(records, metric)
    more = len(placed) - len(drawn)
    height = 4.4 + 0.42 * (len(points) + bool(more))
    size = (4.5, height) if narrow else (9.0, max(5.0, 0.42 * len(points) + 0.5))
    figure = figure_of(size, narrow=narrow, needed_for="the picture of the ladder")
    axes = figure.add_axes((0.17, 1 - 3.6 / height, 0.79, 3.1 / height) if narrow else (0.11, 0.12, 0.51, 0.78))
    _draw_points(axes, points)
    if len(points) > 1:
        front = [points[i] for i in front_of(points, metric)]
        axes.plot([p.ms for p in front], [p.metric for p in front], color="#868e96", linewidth=1, zorder=0)
    lines = [
        f"{i + 1}  {clipped(p.name, _NAME)}: {f'{100 * p.metric:.2f} %' if shares else f'{p.metric:.4g}'}, "
        f"{p.ms:.2f} ms, {p.mb:.2f} MB"
        for i, p in enumerate(points)
    ]
    lines += [f"and {more} more: the first, the best and the latest are drawn"] if more else []
    place = (0.04, 1 - 4.25 / height) if narrow else (0.645, 0.5)
    style = {**text_options(), "fontsize": 9, "linespacing": 1.2}
    figure.text(*place, "\n\n".join(lines), ha="left", va="top" if narrow else "center", **style)
    if points and max(p.ms for p in points) > 4 * min(p.ms for p in points):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    if shares:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")
    axes.margins(x=0.2, y=0.2)
    if budget is not None and points:
        _draw_limits(axes, points, budget, metric)
    axes.set_xlabel("median latency, fastest engine, batch 1 (ms)")
    axes.set_ylabel(clipped(metric, _NAME), **text_options())
    figure.suptitle(clipped(title, _NAME), **text_options())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    saved_figure(figure, path)


def figure_of(size: tuple[float, float], *, narrow: bool, needed_for: str, **options: Any) -> Any:
    """Return an empty figure without pyplot's global state.

    Args:
        size: inches.
        narrow: for a phone.
        needed_for: of the error.
        options: of matplotlib's ``Figure``.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", needed_for=needed_for)
    require("matplotlib.backends.backend_agg", needed_for=needed_for)
    return figure_module.Figure(figsize=size, dpi=160 if narrow else 120, **options)


def saved_figure(figure: Any, path: Path) -> None:
    """Save ``figure`` to ``path`` atomically.

    Args:
        figure: of `figure_of`.
        path: of the PNG.
    """
    with staged_file(path) as partial, _without_glyph_warnings():
        figure.savefig(partial)


def text_options() -> dict[str, Any]:
    """Return text options for recorded text: no mathematics, a CJK font if any."""
    fonts = require("matplotlib.font_manager", needed_for="the fonts of a picture").fontManager.ttflist
    known = {font.name for font in fonts}
    family = ["DejaVu Sans", *[name for name in _CHINESE if name in known][:1]]
    return {**PLAIN, "fontfamily": family}


def _draw_points(axes: Any, points: Sequence[Point]) -> None:
    top = max((point.mb for point in points), default=1.0) or 1.0
    width = max((p.ms for p in points), default=1.0) - min((p.ms for p in points), default=0.0) or 1.0
    height = max((p.metric for p in points), default=1.0) - min((p.metric for p in points), default=0.0) or 1.0
    ms, values = [point.ms for point in points], [point.metric for point in points]
    sizes = [60 + 2400 * point.mb / top for point in points]
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(points))]
    axes.scatter(ms, values, s=sizes, color=colours, alpha=0.55, edgecolor="white")
    axes.scatter(ms, values, s=8, color="black", zorder=3)
    for i, point in enumerate(points):
        near = sum(  # numbers of bubbles in one place fan out
            abs(other.ms - point.ms) < 0.05 * width and abs(other.metric - point.metric) < 0.05 * height
            for other in points[:i]
        )
        place, offset = (point.ms, point.metric), (8 + 11 * near, 8)
        axes.annotate(str(i + 1), place, offset, textcoords="offset points", fontsize=10, fontweight="bold")


def _draw_limits(axes: Any, points: Sequence[Point], budget: Budget, metric: str) -> None:
    """Draw the limits that lie near the points."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    limits = []
    if budget.metric == metric and budget.judges_drop and budget.metric_drop is not None:
        lost = budget.metric_drop * (abs(budget.baseline or 0.0) if budget.relative else 1.0)
        limits.append((budget.baseline or 0.0) + (lost if budget.is_lower_better else -lost))
    if budget.metric == metric and budget.metric_limit is not None:
        limits.append(budget.metric_limit)
    style = {"color": "#e03131", "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 0}
    for limit in limits:
        if low - 0.5 * (high - low) < limit < high + 0.5 * (high - low):
            axes.axhline(limit, **style)
    if budget.latency_ms is not None and left / 2 < budget.latency_ms < 2 * right:
        axes.axvline(budget.latency_ms, **style)


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    with warnings.catch_warnings():  # a letter that no font here has is drawn as a box
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield
