"""Choose parameter dtypes of layers that are added beside a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import paddle
from paddle import Tensor
from paddle.nn import Layer

__all__ = ["cast_to_", "default_dtype", "parameter_dtype"]


def parameter_dtype(x: Tensor) -> str:
    """Return the parameter dtype for inputs ``x``: float64 for float64, else float32."""
    return "float64" if x.dtype == paddle.float64 else "float32"


@contextmanager
def default_dtype(dtype: str) -> Iterator[None]:
    """Set Paddle's default dtype inside the block."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        yield
    finally:
        paddle.set_default_dtype(before)


def cast_to_(layer: Layer, dtype: str) -> None:
    """Cast an untrained layer's parameters to ``dtype``.

    Args:
        layer: Layer; changed in place.
        dtype: ``"float32"`` or ``"float64"``.
    """
    if any(str(item.dtype) != f"paddle.{dtype}" for item in layer.parameters()):
        layer.to(dtype=dtype)
