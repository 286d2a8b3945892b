"""Draw several runs as metric against latency, with Pareto front and limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from paddlelite_callbacks.report.budget import Budget
from paddlelite_callbacks.report.chosen import Point, chosen, front_of, point_of
from paddlelite_callbacks.report.drawing import figure_of, fitted, saved_figure, styled, text_options
from paddlelite_callbacks.report.gate import judge
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.report.tables import are_shares

__all__ = ["MOST", "ladder_figure", "ladder_png"]

MOST = 24  # runs in a picture
_NAME, _TITLE = 30, 60  # columns
_ROW, _PLOT, _BELOW = 0.2, 3.1, 0.8  # inches: a line of the key or the legend, the axes, below them
_PASS, _FAIL, _FRONT, _LIMIT = "#4c6ef5", "#adb5bd", "#2b8a3e", "#e03131"
_COLUMNS = (0.045, 0.09, 0.62, 0.755, 0.895, 0.985)  # of the key: number, name, then right ends of the others


def ladder_png(
    records: Sequence[Record],
    path: Path,
    *,
    metric: str,
    title: str = "",
    budget: Budget | None = None,
) -> None:
    """Draw metric against latency, with bubbles by exported size, atomically.

    With more than `MOST` runs the first, the best and the latest are drawn.

    Args:
        records: Records; those without a latency or the metric are left out.
        path: Path of the PNG.
        metric: Key of ``Record.metrics``.
        title: Title of the picture.
        budget: Budget whose limits and verdicts are drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    saved_figure(ladder_figure(records, metric=metric, title=title, budget=budget), path)


