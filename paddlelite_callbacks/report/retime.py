"""Time exported files of several runs together, for reliable ratios."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.benchmark.latency import Latency, measure_latency, summarise
from paddlelite_callbacks.benchmark.options import BenchOptions, latency_row, repeated_rows
from paddlelite_callbacks.report.record import Record, append_record, now, read_records
from paddlelite_callbacks.utils.deprecation import Renamed, old_arguments
from paddlelite_callbacks.utils.progress import tqdm

__all__ = ["append_joint_timing", "timed_together"]

_Key = tuple[int, str, str]  # index of the record, engine, precision


@old_arguments(progress=Renamed("verbose", int))
def timed_together(
    records: Sequence[Record], inputs: Sequence[np.ndarray], options: BenchOptions, *, verbose: int = 1
) -> list[Record]:
    """Benchmark all records' files interleaved in this process.

    Each record was timed when it was made, perhaps under another load of the machine, so ratios between them are noisy.
    Only engines that ran a file before, and agreed with the network, are timed. `write_ladder` and
    `append_joint_timing` save the results for the report.

    Args:
        records: Records whose files still exist.
        inputs: One array ``[N, ...]`` per input of the networks; rows are repeated up to ``options.batch_size``.
        options: Engines, threads, batch size (the first of lists), warm-up and repeats.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        The records with the new latencies, whose ``joint`` names this timing. Rows of engines that were not timed, and
        of other settings, stay after them.

    Raises:
        ValueError: A file is missing.
        EngineError: A file cannot be loaded any more.
    """
    batch = repeated_rows(inputs, options.settings[0][1])
    calls = {key: _call(records, key, batch, options) for key in _ran(records, options)}
    rounds = options.warmup + options.repeats
    with tqdm(total=rounds, desc="CPU latency", unit="round", leave=False, disable=not verbose) as bar:
        durations = measure_latency(
            calls, warmup=options.warmup, repeats=options.repeats, settle=1, shuffle=True, progress=bar.update
        )
    figures = {key: summarise(values) for key, values in durations.items()}
    joint = f"{now()} {secrets.token_hex(3)}"
    return [
        replace(record, latencies=_renewed(record, {k[1:]: f for k, f in figures.items() if k[0] == i}, options, joint))
        for i, record in enumerate(records)
    ]


def append_joint_timing(path: Path, records: Sequence[Record]) -> int:
    """Append a joint timing to the record file.

    Args:
        path: Path of ``runs.jsonl``.
        records: Results of `timed_together`. Those that are not in the file, or have the same latencies there, are left
            out.

    Returns:
        Number of added lines.
    """
    if not path.is_file():
        return 0
    stored = {(record.name, record.created): record for record in read_records(path)}
    added = 0
    for record in records:
        known = stored.get((record.name, record.created))
        if known is None or known.latencies == record.latencies or not any(row.joint for row in record.latencies):
            continue
        append_record(path, replace(record, retimes=True))
        added += 1
    return added


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


def _renewed(
    record: Record, figures: Mapping[tuple[str, str], dict[str, float]], options: BenchOptions, joint: str
) -> tuple[Latency, ...]:
    """Return the record's rows, updated by joint timings."""
    setting, rows, left = options.settings[0], list[Latency](), dict(figures)
    for row in record.latencies:
        key = (row.engine, row.precision)
        if (row.threads, row.batch_size) == setting and key in left:
            found = left.pop(key)
            share = row.roofline * row.p50_ms / found["p50_ms"] if row.roofline and row.p50_ms else None
            kept = {"load_ms": row.load_ms, "peak_mb": row.peak_mb, "roofline": share}
            rows.append(latency_row(*key, options, figures={**kept, **found}, joint=joint))
        else:
            rows.append(row)
    first = [latency_row(*key, options, figures=found, joint=joint) for key, found in left.items()]
    return (*first, *rows)
