"""Define the budget of a shipped model: size, latency and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.utils.deprecation import Renamed, old_arguments, old_attributes
from paddlelite_callbacks.utils.metric_direction import checked_mode, falls_with_quality
from paddlelite_callbacks.utils.numbers import check_number
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["Budget", "budget_of", "stored_budget"]


class _Unasked(float):
    """A default limit that the user did not set."""


_GUIDES_DROP = _Unasked(0.05)


@old_arguments(higher_is_better=Renamed("mode", lambda higher: "max" if higher else "min"))
@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a shipped model; ``None`` disables one. The defaults are the guide's.

    A metric needs something to be compared with: ``baseline`` (with ``metric_drop``), ``metric_limit``, or both.

    Args:
        size_mb: Size of parameter and program file, MB (1e6 bytes).
        latency_ms: Median latency on the CPU, milliseconds.
        metric_drop: Allowed loss against ``baseline``, relative to it (0.05: at most 5 % of it) or absolute. ``None``
            judges no loss; ``metric`` then only ranks several models.
        metric: Name in ``Record.metrics``, for instance ``"acc"``.
        baseline: Metric of the large model.
        metric_limit: Worst allowed value of the metric, in its own unit.
        mode: ``"max"`` if higher is better, ``"min"`` if lower; ``"auto"`` infers it from the name: lower for ``loss``,
            ``err``, ``error``, ``mae``, ``mse``, ``rmse``, ``nme`` and the like.
        relative: Whether ``metric_drop`` is a share of the baseline.
        engine: Engine whose latency is judged; ``None`` for the fastest.

    Raises:
        ValueError: A limit that is not a positive finite number, a metric without baseline or limit or the other way
            round, a baseline that is not finite, ``mode="max"`` for a loss or error (``loss``, ``top1_err``, ``rmse``,
            ``nme``, ...), an unknown ``mode`` or engine.

    Example:
        >>> Budget(size_mb=5, latency_ms=30, metric="acc", baseline=0.93, metric_drop=0.01).size_mb
        5
        >>> Budget(metric="rmse", baseline=0.12).is_lower_better
        True
        >>> Budget(metric="acc", metric_limit=0.9).metric_limit
        0.9
    """

    size_mb: float | None = 20.0
    latency_ms: float | None = 100.0
    metric_drop: float | None = _GUIDES_DROP
    metric: str | None = None
    baseline: float | None = None
    metric_limit: float | None = None
    mode: str = "auto"
    relative: bool = True
    engine: str | None = None

    __repr__ = constructor_repr

    if not TYPE_CHECKING:  # IDEs and help() show the new names alone
        __getattr__ = old_attributes(
            higher_is_better=("mode", lambda budget: not budget.is_lower_better),
        )

    def __post_init__(self) -> None:
        checked_mode(self.mode)
        words, remedy = "a positive finite number or None", "use None to leave the criterion out"
        for name in ("size_mb", "latency_ms"):
            if (limit := getattr(self, name)) is not None:
                check_number(name, limit, lambda value: value > 0, words, remedy=remedy)
        if self.metric_drop is not None:
            check_number("metric_drop", self.metric_drop, lambda drop: drop >= 0, words, remedy=remedy)
        self._check_metric()
        if self.engine is not None and self.engine not in ENGINES:
            raise ValueError(
                f"Unknown engine {self.engine!r}; near names: {near_names(str(self.engine), ENGINES)}. Leave engine "
                "out for the fastest."
            )

    @property
    def is_lower_better(self) -> bool:
        """Whether lower values of the metric are better."""
        return self.metric is not None and falls_with_quality(self.metric, self.mode)

    @property
    def judges_drop(self) -> bool:
        """Whether the drop against the baseline is judged."""
        return self.metric_drop is not None and self.baseline is not None

    @property
    def has_limits(self) -> bool:
        """Whether any limit is set."""
        return self.judges_drop or any(x is not None for x in (self.size_mb, self.latency_ms, self.metric_limit))

    def _check_metric(self) -> None:
        if self.metric is not None and (not isinstance(self.metric, str) or not self.metric):
            raise ValueError(
                f"metric must be the name of a metric or None, got {self.metric!r}: give one, as metric='acc'."
            )
        for name, meaning in (("baseline", "the large model's metric"), ("metric_limit", "the worst metric to allow")):
            value = getattr(self, name)
            if value is None:
                continue
            check_number(name, value, lambda number: True, "a finite number or None", remedy=f"give {meaning}")
            if self.metric is None:
                raise ValueError(
                    f"{name} needs metric='...', the metric it is compared with, got {name}={value} alone: give it, "
                    "for instance metric='acc'."
                )
        asked = self.metric_drop is not None and not isinstance(self.metric_drop, _Unasked)
        if asked and self.baseline is None:
            raise ValueError(
                f"metric_drop={self.metric_drop} needs a baseline, got metric={self.metric!r} and baseline=None: "
                "give the large model's metric too, for instance metric='acc', baseline=0.93, or metric_drop=None."
            )
        if self.metric is not None and self.metric_drop is not None and self.baseline is self.metric_limit is None:
            raise ValueError(
                f"metric={self.metric!r} needs a value to compare with, got baseline=None and metric_limit=None: "
                "give the large model's metric as baseline, or the worst allowed value as metric_limit. Use "
                "metric_drop=None to judge no metric."
            )
        if self.metric is None or self.baseline is self.metric_limit is None:
            return
        if self.mode == "max" and falls_with_quality(self.metric):
            raise ValueError(
                f"metric={self.metric!r} is better when lower, got mode='max': leave mode out, or give mode='min'."
            )
        if self.judges_drop and self.relative and self.baseline == 0:
            raise ValueError("A relative metric_drop needs a baseline other than 0, got 0: use relative=False.")


def stored_budget(budget: Budget) -> dict[str, Any]:
    """Return ``budget`` in the form that records hold.

    Args:
        budget: Budget of the gate.
    """
    held = asdict(budget)
    del held["mode"]
    return {**held, "higher_is_better": not budget.is_lower_better}


def budget_of(stored: Mapping[str, Any]) -> Budget:
    """Parse the budget of a record; fields of other versions are dropped.

    Args:
        stored: Result of `stored_budget`.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: `Budget` rejects a value.
    """
    known = {field.name for field in fields(Budget)}
    kept = {key: value for key, value in stored.items() if key in known}
    if kept.get("baseline") is None and kept.get("metric_drop") is not None:
        del kept["metric_drop"]  # the default, which records hold like an explicit one
        if kept.get("metric") is not None and kept.get("metric_limit") is None:
            kept["metric_drop"] = None  # of an older version without a metric to judge
    if stored.get("higher_is_better") is False:
        kept["mode"] = "min"
    return Budget(**kept)