def ladder_figure(records: Sequence[Record], *, metric: str, title: str = "", budget: Budget | None = None) -> Any:
    """Return the figure that `ladder_png` saves.

    Args:
        records: See `ladder_png`.
        metric: See `ladder_png`.
        title: See `ladder_png`.
        budget: See `ladder_png`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    placed = [record for record in records if point_of(record, metric) is not None]
    drawn = [placed[i] for i in chosen(placed, metric, most=MOST)]
    points = [point for point in (point_of(record, metric) for record in drawn) if point is not None]
    passed = [budget is None or judge(record, budget).passed for record in drawn]
    more, shares = len(placed) - len(drawn), are_shares(records, metric)
    front = front_of(points, metric)
    marks = (len(front) > 1) + (budget is not None and budget.latency_ms is not None)
    marks += len(_metric_limits(budget, metric))
    top = (0.3 if title else 0.05) + _ROW * -(-marks // 2) + 0.3
    bottom = _BELOW + _ROW * (len(points) + 1 + bool(more)) + 0.1
    height = top + _PLOT + bottom
    figure = figure_of(height, needed_for="the picture of the ladder")
    axes = figure.add_axes((0.18, bottom / height, 0.79, _PLOT / height))
    styled(axes, shares=shares)
    _draw_points(axes, points, passed)
    handles = _draw_front(axes, [points[i] for i in front])
    _set_ranges(axes, points, budget, metric)
    handles += _draw_limits(axes, budget, metric, shares) if points else []
    _number_points(axes, points)
    axes.set_xlabel("median latency, fastest engine, batch 1 (ms)", fontsize=9.5)
    small = "area of a bubble: exported size" + ("" if all(passed) else "; cross: fails the gate")
    figure.text(0.56, (bottom - 0.62) / height, small, fontsize=8.5, color="#495057", ha="center")
    axes.set_title(fitted(metric, 40), fontsize=9.5, loc="left", **text_options())
    if handles:
        options = {
            "loc": "upper center",
            "bbox_to_anchor": (0.54, 1 - (0.28 if title else 0.03) / height),
            "ncols": 2,
            "frameon": False,
            "borderpad": 0,
        }
        figure.legend(handles=handles, fontsize=8.5, columnspacing=1.2, handlelength=2.4, **options)
    figure.suptitle(fitted(title, _TITLE), y=1 - 0.08 / height, fontsize=10.5, va="top", **text_options())
    _write_key(figure, height, points, passed if budget is not None else None, metric, shares, more)
    return figure


def _draw_points(axes: Any, points: Sequence[Point], passed: Sequence[bool]) -> None:
    top = max((point.mb for point in points), default=1.0) or 1.0
    for met in (True, False):
        some = [point for point, one in zip(points, passed, strict=True) if one is met]
        ms, values = [point.ms for point in some], [point.metric for point in some]
        sizes = [30 + 900 * point.mb / top for point in some]
        axes.scatter(ms, values, s=sizes, color=_PASS if met else _FAIL, alpha=0.4, edgecolor="white")
        axes.scatter(ms, values, s=14, color="black", marker="o" if met else "x", linewidths=1, zorder=3)


def _draw_front(axes: Any, front: Sequence[Point]) -> list[Any]:
    """Draw the front as steps; return its legend entry."""
    if len(front) < 2:
        return []
    ms, values = [point.ms for point in front], [point.metric for point in front]
    return axes.plot(ms, values, color=_FRONT, linewidth=1.3, drawstyle="steps-post", zorder=1, label="Pareto front")


def _set_ranges(axes: Any, points: Sequence[Point], budget: Budget | None, metric: str) -> None:
    """Set axis ranges that include points, bubbles and nearby limits."""
    if not points:
        return
    ms, values = [point.ms for point in points], [point.metric for point in points]
    limits = _metric_limits(budget, metric)
    if budget is not None and budget.latency_ms is not None and min(ms) / 8 < budget.latency_ms < 8 * max(ms):
        ms.append(budget.latency_ms)
    spread = max(values) - min(values) or 0.1 * abs(max(values)) or 1.0
    values += [limit for limit in limits if min(values) - 2 * spread < limit < max(values) + 2 * spread]
    if max(ms) > 4 * min(ms):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.tick_params(which="minor", labelsize=9)
        margin = (max(ms) / min(ms)) ** 0.12
        axes.set_xlim(min(ms) / margin, max(ms) * margin)
    else:
        margin = 0.14 * (max(ms) - min(ms) or max(ms))
        axes.set_xlim(min(ms) - margin, max(ms) + margin)
    margin = max(0.14 * (max(values) - min(values) or abs(max(values)) or 1.0), 1e-12)  # 1e-300 is no range to draw
    axes.set_ylim(min(values) - margin, max(values) + margin)


def _metric_limits(budget: Budget | None, metric: str) -> list[float]:
    if budget is None or budget.metric != metric:
        return []
    limits = []
    if budget.judges_drop and budget.metric_drop is not None:
        lost = budget.metric_drop * (abs(budget.baseline or 0.0) if budget.relative else 1.0)
        limits.append((budget.baseline or 0.0) + (lost if budget.is_lower_better else -lost))
    return limits + ([budget.metric_limit] if budget.metric_limit is not None else [])


def _draw_limits(axes: Any, budget: Budget | None, metric: str, shares: bool) -> list[Any]:
    """Draw the limits; return their legend entries, with a note on invisible ones."""
    if budget is None:
        return []
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    style, handles = {"color": _LIMIT, "linewidth": 1.2, "zorder": 1}, []
    if budget.latency_ms is not None:
        seen, side = left <= budget.latency_ms <= right, "right" if budget.latency_ms > right else "left"
        where = "" if seen else f" (far {side})"
        label = f"latency limit {budget.latency_ms:g} ms{where}"
        x = budget.latency_ms if seen else math.nan
        handles.append(axes.axvline(x, linestyle=(0, (4, 3)), label=label, **style))
    for limit in _metric_limits(budget, metric):
        seen, side = low <= limit <= high, "above" if limit > high else "below"
        where = "" if seen else f" (far {side})"
        value = f"{100 * limit:.4g} %" if shares else f"{limit:.4g}"
        label = f"{fitted(metric, 20)} limit {value}{where}"
        handles.append(axes.axhline(limit if seen else math.nan, linestyle=(0, (1, 1.5)), label=label, **style))
    return handles


def _number_points(axes: Any, points: Sequence[Point]) -> None:
    """Write each point's number beside it without overlaps.

    It takes the nearest free place in several rings, with a thin line from a distant one.
    """
    if not points:
        return
    scale = 72 / axes.figure.dpi
    centres = [(x * scale, y * scale) for x, y in axes.transData.transform([(p.ms, p.metric) for p in points])]
    box = axes.get_window_extent()
    frame = (box.x0 * scale, box.y0 * scale, box.x1 * scale, box.y1 * scale)
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in centres]
    angles = [math.radians(angle) for angle in (45, 135, 315, 225, 90, 0, 270, 180)]
    for number, (x, y) in enumerate(centres, start=1):
        wide, high = 6.4 * len(str(number)) + 0.5, 9.0
        places = [
            (x + (r + wide / 2) * math.cos(angle), y + (r + high / 2) * math.sin(angle), r)
            for r, angle in product((4, 10, 17, 25, 34, 44), angles)
        ]
        boxes = [(cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2) for cx, cy, _ in places]
        costs = [sum(_overlap(one, other) for other in taken) + _outside(one, frame) for one in boxes]
        best = costs.index(min(costs))
        cx, cy, r = places[best]
        taken.append(boxes[best])
        offset = (cx - x, cy - y)
        arrow = {"arrowstyle": "-", "linewidth": 0.6, "color": "#495057", "shrinkA": 0, "shrinkB": 2} if r > 4 else None
        options = {"textcoords": "offset points", "ha": "center", "va": "center", "arrowprops": arrow}
        point = points[number - 1]
        axes.annotate(str(number), (point.ms, point.metric), offset, fontsize=9, fontweight="bold", **options)


_Box = tuple[float, float, float, float]


def _overlap(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(one: _Box, frame: _Box) -> float:
    return (one[2] - one[0]) * (one[3] - one[1]) - _overlap(one, frame)


def _write_key(
    figure: Any,
    height: float,
    points: Sequence[Point],
    passed: Sequence[bool] | None,
    metric: str,
    shares: bool,
    more: int,
) -> None:
    """Write one line per point below the axes: number, name, values, verdict."""
    rows = [("", "run", fitted(metric, 9), "ms", "MB", "gate" if passed is not None else "")]
    for i, point in enumerate(points):
        value = f"{100 * point.metric:.2f} %" if shares else f"{point.metric:.4g}"
        verdict = "" if passed is None else "pass" if passed[i] else "fail"
        rows.append((str(i + 1), fitted(point.name, _NAME), value, f"{point.ms:.2f}", f"{point.mb:.2f}", verdict))
    style = {**text_options(), "fontsize": 8.5, "va": "center"}
    for line, row in enumerate(rows if points else []):
        y = (_ROW * (len(rows) - line - 0.5 + bool(more)) + 0.08) / height
        for place, (x, text) in enumerate(zip(_COLUMNS, row, strict=True)):
            if text:
                weight = "bold" if not line or not place else "normal"
                side = "left" if place == 1 else "right"
                figure.text(x, y, text, ha=side, fontweight=weight, **style)
    if more:
        said = f"and {more} more: the first, the best and the latest are drawn"
        figure.text(_COLUMNS[1], (_ROW * 0.5 + 0.04) / height, said, **style)
