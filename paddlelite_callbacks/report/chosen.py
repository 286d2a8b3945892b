"""Choose which of many runs to show: the first, the best, and the latest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.utils.metric_direction import falls_with_quality

__all__ = ["Point", "chosen", "front_of", "point_of"]

_LARGEST = 1e12  # largest value that is drawn


class Point(NamedTuple):
    """Latency, metric and size of a run in a picture.

    Args:
        ms: Latency of its fastest engine, milliseconds.
        metric: Value of the metric.
        mb: Exported size, MB.
        name: Name of the run.
    """

    ms: float
    metric: float
    mb: float
    name: str


def point_of(record: Record, metric: str) -> Point | None:
    """Return the point of ``record``; ``None`` without latency or metric.

    Args:
        record: Record of one run.
        metric: Key of ``Record.metrics``.
    """
    best, value = record.best_latency(), record.metric(metric)
    if best is None or best.p50_ms is None or value is None:
        return None
    size = record.size_mb if record.size_mb is not None and math.isfinite(record.size_mb) else 0.0
    drawable = 1 / _LARGEST < best.p50_ms < _LARGEST and abs(value) < _LARGEST
    return Point(best.p50_ms, value, min(max(size, 0.0), _LARGEST), record.name) if drawable else None


def front_of(points: Sequence[Point | None], metric: str) -> list[int]:
    """Return the indices of the latency-metric Pareto front, fastest first.

    Args:
        points: Points; ``None`` for runs without one.
        metric: Name of the metric, which tells its direction.
    """
    sign = -1.0 if falls_with_quality(metric) else 1.0
    known = [(point.ms, -sign * point.metric, i) for i, point in enumerate(points) if point is not None]
    front, best = [], math.inf
    for _, cost, i in sorted(known):
        if cost < best:
            front.append(i)
            best = cost
    return front


def chosen(records: Sequence[Record], metric: str, *, most: int, winner: Record | None = None) -> list[int]:
    """Select at most ``most`` records to draw; return their indices.

    These are the first (the reference), the winner of the gate, then the most accurate of the front (at most a third),
    then the latest.

    Args:
        records: Records of a folder.
        metric: Metric of the front.
        most: Largest number, at least 2.
        winner: One of ``records``.
    """
    if len(records) <= most:
        return list(range(len(records)))
    wanted = [0, *(i for i, record in enumerate(records) if record is winner)]
    wanted += front_of([point_of(record, metric) for record in records], metric)[::-1][: most // 3]
    wanted += range(len(records) - 1, -1, -1)
    return sorted(list(dict.fromkeys(wanted))[:most])
