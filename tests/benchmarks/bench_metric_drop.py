"""Search the layers that an int8 file needs in 8 bits or in float: ``quantize(metric_drop=...)`` on a trained network.

    python tests/benchmarks/bench_metric_drop.py lite0 --weights lite0.npz --pictures imagenet500 --weight-bits 4
    python tests/benchmarks/bench_metric_drop.py --table          # writes metric_drop.md again from the lines

Calibrates on ``--calibrate`` pictures and evaluates every file on the others, by top-1. Started again after a kill with
the same ``--work``, it goes on with the next file. Each finished search is a line of
``examples/results/imagenet/metric_drop.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from by_hand import EXAMPLES, NAMES, add_line, cpu_seconds, imagenet_parser, lines_of, parsed, say, write_table
from paddle.static import InputSpec

from paddlelite_callbacks import BenchOptions, export_forms, quantize
from paddlelite_callbacks.benchmark.machine import this_machine


def float_file(name: str, weights: Path, folder: Path) -> Path:
    """Export the float network, once."""
    sys.path.insert(0, str(EXAMPLES / "imagenet"))
    from efficientnet_lite import IMAGE_SIZE, efficientnet_lite

    path = folder / "float" / "model.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        spec = [InputSpec([None, 3, IMAGE_SIZE[name], IMAGE_SIZE[name]], name="x")]
        export_forms(efficientnet_lite(name, weights), path.parent, input_spec=spec)
    return path


def search(options: argparse.Namespace) -> dict[str, Any]:
    """Quantise one network; return its line."""
    sys.path.insert(0, str(EXAMPLES / "imagenet"))
    from efficientnet_lite import IMAGE_SIZE

    began, size = cpu_seconds(), IMAGE_SIZE[options.network]
    made = quantize(
        float_file(options.network, options.weights, options.work),
        options.pictures,
        metric_drop=options.metric_drop,
        folder=options.work / "runs",
        name=f"{options.network}-{options.weight_bits}-{options.metric_drop:g}",
        weight_bits=options.weight_bits,
        calibration_images=options.calibrate,
        images=options.images,
        most_files=options.most_files,
        quantize_outputs=False,
        preprocess={"size": size, "crop": 0.875, "mean": [127.5] * 3, "std": [127.5] * 3},
        benchmark=BenchOptions(repeats=20, peak_memory=False),
    )
    record = made.record
    return {
        "network": options.network,
        "weight_bits": options.weight_bits,
        "metric_drop": options.metric_drop,
        "calibration": record.config["quantize"]["calibration_images"],
        "evaluated": record.file_metrics[0].samples,
        "float": made.budget.baseline,
        "in_float": list(made.in_float),
        "raised": list(made.raised),
        "metrics": [asdict(row) for row in record.file_metrics],
        "latencies": [
            {"engine": row.engine, "precision": row.precision, "min_ms": row.min_ms} for row in record.latencies
        ],
        "size_mb": {f"{a.kind}/{a.precision}": a.size_mb for a in record.artefacts},
        "curve": [asdict(point) for point in record.layer_curve],
        "cpu_seconds": cpu_seconds() - began,
        "machine": this_machine().processor,
    }


def named(layers: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in layers) or "none"


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the curves as Markdown: of the files with as many layers put back, the one with the best metric."""
    parts = []
    for line in lines:
        chosen = next((point for point in line["curve"] if point["chosen"]), None)
        shipped = "no file keeps the limit" if chosen is None else f"{chosen['to']}: {named(chosen['layers'])}"
        parts += [
            f"{NAMES[line['network']]}, weights of {line['weight_bits']} bits, `metric_drop={line['metric_drop']:g}`: "
            f"top-1 of the float file {100 * line['float']:.2f} %, limit "
            f"{100 * line['float'] * (1 - line['metric_drop']):.2f} %; {line['calibration']} pictures calibrate, "
            f"{line['evaluated']} others are evaluated; {len(line['curve'])} files in ONNX Runtime, {line['machine']}. "
            f"Shipped: {shipped}.",
            "",
            "| to | layers put back | files | best top-1 % | ms |",
            "|---|---:|---:|---:|---:|",
        ]
        groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for point in line["curve"]:
            groups.setdefault((point["to"], len(point["layers"])), []).append(point)
        for (to, count), points in sorted(groups.items()):
            best = max(points, key=lambda point: (point["chosen"], point["metric"]))
            ms = "-" if best["latency_ms"] is None else f"{best['latency_ms']:.1f}"
            cells = [to, str(count), str(len(points)), f"{100 * best['metric']:.2f}", ms]
            parts.append("| " + " | ".join(f"**{cell}**" if best["chosen"] else cell for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts).strip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Search one network's layers and write the table."""
    parser = imagenet_parser(__doc__)
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--metric-drop", type=float, default=0.01)
    parser.add_argument("--calibrate", type=int, default=50, help="number of calibration pictures")
    parser.add_argument("--images", type=int, help="largest number of pictures in all")
    parser.add_argument("--most-files", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path("build/metric_drop"), help="folder that keeps a search")
    options = parsed(parser, arguments)
    lines = options.out / "metric_drop.jsonl"
    if not options.table:
        add_line(lines, search(options))
    found = lines_of(lines)
    write_table(options.out / "metric_drop.md", table(found))
    say(table(found[-1:]))


if __name__ == "__main__":
    main()
