"""Isolate work from the user's process: random generators, threads, output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import paddle

__all__ = [
    "RandomStreams",
    "beside_readers",
    "hushed_stdout",
    "openmp_libraries",
    "same_generators",
    "same_random_streams",
    "undisturbed",
]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restore random generators, OpenMP threads and gradient mode after the block.

    Engines set the number of OpenMP threads of the whole process, and data loaders draw seeds.
    """
    threads = [(library, library.omp_get_max_threads()) for library in openmp_libraries()]
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
    """Silence the C-level standard output inside the block.

    oneDNN kernels print there, bypassing ``sys.stdout``. Prints of other threads are lost meanwhile, so wrap only
    single loads and calls. Does nothing without a standard output.
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
    """Return the C library of this process."""
    return ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)


def openmp_libraries() -> list[Any]:
    """Return the OpenMP libraries of this process."""
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


_MOST = 10_000  # objects that are searched
_LONGEST = 1_000  # list that is searched


_beside_readers: ContextVar[bool] = ContextVar("_beside_readers", default=False)


@contextmanager
def same_random_streams() -> Iterator[None]:
    """Restore the random states of Paddle, NumPy and Python after the block."""
    states = _states()
    try:
        yield
    finally:
        _set_states((None, None, *states[2:]) if _beside_readers.get() else states)


@contextmanager
def beside_readers() -> Iterator[None]:
    """Make `same_random_streams` restore only Paddle's states inside the block.

    For blocks within an epoch that draw nothing from NumPy or Python: a data loader without workers reads ahead in a
    thread, and would repeat its draws.
    """
    token = _beside_readers.set(True)
    try:
        yield
    finally:
        _beside_readers.reset(token)


@contextmanager
def same_generators(root: Any) -> Iterator[None]:
    """Restore the random generators that ``root`` holds after the block.

    Args:
        root: Data set or transform, searched by attributes, lists and dictionaries for NumPy's and Python's generators.
    """
    undo = [_generator_undo(found) for found in _generators(root)]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


class RandomStreams:
    """Separate random states that continue from block to block."""

    def __init__(self) -> None:
        self._own: tuple[Any, ...] | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Draw from these states inside the block."""
        with same_random_streams():
            if self._own is not None:
                _set_states(self._own)
            try:
                yield
            finally:
                self._own = _states()


def _generators(root: Any) -> Iterator[Any]:
    waiting, seen = [root], set[int]()
    while waiting and len(seen) < _MOST:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (np.random.RandomState, np.random.Generator, random.Random)):
            yield item
        elif isinstance(item, (list, tuple)):
            waiting += item if len(item) <= _LONGEST else ()
        elif isinstance(item, dict):
            waiting += item.values() if len(item) <= _LONGEST else ()
        elif not isinstance(item, (type, ModuleType, paddle.Tensor)):
            waiting += getattr(item, "__dict__", {}).values()


def _generator_undo(found: Any) -> Callable[[], None]:
    if isinstance(found, np.random.Generator):
        state = found.bit_generator.state
        return lambda: setattr(found.bit_generator, "state", state)
    if isinstance(found, np.random.RandomState):
        return partial(found.set_state, found.get_state())
    return partial(found.setstate, found.getstate())


def _states() -> tuple[Any, ...]:
    return np.random.get_state(), random.getstate(), paddle.get_rng_state(), paddle.get_cuda_rng_state()


def _set_states(states: tuple[Any, ...]) -> None:
    numpys, pythons, paddles, devices = states
    if numpys is not None:
        np.random.set_state(numpys)
    if pythons is not None:
        random.setstate(pythons)
    paddle.set_rng_state(paddles)
    if devices:
        paddle.set_cuda_rng_state(devices)
