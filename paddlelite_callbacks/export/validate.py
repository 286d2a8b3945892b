"""Refuse a network that no file could be held against."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.tolerance import rounding_noise
from paddlelite_callbacks.nn.nested import flat_outputs
from paddlelite_callbacks.nn.surgery import broken_tensors
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = ["check_definite", "own_movement"]

_LOOK = "Its weights and inputs are finite: look for a division, logarithm or root in forward()."
_CLEAN = "The images of the first training batch, which it was called with, are not finite: clean the data."


def check_definite(network: Layer, sample: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Raise where a network gives nothing that its files could be held against.

    Args:
        network: in eval mode; not changed.
        sample: its inputs, one array each.
        expected: what it gave for them.

    Raises:
        ExportError: it gives no tensor, NaN or infinite values (or holds such weights, which a ReLU may hide), or
            something else when it is called again.
    """
    whose = f"{type(network).__name__} in eval mode"
    if not expected:
        raise ExportError(f"{whose} gives no output, so there is nothing to export: let forward() return tensors.")
    broken = list(broken_tensors(network))
    if broken:
        raise ExportError(
            f"{whose} has weights that are not finite: {broken[:5]} ({len(broken)} in all). Nothing is handed out: go "
            "back to an earlier checkpoint."
        )
    for number, output in enumerate(expected):
        bad = int((~np.isfinite(output)).sum())
        if bad:
            finite = all(np.isfinite(item).all() for item in sample if item.dtype.kind == "f")
            raise ExportError(
                f"{whose} gives NaN or infinite values itself (output {number}: {bad} of {output.size}), so no file "
                f"can be held against it, and none is handed out. {_LOOK if finite else _CLEAN}"
            )
    with same_random_streams():
        for _ in range(2):  # a state that changes back and forth shows in one of two calls
            random.random(), np.random.random(), paddle.rand([1])  # other numbers than in the first call
            with paddle.no_grad():
                again = [item.numpy() for item in flat_outputs(network(*[paddle.to_tensor(item) for item in sample]))]
            check = compare_outputs(expected, again, engine="the network itself")
            if not check.passed:
                raise ExportError(
                    f"{whose} gives another output when it is called again with the same input (it differs by "
                    f"{check.error or f'{check.max_abs_diff:.3g}'}), so no file can be held against it. Is there "
                    "dropout or noise that eval mode does not stop, or a state that forward() changes? Make it a "
                    "function of its inputs where network.training is False."
                )


def own_movement(network: Layer, sample: Sequence[np.ndarray]) -> float:
    """Return the largest change of any output when the network's first input moves in the last bits of fp32.

    Args:
        network: in eval mode; not changed.
        sample: its inputs, one array each.
    """
    inputs = [paddle.to_tensor(item) for item in sample]

    def outputs() -> list[Tensor]:
        return flat_outputs(network(*inputs))

    return max(rounding_noise([network], outputs), default=0.0)
