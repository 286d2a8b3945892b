"""Confidence intervals of accuracies, and ties between them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from paddlelite_callbacks.report.record import Record

__all__ = ["INTERVAL", "Interval", "interval_of", "is_share_of_images", "tied", "wilson"]

INTERVAL = "95 % Wilson interval"
_Z = 1.959963984540054  # 97.5 % of the normal distribution
_RATES = re.compile(r"(?:acc(?:uracy)?|top)\d*")
_NO_RATES = frozenset(("balanced", "class", "macro", "mean", "pixel", "token", "weighted"))  # means of other things


class Interval(NamedTuple):
    """95 % confidence interval of a share of images.

    Args:
        low: Lower bound.
        high: Upper bound.
        samples: Images that were looked at.
    """

    low: float
    high: float
    samples: int


def wilson(share: float, samples: int) -> Interval:
    """Return the 95 % Wilson score interval (Wilson 1927) of ``share`` of ``samples``.

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
        raise ValueError(f"share must be in [0, 1], got {share!r}: divide per cents by 100.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples!r}.")
    square = _Z * _Z / samples
    middle = share + square / 2
    half = _Z * math.sqrt(share * (1 - share) / samples + square / (4 * samples))
    return Interval(
        0.0 if share == 0 else (middle - half) / (1 + square),
        1.0 if share == 1 else (middle + half) / (1 + square),
        samples,
    )


def is_share_of_images(metric: str) -> bool:
    """Return whether ``metric`` is by its name an accuracy or a top-k error: so many of n images.

    Of an AP, an IoU or a mean over classes the number of images gives no interval.

    Args:
        metric: Key of ``Record.metrics``, for instance ``"acc_top1"``.
    """
    words = re.findall(r"[a-z]+\d*", metric.lower())
    return any(_RATES.fullmatch(word) for word in words) and not _NO_RATES.intersection(words)


def interval_of(record: Record, metric: str, *, file: tuple[str, str] | None = None) -> Interval | None:
    """Return the interval of an accuracy; ``None`` where it has none.

    The number of images is that of the evaluation of the files. Where the accuracy is no whole number of so many
    images, it is of other data, or no share of images, and gets no interval.

    Args:
        record: Of one run.
        metric: Key of ``Record.metrics``.
        file: Engine and precision of the file whose accuracy is meant; ``None`` for ``record.metric(metric)``.
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
    """Return whether the intervals of two accuracies overlap.

    Args:
        one: Of one run.
        other: Of another.
        metric: Key of ``Record.metrics``.
    """
    first, second = interval_of(one, metric), interval_of(other, metric)
    if first is None or second is None:
        return False
    return first.low <= second.high and second.low <= first.high
