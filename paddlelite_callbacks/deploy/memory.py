"""Load time and peak memory of an engine with one file, in a child process that does nothing else.

The parent holds the network, its gradients and every other engine, so its own memory says nothing. The child is this
module: ``python -m paddlelite_callbacks.deploy.memory '<JSON>'``.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from paddlelite_callbacks.deploy.engines import ENGINES
from paddlelite_callbacks.errors import require

if TYPE_CHECKING:
    from paddlelite_callbacks.deploy.export import Artefact

__all__ = ["Footprint", "measure_footprint"]

_SECONDS = 300
_MODULES = {"paddle": "paddle.inference", "paddle-onednn": "paddle.inference"}


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What an engine takes to serve one file.

    Args:
        load_ms: from the files to an engine that is ready; its library is imported before.
        peak_mb: resident memory added by loading and three calls at its highest, MB (1e6 bytes).
        error: why there are no figures.
    """

    load_ms: float | None = None
    peak_mb: float | None = None
    error: str | None = None


def measure_footprint(engine: str, artefact: Artefact, inputs: Sequence[np.ndarray], *, threads: int) -> Footprint:
    """Load ``artefact`` and run ``inputs`` in a child process.

    Args:
        engine: name in `ENGINES`.
        artefact: of its kind.
        inputs: of one call.
        threads: CPU threads.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "inputs.npz"
        np.savez(arrays, *inputs)
        task = {
            "engine": engine,
            "path": str(artefact.path.absolute()),
            "files": [str(file.absolute()) for file in artefact.files],
            "threads": threads,
            "inputs": str(arrays),
        }
        command = [sys.executable, "-m", "paddlelite_callbacks.deploy.memory", json.dumps(task)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            return Footprint(error=f"did not finish in {_SECONDS} s")
    answer = next((line for line in reversed(done.stdout.splitlines()) if line.startswith('{"load_ms"')), None)
    if done.returncode or answer is None:
        said = (done.stderr.strip().splitlines() or [""])[-1][-200:]
        return Footprint(error=f"the child process ended with {done.returncode}: {said}")
    return Footprint(**json.loads(answer))


def _child(task: dict) -> dict[str, float]:
    name = task["engine"]
    require(_MODULES.get(name, name), needed_for=f"the engine {name}")
    with np.load(task["inputs"]) as stored:
        inputs = [stored[key] for key in stored.files]
    _reset_peak()
    before = _status_kb("VmRSS")
    artefact = SimpleNamespace(path=Path(task["path"]), files=tuple(map(Path, task["files"])))
    begin = time.perf_counter()
    predict = ENGINES[name].load(artefact, threads=task["threads"])  # type: ignore[arg-type]
    load_ms = (time.perf_counter() - begin) * 1e3
    for _ in range(3):
        predict(inputs)
    return {"load_ms": load_ms, "peak_mb": max(0.0, (_status_kb("VmHWM") - before) * 1024 / 1e6)}


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # not on every kernel; then importing the library counts where it took more
        Path("/proc/self/clear_refs").write_text("5")


def _status_kb(key: str) -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith(f"{key}:")).split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_child(json.loads(sys.argv[1]))) + "\n")
