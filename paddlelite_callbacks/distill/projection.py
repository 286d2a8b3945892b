"""Trainable projections from a student's feature to a teacher's shape."""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import Tensor
from paddle.nn import Conv2D, Layer, Linear

__all__ = ["Projection", "check_projectable", "projection_for", "resized"]


class Projection(Layer):
    """Regressor from a student's feature to the teacher's (FitNets, arXiv:1412.6550).

    Maps ``[N, C, H, W]`` go through a 1x1 convolution, then, if the sizes differ, through adaptive average pooling
    (to a smaller map) or bilinear interpolation (to a larger one). Vectors ``[N, C]`` and tokens ``[N, L, C]`` go
    through a linear layer.

    Args:
        student: shape of the student's feature.
        teacher: shape of the teacher's feature.
    """

    def __init__(self, student: list[int], teacher: list[int]) -> None:
        super().__init__()
        maps = len(student) == 4
        self.size = list(teacher[2:]) if maps and student[2:] != teacher[2:] else None
        channels = (student[1], teacher[1]) if maps else (student[-1], teacher[-1])
        self.channels = channels
        self.layer = Conv2D(*channels, 1, bias_attr=False) if maps else Linear(*channels, bias_attr=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` in the teacher's shape."""
        x = self.layer(x)
        return x if self.size is None else resized(x, self.size)


def projection_for(student: list[int], teacher: list[int], what: str) -> Projection:
    """Return a fresh `Projection` between two shapes.

    Args:
        student: shape of the student's feature.
        teacher: shape of the teacher's feature.
        what: names both layers, for the error message.

    Raises:
        ValueError: the shapes are of different kinds, or token sequences of different lengths.
    """
    check_projectable(student, teacher, what)
    return Projection(student, teacher)


def check_projectable(student: list[int], teacher: list[int], what: str) -> None:
    """Check that a `Projection` can join two shapes.

    Args:
        student: shape of the student's feature.
        teacher: shape of the teacher's feature.
        what: names both layers, for the message.

    Raises:
        ValueError: names both shapes.
    """
    same_kind = len(student) == len(teacher) and len(student) in (2, 3, 4)
    if not same_kind or (len(student) == 3 and student[1] != teacher[1]):
        raise ValueError(
            f"{what}: the student's feature {student} and the teacher's {teacher} cannot be bridged by a projection, "
            "which joins two vectors [N, C], two token sequences [N, L, C] of one length, or two maps [N, C, H, W]. "
            "Choose other layers, or give project= a layer of your own."
        )


def resized(x: Tensor, size: list[int]) -> Tensor:
    """Resize maps ``x`` ``[N, C, H, W]`` to ``size``: pool if smaller, interpolate if larger."""
    if list(x.shape[2:]) == list(size):
        return x
    if all(new <= old for new, old in zip(size, x.shape[2:], strict=True)):
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
