"""Judge runs by a budget of size, latency and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paddlelite_callbacks.benchmark.exact_reference import EXACT
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.export.compare import LITE_CHECKS
from paddlelite_callbacks.report.blocks import Column, Part, Table
from paddlelite_callbacks.report.budget import Budget
from paddlelite_callbacks.report.markdown import table_lines
from paddlelite_callbacks.report.record import Record

__all__ = ["GATE_FAILED", "Budget", "Criterion", "EngineVerdict", "GateError", "Verdict", "judge", "most_accurate"]


def judge(record: Record, budget: Budget) -> Verdict:
    """Judge ``record`` by ``budget``.

    The drop is ``(baseline - metric) / |baseline|`` (``metric - baseline`` where lower is better; not divided if the
    budget is absolute); a model better than the baseline has a negative drop. The metric is the one measured on the
    file by the engine whose latency is judged; that of the training's last evaluation only if the metric was measured
    on no file. A missing value, or one of an engine that disagrees with the network, fails its criterion.

    Args:
        record: Record of one run.
        budget: Limits.
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
    """Return the most accurate record that passes; ``None`` if none does.

    Ties go to the smaller, then to the faster.

    Args:
        records: Candidates.
        budget: Budget with a ``metric``.

    Raises:
        ValueError: The budget has no metric.
    """
    if budget.metric is None:
        raise ValueError(
            "The most accurate of several needs Budget(metric='...'), got metric=None: name a metric such as 'acc', "
            "with baseline=..., metric_limit=... or metric_drop=None."
        )
    sign = -1.0 if budget.is_lower_better else 1.0

    def rank(record: Record) -> tuple[float, float, float]:
        best = record.best_latency()
        milliseconds = math.inf if best is None or best.p50_ms is None else best.p50_ms
        return sign * (figure(record) or 0.0), -(record.size_mb or math.inf), -milliseconds

    def figure(record: Record) -> float | None:
        return _judged_metric(record, budget)[0]

    passing = [record for record in records if figure(record) is not None and judge(record, budget).passed]
    return max(passing, key=rank, default=None)


def _drop(value: float, baseline: float, budget: Budget) -> float:
    lost = value - baseline if budget.is_lower_better else baseline - value
    return lost / abs(baseline) if budget.relative else lost


_Figure = tuple[float | None, str]  # value, or the reason why there is none


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
            at_least=not budget.is_lower_better,
        )
        criteria.append(criterion)
    return tuple(criteria)


def _share(budget: Budget, limit: float, value: float | None) -> bool:
    return not budget.is_lower_better and all(0 <= figure <= 1 for figure in (limit, value or 0.0))


def _timed(record: Record, budget: Budget) -> tuple[Latency | None, str]:
    """Return the latency row that is judged, or why there is none."""
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
    """Return the file's metric on the judged engine, or why there is none."""
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
    if agreeing:  # it runs, but was not timed
        return _metric_on(record, budget, *agreeing[0])
    if record.checks or record.file_metrics:
        return None, reason  # the network's own metric says nothing of a file with other outputs
    return _evaluated_metric(record, budget)


def _metric_on(record: Record, budget: Budget, engine: str, precision: str) -> _Figure:
    """Return a file's metric on one engine, or why there is none."""
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
    return _evaluated_metric(record, budget)  # of the network, whose outputs the file has


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
    # The guide counts .pdmodel + .pdiparams; a file for Paddle Lite is what ships where it was asked for.
    kinds = (*LITE_CHECKS, "pdmodel", "paddle") if kind == "paddle" else (kind,)
    sizes = {a.kind: a.size_mb for a in record.artefacts if a.precision == precision and a.size_mb is not None}
    return next((sizes[kind] for kind in kinds if kind in sizes), None)


def _criterion(name: str, value: float | None, limit: float, reason: str, **shown: Any) -> Criterion:
    if value is None or not math.isfinite(value):
        reason = reason or "not a finite number"
        return Criterion(name=name, value=None, limit=limit, passed=False, reason=reason, **shown)
    at_least = shown.get("at_least", False)
    passed = value >= limit - 1e-12 if at_least else value <= limit + 1e-12
    return Criterion(name=name, value=value, limit=limit, passed=passed, **shown)


