"""Export, evaluate, time and draw the files of the ladder's rows."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from dataset import KeypointDataset
from evaluate import ap_of_files
from ladder_picture import draw_files
from settings import load_weights, network

from paddlelite_callbacks import BenchOptions, ExportBenchCallback, ExportOptions
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.report.record import Record, read_records
from paddlelite_callbacks.report.retime import append_joint_timing, timed_together
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = [
    "TEACHER",
    "bench_of",
    "draw_rows",
    "export_again",
    "figures_of",
    "files_of",
    "images_of",
    "label_of",
    "rows_of",
    "time_rows",
    "weights_of",
]

TEACHER = "teacher"


def label_of(name: str, seed: int) -> str:
    """Return the name of a row's folders."""
    return f"{name}-{seed}".replace(" + ", "-").replace(", ", "-").lower()


def weights_of(name: str, seed: int, flags: argparse.Namespace) -> Path:
    """Return the path of a row's trained weights."""
    return flags.out / f"weights-{label_of(name, seed)}" / "last.pdparams"


def images_of(held_out: KeypointDataset) -> np.ndarray:
    """Return some images ``[N, 3, H, W]`` for the export."""
    return np.stack([held_out[k][0] for k in range(min(8, len(held_out)))])


def rows_of(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the finished rows."""
    path = flags.out / "ladder.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def bench_of(label: str, flags: argparse.Namespace) -> ExportBenchCallback:
    """Return the callback that exports a row."""
    return ExportBenchCallback(
        flags.out,
        name=label,
        engines=flags.engines,
        export=ExportOptions(report=False),
        # the rows are timed together at the end
        benchmark=BenchOptions(warmup=1, repeats=3, peak_memory=False, roofline=False),
    )


def files_of(label: str, held_out: KeypointDataset, flags: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Evaluate a row's files on every engine."""
    return ap_of_files(flags.out / label, held_out, dark=flags.dark, engines=flags.engines)


def figures_of(record: Record) -> dict[str, Any]:
    """Return the values of a record for the table."""
    return {
        "parameters": record.parameters,
        "size_mb": {f"{a.precision} {a.kind}": a.size_mb for a in record.artefacts if a.size_mb},
        "ms": {f"{item.precision} {item.engine}": item.p50_ms for item in record.latencies if item.p50_ms},
        "failed": {f"{check.precision} {check.engine}": check.verdict for check in record.checks if not check.passed},
    }


def export_again(held_out: KeypointDataset, flags: argparse.Namespace) -> None:
    """Export and evaluate the finished rows again, from their weights."""
    rows, images, layout = [], images_of(held_out), held_out.source.layout
    for row in rows_of(flags):
        print(f"--- {row['name']}, seed {row['seed']}", flush=True)
        label = label_of(row["name"], row["seed"])
        layer = network(flags.teacher if row["name"] == TEACHER else flags.light, layout)
        load_weights(layer, weights_of(row["name"], row["seed"], flags))
        try:
            record = bench_of(label, flags).export(layer, images)
        except ExportError as error:
            print(f"{label}: {error}", file=sys.stderr)
            flags.failed.append(f"{row['name']}, seed {row['seed']}")
            rows.append(row)
            continue
        if record is not None:
            rows.append({**row, **figures_of(record), "files": files_of(label, held_out, flags)})
    with staged_file(flags.out / "ladder.jsonl") as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def time_rows(seed: int, held_out: KeypointDataset, flags: argparse.Namespace) -> None:
    """Time the files of the teacher and one seed in turn.

    Latencies are written to ``times.json`` and to the records.
    """
    by_name = {record.name: record for record in read_records(flags.out / "runs.jsonl")}
    names = [(TEACHER, 0), *((row, seed) for row in flags.rows)]
    names = [name for name in names if label_of(*name) in by_name]
    records = [by_name[label_of(*name)] for name in names]
    timed = timed_together(
        records, [held_out[0][0][None]], BenchOptions(engines=flags.engines, warmup=2, repeats=flags.repeats)
    )
    append_joint_timing(flags.out / "runs.jsonl", timed)
    times = {name: figures_of(record)["ms"] for (name, _), record in zip(names, timed, strict=True)}
    machine = timed[0].machine
    (flags.out / "times.json").write_text(json.dumps({"ms": times, "cpu": machine.processor}), encoding="utf-8")


def draw_rows(seed: int, held_out: KeypointDataset, flags: argparse.Namespace) -> None:
    """Draw predictions of the teacher and of the first and last row: ``figures.jpg``."""
    labels = {name: label_of(name, 0 if name == TEACHER else seed) for name in (TEACHER, flags.rows[0], flags.rows[-1])}
    folders = {name: flags.out / label for name, label in labels.items()}
    found = {name: [folder / "model.int8.onnx", folder / "model.onnx"] for name, folder in folders.items()}
    files = {name: path for name, paths in found.items() for path in paths[::-1] if path.is_file()}
    draw_files({f"{name}, {path.name}": path for name, path in files.items()}, held_out, flags.out / "figures.jpg")
