"""Write the ladder as Markdown tables: accuracy, sizes and gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddlelite_callbacks.report.intervals import mean_in_percent

__all__ = [
    "NAMES",
    "by_rung",
    "file_accuracy",
    "interval",
    "markdown",
    "paired",
    "precision_of",
    "summary",
]

Line = dict[str, Any]
TEACHER = "teacher"
_LOSSES = ("kl", "dkd", "dist")
NAMES = {
    "teacher": "teacher",
    "light": "light network alone",
    "kl": "distilled",
    "ptq": "int8 after training",
    "kl+ptq": "distilled, int8 after training",
    "pact": "int8 with PACT",
    "kl+pact": "distilled, int8 with PACT",
}
"""Rungs of the summary and of the picture."""


def _gains() -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
    """Return the comparisons: title -> two pairs of rung and precision of its files."""
    fp32, int8, light = "fp32", "int8", ("light", "fp32")
    gains = {}
    for loss in _LOSSES:
        gains[f"{loss} against light"] = ((loss, fp32), light)
    for prefix, start in (("", "light"), *((f"{loss}+", loss) for loss in _LOSSES)):
        for kind in ("ptq", "pact", "pact4"):
            name = f"{prefix}{kind}"
            gains[f"{name}, int8 file, against {start}"] = ((name, int8), (start, fp32))
            if prefix:
                gains[f"{name}, int8 file, against light"] = ((name, int8), light)
            if kind != "ptq":
                longer = f"{start}-longer"
                gains[f"{name}, int8 file, against {longer}"] = ((name, int8), (longer, fp32))
                gains[f"{name}, int8 file, against its own weights in fp32"] = ((name, int8), (name, fp32))
    return gains


def markdown(lines: Sequence[Line]) -> str:
    """Return the tables of all light networks.

    Args:
        lines: Results of ``rung.line_of``.
    """
    lights = list(dict.fromkeys(line["light"] for line in lines if line["light"]))
    teacher = [line for line in lines if line["rung"] == TEACHER]
    parts = []
    for light in lights or [None]:
        mine = [*teacher, *(line for line in lines if line["light"] == light and light)]
        parts += [f"### {light}"] if len(lights) > 1 else []
        parts += [_main(mine), _won(mine)]
    cpus: dict[str, list[str]] = {}
    for line in lines:
        if line["rung"] not in cpus.setdefault(line["cpu"], []):
            cpus[line["cpu"]].append(line["rung"])
    machines = "; ".join(f"{cpu}: {', '.join(rungs)}" for cpu, rungs in cpus.items())
    pictures = "5,000 training pictures that were held out" if lines[0]["holdout"] else "the test pictures"
    parts.append(
        f"Accuracy in per cent on {pictures}, mean and 95 % interval over the seeds (Student's t); of the files: as "
        "each engine computes them. Gains in points, same seed. A second training (longer, pact, pact4) has a quarter "
        f"of the epochs. MB: 1e6 bytes of the ONNX file. Machines: {machines}."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(lines: Sequence[Line]) -> str:
    """Return a short table of one light network: accuracy and size of the files.

    Args:
        lines: Lines of the teacher and of one light network.
    """
    rows = by_rung(lines)
    out = ["| CIFAR-10 | accuracy of the file, % | seeds | MB |", "|---|---:|---:|---:|"]
    for name, title in NAMES.items():
        if name in rows:
            precision = precision_of(rows[name][0])
            found = interval([file_accuracy(line, precision) for line in rows[name]])
            size = rows[name][0]["size_mb"].get(f"{precision} onnx")
            out.append(f"| {title} | {found} | {len(rows[name])} | {'-' if size is None else f'{size:.2f}'} |")
    return "\n".join(out) + "\n"


def by_rung(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Return the lines of each rung, sorted by seed."""
    names = list(dict.fromkeys(line["rung"] for line in lines))
    return {name: sorted((o for o in lines if o["rung"] == name), key=lambda o: o["seed"]) for name in names}


def precision_of(line: Line) -> str:
    """Return ``"int8"`` for a rung with int8 files, else ``"fp32"``."""
    return "int8" if any(key.startswith("int8") for key in line["size_mb"]) else "fp32"


def accuracies(line: Line, precision: str) -> dict[str, float]:
    """Return the accuracy of the files by engine, without engines with wrong outputs."""
    kinds = {"model.onnx": "fp32", "model.int8.onnx": "int8", "model.json": precision_of(line)}
    found = {}
    for key, value in line["files"].items():
        file, engine = key.split()[0], key.split()[-1]
        if kinds[file] == precision and not isinstance(value, str) and f"{precision} {engine}" not in line["failed"]:
            found[engine] = value
    return found


def file_accuracy(line: Line, precision: str) -> float:
    """Return the lowest accuracy of the files over the engines; NaN if none."""
    return min(accuracies(line, precision).values(), default=float("nan"))


def _main(lines: Sequence[Line]) -> str:
    rows = by_rung(lines)
    engines = list(dict.fromkeys(engine for line in lines for engine in accuracies(line, precision_of(line))))
    heads = ["rung", "seeds", "epochs", "network", *(f"file, {engine}" for engine in engines), "parameters", "MB"]
    out = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name, same in rows.items():
        precision = precision_of(same[0])
        cells = [f"{name} (int8)" if precision == "int8" else name, str(len(same))]
        cells.append("/".join(dict.fromkeys(str(line.get("recipe", {}).get("epochs", 0)) for line in same)))
        cells.append(interval([line["accuracy"] for line in same]))
        for engine in engines:
            found = [value for line in same if (value := accuracies(line, precision).get(engine)) is not None]
            part = f" ({len(found)} of {len(same)} seeds)" if 0 < len(found) < len(same) else ""
            cells.append(interval(found) + part if found else "-")
        cells.append(f"{same[0]['parameters'] / 1e6:.2f} M")
        size = same[0]["size_mb"].get(f"{precision} onnx")
        out.append(f"| {' | '.join([*cells, '-' if size is None else f'{size:.2f}'])} |")
    return "\n".join(out)


def _won(lines: Sequence[Line]) -> str:
    out = ["| gain in points, files, same seed | mean and 95 % interval | seeds |", "|---|---:|---:|"]
    for title, (better, base) in _gains().items():
        found = paired(lines, better, base)
        if found:
            out.append(f"| {title} | {interval(found, sign=True)} | {len(found)} |")
    return "\n".join(out) if len(out) > 2 else ""


def paired(lines: Sequence[Line], better: tuple[str, str], base: tuple[str, str]) -> list[float]:
    """Return the differences of file accuracy for each seed with both.

    Args:
        lines: Lines of one light network.
        better: Rung and precision of its files.
        base: Rung and precision that are subtracted.
    """
    rows = by_rung(lines)
    others = {line["seed"]: line for line in rows.get(base[0], [])}
    pairs = [(line, others[line["seed"]]) for line in rows.get(better[0], []) if line["seed"] in others]
    values = [file_accuracy(a, better[1]) - file_accuracy(b, base[1]) for a, b in pairs]
    return [value for value in values if np.isfinite(value)]


def interval(values: Sequence[float], *, sign: bool = False) -> str:
    """Return ``mean ± half width`` of the 95 % interval (Student's t), in per cent.

    For a single value only the mean.
    """
    return mean_in_percent(values, digits=2, sign=sign)
