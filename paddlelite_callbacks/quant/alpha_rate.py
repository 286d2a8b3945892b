"""Give trained scales a learning rate in their own unit.

Optimizers that normalise gradients (Adam and its kin) move a parameter by about the learning rate, whatever its size:
far for a weight of 0.05, nothing for an ``alpha`` of 38. LSQ (Esser et al. 2020, arXiv:1902.08153, section 2.2)
balances the two by their relative movement; so do the rates here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paddle import Tensor

from paddlelite_callbacks.quant.functional import SMALLEST_ALPHA

__all__ = ["RELATIVE_RATE", "relative_rate"]

RELATIVE_RATE = 10.0  # as weights of 0.1 move, relative to their size


@contextmanager
def relative_rate(alpha: Tensor, scale: float) -> Iterator[None]:
    """Multiply the learning rate of ``alpha`` by its own size inside the block.

    A step of Adam moves it by ``scale * 10 * learning rate`` of its value: by 1 % at a learning rate of 1e-3. The
    factor follows the current value, so that a resumed training continues alike.

    Args:
        alpha: Parameter ``[1]``.
        scale: Factor on the rate, at least 0.
    """
    before = alpha.optimize_attr["learning_rate"]

    def follow(_: Tensor) -> None:
        alpha.optimize_attr["learning_rate"] = scale * RELATIVE_RATE * max(float(alpha), SMALLEST_ALPHA)

    hook = alpha.register_hook(follow)
    try:
        yield
    finally:
        hook.remove()
        alpha.optimize_attr["learning_rate"] = before
