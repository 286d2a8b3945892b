"""Command ``quantize MODEL --data DIR``: quantise a file without training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks.cli.bench import names_in, numbers_in
from paddlelite_callbacks.cli.lighten import share
from paddlelite_callbacks.cli.output import write_json

if TYPE_CHECKING:
    from paddlelite_callbacks.recipes.quantize import Quantized

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: Parser of the command.
    """
    parser.description = (
        "Quantise a Paddle program or an ONNX file of any maker to int8 without training: calibrate on real inputs, "
        "correct biases, check, evaluate, time and judge. With --metric-drop, layers are put back to float until the "
        "file keeps it. Called again after an interruption, it resumes. Exit code 0; 1 if it failed; 3 if the budget "
        "is exceeded."
    )
    add = parser.add_argument
    add("model", help="an .onnx file, a Paddle program (.json or .pdmodel), its prefix or its folder")
    add(
        "--data",
        required=True,
        metavar="DIR",
        help="pictures (one sub-folder per class, or list.txt, for the accuracy; else agreement with fp32), or a .npy "
        "or .npz file of inputs",
    )
    add(
        "--out",
        default="quantized",
        metavar="DIR",
        help="folder for the run, runs.jsonl and report (default: quantized)",
    )
    add("--name", help="name of the run (default: the model's file or folder)")
    add("--size-mb", type=float, metavar="MB", help="fail (exit code 3) above this size")
    add("--latency-ms", type=float, metavar="MS", help="fail (exit code 3) above this median")
    add("--metric-drop", type=share, metavar="1%", help="relative loss of the metric that the file must keep")
    add("--engine", type=str.lower, metavar="NAME", help="engine that ships (default: the first of --engines)")
    add("--engines", help="comma-separated, in any case: onnxruntime, openvino (default: both), mnn, ncnn")
    add("--weight-bits", type=int, default=8, metavar="N", help="2-8 (default: 8)")
    add("--activation-bits", type=int, default=8, metavar="N", help="2-8 (default: 8)")
    add("--full-range", action="store_true", help="8-bit weights on their whole range: for CPUs with VNNI and ARM")
    add(
        "--calibration",
        type=str.lower,
        metavar="NAME",
        help="min_max, percentile, mse or kl (default: as ptq_int8 chooses)",
    )
    add("--percentile", type=float, metavar="P", help="of the absolute values, for --calibration percentile")
    add("--no-bias-correction", action="store_true", help="leave biases as they are")
    add(
        "--quantize-outputs",
        choices=("yes", "no", "measured"),
        default="measured",
        help="quantise outputs of convolutions too, which ONNX Runtime needs (default: measured)",
    )
    add("--skip", action="append", default=[], metavar="GLOB", help="layers to leave in float, repeatable")
    add("--calibration-images", type=int, default=100, metavar="N", help="images to calibrate on (default: 100)")
    add("--images", type=int, metavar="N", help="largest number of images in all (default: all)")
    add("--size", type=int, metavar="PX", help="side of the input, where the file leaves it open")
    add("--crop", type=float, metavar="0.875", help="cut this share out of the centre (default: squeeze the picture)")
    add("--mean", metavar="R,G,B", help="of pixels of 0-255 (default: the file's metadata, else ImageNet's)")
    add("--std", metavar="R,G,B", help="of pixels of 0-255 (default: the file's metadata, else ImageNet's)")
    add("--threads", default="1", help="CPU threads, comma-separated (default: 1)")
    add("--warmup", type=int, default=10, help="least number of warm-up calls (default: 10)")
    add("--repeats", type=int, default=50, help="timed calls (default: 50)")
    add("--no-memory", action="store_true", help="do not measure load time and peak memory")
    add("--json", action="store_true", help="print only one JSON object at the end")


def run(options: argparse.Namespace) -> int:
    """Quantise the model.

    Args:
        options: Parsed arguments.

    Returns:
        0; 3 if a limit is exceeded.
    """
    from paddlelite_callbacks.benchmark.options import BenchOptions
    from paddlelite_callbacks.recipes.quantize import quantize
    from paddlelite_callbacks.report.budget import Budget
    from paddlelite_callbacks.report.gate import GATE_FAILED

    given = {"size": options.size, "crop": options.crop, "mean": _floats(options.mean), "std": _floats(options.std)}
    made = quantize(
        options.model,
        options.data,
        Budget(size_mb=options.size_mb, latency_ms=options.latency_ms, engine=options.engine),
        metric_drop=options.metric_drop,
        folder=options.out,
        name=options.name,
        weight_bits=options.weight_bits,
        activation_bits=options.activation_bits,
        reduce_range=not options.full_range,
        calibration=options.calibration,
        alpha_percentile=options.percentile,
        bias_correction=not options.no_bias_correction,
        quantize_outputs={"yes": True, "no": False}.get(options.quantize_outputs),
        skip=options.skip,
        preprocess={key: value for key, value in given.items() if value is not None},
        calibration_images=options.calibration_images,
        images=options.images,
        benchmark=BenchOptions(
            engines=names_in(options.engines) if options.engines else None,
            threads=numbers_in(options.threads, "--threads"),
            warmup=options.warmup,
            repeats=options.repeats,
            peak_memory=not options.no_memory,
        ),
        verbose=0 if options.json else 1,
    )
    if options.json:
        write_json(_told(made))
    return 0 if made.verdict.passed else GATE_FAILED


def _floats(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--mean and --std must be numbers separated by commas, got {text!r}: 123.7,116.3,103.5."
        ) from None


def _told(made: Quantized) -> dict[str, Any]:
    import json

    record = made.record
    best = record.best_latency()
    return {
        "name": record.name,
        "passed": made.verdict.passed,
        "metric": made.budget.metric,
        "baseline": made.budget.baseline,
        "value": None if made.budget.metric is None else record.metric(made.budget.metric),
        "size_mb": record.size_mb,
        "latency_ms": None if best is None else best.p50_ms,
        "in_float": list(made.in_float),
        "raised": list(made.raised),
        "folder": str(made.folder),
        "report": str(made.folder.parent / "report.html"),
        "record": json.loads(record.to_json_line()),
    }
