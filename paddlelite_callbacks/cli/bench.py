"""Command ``bench MODEL``: check and time a model on CPU engines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paddlelite_callbacks.cli.output import program_name, write_json, write_text

if TYPE_CHECKING:
    from paddlelite_callbacks.report.record import Record

__all__ = ["add_arguments", "names_in", "numbers_in", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: Parser of the command.
    """
    parser.description = (
        "Check and time a model on every CPU engine. Exit code 0; 1 if it failed, or an engine that --engines names "
        "gave no measurement; 3 if it exceeds --size-mb or --latency-ms."
    )
    parser.add_argument("model", help="an .onnx file, a Paddle program (.json or .pdmodel), its prefix or its folder")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME:]1x3x224x224[:TYPE]",
        help="sizes of an input with dynamic sizes, repeatable; its batch size is timed unless --batch is given",
    )
    parser.add_argument(
        "--engines",
        help="comma-separated, in any case: paddle, paddle-onednn, onnxruntime, openvino (default: these), mnn, ncnn",
    )
    parser.add_argument("--threads", default="1", help="CPU threads, comma-separated (default: 1)")
    parser.add_argument("--batch", help="batch sizes, comma-separated (default: that of --input, or of the file, or 1)")
    parser.add_argument("--warmup", type=int, default=10, help="least number of warm-up calls (default: 10)")
    parser.add_argument("--repeats", type=int, default=50, help="timed calls (default: 50)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure load time and peak memory")
    parser.add_argument("--record", metavar="DIR", help="add the results to DIR/runs.jsonl and update its report")
    parser.add_argument("--name", help="name of the record (default: the model's file or folder)")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of tables")
    parser.add_argument("--size-mb", type=float, help="fail (exit code 3) above this size")
    parser.add_argument("--latency-ms", type=float, help="fail (exit code 3) above this median of the fastest engine")


def run(options: argparse.Namespace) -> int:
    """Time the model; write tables or JSON to the standard output.

    Args:
        options: Parsed arguments.

    Returns:
        0; 3 if a limit is exceeded; 1 if an engine that ``--engines`` names gave no measurement.
    """
    from paddlelite_callbacks.benchmark.options import BenchOptions
    from paddlelite_callbacks.cli.bench_model import bench_model
    from paddlelite_callbacks.export.model_files import complete_inputs, find_model, parse_input
    from paddlelite_callbacks.report.gate import GATE_FAILED, Budget, judge

    budget = Budget(size_mb=options.size_mb, latency_ms=options.latency_ms, metric_drop=None)
    given = [parse_input(text) for text in options.input]
    chosen = BenchOptions(
        engines=names_in(options.engines) if options.engines else None,
        threads=numbers_in(options.threads, "--threads"),
        batch_size=numbers_in(options.batch, "--batch") if options.batch else 1,
        warmup=options.warmup,
        repeats=options.repeats,
        peak_memory=not options.no_memory,
        roofline=True,
    )
    artefact = find_model(options.model)
    specs = complete_inputs(artefact, given)
    if not options.batch:
        chosen = replace(chosen, batch_size=int(specs[0].shape[0]) if len(specs[0].shape) else 1)
    generic = artefact.path.stem in ("inference", "model")
    name = options.name or (artefact.path.resolve().parent.name if generic else artefact.path.stem)
    record = bench_model(artefact, specs, chosen, name=name, verbose=int(not options.json))
    if options.record:
        _keep(record, Path(options.record))
    verdict = judge(record, budget)
    if options.json:
        write_json(json.loads(record.to_json_line()))
    else:
        write_text(_tables(record) + (f"\n{verdict}\n" if verdict.criteria else ""))
    if not verdict.passed:
        return GATE_FAILED
    silent = _silent(record, chosen.engines or ())
    for line in silent:
        sys.stderr.write(f"{program_name()} bench: {line}\n")
    return 1 if silent else 0


def _silent(record: Record, named: Sequence[str]) -> list[str]:
    """Return a line for each named engine without a measurement."""
    lines = []
    for engine in named:
        rows = [row for row in record.latencies if row.engine == engine]
        if not any(row.p50_ms is not None for row in rows):
            why = next((row.error for row in rows if row.error), "it was not run")
            lines.append(
                f"{engine} gave no measurement: {why.rstrip('.')}. Leave it out of --engines, or export the model "
                "for it."
            )
    return lines


def _keep(record: Record, folder: Path) -> None:
    from paddlelite_callbacks.report.record import append_record
    from paddlelite_callbacks.report.write import write_report

    append_record(folder / "runs.jsonl", record)
    write_report(folder)


def _tables(record: Record) -> str:
    from paddlelite_callbacks.report.tables import check_table, latency_table, noted

    size = f"{record.size_mb:.2f} MB, " if record.size_mb else ""
    parts = [f"{record.name}: {size}{noted(record)}", "", *latency_table(record), "", *check_table(record)]
    return "\n".join([*parts, "", *record.notes]) + "\n"


def names_in(text: str) -> list[str]:
    """Return the names in a comma-separated list, in lower case.

    Args:
        text: Argument of a command.
    """
    return [part.strip().lower() for part in text.split(",")]


def numbers_in(text: str, name: str) -> list[int]:
    """Return the whole numbers in a comma-separated list.

    Args:
        text: Argument of a command.
        name: Name of the argument, for the message.

    Raises:
        ValueError: Something else is in it.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be whole numbers separated by commas, got {text!r}: write 1,2,4.") from None
