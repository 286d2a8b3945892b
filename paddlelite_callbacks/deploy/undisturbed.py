"""Work inside the user's process that leaves no trace in it: random streams, thread counts, lines on the screen."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle

from paddlelite_callbacks.random_streams import same_random_streams

__all__ = ["hushed_stdout", "undisturbed"]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Give back the random streams (Python, NumPy, Paddle), OpenMP's thread count and the gradient mode as they were.

    Engines set the number of OpenMP threads for the whole process, data loaders draw their seeds.
    """
    threads = [(library, library.omp_get_max_threads()) for library in _openmp()]
    gradients = paddle.is_grad_enabled()
    try:
        with same_random_streams():
            yield
    finally:
        paddle.set_grad_enabled(gradients)
        for library, count in threads:
            library.omp_set_num_threads(count)


@contextlib.contextmanager
def hushed_stdout() -> Iterator[None]:
    """Keep what libraries print to the C-level standard output off the user's screen.

    oneDNN kernels print there past ``sys.stdout``. Other threads' prints of that time are swallowed too, so wrap
    single loads and calls only. Does nothing where the process has no standard output.
    """
    try:
        sys.stdout.flush()
        saved = os.dup(1)
    except (OSError, ValueError, AttributeError):
        yield
        return
    flush = _c_library().fflush  # printf keeps lines back when the output is a file or a pipe
    flush(None)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(saved, 1)
            os.close(saved)


def _c_library() -> Any:
    """Return the C library of this process; on Windows Python's own."""
    return ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)


def _openmp() -> list[Any]:
    """Return the OpenMP libraries of this process: Paddle brings its own beside the system's."""
    libraries = []
    for name in _loaded_openmp():
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(name)
            library.omp_get_max_threads()
            libraries.append(library)
    return libraries


def _loaded_openmp() -> list[str]:
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    paths = {line.rpartition(" ")[2].strip() for line in lines}
    return sorted(path for path in paths if "libgomp" in path or "libiomp5" in path or "libomp" in path)
