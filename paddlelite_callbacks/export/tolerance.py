"""How far a quantised network's output may move between two engines that are both right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

__all__ = ["bias_noise", "flip_noise", "middle_noise", "rounding_noise"]

_RELATIVE = 1e-6  # a few units in the last place of fp32: what another order of summation changes
_DRAWS = 3

Outputs = Sequence[Tensor]
Run = Callable[[], Outputs]


def rounding_noise(layers: Iterable[Layer], run: Run, *, seed: int = 0) -> list[float]:
    """Return, per output, the largest change when the inputs of ``layers`` move in the last bits of fp32.

    A value next to a rounding threshold falls on its other side in an engine that sums in another order, and then
    moves by a whole quantisation step; deep networks amplify this. So a quantised file cannot be held to the
    tolerance of a float one: this measures by how much the two may differ. The user's random streams stay untouched.

    Args:
        layers: the quantised ones; their first input is moved by up to 1e-6 of its largest magnitude.
        run: runs the network that holds them, in eval mode, always on the same inputs.
        seed: of the movement.
    """
    return [largest for largest, _ in _changes(layers, run, _last_bits(seed), None)]


def middle_noise(
    layers: Iterable[Layer], run: Run, *, seed: int = 0, expected: Outputs | None = None
) -> list[tuple[float, float]]:
    """Return, per output, what `rounding_noise` does, and the same for the middle row (image) instead of the worst.

    Args:
        layers: see `rounding_noise`.
        run: see `rounding_noise`.
        seed: of the movement.
        expected: what ``run`` gives with nothing moved; ``None`` runs it once more.
    """
    return _changes(layers, run, _last_bits(seed), expected)


def flip_noise(layers: Iterable[Layer], run: Run, *, seed: int = 0, expected: Outputs | None = None) -> list[float]:
    """Return, per output, the largest change when one random value a row falls into the next step in all ``layers``.

    In small networks a fall is so rare that `rounding_noise` may see none, and yet an engine meets one: so much may a
    few rows then differ.

    Args:
        layers: the quantised ones, or their quantizers: what tells its ``step``, or has an ``activation_quanter``
            that does.
        run: see `rounding_noise`.
        seed: of the choice.
        expected: what ``run`` gives with nothing moved; ``None`` runs it once more.
    """
    random = np.random.RandomState(seed)

    def move(layer: Layer, x: Tensor) -> Tensor:
        return x + paddle.to_tensor(_one_a_row(x.shape, _step(layer), random))

    return [largest for largest, _ in _changes(layers, run, move, expected)]


def bias_noise(layers: Iterable[Layer], run: Run, *, seed: int = 0, expected: Outputs | None = None) -> list[float]:
    """Return, per output, the largest change when biases move by half a step of their int32 form.

    ONNX Runtime rounds the float bias of a quantised convolution to multiples of the input's step times the weight's,
    which no quantizer simulates: next to an 8-bit output that is little, with few bits or a bias from a folded batch
    norm it takes values over rounding thresholds.

    Args:
        layers: the quantised ones.
        run: see `rounding_noise`.
        seed: of the movement.
        expected: what ``run`` gives with nothing moved; ``None`` runs it once more.
    """
    random = np.random.RandomState(seed)

    def move(layer: Layer, y: Tensor) -> Tensor:
        steps = (layer.weight_quanter.steps(layer.weight) * _step(layer)).numpy().reshape(-1)
        last = not getattr(layer, "_data_format", "NHWC").startswith("NC")  # a Linear has none
        channels = y.shape[-1 if last else 1]
        half = np.resize(steps, channels) * random.choice([-0.5, 0.5], channels)
        return y + paddle.to_tensor(half.astype("float32")).reshape([-1] if last else [-1, *[1] * (y.ndim - 2)])

    return [largest for largest, _ in _changes(layers, run, move, expected, behind=True)]


def _last_bits(seed: int) -> Callable[[Layer, Tensor], Tensor]:
    random = np.random.RandomState(seed)

    def move(_: Layer, x: Tensor) -> Tensor:
        if not x.is_floating_point():  # of token numbers there are no last bits
            return x
        wave = paddle.to_tensor(random.uniform(-_RELATIVE, _RELATIVE, x.shape).astype("float32"))
        return x + wave * x.abs().max()

    return move


def _changes(
    layers: Iterable[Layer],
    run: Run,
    move: Callable[[Layer, Tensor], Tensor],
    expected: Outputs | None,
    *,
    behind: bool = False,
) -> list[tuple[float, float]]:
    """Return per output the largest change, and the largest over draws of the middle row's.

    Args:
        layers: whose first input, or, with ``behind``, whose output is moved.
        run: see `rounding_noise`.
        move: gives another one.
        expected: what ``run`` gives with nothing moved; ``None`` runs it once more.
        behind: see there.
    """

    def moved(layer: Layer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (move(layer, inputs[0]), *inputs[1:])

    def moved_behind(layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return move(layer, output)

    def hook(layer: Layer) -> Any:
        return layer.register_forward_post_hook(moved_behind) if behind else layer.register_forward_pre_hook(moved)

    with paddle.no_grad(), ExitStack() as scope:
        expected = run() if expected is None else expected
        for layer in layers:
            scope.callback(hook(layer).remove)
        draws = [[_by_row(a - b) for a, b in zip(run(), expected, strict=True)] for _ in range(_DRAWS)]
    columns = list(zip(*draws, strict=True))
    return [(float(np.max(rows)), max(float(np.median(row)) for row in rows)) for rows in columns]


def _by_row(change: Tensor) -> np.ndarray:
    values = np.abs(change.numpy())
    return values.reshape(len(values), -1).max(axis=1) if values.ndim else values.reshape(1)


def _step(layer: Layer) -> float:
    step = getattr(getattr(layer, "activation_quanter", None) or layer, "step", None)
    return 0.0 if step is None else float(step() if callable(step) else step)


def _one_a_row(shape: Sequence[int], step: float, random: np.random.RandomState) -> np.ndarray:
    moves = np.zeros((shape[0], int(np.prod(shape[1:]))), "float32")
    places = random.randint(moves.shape[1], size=shape[0])
    moves[np.arange(shape[0]), places] = random.choice([-step, step], size=shape[0])
    return moves.reshape(shape)
