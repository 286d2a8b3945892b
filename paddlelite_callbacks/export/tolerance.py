"""Measure the tolerance of quantised outputs by perturbing their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

__all__ = ["bias_noise", "flip_noise", "middle_noise", "rounding_noise"]

_RELATIVE = 1e-6  # a few units in the last place of fp32, as another order of summation causes
_DRAWS = 3

Outputs = Sequence[Tensor]
Run = Callable[[], Outputs]


def rounding_noise(layers: Iterable[Layer], run: Run, *, seed: int = 0) -> list[float]:
    """Return the largest change of each output when inputs move in the last bits.

    A value next to a rounding threshold can fall on its other side in an engine that sums in another order, and then
    moves by a whole quantisation step; deep networks amplify this. So the tolerance of a float file does not hold for a
    quantised one: this measures how much the two may differ. The user's random generators are not changed.

    Args:
        layers: Quantised layers; their first input is moved by up to 1e-6 of its largest magnitude.
        run: Runs the network that holds them, in eval mode, always on the same inputs.
        seed: Seed of the perturbation.
    """
    return [largest for largest, _ in _changes(layers, run, _last_bits(seed), None)]


def middle_noise(
    layers: Iterable[Layer], run: Run, *, seed: int = 0, expected: Outputs | None = None
) -> list[tuple[float, float]]:
    """Return `rounding_noise` of each output, and the same of its median row.

    Args:
        layers: See `rounding_noise`.
        run: See `rounding_noise`.
        seed: Seed of the perturbation.
        expected: Outputs of ``run`` without perturbation; ``None`` runs it once more.
    """
    return _changes(layers, run, _last_bits(seed), expected)


def flip_noise(layers: Iterable[Layer], run: Run, *, seed: int = 0, expected: Outputs | None = None) -> list[float]:
    """Return the largest change of each output when one value per row flips.

    A random value of each row is moved by one quantisation step in all ``layers``. In small networks such a flip is so
    rare that `rounding_noise` may observe none while an engine causes one: a few rows may then differ by that much.

    Args:
        layers: Quantised layers, or their quantizers: objects with a ``step``, or with an ``activation_quanter`` that
            has one.
        run: See `rounding_noise`.
        seed: Seed of the choice.
        expected: Outputs of ``run`` without perturbation; ``None`` runs it once more.
    """
    random = np.random.RandomState(seed)

    def move(layer: Layer, x: Tensor) -> Tensor:
        return x + paddle.to_tensor(_one_a_row(x.shape, _step(layer), random))

    return [largest for largest, _ in _changes(layers, run, move, expected)]


def bias_noise(layers: Iterable[Layer], run: Run, *, seed: int = 0, expected: Outputs | None = None) -> list[float]:
    """Return the largest change of each output when biases move by half a step.

    ONNX Runtime rounds the float bias of a quantised convolution to multiples of the input's step times the weight's,
    which no quantizer simulates: for an 8-bit output that is little; with few bits, or a bias from a folded batch norm,
    it moves values over rounding thresholds.

    Args:
        layers: Quantised layers.
        run: See `rounding_noise`.
        seed: Seed of the perturbation.
        expected: Outputs of ``run`` without perturbation; ``None`` runs it once more.
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
        if not x.is_floating_point():  # token indices have no last bits
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
    """Return per output the largest change, and the largest of its median row.

    Args:
        layers: Layers whose first input, or, with ``behind``, whose output is moved.
        run: See `rounding_noise`.
        move: Returns the moved tensor.
        expected: Outputs of ``run`` without perturbation; ``None`` runs it once more.
        behind: Whether to move outputs instead of inputs.
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
