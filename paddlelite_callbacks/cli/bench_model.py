"""Check and time a model without its network, for the command ``bench``."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.crash_probe import crash_of
from paddlelite_callbacks.benchmark.edge_engines import ConvertingEngine
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

__all__ = ["bench_model"]

_ROWS = 2  # images compared


def bench_model(
    artefact: Artefact, specs: Sequence[InputSpec], options: BenchOptions, *, name: str, verbose: int = 1
) -> Record:
    """Run a model on every engine, compare the outputs, and benchmark.

    A Paddle program is converted to a temporary ONNX file for the engines that need it.

    Args:
        artefact: Result of `find_model`.
        specs: Specs of the inputs with fixed sizes.
        options: Engines, settings and tolerances, see `BenchOptions`.
        name: Name of the record.
        verbose: 1 shows progress bars, 0 nothing.

    Raises:
        EngineError: No engine could run the model.
        ValueError: The inputs do not fit it.
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
        except EngineError:  # the file may have a fixed batch size
            rows = int(specs[0].shape[0])
            inputs = random_inputs(artefact, specs)
            crashed |= _crashes(artefacts, inputs, options, beside=crashed)
            expected, judge = _first_answer(artefacts, inputs, options, crashed)
            notes.append(f"The file takes exactly {rows} images per call.")
        notes.append(f"Without the network, the outputs of {judge} on random inputs were the reference.")
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
    """Return the crash of each engine that fails on its file in a child process.

    Engines in ``beside`` and missing engines are skipped.
    """
    found = {}
    for engine in options.chosen():
        for artefact in artefacts:
            if artefact.kind != engine.kind or engine.name in (beside or {}) or missing_reason(engine):
                continue
            if isinstance(engine, ConvertingEngine):  # runs converted files in a child process itself
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
    raise EngineError(f"No engine could run {artefacts[0].path}: {'; '.join(said) or 'no chosen engine reads it'}.")


def _cost(artefacts: Sequence[Artefact], inputs: Sequence[np.ndarray]) -> tuple[int | None, int]:
    for artefact in artefacts:
        if artefact.kind == "onnx":
            try:
                return onnx_cost(artefact.path, [item.shape for item in inputs])
            except Exception:  # unknown shapes: cost not counted
                return None, 0
    return None, 0
