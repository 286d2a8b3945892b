"""The gate: size, latency and accuracy within a budget; of those that pass, the most accurate wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paddlelite_callbacks.report.record import Record

__all__ = ["Budget", "Criterion", "EngineVerdict", "GateError", "Verdict", "judge", "most_accurate"]

GATE_FAILED = 3  # exit code


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
        ValueError: a limit that is not a positive finite number, or a baseline without its metric's name.
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
            if limit is not None and not (math.isfinite(limit) and (limit > 0 or (limit == 0 and "drop" in name))):
                raise ValueError(f"{name} must be a positive finite number or None, got {limit!r}.")
        if self.baseline is not None and self.metric is None:
            raise ValueError("baseline goes with metric='...', the name of the figure it is compared with.")
        if self.baseline is not None and self.relative and self.baseline == 0:
            raise ValueError("A relative metric_drop needs a baseline other than 0; use relative=False.")


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One line of a verdict.

    Args:
        name: ``"size_mb"``, ``"latency_ms"`` or ``"metric_drop"``.
        value: measured; ``None`` if it could not be had.
        limit: of the budget.
        passed: ``value <= limit``.
        reason: why there is no value.
    """

    name: str
    value: float | None
    limit: float
    passed: bool
    reason: str | None = None

    @property
    def margin(self) -> float | None:
        """What is left of the limit, in its unit; negative beyond it."""
        return None if self.value is None else self.limit - self.value

    def __str__(self) -> str:
        percent = self.name == "metric_drop"
        label, scale, unit = {
            "size_mb": ("size", 1.0, " MB"),
            "latency_ms": ("latency", 1.0, " ms"),
            "metric_drop": ("drop", 100.0 if percent else 1.0, " %"),
        }[self.name]
        if self.value is None:
            return f"{label} unknown ({self.reason})"
        sign = "<=" if self.passed else ">"
        return f"{label} {self.value * scale:.4g} {sign} {self.limit * scale:.4g}{unit}"


@dataclass(frozen=True, kw_only=True)
class EngineVerdict:
    """The criteria of one file on one engine."""

    engine: str
    precision: str
    criteria: tuple[Criterion, ...]

    @property
    def passed(self) -> bool:
        """Whether every criterion is met."""
        return all(criterion.passed for criterion in self.criteria)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All criteria of one record; ``str()`` gives one line.

    Args:
        criteria: size as the guide counts it, latency of the engine that counts, and the drop on its file.
        rows: the same per engine and file.
    """

    criteria: tuple[Criterion, ...]
    rows: tuple[EngineVerdict, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every criterion is met; a figure that could not be had does not meet its own."""
        return all(criterion.passed for criterion in self.criteria)

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'fail'}: {', '.join(str(criterion) for criterion in self.criteria)}"

    def table(self) -> str:
        """Return Markdown: per engine and file each figure with what is left of its limit in brackets."""
        names = [criterion.name for criterion in self.criteria]
        titles = {"size_mb": "size MB", "latency_ms": "latency ms", "metric_drop": "drop %"}
        lines = ["| engine | file | " + " | ".join(f"{titles[n]} (left)" for n in names) + " | gate |"]
        lines.append("|---|---|" + "---:|" * len(names) + "---|")
        for row in self.rows:
            cells = [_cell(criterion) for criterion in row.criteria]
            word = "pass" if row.passed else "**fail**"
            lines.append(f"| {row.engine} | {row.precision} | " + " | ".join(cells) + f" | {word} |")
        return "\n".join(lines)


class GateError(SystemExit):
    """A run that does not keep its budget; uncaught, the process ends with exit code 3 and this line.

    Args:
        name: of the run.
        verdict: which says why.
    """

    def __init__(self, name: str, verdict: Verdict) -> None:
        super().__init__(GATE_FAILED)
        self.name, self.verdict = name, verdict

    def __str__(self) -> str:
        return f"{self.name} does not keep its budget: {self.verdict}"


