"""Run a file of unknown origin in a child process first, as engines can crash.

A damaged file, or a fault of an engine, can end the process by a segmentation fault, an abort or lack of memory,
without an exception. The child is this module, run by `crash_of`: ``ENGINE THREADS INPUTS.npz PATH FILE...``.
"""

from __future__ import annotations

import sys

from paddlelite_callbacks.benchmark.engine_child import crash_of, file_and_inputs
from paddlelite_callbacks.benchmark.engines import ENGINES

__all__ = ["crash_of"]


def _child(name: str, threads: str, *given: str) -> None:
    artefact, inputs = file_and_inputs(*given)
    ENGINES[name].load(artefact, threads=int(threads))(inputs)


if __name__ == "__main__":
    _child(*sys.argv[1:])
