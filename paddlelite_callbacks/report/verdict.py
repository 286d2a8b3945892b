"""Verdicts: each figure of a model against its limit."""

from __future__ import annotations

from dataclasses import dataclass

from paddlelite_callbacks.report.blocks import Column, Part, Table
from paddlelite_callbacks.report.markdown import table_lines

__all__ = ["GATE_FAILED", "Criterion", "EngineVerdict", "GateError", "Verdict"]

GATE_FAILED = 3  # exit code
_ROWS = 60  # of a table; a run has a few


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One line of a verdict.

    Args:
        name: ``"size_mb"``, ``"latency_ms"``, ``"metric_drop"`` or ``"metric"`` (against ``metric_limit``).
        value: measured; ``None`` if it could not be had.
        limit: of the budget.
        passed: ``value <= limit``, or ``value >= limit`` with ``at_least``.
        reason: why there is no value.
        share: whether value and limit are shown in per cent: of the baseline, or as those of a metric within [0, 1].
        label: how it is called where it is shown; ``None`` for the name's own.
        at_least: whether the value must not be below the limit.
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
        """What is left of the limit, in its unit; negative beyond it."""
        if self.value is None:
            return None
        return self.value - self.limit if self.at_least else self.limit - self.value

    @property
    def title(self) -> str:
        """What it is called where it is shown."""
        return self.label or {"size_mb": "size", "latency_ms": "latency", "metric_drop": "drop"}.get(
            self.name, self.name
        )

    @property
    def unit(self) -> str:
        """Of value and limit as they are shown."""
        return "%" if self.share else {"size_mb": "MB", "latency_ms": "ms"}.get(self.name, "")

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.title} unknown ({self.reason})"
        below, above = ("<", ">=") if self.at_least else ("<=", ">")
        sign = below if self.passed != self.at_least else above
        return f"{self.title} {self.value * self.scale:.4g} {sign} {self.limit * self.scale:.4g} {self.unit}".rstrip()

    @property
    def scale(self) -> float:
        """By which value and limit are multiplied where they are shown."""
        return 100.0 if self.share else 1.0


@dataclass(frozen=True, kw_only=True)
class EngineVerdict:
    """The criteria of one file on one engine.

    Args:
        engine: its name.
        precision: of the file.
        criteria: one per limit of the budget.
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
        said = ", ".join(str(criterion) for criterion in self.criteria) or "the budget has no limit"
        return f"{'pass' if self.passed else 'fail'}: {said}"

    def block(self) -> Table:
        """Return a row per engine and file: each figure with what is left of its limit in brackets."""
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
    """A run that does not keep its budget; uncaught, the process ends with exit code 3 and this line.

    Args:
        name: of the run.
        verdict: which says why.

    Attributes:
        name: as given.
        verdict: as given; ``verdict.table()`` shows every engine's figures.
        code: 3, the exit code.

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
        return f"{self.name} does not keep its budget: {self.verdict}"


def _cell(criterion: Criterion) -> Part:
    kind = "" if criterion.passed else "bad"
    if criterion.value is None or criterion.margin is None:
        return Part(f"unknown: {criterion.reason}", kind)
    return Part(f"{criterion.value * criterion.scale:.4g} ({criterion.margin * criterion.scale:+.4g})", kind)
