"""Random numbers that are drawn without the user's own streams noticing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle

__all__ = ["RandomStreams", "same_random_streams"]


@contextmanager
def same_random_streams() -> Iterator[None]:
    """Put the random states of Paddle (CPU and devices), NumPy and Python back at the end of the block."""
    states = _states()
    try:
        yield
    finally:
        _set_states(states)


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


def _states() -> tuple[Any, ...]:
    return np.random.get_state(), random.getstate(), paddle.get_rng_state(), paddle.get_cuda_rng_state()


def _set_states(states: tuple[Any, ...]) -> None:
    numpys, pythons, paddles, devices = states
    np.random.set_state(numpys)
    random.setstate(pythons)
    paddle.set_rng_state(paddles)
    if devices:
        paddle.set_cuda_rng_state(devices)
