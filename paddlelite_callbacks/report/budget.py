"""The budget: what a shipped model may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paddlelite_callbacks.deploy.engines import ENGINES
from paddlelite_callbacks.direction import falls_with_quality
from paddlelite_callbacks.errors import near_names

__all__ = ["Budget"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a shipped model may cost; ``None`` leaves a criterion out. The defaults are the guide's.

    Args:
        size_mb: parameters file + program file, MB (1e6 bytes).
        latency_ms: median on the CPU, milliseconds.
        metric_drop: loss against ``baseline``; relative to it (0.05: at most 5 % of it), or absolute.
        metric: name in ``Record.metrics``, for instance ``"acc"``; needed for ``metric_drop``.
        baseline: the big model's metric.
        higher_is_better: whether the metric grows with quality.
        relative: whether ``metric_drop`` is a share of the baseline.
        engine: whose latency counts; ``None`` for the fastest.

    Raises:
        ValueError: a limit that is not a positive finite number, a baseline that is not finite or without its metric's
            name, a loss or error (``loss``, ``top1_err``, ``rmse``, ``nme``, ...) for
            which higher would be better, or an unknown engine.

    Example:
        >>> Budget(size_mb=5, latency_ms=30, metric="acc", baseline=0.93, metric_drop=0.01).size_mb
        5
        >>> Budget(metric="rmse", baseline=0.12, higher_is_better=False).latency_ms
        100.0
    """

    size_mb: float | None = 20.0
    latency_ms: float | None = 100.0
    metric_drop: float | None = 0.05
    metric: str | None = None
    baseline: float | None = None
    higher_is_better: bool = True
    relative: bool = True
    engine: str | None = None

    def __post_init__(self) -> None:
        for name in ("size_mb", "latency_ms", "metric_drop"):
            limit = getattr(self, name)
            if limit is not None and not (_finite(limit) and (limit > 0 or (limit == 0 and "drop" in name))):
                raise ValueError(
                    f"{name} must be a positive finite number or None, got {limit!r}: None leaves the criterion out."
                )
        if self.baseline is not None:
            self._check_baseline(self.baseline)
        if self.engine is not None and self.engine not in ENGINES:
            raise ValueError(
                f"No engine {self.engine!r}; known are {near_names(str(self.engine), ENGINES)}. Leave engine out for "
                "the fastest."
            )

    def _check_baseline(self, baseline: float) -> None:
        if not _finite(baseline):
            raise ValueError(f"baseline must be a finite number or None, got {baseline!r}: the big model's metric.")
        if self.metric is None:
            raise ValueError(
                f"baseline goes with metric='...', the name of the figure it is compared with, got baseline={baseline} "
                "alone: for instance metric='acc'."
            )
        if self.higher_is_better and falls_with_quality(self.metric):
            raise ValueError(
                f"metric={self.metric!r} falls where quality grows, got higher_is_better=True: give "
                "higher_is_better=False (--lower-is-better)."
            )
        if self.relative and baseline == 0:
            raise ValueError("A relative metric_drop needs a baseline other than 0, got 0; use relative=False.")


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
