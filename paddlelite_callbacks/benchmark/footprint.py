"""Measure load time and peak memory of an engine in a child process.

The parent holds the network, its gradients and all engines, so its own memory says nothing. The child is this
module, run by `run_module`: ``ENGINE THREADS INPUTS.npz PATH FILE...``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from paddlelite_callbacks.benchmark.engine_child import file_and_inputs, run_engine_child
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.utils.child_process import last_words
from paddlelite_callbacks.utils.folder_names import without_folder
from paddlelite_callbacks.utils.peak_memory import high_water

if TYPE_CHECKING:
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["Footprint", "measure_footprint"]

_SECONDS = 300
_MODULES = {"paddle": "paddle.inference", "paddle-onednn": "paddle.inference", "mnn": "MNN"}


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Resources that an engine needs for one file.

    Args:
        load_ms: Load time in milliseconds, without importing the engine.
        peak_mb: Peak resident memory added by loading and three calls, MB (1e6 bytes).
        error: Reason why there are no measurements.
    """

    load_ms: float | None = None
    peak_mb: float | None = None
    error: str | None = None


def measure_footprint(engine: str, artefact: Artefact, inputs: Sequence[np.ndarray], *, threads: int) -> Footprint:
    """Load ``artefact`` and run ``inputs`` in a child process.

    Args:
        engine: Name in `ENGINES`.
        artefact: File of the engine's kind.
        inputs: Inputs of one call.
        threads: Number of CPU threads.
    """
    try:
        done = run_engine_child(
            "benchmark.footprint",
            engine,
            artefact,
            inputs,
            threads=threads,
            seconds=_SECONDS,
            environment={"CUDA_VISIBLE_DEVICES": ""},
        )
    except subprocess.TimeoutExpired:
        return Footprint(error=f"did not finish in {_SECONDS} s")
    answer = next((line for line in reversed(done.stdout.splitlines()) if line.startswith('{"load_ms"')), None)
    if done.returncode or answer is None:
        said = without_folder(last_words(done), artefact.path.parent)
        return Footprint(error=f"the child process ended with {done.returncode}: {said}")
    return Footprint(**json.loads(answer))


def _child(name: str, threads: str, *given: str) -> dict[str, float]:
    require(_MODULES.get(name, name), needed_for=f"the engine {name}")
    artefact, inputs = file_and_inputs(*given)
    _reset_peak()
    before = psutil.Process().memory_info().rss
    begin = time.perf_counter()
    predict = ENGINES[name].load(artefact, threads=int(threads))
    load_ms = (time.perf_counter() - begin) * 1e3
    for _ in range(3):
        predict(inputs)
    return {"load_ms": load_ms, "peak_mb": max(0.0, (high_water() - before) / 1e6)}


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # not on every kernel; the peak then includes importing the library
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_child(*sys.argv[1:])) + "\n")