GATE_FAILED = 3  # exit code
_ROWS = 60  # rows of a table


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One limit with its measured value.

    Args:
        name: ``"size_mb"``, ``"latency_ms"``, ``"metric_drop"`` or ``"metric"`` (against ``metric_limit``).
        value: Measured value; ``None`` if missing.
        limit: Limit of the budget.
        passed: ``value <= limit``, or ``value >= limit`` with ``at_least``.
        reason: Reason for a missing value.
        share: Whether to show value and limit in per cent: of the baseline, or of a metric within [0, 1].
        label: Display name; ``None`` for the default.
        at_least: Whether the limit is a lower bound.
    """

    name: str
    value: float | None
    limit: float
    passed: bool
    reason: str | None = None
    share: bool = False
    label: str | None = None
    at_least: bool = False

    @property
    def margin(self) -> float | None:
        """Return the distance to the limit, negative beyond it."""
        if self.value is None:
            return None
        return self.value - self.limit if self.at_least else self.limit - self.value

    @property
    def title(self) -> str:
        """Return the display name."""
        return self.label or {"size_mb": "size", "latency_ms": "latency", "metric_drop": "drop"}.get(
            self.name, self.name
        )

    @property
    def unit(self) -> str:
        """Return the display unit."""
        return "%" if self.share else {"size_mb": "MB", "latency_ms": "ms"}.get(self.name, "")

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.title} unknown ({self.reason})"
        below, above = ("<", ">=") if self.at_least else ("<=", ">")
        sign = below if self.passed != self.at_least else above
        return f"{self.title} {self.value * self.scale:.4g} {sign} {self.limit * self.scale:.4g} {self.unit}".rstrip()

    @property
    def scale(self) -> float:
        """Return the display scale factor."""
        return 100.0 if self.share else 1.0


@dataclass(frozen=True, kw_only=True)
class EngineVerdict:
    """Criteria of one file on one engine.

    Args:
        engine: Name of the engine.
        precision: Precision of the file.
        criteria: One per limit of the budget.
    """

    engine: str
    precision: str
    criteria: tuple[Criterion, ...]

    @property
    def passed(self) -> bool:
        """Whether every criterion is met."""
        return all(criterion.passed for criterion in self.criteria)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All criteria of a record; ``str()`` gives one line.

    Args:
        criteria: Size as the guide counts it, latency of the judged engine, and the drop on its file.
        rows: The same criteria per engine and file.
    """

    criteria: tuple[Criterion, ...]
    rows: tuple[EngineVerdict, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every criterion is met; a missing value fails its own."""
        return all(criterion.passed for criterion in self.criteria)

    def __repr__(self) -> str:
        return f"<Verdict {self}>"

    def __str__(self) -> str:
        said = ", ".join(str(criterion) for criterion in self.criteria) or "the budget has no limit"
        return f"{'pass' if self.passed else 'fail'}: {said}"

    def block(self) -> Table:
        """Return a table of values and margins, one row per engine and file."""
        limits = [Column(f"{c.title} {c.unit}".strip() + " (left)") for c in self.criteria]
        columns = [Column("engine"), Column("file", left=True), *limits, Column("gate", left=True, early=True)]
        rows = [
            (
                *(row.engine, row.precision, *(_cell(one) for one in row.criteria)),
                Part("pass", "good") if row.passed else Part("fail", "fail"),
            )
            for row in self.rows[:_ROWS]
        ]
        return Table(columns, rows)

    def table(self) -> str:
        """Return `block` as Markdown."""
        return "\n".join(table_lines(self.block()))


class GateError(SystemExit):
    """A run exceeds its budget; if uncaught, the process exits with 3.

    Args:
        name: Name of the run.
        verdict: Verdict with the failed criteria.

    Attributes:
        name: As given.
        verdict: As given; ``verdict.table()`` shows all engines.
        code: Exit code, 3.

    Example:
        >>> try:
        ...     model.fit(data, data, callbacks=[ExportBenchCallback("out", budget=Budget(), gate="fail")])
        ... except GateError as error:  # a SystemExit: "except Exception" lets it through
        ...     print(error.verdict.table())  # doctest: +SKIP
    """

    def __init__(self, name: str, verdict: Verdict) -> None:
        super().__init__(GATE_FAILED)
        self.name, self.verdict = name, verdict

    def __str__(self) -> str:
        return f"{self.name} exceeds its budget: {self.verdict}"


def _cell(criterion: Criterion) -> Part:
    kind = "" if criterion.passed else "bad"
    if criterion.value is None or criterion.margin is None:
        return Part(f"unknown: {criterion.reason}", kind)
    return Part(f"{criterion.value * criterion.scale:.4g} ({criterion.margin * criterion.scale:+.4g})", kind)
