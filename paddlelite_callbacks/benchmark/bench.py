"""Load exported files with every engine, check them against the network, and time them in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.benchmark.load import LoadedFiles, load_files
from paddlelite_callbacks.benchmark.options import BenchOptions, latency_row, repeated_rows
from paddlelite_callbacks.benchmark.timing import Timing, time_files
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import Check
from paddlelite_callbacks.export.variants import Reference

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