def judge(record: Record, budget: Budget) -> Verdict:
    """Hold ``record`` against ``budget``.

    The drop is ``(baseline - metric) / |baseline|`` (``metric - baseline`` where lower is better; not divided if the
    budget is absolute); a model better than the baseline has a negative drop. The metric is the one measured on the
    file by the engine whose latency counts; where none was measured there, that of the training's last evaluation.
    """
    row = record.best_latency() if budget.engine is None else record.latency_of(budget.engine)
    reason = (row.error if row else None) or "no engine ran the exported file and agreed with the network"
    value = _judged_metric(record, budget)
    agreed = {(check.engine, check.precision) for check in record.checks if check.passed}
    rows = []
    for item in record.main_latencies():
        if (item.engine, item.precision) in agreed:
            size = _size_of(record, item.engine, item.precision)
            rows.append(
                EngineVerdict(
                    engine=item.engine,
                    precision=item.precision,
                    criteria=_criteria(
                        budget,
                        (size, "no such file"),
                        (item.p50_ms, item.error or "not timed"),
                        (_metric_on(record, budget, item.engine, item.precision), "not measured on this file"),
                    ),
                )
            )
    return Verdict(
        criteria=_criteria(
            budget,
            (record.size_mb, "nothing was exported"),
            (row.p50_ms if row else None, reason),
            (value, f"no metric {budget.metric!r} among {sorted(record.metrics)}"),
        ),
        rows=tuple(rows),
    )


def most_accurate(records: Sequence[Record], budget: Budget) -> Record | None:
    """Return the most accurate record that passes, by the metric that `judge` looks at; ``None`` if none does.

    Ties go to the smaller, then to the faster.

    Raises:
        ValueError: the budget names no metric.
    """
    if budget.metric is None:
        raise ValueError("The most accurate of several needs Budget(metric='...').")
    sign = 1.0 if budget.higher_is_better else -1.0

    def rank(record: Record) -> tuple[float, float, float]:
        best = record.best_latency()
        milliseconds = math.inf if best is None or best.p50_ms is None else best.p50_ms
        return sign * (_judged_metric(record, budget) or 0.0), -(record.size_mb or math.inf), -milliseconds

    known = [record for record in records if _judged_metric(record, budget) is not None]
    passing = [record for record in known if judge(record, budget).passed]
    return max(passing, key=rank, default=None)


def _drop(value: float, baseline: float, budget: Budget) -> float:
    lost = baseline - value if budget.higher_is_better else value - baseline
    return lost / abs(baseline) if budget.relative else lost


def _criteria(
    budget: Budget,
    size: tuple[float | None, str],
    latency: tuple[float | None, str],
    metric: tuple[float | None, str],
) -> tuple[Criterion, ...]:
    """Return the criteria of ``budget``; each figure comes with the reason why there may be none."""
    criteria = []
    if budget.size_mb is not None:
        criteria.append(_criterion("size_mb", size[0], budget.size_mb, size[1]))
    if budget.latency_ms is not None:
        criteria.append(_criterion("latency_ms", latency[0], budget.latency_ms, latency[1]))
    if budget.metric_drop is not None and budget.baseline is not None:
        drop = None if metric[0] is None else _drop(metric[0], budget.baseline, budget)
        criteria.append(_criterion("metric_drop", drop, budget.metric_drop, metric[1]))
    return tuple(criteria)


def _judged_metric(record: Record, budget: Budget) -> float | None:
    if budget.metric is None:
        return None
    row = record.best_latency() if budget.engine is None else record.latency_of(budget.engine)
    measured = record.metric_of(budget.metric, row.engine, row.precision) if row else None
    return record.metrics.get(budget.metric) if measured is None else measured


def _metric_on(record: Record, budget: Budget, engine: str, precision: str) -> float | None:
    if budget.metric is None:
        return None
    measured = record.metric_of(budget.metric, engine, precision)
    if measured is None and precision == record.precision and not record.file_metrics:
        return record.metrics.get(budget.metric)  # of the network that the file was found to equal
    return measured


def _size_of(record: Record, engine: str, precision: str) -> float | None:
    kind = "paddle" if engine.startswith("paddle") else "onnx"
    sizes = [a.size_mb for a in record.artefacts if (a.kind, a.precision) == (kind, precision)]
    return next(iter(sizes), None)


def _cell(criterion: Criterion) -> str:
    if criterion.value is None or criterion.margin is None:
        return f"unknown: {criterion.reason}"
    scale = 100.0 if criterion.name == "metric_drop" else 1.0
    return f"{criterion.value * scale:.4g} ({criterion.margin * scale:+.4g})"


def _criterion(name: str, value: float | None, limit: float, reason: str) -> Criterion:
    if value is None or not math.isfinite(value):
        return Criterion(name=name, value=None, limit=limit, passed=False, reason=reason)
    return Criterion(name=name, value=value, limit=limit, passed=value <= limit + 1e-12)
