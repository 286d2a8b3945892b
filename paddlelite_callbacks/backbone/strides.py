"""Handle strides of maps: an integer for both axes, or ``(height, width)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddlelite_callbacks.utils.numbers import is_whole

__all__ = ["Stride", "checked_stride", "coarseness", "stride_between"]

Stride = int | tuple[int, int]

_STEPS = (1, 2, 4, 8, 16, 32, 64)  # along one axis


def stride_between(image: Sequence[int], size: Sequence[int]) -> Stride | None:
    """Return the stride from image to map; ``None`` unless 1, 2, 4, ... 64 per axis.

    Args:
        image: Image size ``(height, width)``.
        size: Map size; a side may be rounded up.
    """
    steps = [_step(int(whole), int(part)) for whole, part in zip(image, size, strict=True)]
    if None in steps:
        return None
    height, width = (step for step in steps if step is not None)
    return height if height == width else (height, width)


def checked_stride(value: Any) -> Stride:
    """Validate a stride: an integer or a pair.

    Args:
        value: Integer, or a pair ``(height, width)`` of integers.

    Raises:
        ValueError: It is neither.
    """
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, (tuple, list)) else []
    if len(pair) != 2 or not all(is_whole(side, 1) for side in pair):
        raise ValueError(
            f"A stride must be a whole number of at least 1, or a pair (height, width) of them, got {value!r}: "
            "write 16, or (32, 1)."
        )
    return pair[0] if pair[0] == pair[1] else (pair[0], pair[1])


def coarseness(stride: Stride) -> tuple[int, int]:
    """Return a sort key from fine to coarse strides.

    Args:
        stride: Stride; those that merge more pixels come later.
    """
    height, width = (stride, stride) if isinstance(stride, int) else stride
    return height * width, height


def _step(whole: int, part: int) -> int | None:
    return next((step for step in _STEPS if -(-whole // step) == part), None)
