"""How far a quantised network's output may move between two engines that are both right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

__all__ = ["rounding_noise"]

_RELATIVE = 1e-6  # a few units in the last place of fp32: what another order of summation changes
_DRAWS = 3


def rounding_noise(layers: Iterable[Layer], run: Callable[[], Sequence[Tensor]], *, seed: int = 0) -> list[float]:
    """Return, per output, the largest change when the inputs of ``layers`` move in the last bits of fp32.

    A value next to a rounding threshold falls on its other side in an engine that sums in another order, and then
    moves by a whole quantisation step; deep networks amplify this. So a quantised file cannot be held to the
    tolerance of a float one: this measures by how much the two may differ. The user's random streams stay untouched.

    Args:
        layers: the quantised ones; their first input is moved by up to 1e-6 of its largest magnitude.
        run: runs the network that holds them, in eval mode, always on the same inputs.
        seed: of the movement.
    """
    random = np.random.RandomState(seed)

    def move(_: Layer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = inputs
        wave = paddle.to_tensor(random.uniform(-_RELATIVE, _RELATIVE, x.shape).astype("float32"))
        return (x + wave * x.abs().max(), *others)

    with paddle.no_grad(), ExitStack() as scope:
        expected = run()
        for layer in layers:
            scope.callback(layer.register_forward_pre_hook(move).remove)
        draws = [[float((a - b).abs().max()) for a, b in zip(run(), expected, strict=True)] for _ in range(_DRAWS)]
    return [max(column) for column in zip(*draws, strict=True)]
