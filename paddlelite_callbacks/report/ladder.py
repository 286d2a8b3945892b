"""Several runs' exported files timed against each other, so that their ratios can be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from paddlelite_callbacks.deploy.bench import BenchOptions, latency_row, repeated_rows
from paddlelite_callbacks.deploy.engines import ENGINES
from paddlelite_callbacks.deploy.latency import Latency, measure_latency, summarise
from paddlelite_callbacks.progress import tqdm
from paddlelite_callbacks.report.record import Record

__all__ = ["timed_together"]

_Key = tuple[int, str, str]  # number of the record, engine, precision


def timed_together(
    records: Sequence[Record], inputs: Sequence[np.ndarray], options: BenchOptions, *, progress: bool = True
) -> list[Record]:
    """Time the exported files of all ``records`` again, in turn, in this process.

    Each record was timed when it was made, perhaps in another minute of a busy machine; ratios between such figures
    carry its noise. Only engines that ran a file before, and agreed with the network, are timed.

    Args:
        records: whose files still exist.
        inputs: one array ``[N, ...]`` per input of the networks; rows are repeated up to ``options.batch_size``.
        options: engines, threads, batch size (the first of lists), warm-up and repeats.
        progress: whether to show a bar.

    Returns:
        The records with new latencies.

    Raises:
        ValueError: a file is gone.
        EngineError: a file cannot be loaded any more.
    """
    batch = repeated_rows(inputs, options.settings[0][1])
    calls = {key: _call(records, key, batch, options) for key in _ran(records, options)}
    rounds = options.warmup + options.repeats
    with tqdm(total=rounds, desc="CPU latency", unit="round", leave=False, disable=not progress) as bar:
        durations = measure_latency(
            calls, warmup=options.warmup, repeats=options.repeats, settle=1, shuffle=True, progress=bar.update
        )
    figures = {key: summarise(values) for key, values in durations.items()}
    return [
        replace(
            record,
            latencies=tuple(
                _newer(row, figures.get((i, row.engine, row.precision)), options) for row in record.main_latencies()
            ),
        )
        for i, record in enumerate(records)
    ]


def _ran(records: Sequence[Record], options: BenchOptions) -> list[_Key]:
    chosen = {engine.name for engine in options.chosen()}
    return [
        (i, check.engine, check.precision)
        for i, record in enumerate(records)
        for check in record.checks
        if check.passed and check.engine in chosen
    ]


def _call(records: Sequence[Record], key: _Key, batch: list[np.ndarray], options: BenchOptions) -> Callable[[], object]:
    number, name, precision = key
    engine = ENGINES[name]
    fits = [a for a in records[number].artefacts if (a.kind, a.precision) == (engine.kind, precision)]
    predict = engine.load(fits[0].artefact(), threads=options.settings[0][0])
    return lambda: predict(batch)


def _newer(row: Latency, figures: dict[str, float] | None, options: BenchOptions) -> Latency:
    if figures is None:
        return row
    kept = {"load_ms": row.load_ms, "peak_mb": row.peak_mb}
    return latency_row(row.engine, row.precision, options, figures={**kept, **figures})
