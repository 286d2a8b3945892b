"""Compute confidence intervals of accuracies, and ties between them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paddlelite_callbacks.report.record import Record

__all__ = [
    "INTERVAL",
    "Interval",
    "interval_of",
    "is_share_of_images",
    "mean_half_width",
    "mean_in_percent",
    "tied",
    "wilson",
]

INTERVAL = "95 % Wilson interval"
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
# two-sided 95 % quantiles of Student's t, by degrees of freedom
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_RATES = re.compile(r"(?:acc(?:uracy)?|top)\d*")
_NO_RATES = frozenset(("balanced", "class", "macro", "mean", "pixel", "token", "weighted"))  # not shares of images


class Interval(NamedTuple):
    """95 % confidence interval of a share of images.

    Args:
        low: Lower bound.
        high: Upper bound.
        samples: Number of images.
    """

    low: float
    high: float
    samples: int


def wilson(share: float, samples: int) -> Interval:
    """Return the 95 % Wilson score interval of ``share`` (Wilson 1927).

    With ``n`` samples and ``z = 1.96``: ``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``. Unlike the
    normal approximation it stays within [0, 1] and holds near 1 and for few images.

    Args:
        share: In [0, 1].
        samples: At least 1.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> low, high, _ = wilson(0.976, 500)
        >>> f"{low:.4f} {high:.4f}"
        '0.9585 0.9862'
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}: divide percentages by 100.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples!r}: give the number of images.")
    square = _Z * _Z / samples
    middle = share + square / 2
    half = _Z * math.sqrt(share * (1 - share) / samples + square / (4 * samples))
    return Interval(
        0.0 if share == 0 else (middle - half) / (1 + square),
        1.0 if share == 1 else (middle + half) / (1 + square),
        samples,
    )


def mean_half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean (Student's t).

    0 for a single value.

    Args:
        values: One value a run, in any unit; more than ten take the normal distribution.
    """
    if len(values) < 2:
        return 0.0
    return float(_T.get(len(values) - 1, 1.96) * np.std(values, ddof=1) / np.sqrt(len(values)))


def mean_in_percent(values: Sequence[float], *, digits: int, sign: bool = False) -> str:
    """Return ``mean ± half width`` of the 95 % interval, in per cent.

    For a single value only the mean.

    Args:
        values: Shares, one a run.
        digits: Number of decimals.
        sign: Whether the mean always has its sign.
    """
    mean = round(100 * float(np.mean(values)), digits) + 0.0  # not -0.0
    shown = f"{mean:{'+' if sign else ''}.{digits}f}"
    return shown if len(values) < 2 else f"{shown} ± {100 * mean_half_width(values):.{digits}f}"


def is_share_of_images(metric: str) -> bool:
    """Whether ``metric`` is by its name an accuracy or a top-k error.

    Such a metric is a share of images.

    For an AP, an IoU or a mean over classes the number of images gives no interval.

    Args:
        metric: Key of ``Record.metrics``, for instance ``"acc_top1"``.
    """
    words = re.findall(r"[a-z]+\d*", metric.lower())
    return any(_RATES.fullmatch(word) for word in words) and not _NO_RATES.intersection(words)


def interval_of(record: Record, metric: str, *, file: tuple[str, str] | None = None) -> Interval | None:
    """Return the confidence interval of an accuracy; ``None`` where it has none.

    The number of images is that of the evaluation of the files. An accuracy that is not a multiple of its inverse is of
    other data, or not a share of images, and gets no interval.

    Args:
        record: Record of one run.
        metric: Key of ``Record.metrics``.
        file: Engine and precision of the file; ``None`` for ``record.metric(metric)``.
    """
    value = record.metric(metric) if file is None else record.metric_of(metric, *file)
    if value is None or not 0 <= value <= 1 or not is_share_of_images(metric):
        return None
    rows = [row for row in record.file_metrics if file in (None, (row.engine, row.precision))]
    for samples in dict.fromkeys(row.samples for row in rows if metric in row.metrics and row.error is None):
        if 0 < samples < 1e12 and abs(value * samples - round(value * samples)) < 1e-3 + 1e-6 * samples:
            return wilson(value, samples)
    return None


def tied(one: Record, other: Record, metric: str) -> bool:
    """Whether the confidence intervals of two accuracies overlap.

    Args:
        one: Record of one run.
        other: Record of another.
        metric: Key of ``Record.metrics``.
    """
    first, second = interval_of(one, metric), interval_of(other, metric)
    if first is None or second is None:
        return False
    return first.low <= second.high and second.low <= first.high
