"""Load exported files on every engine and compare their outputs with the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from paddlelite_callbacks.benchmark.engines import OnnxRuntime, PaddleInference, Predict, in_batches, missing_reason
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.benchmark.options import BenchOptions, latency_row
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import LITE_CHECKS, PDMODEL_CHECK, Check, compare_outputs
from paddlelite_callbacks.export.lite import LiteTool, find_opt
from paddlelite_callbacks.export.variants import Reference
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.isolation import hushed_stdout

__all__ = ["FileKey", "LoadedFiles", "checked", "load_files"]

FileKey = tuple[str, str]  # engine and precision


@dataclass(frozen=True)
class LoadedFiles:
    """Loaded files with their checks.

    Args:
        ready: Predict function and file by engine and precision, with the first number of threads.
        checks: Comparison of each file with the network.
        failed: Rows of the engines that failed.
        rows: Exact number of images per call; ``None`` for any.
        exact: Like ``ready``, for the references that were needed to tell a wrong file from a wrong engine.
    """

    ready: dict[FileKey, tuple[Predict, Artefact]]
    checks: tuple[Check, ...]
    failed: tuple[Latency, ...]
    rows: int | None = None
    exact: dict[FileKey, tuple[Predict, Artefact]] = field(default_factory=dict)


def load_files(
    artefacts: Sequence[Artefact],
    inputs: Sequence[np.ndarray],
    references: Mapping[str, Reference],
    options: BenchOptions,
    *,
    errors: Mapping[tuple[str, str], str] | None = None,
    rows: int | None = None,
    opt: str | Path | None = None,
) -> LoadedFiles:
    """Load every file on every engine and compare its outputs with the references.

    Args:
        artefacts: Exported models.
        inputs: Real inputs.
        references: Reference outputs by precision.
        options: Engines and tolerances, see `BenchOptions`.
        errors: Reason for each missing file, by kind and precision.
        rows: See `LoadedFiles`.
        opt: Paddle Lite's converter, see `find_opt`.
    """
    checks: list[Check] = []
    failed: list[Latency] = []
    ready: dict[FileKey, tuple[Predict, Artefact]] = {}
    threads = options.settings[0][0]
    for engine in options.chosen():
        files = [artefact for artefact in artefacts if artefact.kind == engine.kind]
        absent = {precision: why for (kind, precision), why in (errors or {}).items() if kind == engine.kind}
        if missing := missing_reason(engine):
            files, absent = [], {"fp32": missing}
        elif not files and not absent:
            absent = {"fp32": "no such file exported"}
        failed += [latency_row(engine.name, precision, options, error=why) for precision, why in absent.items()]
        for artefact in files:
            try:
                with hushed_stdout():
                    predict = engine.load(artefact, threads=threads)
                    got = in_batches(predict, rows)(inputs)
                    check = checked(engine.name, artefact, got, references[artefact.precision], options)
                    if not check.passed and isinstance(engine, OnnxRuntime):
                        reference = references[artefact.precision]
                        check = _with_rounded_biases(check, artefact, inputs, got, reference, options, rows)
                checks.append(check)
                ready[engine.name, artefact.precision] = predict, artefact
            except Exception as exception:
                failed.append(latency_row(engine.name, artefact.precision, options, error=reason(exception)))
    for artefact in artefacts:
        if artefact.kind == "pdmodel":
            checks.append(_pdmodel_check(artefact, inputs, references[artefact.precision], options, rows))
        elif artefact.kind in LITE_CHECKS:
            checks.append(_lite_check(artefact, inputs, references[artefact.precision], options, rows, opt))
    return LoadedFiles(ready, tuple(checks), tuple(failed), rows)


def _pdmodel_check(
    artefact: Artefact, inputs: Sequence[np.ndarray], reference: Reference, options: BenchOptions, rows: int | None
) -> Check:
    """Run a program in Paddle 2's format; failures are recorded in the check."""
    try:
        with hushed_stdout():
            predict = PaddleInference(onednn=False).load(artefact, threads=options.settings[0][0])
            got = in_batches(predict, rows)(inputs)
        return checked(PDMODEL_CHECK, artefact, got, reference, options)
    except Exception as error:
        return Check(engine=PDMODEL_CHECK, precision=artefact.precision, error=reason(error))


def _lite_check(
    artefact: Artefact,
    inputs: Sequence[np.ndarray],
    reference: Reference,
    options: BenchOptions,
    rows: int | None,
    opt: str | Path | None,
) -> Check:
    """Run a file for Paddle Lite.

    Float files for x86 run with Paddle Lite; of the others the program that they were made from runs, in Paddle.

    Paddle Lite's int8 kernels for x86 are faulty: nothing is compared with them.
    """
    name = LITE_CHECKS[artefact.kind]
    unverified = "Paddle Lite runs it on ARM alone" if artefact.kind == "lite-arm" else None
    try:
        tool = find_opt(opt)
        if unverified is None and tool.python is None:
            unverified = "a binary opt cannot run it"
        with hushed_stdout():
            if unverified is None:
                got = in_batches(_run_by(tool, artefact.path), rows)(inputs)
            else:
                program = replace(artefact, kind="pdmodel", path=artefact.program[0], files=artefact.program)
                predict = PaddleInference(onednn=False).load(program, threads=options.settings[0][0])
                got = in_batches(predict, rows)(inputs)
        return replace(checked(name, artefact, got, reference, options), unverified=unverified)
    except Exception as error:
        return Check(engine=name, precision=artefact.precision, error=reason(error))


def _run_by(tool: LiteTool, path: Path) -> Predict:
    return lambda arrays: tool.run(path, arrays)


def _with_rounded_biases(
    check: Check,
    artefact: Artefact,
    inputs: Sequence[np.ndarray],
    got: Sequence[np.ndarray],
    reference: Reference,
    options: BenchOptions,
    rows: int | None,
) -> Check:
    """Check again with rounded biases, if only ONNX Runtime's optimisations differ.

    It rounds float biases of quantised convolutions to int32 (see `bias_noise`), which allows a larger difference.
    """
    if not reference.biases:
        return check
    as_written = in_batches(OnnxRuntime(optimised=False).load(artefact, threads=1), rows)(inputs)
    right = checked(check.engine, artefact, as_written, reference, options).passed
    return checked(check.engine, artefact, got, reference.with_rounded_biases(), options) if right else check


def checked(
    engine: str, artefact: Artefact, got: Sequence[np.ndarray], reference: Reference, options: BenchOptions
) -> Check:
    """Compare the outputs of ``engine`` for a file with its reference.

    Args:
        engine: Name of the engine.
        artefact: The file.
        got: Outputs of the engine.
        reference: Reference of the file's precision.
        options: Tolerances.
    """
    return compare_outputs(
        reference.outputs,
        got,
        engine=engine,
        precision=artefact.precision,
        atol=options.atol,
        rtol=options.rtol,
        noise=reference.noise,
        middle=reference.middle,
        flips=reference.flips,
    )
