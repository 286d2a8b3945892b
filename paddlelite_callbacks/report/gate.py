"""The gate: size, latency and accuracy within a budget; of those that pass, the most accurate wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from paddlelite_callbacks.deploy.exact import EXACT
from paddlelite_callbacks.deploy.latency import Latency
from paddlelite_callbacks.report.budget import Budget
from paddlelite_callbacks.report.record import Record
from paddlelite_callbacks.report.verdict import GATE_FAILED, Criterion, EngineVerdict, GateError, Verdict

__all__ = ["GATE_FAILED", "Budget", "Criterion", "EngineVerdict", "GateError", "Verdict", "judge", "most_accurate"]


def judge(record: Record, budget: Budget) -> Verdict:
    """Hold ``record`` against ``budget``.

    The drop is ``(baseline - metric) / |baseline|`` (``metric - baseline`` where lower is better; not divided if the
    budget is absolute); a model better than the baseline has a negative drop. The metric is the one measured on the
    file by the engine whose latency counts; that of the training's last evaluation only where the metric was measured
    on no file. A figure that could not be had, or whose engine disagrees with the network, fails its criterion.

    Args:
        record: of one run.
        budget: to hold it against.
    """
    row, reason = _timed(record, budget)
    rows = []
    for item in record.main_latencies():
        if (item.engine, item.precision) in record.agreeing:
            rows.append(
                EngineVerdict(
                    engine=item.engine,
                    precision=item.precision,
                    criteria=_criteria(
                        budget,
                        (_size_of(record, item.engine, item.precision), "no such file"),
                        (item.p50_ms, item.error or "not timed"),
                        _metric_on(record, budget, item.engine, item.precision),
                    ),
                )
            )
    return Verdict(
        criteria=_criteria(
            budget,
            (record.size_mb, "nothing was exported"),
            (row.p50_ms if row else None, reason),
            _judged_metric(record, budget),
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
            "The most accurate of several needs Budget(metric='...'), got metric=None: name a figure such as 'acc', "
            "with baseline=..., metric_limit=... or metric_drop=None."
        )
    sign = 1.0 if budget.higher_is_better else -1.0

    def rank(record: Record) -> tuple[float, float, float]:
        best = record.best_latency()
        milliseconds = math.inf if best is None or best.p50_ms is None else best.p50_ms
        return sign * (figure(record) or 0.0), -(record.size_mb or math.inf), -milliseconds

    def figure(record: Record) -> float | None:
        return _judged_metric(record, budget)[0]

    passing = [record for record in records if figure(record) is not None and judge(record, budget).passed]
    return max(passing, key=rank, default=None)


def _drop(value: float, baseline: float, budget: Budget) -> float:
    lost = baseline - value if budget.higher_is_better else value - baseline
    return lost / abs(baseline) if budget.relative else lost


_Figure = tuple[float | None, str]  # and why there may be none


def _criteria(budget: Budget, size: _Figure, latency: _Figure, metric: _Figure) -> tuple[Criterion, ...]:
    """Return the criteria of ``budget``."""
    criteria, (value, reason) = [], metric
    if budget.size_mb is not None:
        criteria.append(_criterion("size_mb", size[0], budget.size_mb, size[1]))
    if budget.latency_ms is not None:
        criteria.append(_criterion("latency_ms", latency[0], budget.latency_ms, latency[1]))
    if budget.metric_drop is not None and budget.baseline is not None:
        drop = None if value is None else _drop(value, budget.baseline, budget)
        share = budget.relative or _share(budget, budget.baseline, value)
        criteria.append(_criterion("metric_drop", drop, budget.metric_drop, reason, share=share))
    if budget.metric_limit is not None:
        criterion = _criterion(
            "metric",
            value,
            budget.metric_limit,
            reason,
            share=_share(budget, budget.metric_limit, value),
            label=budget.metric,
            at_least=budget.higher_is_better,
        )
        criteria.append(criterion)
    return tuple(criteria)


def _share(budget: Budget, limit: float, value: float | None) -> bool:
    return budget.higher_is_better and all(0 <= figure <= 1 for figure in (limit, value or 0.0))


def _timed(record: Record, budget: Budget) -> tuple[Latency | None, str]:
    """Return the row whose latency counts, and why there may be none."""
    if budget.engine is None:
        failed = [
            f"{row.engine}: {row.error or 'not timed'}"
            for row in record.main_latencies()
            if (row.engine, row.precision) in record.agreeing and row.precision == record.precision
        ]
        no_engine = "no engine ran the exported file and agreed with the network"
        return record.best_latency(), "; ".join(failed) or no_engine
    row = record.latency_of(budget.engine)
    if row is None:
        known = sorted({item.engine for item in record.latencies})
        return None, f"{budget.engine} was not run, only {known}: add it to engines, or name one of these"
    if row.error is not None or row.p50_ms is None:
        return None, row.error or "not timed"
    if row.precision != record.precision:
        return None, f"{budget.engine} ran no {record.precision} file"
    if (row.engine, row.precision) not in record.agreeing:
        return None, f"{budget.engine} does not agree with the network on the {row.precision} file"
    return row, ""


def _judged_metric(record: Record, budget: Budget) -> _Figure:
    """Return the metric on the file by the engine that counts, and why there may be none."""
    if budget.metric is None:
        return None, "the budget names no metric"
    row, reason = _timed(record, budget)
    if row is not None:
        return _metric_on(record, budget, row.engine, row.precision)
    agreeing = [
        (engine, precision)
        for engine, precision in record.agreeing
        if precision == record.precision and budget.engine in (None, engine) and engine not in EXACT
    ]
    if agreeing:  # it runs, but could not be timed
        return _metric_on(record, budget, *agreeing[0])
    if record.checks or record.file_metrics:
        return None, reason  # of a file that computes something else the network's own metric says nothing
    return _evaluated_metric(record, budget)


def _metric_on(record: Record, budget: Budget, engine: str, precision: str) -> _Figure:
    """Return the metric of one file on one engine, and why there may be none."""
    if budget.metric is None:
        return None, "the budget names no metric"
    own = [i for i in record.file_metrics if (i.engine, i.precision) == (engine, precision)]
    if own and budget.metric in own[0].metrics:
        return _known(own[0].metrics[budget.metric], budget)
    if own and own[0].error:
        return None, f"not measured on this file: {own[0].error}"
    on_files = any(budget.metric in row.metrics or row.error for row in record.file_metrics)
    if on_files or precision != record.precision:
        return None, f"not measured on the {precision} file by {engine}"
    return _evaluated_metric(record, budget)  # of the network that the file was found to equal


def _evaluated_metric(record: Record, budget: Budget) -> _Figure:
    if budget.metric in record.metrics:
        return _known(record.metrics[budget.metric], budget)
    known = sorted(record.metrics)
    if not known:
        return None, f"no metric {budget.metric!r}, nothing was evaluated: give fit() evaluation data and a metric"
    return None, f"no metric {budget.metric!r} among {known}: name one of these, or add it to model.prepare"


def _known(value: float, budget: Budget) -> _Figure:
    return (value, "") if math.isfinite(value) else (None, f"{budget.metric} is not a finite number")


def _size_of(record: Record, engine: str, precision: str) -> float | None:
    kind = "paddle" if engine.startswith("paddle") else "onnx"
    kinds = ("pdmodel", "paddle") if kind == "paddle" else (kind,)  # the guide counts .pdmodel + .pdiparams
    sizes = {a.kind: a.size_mb for a in record.artefacts if a.precision == precision and a.size_mb is not None}
    return next((sizes[kind] for kind in kinds if kind in sizes), None)


def _criterion(name: str, value: float | None, limit: float, reason: str, **shown: Any) -> Criterion:
    if value is None or not math.isfinite(value):
        reason = reason or "not a finite number"
        return Criterion(name=name, value=None, limit=limit, passed=False, reason=reason, **shown)
    at_least = shown.get("at_least", False)
    passed = value >= limit - 1e-12 if at_least else value <= limit + 1e-12
    return Criterion(name=name, value=value, limit=limit, passed=passed, **shown)
