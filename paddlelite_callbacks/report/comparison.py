"""Compare two folders of runs, run by run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.report.blocks import (
    Block,
    Cell,
    Column,
    Heading,
    Item,
    Items,
    Paragraph,
    Part,
    Table,
    clipped,
)
from paddlelite_callbacks.report.budget import Budget
from paddlelite_callbacks.report.gate import judge
from paddlelite_callbacks.report.html import html_page
from paddlelite_callbacks.report.intervals import INTERVAL, interval_of, tied
from paddlelite_callbacks.report.ladder_table import metric_cell, ratio_words
from paddlelite_callbacks.report.markdown import markdown
from paddlelite_callbacks.report.record import Record, scan_records
from paddlelite_callbacks.report.tables import DASH, are_shares, number
from paddlelite_callbacks.report.write import first_metric, last_budget
from paddlelite_callbacks.utils.metric_direction import falls_with_quality

__all__ = ["Comparison", "RunPair", "compare_folders"]

_NAME, _VALUE = 80, 60  # characters
_ROWS, _CHANGES, _ALONE = 200, 20, 50  # most runs, changed options per run, names of runs in only one folder
_ARROW = " \u2192 "


@dataclass(frozen=True, kw_only=True)
class RunPair:
    """Records of the same run in two folders.

    Args:
        name: Name in the first folder.
        before: Record in the first folder.
        after: Record in the second folder.
    """

    name: str
    before: Record
    after: Record

    @property
    def is_same_machine(self) -> bool:
        """Whether both were measured on the same type of CPU and number of cores."""
        old, new = self.before.machine, self.after.machine
        return (old.cpu, old.flags, old.cores) == (new.cpu, new.flags, new.cores)

    @property
    def config_changes(self) -> dict[str, tuple[Any, Any]]:
        """Old and new value of each option that differs; ``None`` if missing."""
        old, new = dict(_flat(self.before.config)), dict(_flat(self.after.config))
        keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
        return {key: (old.get(key), new.get(key)) for key in keys}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of two folders, run by run.

    Args:
        folders: First and second folder.
        metric: Name of the compared metric.
        budget: Budget of the gate; ``None`` if neither folder has one.
        pairs: Runs in both folders.
        only: Names of runs only in the first folder, and only in the second.
        unreadable: Number of unreadable lines in each record file.
    """

    folders: tuple[Path, Path]
    metric: str
    budget: Budget | None
    pairs: tuple[RunPair, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    unreadable: tuple[int, int]

    def markdown(self) -> str:
        """Return the comparison as Markdown."""
        return markdown(self.blocks())

    def html(self) -> str:
        """Return the comparison as one self-contained page."""
        return html_page(self.blocks(), {}, title=self._title())

    def blocks(self) -> list[Block]:
        """Return headings, tables and lists of the comparison."""
        blocks: list[Block] = [Heading(1, self._title())]
        blocks.append(Paragraph(f"A: {self.folders[0]}. B: {self.folders[1]}. Each run as A{_ARROW}B."))
        if self.pairs:
            blocks += [Heading(2, "Runs in both", "runs"), self._table(), *self._notes()]
            if (table := self._engines()) is not None:
                blocks += [Heading(2, "Latency by engine", "engines"), table]
            changes = [item for pair in self.pairs[:_ROWS] if (item := _changes(pair)) is not None]
            blocks += [Heading(2, "Options that differ", "options")]
            blocks.append(Items(changes) if changes else Paragraph("None."))
        for letter, names in zip("AB", self.only, strict=True):
            if names:
                more = f" and {len(names) - _ALONE} more" if len(names) > _ALONE else ""
                shown = ", ".join(clipped(name, _NAME) for name in names[:_ALONE])
                blocks += [Heading(2, f"Only in {letter}", f"only-{letter.lower()}"), Paragraph(f"{shown}{more}.")]
        for letter, count in zip("AB", self.unreadable, strict=True):
            if count:
                said = f"{letter}: {count} line{'s' * (count > 1)} of runs.jsonl could not be read, see its report."
                blocks.append(Paragraph(said))
        return blocks

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as a JSON-compatible dictionary; ratios are B over A."""
        return {
            "a": str(self.folders[0]),
            "b": str(self.folders[1]),
            "metric": self.metric,
            "runs": [self._pair_dict(pair) for pair in self.pairs],
            "only_a": list(self.only[0]),
            "only_b": list(self.only[1]),
            "unreadable": {"a": self.unreadable[0], "b": self.unreadable[1]},
        }

    def _title(self) -> str:
        first, second = (folder.resolve().name for folder in self.folders)
        return f"{first} against {second}"

    def _table(self) -> Table:
        shares = are_shares([one for pair in self.pairs for one in (pair.before, pair.after)], self.metric)
        columns = [Column("run"), Column(self.metric, left=True), Column("exported MB", left=True)]
        columns += [Column("fastest engine, ms", left=True)]
        columns += [] if self.budget is None else [Column("gate", left=True, early=True)]
        rows: list[list[Cell]] = []
        for pair in self.pairs[:_ROWS]:
            row: list[Cell] = [_names(pair), _metric_change(pair, self.metric, shares), _size_change(pair)]
            row.append(_latency_change(pair, pair.before.best_latency(), pair.after.best_latency()))
            if self.budget is not None:
                row.append(_gate_change(pair, self.budget))
            rows.append(row)
        return Table(columns, rows)

    def _notes(self) -> list[Block]:
        said = ["Latencies of two folders were never timed in turn: a difference of a few per cent means nothing."]
        if any(not pair.is_same_machine for pair in self.pairs):
            said.append("Where the machine differs, latencies cannot be compared.")
        if any(interval_of(one, self.metric) for pair in self.pairs for one in (pair.before, pair.after)):
            said.append(f"In brackets the {INTERVAL} and the number of images; a tie: the intervals overlap.")
        if len(self.pairs) > _ROWS:
            said.append(f"{len(self.pairs) - _ROWS} more runs are left out here.")
        versions = _versions(self.pairs)
        return [Paragraph(" ".join(said)), *([Paragraph(f"Versions that differ: {versions}.")] if versions else [])]

    def _engines(self) -> Table | None:
        rows: list[list[Cell]] = []
        for pair in self.pairs[:_ROWS]:
            new = {_key(row): row for row in pair.after.main_latencies()}
            for row in pair.before.main_latencies():
                other = new.get(_key(row))
                if other is not None and row.p50_ms is not None and other.p50_ms is not None:
                    rows.append([_names(pair), row.engine, row.precision, _latency_change(pair, row, other)])
        columns = [Column("run"), Column("engine", left=True), Column("file", left=True), Column("ms", left=True)]
        return Table(columns, rows[: 4 * _ROWS]) if rows else None

    def _pair_dict(self, pair: RunPair) -> dict[str, Any]:
        old, new = self._figures(pair.before), self._figures(pair.after)
        return {
            "name": pair.name,
            "name_b": pair.after.name,
            "a": old,
            "b": new,
            "metric_change": _difference(old["metric"], new["metric"]),
            "tie": tied(pair.before, pair.after, self.metric),
            "size_ratio": _quotient(old["size_mb"], new["size_mb"]),
            "latency_ratio": _quotient(old["latency_ms"], new["latency_ms"]),
            "same_machine": pair.is_same_machine,
            "config_changes": {key: list(values) for key, values in pair.config_changes.items()},
        }

    def _figures(self, record: Record) -> dict[str, Any]:
        best, interval = record.best_latency(), interval_of(record, self.metric)
        return {
            "created": record.created,
            "metric": record.metric(self.metric),
            "interval": None if interval is None else list(interval[:2]),
            "images": None if interval is None else interval.samples,
            "size_mb": record.size_mb,
            "latency_ms": None if best is None else best.p50_ms,
            "engine": None if best is None else best.engine,
            "precision": record.precision,
            "passed": None if self.budget is None else judge(record, self.budget).passed,
        }


def compare_folders(
    a: str | Path, b: str | Path, *, metric: str | None = None, budget: Budget | None = None
) -> Comparison:
    """Compare the latest run of every name in two folders.

    If each folder holds one run, the two are compared even if their names differ.

    Args:
        a: Path of a folder with ``runs.jsonl``.
        b: Path of another.
        metric: Name of the compared metric; ``None`` for the budget's, else the first that is not a loss.
        budget: Budget of the gate; ``None`` for the last one of B, else of A.

    Raises:
        ValueError: A folder has no ``runs.jsonl`` or no readable run, or no run has the metric.

    Example:
        >>> print(compare_folders("runs/1", "runs/2").markdown())  # doctest: +SKIP
    """
    folders = Path(a), Path(b)
    (old, old_bad), (new, new_bad) = (_latest(folder) for folder in folders)
    records = [*old.values(), *new.values()]
    budget = budget or last_budget([*new.values()]) or last_budget([*old.values()])
    wanted = metric or (budget.metric if budget else None) or first_metric(records)
    known = sorted({name for record in records for name in (*record.metrics, *record.file_figures)})
    if metric is not None and metric not in known:
        raise ValueError(f"No run has the metric {metric!r}; available: {known or 'none'}. Give one of these.")
    names = [(name, name) for name in old if name in new]
    if not names and len(old) == len(new) == 1:
        names = [(*old, *new)]  # type: ignore[list-item]
    pairs = tuple(RunPair(name=first, before=old[first], after=new[second]) for first, second in names)
    firsts, seconds = {first for first, _ in names}, {second for _, second in names}
    return Comparison(
        folders=folders,
        metric=wanted,
        budget=budget,
        pairs=pairs,
        only=(tuple(name for name in old if name not in firsts), tuple(name for name in new if name not in seconds)),
        unreadable=(old_bad, new_bad),
    )


def _latest(folder: Path) -> tuple[dict[str, Record], int]:
    """Return the latest record of each name, and the number of unreadable lines."""
    path = folder / "runs.jsonl"
    if not path.is_file():
        raise ValueError(
            f"No record file {path}: give the folder of ExportBenchCallback(folder), after a fit has ended."
        )
    found = scan_records(path.read_bytes())
    latest = {item.name: item for item in found if isinstance(item, Record)}
    if not latest:
        raise ValueError(f"{path} holds no run that can be read: let ExportBenchCallback write one.")
    return latest, sum(not isinstance(item, Record) for item in found)


def _names(pair: RunPair) -> str:
    names = dict.fromkeys((pair.name, pair.after.name))
    return _ARROW.join(clipped(name, _NAME) for name in names)


def _metric_change(pair: RunPair, metric: str, shares: bool) -> Cell:
    parts: list[str | Part] = []
    for record in (pair.before, pair.after):
        cell = metric_cell(record, metric, shares)
        parts += [*([cell] if isinstance(cell, (str, Part)) else cell), _ARROW]
    parts.pop()
    change = _difference(pair.before.metric(metric), pair.after.metric(metric))
    if change is None:
        return tuple(parts)
    said = f"{100 * change:+.2f} points" if shares else f"{change:+.4g}"
    if change == 0:
        return (*parts, ": the same")
    if tied(pair.before, pair.after, metric):
        return (*parts, f": {said}, a tie")
    better = (change < 0) == falls_with_quality(metric)
    return (*parts, ": ", Part(said, "good" if better else "bad"))


def _size_change(pair: RunPair) -> Cell:
    old, new = pair.before.size_mb, pair.after.size_mb
    return _figure_change(old, new, "smaller", "larger", "the same")


def _latency_change(pair: RunPair, old: Latency | None, new: Latency | None) -> Cell:
    before, after = (None if row is None else row.p50_ms for row in (old, new))
    engines = [f"{row.engine} {row.precision}" for row in (old, new) if row is not None]
    words = f" ({_ARROW.join(dict.fromkeys(engines))})" if len(engines) == 2 and engines[0] != engines[1] else ""
    if not pair.is_same_machine:
        return f"{number(before, 2)}{_ARROW}{number(after, 2)}{words}: another machine"
    if old is not None and new is not None and _overlap(old, new):
        return f"{number(before, 2)}{_ARROW}{number(after, 2)}{words}: the same (quartiles overlap)"
    return _figure_change(before, after, "faster", "slower", "the same", words)


def _figure_change(old: float | None, new: float | None, better: str, worse: str, same: str, words: str = "") -> Cell:
    text = f"{number(old, 2)}{_ARROW}{number(new, 2)}{words}"
    said = ratio_words(old, new, better, worse, same)
    if not said or old is None or new is None:
        return text
    if said[0] == same:
        return f"{text}: {same}"
    return (f"{text}: ", Part(said[0], "good" if new < old else "bad"))


def _overlap(old: Latency, new: Latency) -> bool:
    """Return whether the interquartile ranges of two timings overlap."""
    if old.p25_ms is None or old.p75_ms is None or new.p25_ms is None or new.p75_ms is None:
        return False
    return old.p25_ms <= new.p75_ms and new.p25_ms <= old.p75_ms


def _gate_change(pair: RunPair, budget: Budget) -> Cell:
    parts: list[str | Part] = []
    for record in (pair.before, pair.after):
        passed = judge(record, budget).passed
        parts += [Part("pass" if passed else "fail", "good" if passed else "bad"), _ARROW]
    return tuple(parts[:-1])


def _changes(pair: RunPair) -> Item | None:
    changes = pair.config_changes
    if not changes:
        return None
    lines: list[Cell] = [
        (Part(clipped(key, _NAME), "code"), f": {_shown(old)}{_ARROW}{_shown(new)}")
        for key, (old, new) in list(changes.items())[:_CHANGES]
    ]
    lines += [f"and {len(changes) - _CHANGES} more"] if len(changes) > _CHANGES else []
    return Item(Part(_names(pair), "strong"), inner=lines)


def _shown(value: Any) -> str:
    return DASH if value is None else clipped(value, _VALUE)


def _versions(pairs: Sequence[RunPair]) -> str:
    """Return packages, Python versions and CPUs that differ between A and B."""
    said: dict[str, None] = {}
    for pair in pairs:
        old, new = pair.before.machine, pair.after.machine
        before = {"CPU": old.cpu, "Python": old.python, **old.packages}
        after = {"CPU": new.cpu, "Python": new.python, **new.packages}
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                line = f"{name} {before.get(name, DASH)}{_ARROW}{after.get(name, DASH)}"
                said[clipped(line, 2 * _NAME)] = None
    return ", ".join(list(said)[:_CHANGES])


def _key(row: Latency) -> tuple[str, str, int, int]:
    return row.engine, row.precision, row.threads, row.batch_size


def _difference(old: float | None, new: float | None) -> float | None:
    return None if old is None or new is None else new - old


def _quotient(old: float | None, new: float | None) -> float | None:
    return None if not old or new is None else new / old


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested dicts and lists by its path."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and value:
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{place}]")
    else:
        yield key, value
