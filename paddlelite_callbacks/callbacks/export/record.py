"""Build the record of a run and the printed lines from an export."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.benchmark.int8_advice import int8_notes
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.benchmark.machine import this_machine
from paddlelite_callbacks.callbacks.export.history import History
from paddlelite_callbacks.callbacks.export.pipeline import HandedOut
from paddlelite_callbacks.callbacks.session import FitSession
from paddlelite_callbacks.nn.cost import count_parameters
from paddlelite_callbacks.report.gate import Budget, Verdict
from paddlelite_callbacks.report.record import ArtefactFigures, LayerPoint, Record, now
from paddlelite_callbacks.report.write import write_report
from paddlelite_callbacks.utils.numbers import counted

__all__ = ["draw_report", "layer_curve_of", "notes_of", "record_of", "summary_lines"]

_log = logging.getLogger(__name__)


def record_of(
    made: HandedOut,
    network: Layer,
    *,
    home: Path,
    weights: str,
    log: str | None,
    history: History,
    last: bool,
    setting: tuple[int, int],
    notes: Sequence[str],
    config: Mapping[str, Any],
    failure: str | None = None,
) -> Record:
    """Return the record of one export.

    Args:
        made: Result of the export.
        network: Trained network.
        home: Folder of the files; its name is the name of the run.
        weights: File name of the weights in ``home``.
        log: File name of the training log in ``home``; ``None`` for a network that was trained before.
        history: Metrics of this ``fit``.
        last: Whether the last weights were exported, instead of the best.
        setting: Threads and batch size of the gate.
        notes: Notes for the reader, besides the advice on int8.
        config: Settings of the run, for training again.
        failure: Reason why no file was exported; ``None`` if there is one.
    """
    rows, epoch = history.rows, history.epoch
    if last:
        epoch = int(rows[-1]["epoch"]) if rows else None
    figures = [replace(ArtefactFigures.of(a), path=str(home / a.path.name)) for a in made.artefacts]
    missing = [ArtefactFigures(kind=k, precision=p, error=error) for (k, p), error in made.errors.items()]
    main = [row for row in made.timing.latencies if (row.threads, row.batch_size) == setting]
    return Record(
        name=home.name,
        created=now(),
        parameters=count_parameters(network),
        artefacts=(*figures, *missing),
        latencies=made.timing.latencies,
        checks=made.checks,
        metrics=dict(history.metrics),
        machine=this_machine(),
        command=shlex.join(sys.orig_argv),
        notes=(*_advice(made, main, figures), *notes),
        file_metrics=made.file_metrics,
        macs=made.macs,
        roofline_gflops={str(threads): value for threads, value in made.timing.roofline.items()},
        history=tuple(rows),
        epoch=epoch,
        config=dict(config),
        log=None if log is None else str(home / log),
        weights=str(home / weights),
        failure=failure,
        remarks=made.remarks,
        peak_memory=made.peak_memory,
    )


def _advice(made: HandedOut, main: Sequence[Latency], figures: Sequence[ArtefactFigures]) -> tuple[str, ...]:
    return int8_notes(
        main,
        agreeing={(check.engine, check.precision) for check in made.checks if check.passed},
        file_metrics=made.file_metrics,
        noisy=any(note.startswith("Noise") for note in made.timing.notes),
        float_layers=[name for figure in figures for name in figure.float_layers or ()],
    )


def summary_lines(record: Record, folder: Path, verdict: Verdict | None, *, settings: int) -> list[str]:
    """Return the measurements of a run, one line per engine.

    Args:
        record: Record of the run.
        folder: Folder of all runs.
        verdict: Verdict of the gate; ``None`` without a budget.
        settings: Number of timed pairs of threads and batch size; with more than one, each line shows its own.
    """
    size = "no Paddle export" if record.size_mb is None else f"{record.size_mb:.2f} MB"
    size = size if record.failure is None else "NOTHING EXPORTED"
    lines = [f"{record.name}: {size}, {record.parameters / 1e6:.2f} M parameters, {folder / record.name}"]
    lines += [
        f"  {row.engine:<14}{row.precision:<5} "
        + (f"{row.p50_ms:8.2f} ms (p90 {row.p90_ms:.2f})" if row.p50_ms is not None else f"no figure: {row.error}")
        + (f", {counted(row.threads, 'thread')}, batch {row.batch_size}" if settings > 1 else "")
        + _accuracy(record, row)
        + _differing(record, row)
        for row in record.latencies
    ]
    lines += [] if record.failure is None else [f"  {record.failure}", f"  The trained weights: {record.weights}"]
    lines += [f"  {text}" for text in (*record.remarks, *record.notes)]
    return [*lines, *([f"  gate: {verdict}"] if verdict is not None else [])]


def _accuracy(record: Record, row: Latency) -> str:
    """Return the metrics that were measured on a file."""
    found = [i for i in record.file_metrics if (i.engine, i.precision) == (row.engine, row.precision)]
    return "".join(f", {name} {value:.4g}" for one in found for name, value in one.metrics.items())


def _differing(record: Record, row: Latency) -> str:
    said = record.differing(row.engine, row.precision)
    return "" if said is None or row.p50_ms is None else f"  DOES NOT COUNT: {said}"


def notes_of(training: FitSession | None) -> list[str]:
    """Return the notes of the other callbacks; some evaluate on all ranks together.

    Args:
        training: Session of the ``fit``; ``None`` if there is none.
    """
    members = [] if training is None else training.members
    skipped = [] if training is None else training.guard.notes()
    return [*skipped, *(note for member in members if hasattr(member, "notes") for note in member.notes())]


def layer_curve_of(training: FitSession | None) -> tuple[LayerPoint, ...]:
    """Return the files that a callback tried to keep the metric.

    Args:
        training: Session of the ``fit``; ``None`` if there is none.
    """
    kept = [getattr(member, "kept", None) for member in ([] if training is None else training.members)]
    return next((found.curve for found in kept if found is not None), ())


def draw_report(folder: Path, budget: Budget | None) -> None:
    """Write the report of all runs in ``folder``; a failure is logged.

    Args:
        folder: Folder of all runs.
        budget: Budget to compare the runs with, if any.
    """
    try:
        write_report(folder, budget=budget)
    except Exception as error:  # the files and the record are written already
        _log.warning(
            "The report was not written: %s. Write it with python -m paddlelite_callbacks report %s.", error, folder
        )
