"""Run a file of unknown origin in a child process first: what kills an engine there cannot end this process.

A file may be damaged, or meet a fault of an engine, so that the engine ends by a segmentation fault, an abort, or takes
all memory: no exception says so. The child is this module, run by `run_module`: ``ENGINE THREADS INPUTS.npz PATH
FILE...``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from paddlelite_callbacks.benchmark.engine_child import file_and_inputs, run_engine_child
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.utils.child_process import last_words

if TYPE_CHECKING:
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["crash_of"]

_SECONDS = 300
_FAILED = 1  # of a child in which Python raised


def crash_of(engine: str, artefact: Artefact, inputs: Sequence[np.ndarray], *, name: str | None = None) -> str | None:
    """Return how a process ended that loaded and ran ``artefact`` once; ``None`` if it lived, whatever it computed.

    An exception is none of these ends: it says what happened, and will do so again.

    Args:
        engine: name in `ENGINES`, installed.
        artefact: of its kind.
        inputs: of one call.
        name: of the file in the message; ``None`` for its own.
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


def _child(name: str, threads: str, *given: str) -> None:
    artefact, inputs = file_and_inputs(*given)
    ENGINES[name].load(artefact, threads=int(threads))(inputs)


if __name__ == "__main__":
    _child(*sys.argv[1:])
