"""Find the inputs that a network uses in eval mode.

A margin head (ArcFace), for instance, takes labels only in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.export.eval_copy import eval_outputs
from paddlelite_callbacks.export.signature import plain_signature_

__all__ = ["take_inputs_", "used_inputs"]


def used_inputs(network: Layer, inputs: Sequence[Tensor], expected: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the indices of the inputs that the output depends on in eval mode.

    All, where it depends on none.

    Args:
        network: Network; not changed.
        inputs: Real inputs.
        expected: Outputs of ``network`` for ``inputs``.
    """
    if len(inputs) == 1:
        return (0,)
    used = tuple(i for i in range(len(inputs)) if not _idle(network, inputs, i, expected))
    return used or tuple(range(len(inputs)))


def take_inputs_(network: Layer, inputs: Sequence[Tensor], used: Sequence[int]) -> None:
    """Reduce the inputs of ``network`` to those in ``used``, in place; pass a copy.

    Its forward() gets ``None`` for each of the others, or zeros where it does not accept ``None``.

    Args:
        network: Network in eval mode.
        inputs: All its inputs.
        used: Indices of `used_inputs`.
    """
    if len(used) == len(inputs):
        return
    expected = eval_outputs(network, inputs)
    kept = [inputs[i] for i in used]
    if list(used) == list(range(len(used))) and _gives(network, kept, expected):
        return  # the others come last and are optional
    nothing: list[Any] = [None] * len(inputs)
    for i in set(range(len(inputs))) - set(used):
        changed = [*inputs[:i], None, *inputs[i + 1 :]]
        if not _gives(network, changed, expected):
            nothing[i] = np.zeros([1, *inputs[i].shape[1:]], inputs[i].numpy().dtype)
    plain_signature_(network, len(used), places=used, others=nothing)


def _idle(network: Layer, inputs: Sequence[Tensor], i: int, expected: Sequence[np.ndarray]) -> bool:
    """Whether the output stays bit for bit the same for other values of input ``i``."""
    others = [*_other_values(inputs[i])]
    return all(_gives(network, [*inputs[:i], other, *inputs[i + 1 :]], expected) for other in others)


def _other_values(value: Tensor) -> list[Tensor]:
    zeros, ones = paddle.zeros_like(value), paddle.ones_like(value)
    if value.is_floating_point():
        return [zeros, ones, value * -3 + 1]
    return [zeros, ones]


def _gives(network: Layer, inputs: Sequence[Any], expected: Sequence[np.ndarray]) -> bool:
    try:
        got = eval_outputs(network, inputs)
    except Exception:  # None, or a label out of range: the input is read
        return False
    return len(got) == len(expected) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(got, expected, strict=True)
    )
