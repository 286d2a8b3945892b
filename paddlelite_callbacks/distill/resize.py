"""Resize a teacher's maps and sequences to the student's size."""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import Tensor

from paddlelite_callbacks.nn.nested import full_precision

__all__ = ["MODES", "checked_resize", "differ_in_size", "resized_like"]

MODES = ("bilinear", "nearest")


def checked_resize(resize: str | None) -> str | None:
    """Validate ``resize``.

    Raises:
        ValueError: It is not one of `MODES` or ``None``.
    """
    if resize is not None and resize not in MODES:
        raise ValueError(
            f"resize must be one of {list(MODES)}, or None to reject maps of other sizes, got {resize!r}: use "
            "'bilinear' to bring the teacher's maps to the student's size."
        )
    return resize


def resized_like(x: Tensor, like: Tensor | list[int], resize: str | None, *, channels: int | None = None) -> Tensor:
    """Interpolate the teacher's ``x`` to the size of the student's ``like``.

    Maps ``[N, C, H, W]`` change height and width; sequences ``[N, L, C]`` their length, linearly in mode
    ``"bilinear"``. Other differences remain, for the loss to report.

    Args:
        x: Map or sequence of the teacher.
        like: Map or sequence of the student, or its shape.
        resize: ``"bilinear"``, ``"nearest"``, or ``None`` to leave ``x`` as it is.
        channels: Axis that keeps its size; ``None`` takes 1 for maps, the last for sequences.
    """
    wanted = [int(size) for size in (like.shape if isinstance(like, Tensor) else like)]
    if resize is None or not differ_in_size(list(x.shape), wanted, channels):
        return x
    axis = _channels(x.ndim, channels)
    first = [0, axis, *(i for i in range(1, x.ndim) if i != axis)]
    size = [wanted[i] for i in first[2:]]
    moved = full_precision(x).transpose(first)
    if x.ndim == 3:  # a map of one row
        moved, size = moved.unsqueeze(2), [1, *size]
    moved = F.interpolate(moved, size=size, mode=resize, align_corners=False)
    moved = moved.squeeze(2) if x.ndim == 3 else moved
    return moved.transpose([first.index(i) for i in range(x.ndim)])


def differ_in_size(x: list[int], like: list[int], channels: int | None = None) -> bool:
    """Whether two shapes differ only in spatial size.

    Args:
        x: First shape.
        like: Second shape.
        channels: As in `resized_like`.
    """
    if len(x) != len(like) or len(x) not in (3, 4):
        return False
    axis = _channels(len(x), channels)
    return x != like and all(x[i] == like[i] for i in (0, axis))


def _channels(axes: int, channels: int | None) -> int:
    return (1 if axes == 4 else axes - 1) if channels is None else channels % axes
