"""Time loaded files in turn for each setting of threads and batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from paddlelite_callbacks.benchmark.engines import ENGINES, native_file
from paddlelite_callbacks.benchmark.footprint import measure_footprint
from paddlelite_callbacks.benchmark.latency import Latency, WarmUp, measure_latency, summarise
from paddlelite_callbacks.benchmark.load import FileKey, LoadedFiles
from paddlelite_callbacks.benchmark.machine import noise_notes
from paddlelite_callbacks.benchmark.options import BenchOptions, latency_row, repeated_rows
from paddlelite_callbacks.benchmark.roofline import measure_roofline, roofline_share
from paddlelite_callbacks.utils.deprecation import Renamed, old_arguments
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.isolation import hushed_stdout
from paddlelite_callbacks.utils.numbers import counted
from paddlelite_callbacks.utils.progress import tqdm

__all__ = ["Timing", "time_files"]


@dataclass(frozen=True)
class Timing:
    """Measurements of a benchmark.

    Args:
        latencies: One row per engine, file and setting.
        notes: Warnings about noise.
        roofline: GFLOP/s of the fastest matrix product by number of threads.
    """

    latencies: tuple[Latency, ...] = ()
    notes: tuple[str, ...] = ()
    roofline: dict[int, float] = field(default_factory=dict)


@old_arguments(progress=Renamed("verbose", int))
def time_files(
    files: LoadedFiles,
    inputs: Sequence[np.ndarray],
    options: BenchOptions,
    *,
    macs: int | None = None,
    verbose: int = 1,
) -> Timing:
    """Time all files in turn, for each setting of threads and batch size.

    Args:
        files: Result of `load_files`.
        inputs: Inputs, repeated up to each batch size.
        options: Engines, threads, batch sizes and repeats, see `BenchOptions`.
        macs: Multiply-accumulates per image, for the share of the roofline.
        verbose: 1 shows progress bars, 0 nothing.
    """
    latencies: list[Latency] = []
    notes: list[str] = []
    roofline: dict[int, float] = {}
    for threads, size in options.settings:
        rows, said = _timed(files, threads, repeated_rows(inputs, size), options, verbose)
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
        latencies, said = _with_footprints(files, inputs, latencies, options, verbose)
        notes += said
    return Timing((*latencies, *files.failed), tuple(dict.fromkeys(notes)), roofline)


def _timed(
    files: LoadedFiles, threads: int, batch: list[np.ndarray], options: BenchOptions, verbose: int
) -> tuple[list[Latency], list[str]]:
    setting = threads, len(batch[0])
    calls: dict[FileKey, Callable[[], object]] = {}
    errors: dict[FileKey, str] = {}
    for key in files.ready:
        try:
            calls[key] = _call(files, key, setting, batch, first=threads == options.settings[0][0])
        except Exception as exception:
            errors[key] = reason(exception)
    warm, notes = WarmUp(options.warmup), []
    durations: dict[FileKey, list[float]] = {}
    if calls:
        text = f"CPU latency, {counted(threads, 'thread')}, batch {setting[1]}"
        limit = 5 * options.warmup if options.max_warmup is None else options.max_warmup
        with tqdm(
            total=options.warmup + options.repeats, desc=text, unit="round", leave=False, disable=not verbose
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
    files: LoadedFiles, key: FileKey, setting: tuple[int, int], batch: list[np.ndarray], *, first: bool
) -> Callable[[], object]:
    if files.rows not in (None, setting[1]):
        raise ValueError(f"the file takes exactly {files.rows} images per call")
    predict, artefact = files.ready[key]
    with hushed_stdout():
        if not first:
            predict = ENGINES[key[0]].load(artefact, threads=setting[0])
        predict(batch)
    return lambda: predict(batch)


def _with_footprints(
    files: LoadedFiles, inputs: Sequence[np.ndarray], latencies: list[Latency], options: BenchOptions, verbose: int
) -> tuple[list[Latency], list[str]]:
    threads, size = options.settings[0]
    rows, notes = [], []
    counted = [row for row in latencies if (row.threads, row.batch_size) == (threads, size) and row.p50_ms]
    with tqdm(total=len(counted), desc="peak memory", unit="file", leave=False, disable=not verbose) as bar:
        for row in latencies:
            if any(row is one for one in counted):
                artefact = native_file(row.engine, files.ready[row.engine, row.precision][1])
                taken = measure_footprint(row.engine, artefact, repeated_rows(inputs, size), threads=threads)
                row = replace(row, load_ms=taken.load_ms, peak_mb=taken.peak_mb)
                if taken.error:
                    notes.append(f"No memory measurement of {row.engine} {row.precision}: {taken.error}.")
                bar.update()
            rows.append(row)
    return rows, notes
