"""The gate: size, latency and accuracy within a budget; of those that pass, the most accurate wins."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paddlelite_callbacks.report.budget import Budget
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.report.verdict import GATE_FAILED, Criterion, EngineVerdict, GateError, Verdict

__all__ = ["GATE_FAILED", "Budget", "Criterion", "EngineVerdict", "GateError", "Verdict", "judge", "most_accurate"]


def judge(record: Record, budget: Budget) -> Verdict:
    """Hold ``record`` against ``budget``.

    The drop is ``(baseline - metric) / |baseline|`` (``metric - baseline`` where lower is better; not divided if the
    budget is absolute); a model better than the baseline has a negative drop. The metric is the one measured on the
    file by the engine whose latency counts; where none was measured there, that of the training's last evaluation.

    Args:
        record: of one run.
        budget: to hold it against.
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
            (value, _no_metric(record, budget)),
        ),
        rows=tuple(rows),
    )


def most_accurate(records: Sequence[Record], budget: Budget) -> Record | None:
    """Return the most accurate record that passes, by the metric that `judge` looks at; ``None`` if none does.

    Ties go to the smaller, then to the faster.

    Args:
        records: to choose from.
        budget: with ``metric``.

    Raises:
        ValueError: the budget names no metric.
    """
    if budget.metric is None:
        raise ValueError(
            "The most accurate of several needs Budget(metric='...'), got metric=None: name a figure such as 'acc'."
        )
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
        share = budget.relative or all(0 <= value <= 1 for value in (budget.baseline, metric[0] or 0.0))
        criteria.append(_criterion("metric_drop", drop, budget.metric_drop, metric[1], share=share))
    return tuple(criteria)


def _judged_metric(record: Record, budget: Budget) -> float | None:
    if budget.metric is None:
        return None
    row = record.best_latency() if budget.engine is None else record.latency_of(budget.engine)
    measured = record.metric_of(budget.metric, row.engine, row.precision) if row else None
    value = record.metrics.get(budget.metric) if measured is None else measured
    return value if value is not None and math.isfinite(value) else None


def _no_metric(record: Record, budget: Budget) -> str:
    if budget.metric in record.metrics:
        return f"{budget.metric} is not a finite number"
    return f"no metric {budget.metric!r} among {sorted(record.metrics)}"


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


def _criterion(name: str, value: float | None, limit: float, reason: str, *, share: bool = False) -> Criterion:
    if value is None or not math.isfinite(value):
        return Criterion(name=name, value=None, limit=limit, passed=False, reason=reason, share=share)
    return Criterion(name=name, value=value, limit=limit, passed=value <= limit + 1e-12, share=share)
