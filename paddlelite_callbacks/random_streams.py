"""Random numbers that are drawn without the user's own streams noticing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import paddle

__all__ = ["RandomStreams", "beside_readers", "same_generators", "same_random_streams"]

_MOST = 10_000  # objects that are looked through
_LONGEST = 1_000  # list that is


_beside_readers: ContextVar[bool] = ContextVar("_beside_readers", default=False)


@contextmanager
def same_random_streams() -> Iterator[None]:
    """Put the random states of Paddle (CPU and devices), NumPy and Python back at the end of the block."""
    states = _states()
    try:
        yield
    finally:
        _set_states((None, None, *states[2:]) if _beside_readers.get() else states)


@contextmanager
def beside_readers() -> Iterator[None]:
    """Let `same_random_streams` inside the block put back Paddle's states alone.

    For blocks in the middle of an epoch that draw nothing from NumPy or Python: a data loader without workers reads
    ahead in a thread, whose draws would be drawn again.
    """
    token = _beside_readers.set(True)
    try:
        yield
    finally:
        _beside_readers.reset(token)


@contextmanager
def same_generators(root: Any) -> Iterator[None]:
    """Put the random generators that ``root`` holds (a data set, its transforms) back at the end of the block.

    Args:
        root: looked through by its attributes, lists and dictionaries: NumPy's and Python's generators count.
    """
    undo = [_generator_undo(found) for found in _generators(root)]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


class RandomStreams:
    """Random states of one's own, which begin as the user's and go on from block to block."""

    def __init__(self) -> None:
        self._own: tuple[Any, ...] | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Draw from these inside the block; the user's are as before behind it."""
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
