"""Check that a network can be compared with its files."""

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
_CLEAN = "Its inputs, the images of the first training batch, are not finite: clean the data."


def check_definite(network: Layer, sample: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Check that a network returns finite and repeatable outputs.

    Args:
        network: Network in eval mode; not changed.
        sample: Inputs, one array each.
        expected: Outputs of ``network`` for them.

    Raises:
        ExportError: No output tensor, NaN or infinite values (also in weights, which a ReLU may hide), or other outputs
            when called again.
    """
    whose = f"{type(network).__name__} in eval mode"
    if not expected:
        raise ExportError(f"{whose} returns no output, so there is nothing to export: let forward() return tensors.")
    broken = list(broken_tensors(network))
    if broken:
        raise ExportError(
            f"{whose} has weights that are not finite: {broken[:5]} ({len(broken)} in all). Nothing was exported: "
            "go back to an earlier checkpoint."
        )
    for number, output in enumerate(expected):
        bad = int((~np.isfinite(output)).sum())
        if bad:
            finite = all(np.isfinite(item).all() for item in sample if item.dtype.kind == "f")
            raise ExportError(
                f"{whose} returns NaN or infinite values (output {number}: {bad} of {output.size}), so no file can "
                f"be compared with it, and none was exported. {_LOOK if finite else _CLEAN}"
            )
    with same_random_streams():
        for _ in range(2):  # a state that alternates shows in one of two calls
            random.random(), np.random.random(), paddle.rand([1])  # advance the random generators
            with paddle.no_grad():
                again = [item.numpy() for item in flat_outputs(network(*[paddle.to_tensor(item) for item in sample]))]
            check = compare_outputs(expected, again, engine="the network itself")
            if not check.passed:
                raise ExportError(
                    f"{whose} returns another output when it is called again with the same input (differs by "
                    f"{check.error or f'{check.max_abs_diff:.3g}'}), so no file can be compared with it. Look for "
                    "dropout or noise that eval mode does not disable, or a state that forward() changes: make it a "
                    "function of its inputs where network.training is False."
                )


def own_movement(network: Layer, sample: Sequence[np.ndarray]) -> float:
    """Return the largest output change when the input moves in the last bits of fp32.

    Args:
        network: Network in eval mode; not changed.
        sample: Inputs, one array each; the first is moved.
    """
    inputs = [paddle.to_tensor(item) for item in sample]

    def outputs() -> list[Tensor]:
        return flat_outputs(network(*inputs))

    return max(rounding_noise([network], outputs), default=0.0)
