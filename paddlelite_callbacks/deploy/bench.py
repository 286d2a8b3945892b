"""Load exported files with every engine, check them against the network, and time them in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from paddlelite_callbacks.deploy.check import Check, compare_outputs
from paddlelite_callbacks.deploy.engines import ENGINES, Predict, in_batches, missing_reason, reason
from paddlelite_callbacks.deploy.export import Artefact
from paddlelite_callbacks.deploy.forms import Reference
from paddlelite_callbacks.deploy.latency import Latency, WarmUp, measure_latency, summarise
from paddlelite_callbacks.deploy.machine import noise_notes
from paddlelite_callbacks.deploy.memory import measure_footprint
from paddlelite_callbacks.deploy.options import BenchOptions, latency_row, repeated_rows
from paddlelite_callbacks.deploy.roofline import measure_roofline, roofline_share
from paddlelite_callbacks.deploy.undisturbed import hushed_stdout

__all__ = [
    "BenchOptions",
    "LoadedFiles",
    "Timing",
    "bench",
    "latency_row",
    "load_files",
    "repeated_rows",
    "time_files",
]

_Key = tuple[str, str]  # engine and precision


@dataclass(frozen=True)
class LoadedFiles:
    """Files that their engines could run.

    Args:
        ready: function and file by engine and precision; on the first number of threads.
        checks: of each.
        failed: rows of those that could not.
        rows: images that the files take in a call, exactly; ``None`` if any number.
    """

    ready: dict[_Key, tuple[Predict, Artefact]]
    checks: tuple[Check, ...]
    failed: tuple[Latency, ...]
    rows: int | None = None


@dataclass(frozen=True)
class Timing:
    """Figures of a benchmark.

    Args:
        latencies: a row per engine, file and setting.
        notes: what makes them doubtful.
        roofline: GFLOP/s of the fastest matrix product by number of threads.
    """

    latencies: tuple[Latency, ...]
    notes: tuple[str, ...]
    roofline: dict[int, float]


def bench(
    artefacts: Sequence[Artefact],
    inputs: Sequence[np.ndarray],
    references: Mapping[str, Reference],
    options: BenchOptions,
    *,
    errors: Mapping[tuple[str, str], str] | None = None,
    progress: bool = True,
) -> tuple[tuple[Check, ...], tuple[Latency, ...]]:
    """Load every file with every engine of its kind, compare its outputs, then time all of them in turn.

    Args:
        artefacts: the exported files.
        inputs: real inputs, ``[N, ...]`` each; for the timing rows are repeated up to ``options.batch_size``.
        references: by precision of the file, what the live network computes for ``inputs``.
        options: see `BenchOptions`.
        errors: by kind and precision of an artefact, why there is no such file.
        progress: whether to show a bar.

    Returns:
        One check and one latency per engine and file; what failed carries its reason.
    """
    files = load_files(artefacts, inputs, references, options, errors=errors)
    return files.checks, time_files(files, inputs, options, progress=progress).latencies


def load_files(
    artefacts: Sequence[Artefact],
    inputs: Sequence[np.ndarray],
    references: Mapping[str, Reference],
    options: BenchOptions,
    *,
    errors: Mapping[tuple[str, str], str] | None = None,
    rows: int | None = None,
) -> LoadedFiles:
    """Load every file with every engine of its kind and compare its outputs with the references.

    Args:
        artefacts: the files.
        inputs: real inputs.
        references: by precision, what has to come out.
        options: see `BenchOptions`.
        errors: by kind and precision, why there is no such file.
        rows: see `LoadedFiles`.
    """
    checks: list[Check] = []
    failed: list[Latency] = []
    ready: dict[_Key, tuple[Predict, Artefact]] = {}
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
                checks.append(_checked(engine.name, artefact, got, references[artefact.precision], options))
                ready[engine.name, artefact.precision] = predict, artefact
            except Exception as exception:
                failed.append(latency_row(engine.name, artefact.precision, options, error=reason(exception)))
    return LoadedFiles(ready, tuple(checks), tuple(failed), rows)


def time_files(
    files: LoadedFiles,
    inputs: Sequence[np.ndarray],
    options: BenchOptions,
    *,
    macs: int | None = None,
    progress: bool = True,
) -> Timing:
    """Time all files in turn, one setting of threads and batch size after the other.

    Args:
        files: of `load_files`.
        inputs: rows are repeated up to each batch size.
        options: see `BenchOptions`.
        macs: multiply-accumulates of one image, for the share of the roofline.
        progress: whether to show bars.
    """
    latencies: list[Latency] = []
    notes: list[str] = []
    roofline: dict[int, float] = {}
    for threads, size in options.settings:
        rows, said = _timed(files, threads, repeated_rows(inputs, size), options, progress)
        notes += said
        if options.roofline and macs and rows:
            product = measure_roofline(threads)
            roofline[threads] = max(product.values(), default=0.0)
            rows = [
                replace(row, roofline=roofline_share(macs, size, row.p50_ms, product)) if row.p50_ms else row
                for row in rows
            ]
        latencies += rows
    if options.peak_memory:
        latencies, said = _with_footprints(files, inputs, latencies, options, progress)
        notes += said
    return Timing((*latencies, *files.failed), tuple(dict.fromkeys(notes)), roofline)


def _checked(
    engine: str, artefact: Artefact, got: list[np.ndarray], reference: Reference, options: BenchOptions
) -> Check:
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


def _timed(
    files: LoadedFiles, threads: int, batch: list[np.ndarray], options: BenchOptions, progress: bool
) -> tuple[list[Latency], list[str]]:
    setting = threads, len(batch[0])
    calls: dict[_Key, Callable[[], object]] = {}
    errors: dict[_Key, str] = {}
    for key in files.ready:
        try:
            calls[key] = _call(files, key, setting, batch, first=threads == options.settings[0][0])
        except Exception as exception:
            errors[key] = reason(exception)
    warm, notes = WarmUp(options.warmup), []
    durations: dict[_Key, list[float]] = {}
    if calls:
        text = f"CPU latency, {threads} thread{'s' * (threads > 1)}, batch {setting[1]}"
        limit = 5 * options.warmup if options.max_warmup is None else options.max_warmup
        with tqdm(
            total=options.warmup + options.repeats, desc=text, unit="round", leave=False, disable=not progress
        ) as bar:

            def warmed(how: WarmUp) -> None:
                nonlocal warm
                warm, bar.total = how, how.rounds + options.repeats

            wall, cpu = time.perf_counter(), time.process_time()
            durations = measure_latency(
                calls,
                warmup=options.warmup,
                repeats=options.repeats,
                max_warmup=limit,
                settle=1,
                shuffle=True,
                progress=bar.update,
                warmed=warmed,
            )
            share = (time.process_time() - cpu) / max(time.perf_counter() - wall, 1e-9)
        figures = {key: summarise(values) for key, values in durations.items()}
        notes = noise_notes(setting, figures, [str(key[0]) for key in warm.unsteady], share)  # type: ignore[index]
    rows = [
        latency_row(
            *key,
            options,
            setting=setting,
            warmup=warm.rounds,
            figures=summarise(durations[key]) if key in durations else None,
            error=errors.get(key),
        )
        for key in files.ready
    ]
    return rows, notes


def _call(
    files: LoadedFiles, key: _Key, setting: tuple[int, int], batch: list[np.ndarray], *, first: bool
) -> Callable[[], object]:
    if files.rows not in (None, setting[1]):
        raise ValueError(f"the file takes exactly {files.rows} images a call")
    predict, artefact = files.ready[key]
    with hushed_stdout():
        if not first:
            predict = ENGINES[key[0]].load(artefact, threads=setting[0])
        predict(batch)
    return lambda: predict(batch)


def _with_footprints(
    files: LoadedFiles, inputs: Sequence[np.ndarray], latencies: list[Latency], options: BenchOptions, progress: bool
) -> tuple[list[Latency], list[str]]:
    threads, size = options.settings[0]
    rows, notes = [], []
    counted = [row for row in latencies if (row.threads, row.batch_size) == (threads, size) and row.p50_ms]
    with tqdm(total=len(counted), desc="peak memory", unit="file", leave=False, disable=not progress) as bar:
        for row in latencies:
            if any(row is one for one in counted):
                artefact = files.ready[row.engine, row.precision][1]
                taken = measure_footprint(row.engine, artefact, repeated_rows(inputs, size), threads=threads)
                row = replace(row, load_ms=taken.load_ms, peak_mb=taken.peak_mb)
                if taken.error:
                    notes.append(f"No memory figure of {row.engine} {row.precision}: {taken.error}.")
                bar.update()
            rows.append(row)
    return rows, notes
