"""Write the ladder's rows as Markdown tables: results, AP of each file, gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["interval", "markdown"]

Row = dict[str, Any]
# title: (row, precision of its files), (row and precision it is compared with)
_GAINS = {
    "distilled against light": (("distilled", "fp32"), ("light", "fp32")),
    "distilled + PACT, int8 files, against light": (("distilled + PACT", "int8"), ("light", "fp32")),
    "distilled + PACT, int8 files, against light trained as long": (
        ("distilled + PACT", "int8"),
        ("light, longer", "fp32"),
    ),
    "PACT, int8 files, against fp32 trained as long": (("PACT", "int8"), ("light, longer", "fp32")),
    "distilled + PACT, int8 files, against fp32 trained as long": (
        ("distilled + PACT", "int8"),
        ("distilled, longer", "fp32"),
    ),
    "PACT, int8 files, against the same weights in fp32": (("PACT", "int8"), ("PACT", "fp32")),
    "distilled + PACT, int8 files, against the same weights in fp32": (
        ("distilled + PACT", "int8"),
        ("distilled + PACT", "fp32"),
    ),
}
_ORDER = ("teacher", "light", "distilled", "light, longer", "distilled, longer", "PACT", "distilled + PACT")
# two-sided 95 % quantiles of Student's t, by degrees of freedom
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def markdown(rows: Sequence[Row], times: dict[str, Any] | None = None) -> str:
    """Return all tables.

    Args:
        rows: Results of `ladder.run`.
        times: Latencies ``{"ms": {row: {"<precision> <engine>": ms}}, "cpu": name}`` of files timed together; ``None``
            for the latencies in the rows.
    """
    ms = times["ms"] if times else {name: same[0]["ms"] for name, same in by_name(rows).items()}
    parts = [_main(rows, ms), _files(rows), _gains(rows), _notes(times)]
    return "\n\n".join(part for part in parts if part) + "\n"


def by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each name, by seed."""
    names = sorted({row["name"] for row in rows}, key=lambda name: (*_ORDER, name).index(name))
    return {name: sorted((r for r in rows if r["name"] == name), key=lambda r: r["seed"]) for name in names}


def _main(rows: Sequence[Row], ms: dict[str, dict[str, float]]) -> str:
    engines = list(dict.fromkeys(key.split()[1] for times in ms.values() for key in times))
    heads = ["model", "AP, flip test", "AP of the files", "parameters", "MB, Paddle", "MB, ONNX"]
    lines = [f"| {' | '.join([*heads, *(f'{engine} ms' for engine in engines)])} |"]
    lines.append("|---" + "|---:" * (len(heads) - 1 + len(engines)) + "|")
    for name, same in by_name(rows).items():
        precision = precision_of(same[0])
        cells = [name + (" (int8)" if precision == "int8" else ""), interval([row["AP"] for row in same])]
        cells.append(interval([file_ap(row, precision) for row in same]))
        cells.append(f"{same[0]['parameters'] / 1e6:.2f} M")
        cells += [_number(same[0]["size_mb"].get(f"{precision} {kind}")) for kind in ("paddle", "onnx")]
        cells += [_number(ms.get(name, {}).get(f"{precision} {engine}")) for engine in engines]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _files(rows: Sequence[Row]) -> str:
    keys = sorted({key for row in rows for key in row["files"] if ap_of(row, key) is not None})
    lines = [f"| AP of the files | {' | '.join(keys)} |", "|---" + "|---:" * len(keys) + "|"]
    for name, same in by_name(rows).items():
        found = [[ap for row in same if (ap := ap_of(row, key)) is not None] for key in keys]
        cells = [_cell(aps, len(same)) for aps in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(aps: list[float], seeds: int) -> str:
    part = f" ({len(aps)} of {seeds} seeds)" if len(aps) < seeds else ""
    return interval(aps) + part if aps else "-"


def _gains(rows: Sequence[Row]) -> str:
    lines = ["| points of AP, same seed, without flip test | mean and 95 % interval | seeds |", "|---|---:|---:|"]
    for what, ((a, of_a), (b, of_b)) in _GAINS.items():
        pairs = paired(rows, a, b, lambda x, y, of_a=of_a, of_b=of_b: file_ap(x, of_a) - file_ap(y, of_b))
        if pairs:
            lines.append(f"| {what} | {interval(pairs, sign=True)} | {len(pairs)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _notes(times: dict[str, Any] | None) -> str:
    """Return a note on how to read the tables."""
    timed = f"the files of one seed timed in turn, {times['cpu']}" if times else "each row when it was trained"
    return (
        "AP in per cent, mean and 95 % interval over the seeds (Student's t). AP of the files: without flip test, the "
        "lowest of the engines that compute what the network does. MB: 1e6 bytes, Paddle's parameters and program, or "
        f"the ONNX file. ms: median, batch 1, one thread, {timed}."
    )


def paired(rows: Sequence[Row], a: str, b: str, difference: Callable[[Row, Row], float]) -> list[float]:
    """Return ``difference`` of the rows ``a`` and ``b`` for each seed with both."""
    names = by_name(rows)
    others = {row["seed"]: row for row in names.get(b, [])}
    return [difference(row, others[row["seed"]]) for row in names.get(a, []) if row["seed"] in others]


def precision_of(row: Row) -> str:
    """Return ``"int8"`` for a row with int8 files, else ``"fp32"``."""
    return "int8" if any(key.startswith("int8") for key in row["size_mb"]) else "fp32"


def ap_of(row: Row, file: str) -> float | None:
    """Return the AP of ``"<file> on <engine>"``; ``None`` if its outputs are wrong."""
    engine = file.split()[-1]
    return None if engine in {key.split()[1] for key in row["failed"]} else row["files"].get(file, {}).get("AP")


def file_ap(row: Row, precision: str) -> float:
    """Return the lowest AP over engines of the files of ``precision``; NaN if none."""
    names = {"model.onnx": "fp32", "model.int8.onnx": "int8", "model.json": precision_of(row)}
    aps = [ap_of(row, key) for key in row["files"] if names[key.split()[0]] == precision]
    return min((ap for ap in aps if ap is not None), default=float("nan"))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def interval(values: Sequence[float], *, sign: bool = False) -> str:
    """Return ``mean ± half width`` of the 95 % interval (Student's t), in per cent.

    For a single value only the mean.
    """
    mean = f"{100 * np.mean(values):{'+' if sign else ''}.1f}"
    if len(values) < 2:
        return mean
    quantile = _T.get(len(values) - 1, 1.96)
    return f"{mean} ± {100 * quantile * np.std(values, ddof=1) / np.sqrt(len(values)):.1f}"
