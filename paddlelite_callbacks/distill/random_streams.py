"""Random numbers that are drawn without the user's own streams noticing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import paddle

__all__ = ["same_random_streams"]


@contextmanager
def same_random_streams() -> Iterator[None]:
    """Put Paddle's random states (CPU and devices) back at the end of the block."""
    states, device_states = paddle.get_rng_state(), paddle.get_cuda_rng_state()
    try:
        yield
    finally:
        paddle.set_rng_state(states)
        if device_states:
            paddle.set_cuda_rng_state(device_states)
