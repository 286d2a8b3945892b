"""Verdicts: each figure of a model against its limit."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GATE_FAILED", "Criterion", "EngineVerdict", "GateError", "Verdict"]

GATE_FAILED = 3  # exit code


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One line of a verdict.

    Args:
        name: ``"size_mb"``, ``"latency_ms"`` or ``"metric_drop"``.
        value: measured; ``None`` if it could not be had.
        limit: of the budget.
        passed: ``value <= limit``.
        reason: why there is no value.
        share: whether value and limit are shown in per cent: of the baseline, or as those of a metric within [0, 1].
    """

    name: str
    value: float | None
    limit: float
    passed: bool
    reason: str | None = None
    share: bool = False

    @property
    def margin(self) -> float | None:
        """What is left of the limit, in its unit; negative beyond it."""
        return None if self.value is None else self.limit - self.value

    def __str__(self) -> str:
        label, unit = {"size_mb": ("size", "MB"), "latency_ms": ("latency", "ms"), "metric_drop": ("drop", "")}[
            self.name
        ]
        if self.value is None:
            return f"{label} unknown ({self.reason})"
        sign, unit = "<=" if self.passed else ">", "%" if self.share else unit
        return f"{label} {self.value * self.scale:.4g} {sign} {self.limit * self.scale:.4g} {unit}".rstrip()

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
        return f"{'pass' if self.passed else 'fail'}: {', '.join(str(criterion) for criterion in self.criteria)}"

    def table(self) -> str:
        """Return Markdown: per engine and file each figure with what is left of its limit in brackets."""
        titles = {"size_mb": "size MB", "latency_ms": "latency ms", "metric_drop": "drop"}
        names = [f"{titles[c.name]}{' %' if c.share else ''} (left)" for c in self.criteria]
        lines = ["| engine | file | " + " | ".join(names) + " | gate |", "|---|---|" + "---:|" * len(names) + "---|"]
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


def _cell(criterion: Criterion) -> str:
    if criterion.value is None or criterion.margin is None:
        return f"unknown: {criterion.reason}"
    return f"{criterion.value * criterion.scale:.4g} ({criterion.margin * criterion.scale:+.4g})"
