"""``python -m paddlelite_callbacks bench MODEL``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.crash_probe import crash_of
from paddlelite_callbacks.benchmark.engines import EngineError, missing_reason
from paddlelite_callbacks.benchmark.load import load_files
from paddlelite_callbacks.benchmark.machine import this_machine
from paddlelite_callbacks.benchmark.onnx_cost import onnx_cost
from paddlelite_callbacks.benchmark.options import BenchOptions, latency_row
from paddlelite_callbacks.benchmark.timing import time_files
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import Check
from paddlelite_callbacks.export.model_files import random_inputs
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.saturation import saturation_of
from paddlelite_callbacks.export.variants import Reference
from paddlelite_callbacks.report.record import ArtefactFigures, Record, now
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.isolation import hushed_stdout, undisturbed

if TYPE_CHECKING:
    from paddlelite_callbacks.report.record import Record

__all__ = ["add_arguments", "bench_model", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: of the command.
    """
    parser.description = (
        "Check and time a model on every CPU engine. Exit code 0; 1 if it cannot be done, or an engine that --engines "
        "names gave no figure; 3 if --size-mb or --latency-ms is not kept."
    )
    parser.add_argument("model", help="an .onnx file, a Paddle program (.json or .pdmodel), its prefix or its folder")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME:]1x3x224x224[:TYPE]",
        help="sizes of an input, where the file leaves them free; repeated for each such; the batch in front is the "
        "timed one unless --batch is given",
    )
    parser.add_argument(
        "--engines", help="comma-separated: paddle, paddle-onednn, onnxruntime, openvino (default: all)"
    )
    parser.add_argument("--threads", default="1", help="CPU threads, comma-separated (default: 1)")
    parser.add_argument("--batch", help="batch sizes, comma-separated (default: that of --input, or of the file, or 1)")
    parser.add_argument("--warmup", type=int, default=10, help="calls that are not counted, at least (default: 10)")
    parser.add_argument("--repeats", type=int, default=50, help="calls that are (default: 50)")
    parser.add_argument("--no-memory", action="store_true", help="leave out load time and peak memory")
    parser.add_argument("--record", metavar="DIR", help="add the figures to DIR/runs.jsonl and draw its report anew")
    parser.add_argument("--name", help="of the record (default: the model's file or folder)")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of tables")
    parser.add_argument("--size-mb", type=float, help="fail (exit code 3) above this size")
    parser.add_argument("--latency-ms", type=float, help="fail (exit code 3) above this median of the fastest engine")


