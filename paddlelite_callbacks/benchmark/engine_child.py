"""Run one file on one engine in a child process."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from paddlelite_callbacks.utils.child_process import last_words, run_module
from paddlelite_callbacks.utils.folder_names import without_folder

if TYPE_CHECKING:
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["crash_of", "file_and_inputs", "run_engine_child"]

_SECONDS = 300
_FAILED = 1  # exit code of a child in which Python raised


def run_engine_child(
    module: str,
    engine: str,
    artefact: Artefact,
    inputs: Sequence[np.ndarray],
    *,
    threads: int,
    seconds: float,
    environment: Mapping[str, str],
) -> subprocess.CompletedProcess[str]:
    """Run ``module`` with the arguments ``ENGINE THREADS INPUTS.npz PATH FILE...``.

    Its messages contain no temporary path.

    Args:
        module: Module inside the package, see `run_module`.
        engine: Name in `ENGINES`.
        artefact: File of the engine's kind.
        inputs: Inputs of one call.
        threads: Number of CPU threads.
        seconds: Time limit, after which it is killed.
        environment: Variables added to those of this process.

    Raises:
        subprocess.TimeoutExpired: The time limit was reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "inputs.npz"
        np.savez(arrays, *inputs)
        files = [str(file.absolute()) for file in (artefact.path, *artefact.files)]
        environment = {"OMP_NUM_THREADS": str(threads), **environment}
        done = run_module(module, engine, str(threads), str(arrays), *files, seconds=seconds, environment=environment)
    done.stderr = without_folder(done.stderr, folder)
    return done


def crash_of(engine: str, artefact: Artefact, inputs: Sequence[np.ndarray], *, name: str | None = None) -> str | None:
    """Return how a child process crashed on ``artefact``; ``None`` if it did not.

    A Python exception does not count as a crash: it is raised again when this process runs the file.

    Args:
        engine: Name in `ENGINES` of an installed engine.
        artefact: File of the engine's kind.
        inputs: Inputs of one call, one array each.
        name: Name of the file in the message; ``None`` for its own.
    """
    shown = name or artefact.path.name
    try:
        done = run_engine_child(
            "benchmark.crash_probe", engine, artefact, inputs, threads=1, seconds=_SECONDS, environment={}
        )
    except subprocess.TimeoutExpired:
        return f"{engine} did not load and run {shown} in {_SECONDS} s"
    if done.returncode in (0, _FAILED):
        return None
    why = last_words(done) if done.returncode < 0 else f"it ended with {done.returncode}"
    if -done.returncode == getattr(signal, "SIGKILL", None):
        why += ", perhaps for lack of memory"
    return f"{engine} crashed on {shown}: {why}. The file is damaged, or the engine has a fault that this file meets"


def file_and_inputs(arrays: str, path: str, *files: str) -> tuple[Artefact, list[np.ndarray]]:
    """Parse the last arguments of `run_engine_child` in the child.

    Args:
        arrays: Path of the inputs.
        path: Path of the artefact.
        files: All files of the artefact.
    """
    with np.load(arrays) as stored:
        inputs = [stored[key] for key in stored.files]
    artefact = SimpleNamespace(path=Path(path), files=tuple(map(Path, files)))
    return artefact, inputs  # type: ignore[return-value]  # the attributes that engines read
