"""Write the ladder's rows as Markdown tables: results, metrics of each file, gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paddlelite_callbacks.report.intervals import mean_in_percent

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


def markdown(rows: Sequence[Row], times: dict[str, Any] | None = None) -> str:
    """Return all tables.

    Args:
        rows: Results of `ladder.run`.
        times: Latencies ``{"ms": {row: {"<precision> <engine>": ms}}, "cpu": name}`` of files timed together; ``None``
            for the latencies in the rows.
    """
    ms = times["ms"] if times else {name: same[0]["ms"] for name, same in by_name(rows).items()}
    metrics = metrics_of(rows)
    parts = [_main(rows, ms, metrics), *(_files(rows, metric) for metric in metrics)]
    parts += [*(_gains(rows, metric) for metric in metrics), _notes(times, metrics)]
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Return the metrics that all rows have: AP, and PCK on LSP's joints."""
    return [metric for metric in ("AP", "PCK") if all(metric in row for row in rows)]


def by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each name, by seed."""
    names = sorted({row["name"] for row in rows}, key=lambda name: (*_ORDER, name).index(name))
    return {name: sorted((r for r in rows if r["name"] == name), key=lambda r: r["seed"]) for name in names}


def _main(rows: Sequence[Row], ms: dict[str, dict[str, float]], metrics: Sequence[str]) -> str:
    engines = list(dict.fromkeys(key.split()[1] for times in ms.values() for key in times))
    heads = ["model", *(f"{metric}{what}" for metric in metrics for what in (", flip test", " of the files"))]
    heads += ["parameters", "MB, Paddle", "MB, ONNX"]
    lines = [f"| {' | '.join([*heads, *(f'{engine} ms' for engine in engines)])} |"]
    lines.append("|---" + "|---:" * (len(heads) - 1 + len(engines)) + "|")
    for name, same in by_name(rows).items():
        precision = precision_of(same[0])
        cells = [name + (" (int8)" if precision == "int8" else "")]
        for metric in metrics:
            cells.append(interval([row[metric] for row in same]))
            cells.append(interval([file_value(row, precision, metric) for row in same]))
        cells.append(f"{same[0]['parameters'] / 1e6:.2f} M")
        cells += [_number(same[0]["size_mb"].get(f"{precision} {kind}")) for kind in ("paddle", "onnx")]
        cells += [_number(ms.get(name, {}).get(f"{precision} {engine}")) for engine in engines]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _files(rows: Sequence[Row], metric: str) -> str:
    keys = sorted({key for row in rows for key in row["files"] if value_of(row, key, metric) is not None})
    lines = [f"| {metric} of the files | {' | '.join(keys)} |", "|---" + "|---:" * len(keys) + "|"]
    for name, same in by_name(rows).items():
        found = [[value for row in same if (value := value_of(row, key, metric)) is not None] for key in keys]
        cells = [_cell(values, len(same)) for values in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], seeds: int) -> str:
    part = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    return interval(values) + part if values else "-"


def _gains(rows: Sequence[Row], metric: str) -> str:
    lines = [
        f"| points of {metric}, same seed, without flip test | mean and 95 % interval | seeds |",
        "|---|---:|---:|",
    ]
    for what, ((a, of_a), (b, of_b)) in _GAINS.items():
        pairs = paired(
            rows, a, b, lambda x, y, of_a=of_a, of_b=of_b: file_value(x, of_a, metric) - file_value(y, of_b, metric)
        )
        if pairs:
            lines.append(f"| {what} | {interval(pairs, sign=True)} | {len(pairs)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _notes(times: dict[str, Any] | None, metrics: Sequence[str]) -> str:
    """Return a note on how to read the tables."""
    names = " and ".join(metrics)
    timed = f"the files of one seed timed in turn, {times['cpu']}" if times else "each row when it was trained"
    notes = [
        f"{names} in per cent, mean and 95 % interval over the seeds (Student's t). {names} of the files: without flip "
        "test, the lowest of the engines that compute what the network does."
    ]
    if "PCK" in metrics:
        notes.append(
            "PCK: labelled joints within 0.2 of the distance from left shoulder to right hip, of persons with labels "
            "of these two; AP: COCO's, with its constants, neck and head top as a shoulder."
        )
    notes.append(
        f"MB: 1e6 bytes, Paddle's parameters and program, or the ONNX file. ms: median, batch 1, one thread, {timed}."
    )
    return " ".join(notes)


def paired(rows: Sequence[Row], a: str, b: str, difference: Callable[[Row, Row], float]) -> list[float]:
    """Return ``difference`` of the rows ``a`` and ``b`` for each seed with both."""
    names = by_name(rows)
    others = {row["seed"]: row for row in names.get(b, [])}
    return [difference(row, others[row["seed"]]) for row in names.get(a, []) if row["seed"] in others]


def precision_of(row: Row) -> str:
    """Return ``"int8"`` for a row with int8 files, else ``"fp32"``."""
    return "int8" if any(key.startswith("int8") for key in row["size_mb"]) else "fp32"


def value_of(row: Row, file: str, metric: str = "AP") -> float | None:
    """Return the metric of ``"<file> on <engine>"``; ``None`` if its outputs are wrong."""
    engine = file.split()[-1]
    return None if engine in {key.split()[1] for key in row["failed"]} else row["files"].get(file, {}).get(metric)


def file_value(row: Row, precision: str, metric: str = "AP") -> float:
    """Return the lowest metric over engines of the files of ``precision``; NaN if none."""
    names = {"model.onnx": "fp32", "model.int8.onnx": "int8", "model.json": precision_of(row)}
    values = [value_of(row, key, metric) for key in row["files"] if names[key.split()[0]] == precision]
    return min((value for value in values if value is not None), default=float("nan"))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def interval(values: Sequence[float], *, sign: bool = False) -> str:
    """Return ``mean ± half width`` of the 95 % interval (Student's t), in per cent.

    For a single value only the mean.
    """
    return mean_in_percent(values, digits=1, sign=sign)