def run(options: argparse.Namespace) -> int:
    """Time the model; write tables or JSON to the standard output.

    Args:
        options: as parsed.

    Returns:
        0; 3 where a limit is not kept; 1 where an engine that ``--engines`` names gave no figure.
    """
    from paddlelite_callbacks.benchmark.options import BenchOptions
    from paddlelite_callbacks.export.model_files import complete_inputs, find_model, parse_input
    from paddlelite_callbacks.report.gate import GATE_FAILED, Budget, judge

    budget = Budget(size_mb=options.size_mb, latency_ms=options.latency_ms, metric_drop=None)
    given = [parse_input(text) for text in options.input]
    chosen = BenchOptions(
        engines=options.engines.split(",") if options.engines else None,
        threads=_numbers(options.threads, "--threads"),
        batch_size=_numbers(options.batch, "--batch") if options.batch else 1,
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
    sys.stdout.write(_json(record) if options.json else _tables(record))
    if verdict.criteria and not options.json:
        sys.stdout.write(f"\n{verdict}\n")
    sys.stdout.flush()
    if not verdict.passed:
        return GATE_FAILED
    silent = _silent(record, chosen.engines or ())
    for line in silent:
        sys.stderr.write(f"python -m paddlelite_callbacks bench: {line}\n")
    return 1 if silent else 0


def _silent(record: Record, named: Sequence[str]) -> list[str]:
    """Return a line for each named engine without a measurement."""
    lines = []
    for engine in named:
        rows = [row for row in record.latencies if row.engine == engine]
        if not any(row.p50_ms is not None for row in rows):
            why = next((row.error for row in rows if row.error), "it was not run")
            lines.append(
                f"{engine} gave no figure: {why.rstrip('.')}. Leave it out of --engines, or export the model for it."
            )
    return lines


def _keep(record: Record, folder: Path) -> None:
    from paddlelite_callbacks.report.record import append_record
    from paddlelite_callbacks.report.write import write_report

    append_record(folder / "runs.jsonl", record)
    write_report(folder)


def _json(record: Record) -> str:
    """Return a line of JSON in letters that the standard output knows; others are escaped, so that nothing is lost."""
    line = record.to_json_line() + "\n"
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(json.loads(line)) + "\n"
    return line


def _tables(record: Record) -> str:
    from paddlelite_callbacks.report.tables import check_table, latency_table, noted

    size = f"{record.size_mb:.2f} MB, " if record.size_mb else ""
    parts = [f"{record.name}: {size}{noted(record)}", "", *latency_table(record), "", *check_table(record)]
    return "\n".join([*parts, "", *record.notes]) + "\n"


def _numbers(text: str, name: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} takes whole numbers with commas between, for instance 1,2,4; got {text!r}.") from None


_ROWS = 2  # images of the check


def bench_model(
    artefact: Artefact, specs: Sequence[InputSpec], options: BenchOptions, *, name: str, verbose: int = 1
) -> Record:
    """Run a model on every engine, compare the answers, and benchmark.

    A Paddle program is converted to ONNX for the engines that need it; the file is thrown away.

    Args:
        artefact: of `find_model`.
        specs: of the inputs, with all sizes.
        options: see `BenchOptions`.
        name: of the record.
        verbose: 1 shows progress bars, 0 nothing.

    Raises:
        EngineError: no engine could run the model.
        ValueError: the inputs do not fit it.
    """
    with undisturbed(), tempfile.TemporaryDirectory() as work:
        inputs = random_inputs(artefact, specs, rows=_ROWS)
        artefacts, errors, notes = [artefact], {}, []
        if artefact.kind == "paddle" and any(engine.kind == "onnx" for engine in options.chosen()):
            try:
                artefacts.append(export_onnx(artefact, Path(work) / "model.onnx"))
            except (ExportError, ImportError) as error:
                errors["onnx", artefact.precision] = str(error)
        if artefact.kind == "onnx":
            errors["paddle", artefact.precision] = "an ONNX file has no Paddle program"
        rows = None
        crashed = _crashes(artefacts, inputs, options)
        try:
            expected, judge = _first_answer(artefacts, inputs, options, crashed)
        except EngineError:  # perhaps a file of a fixed batch
            rows = int(specs[0].shape[0])
            inputs = random_inputs(artefact, specs)
            crashed |= _crashes(artefacts, inputs, options, beside=crashed)
            expected, judge = _first_answer(artefacts, inputs, options, crashed)
            notes.append(f"The file takes exactly {rows} images a call.")
        notes.append(f"Without the network, {judge}'s answers on random inputs were the measure of the others.")
        alive = replace(options, engines=[one.name for one in options.chosen() if one.name not in crashed])
        files = load_files(
            artefacts, inputs, {artefact.precision: Reference(expected)}, alive, errors=errors, rows=rows
        )
        dead = [latency_row(name, artefact.precision, options, error=why) for name, why in crashed.items()]
        files = replace(files, failed=(*files.failed, *dead))
        notes += _disagreements(files.checks, judge)
        saturation = saturation_of(artefact.kind, artefact.precision, artefact.path)
        notes += [] if saturation is None else [saturation.note(artefact.path.name)]
        macs, weights = _cost(artefacts, inputs)
        timing = time_files(files, inputs, options, macs=macs, verbose=verbose)
        sizes = [replace(ArtefactFigures.of(a), path=str(a.path) if a is artefact else None) for a in artefacts]
    return Record(
        name=name,
        created=now(),
        parameters=weights or int(artefact.size_mb * 1e6 / 4),
        artefacts=tuple(sizes),
        latencies=timing.latencies,
        checks=files.checks,
        metrics={},
        machine=this_machine(),
        command=shlex.join(sys.orig_argv),
        notes=(*notes, *timing.notes),
        macs=macs,
        roofline_gflops={str(threads): value for threads, value in timing.roofline.items()},
    )


def _disagreements(checks: Sequence[Check], judge: str) -> list[str]:
    """Return a line for each engine whose outputs differ."""
    lines = []
    for check in checks:
        if check.passed:
            continue
        why = (
            "a value on a rounding threshold of a quantised file may do that: measure the accuracy on each engine"
            if check.precision == "int8"
            else "one of the two is wrong: do not ship the file on both without looking into it"
        )
        found = check.error or f"differ by {check.max_abs_diff:.3g}, allowed {check.tolerance:.3g}"
        lines.append(f"DISAGREEMENT: {check.engine} and {judge} on the {check.precision} file: {found}; {why}.")
    return lines


def _crashes(
    artefacts: Sequence[Artefact],
    inputs: list[np.ndarray],
    options: BenchOptions,
    *,
    beside: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return by engine how it ended on its file in a process of its own, without those ``beside`` and missing ones."""
    found = {}
    for engine in options.chosen():
        for artefact in artefacts:
            if artefact.kind != engine.kind or engine.name in (beside or {}) or missing_reason(engine):
                continue
            name = artefact.path.name if artefact is artefacts[0] else f"the ONNX form of {artefacts[0].path.name}"
            if (why := crash_of(engine.name, artefact, inputs, name=name)) is not None:
                found[engine.name] = why
    return found


def _first_answer(
    artefacts: Sequence[Artefact], inputs: list[np.ndarray], options: BenchOptions, crashed: Mapping[str, str]
) -> tuple[list[np.ndarray], str]:
    said = []
    for engine in options.chosen():
        for artefact in artefacts:
            if artefact.kind != engine.kind:
                continue
            if engine.name in crashed:
                said.append(crashed[engine.name])
                continue
            if missing := missing_reason(engine):
                said.append(missing)
                continue
            try:
                with hushed_stdout():
                    return engine.load(artefact, threads=1)(inputs), engine.name
            except Exception as error:
                said.append(f"{engine.name}: {reason(error)}")
    raise EngineError(f"No engine could run {artefacts[0].path}: {'; '.join(said) or 'none of the chosen reads it'}.")


def _cost(artefacts: Sequence[Artefact], inputs: Sequence[np.ndarray]) -> tuple[int | None, int]:
    for artefact in artefacts:
        if artefact.kind == "onnx":
            try:
                return onnx_cost(artefact.path, [item.shape for item in inputs])
            except Exception:  # exotic shapes: the figures are left out
                return None, 0
    return None, 0
