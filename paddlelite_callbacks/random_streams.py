"""Random numbers that are drawn without the user's own streams noticing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle

__all__ = ["same_random_streams"]


@contextmanager
def same_random_streams() -> Iterator[None]:
    """Put the random states of Paddle (CPU and devices), NumPy and Python back at the end of the block."""
    numpys, pythons = np.random.get_state(), random.getstate()
    states, device_states = paddle.get_rng_state(), paddle.get_cuda_rng_state()
    try:
        yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)
        paddle.set_rng_state(states)
        if device_states:
            paddle.set_cuda_rng_state(device_states)
