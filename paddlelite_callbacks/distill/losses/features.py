"""Define distillation losses on features and dense outputs, and projections.

The teacher's side is detached.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.nn import Conv2D, Layer, Linear

from paddlelite_callbacks.distill.losses.logits import check_temperature
from paddlelite_callbacks.nn.nested import check_same_shape

__all__ = [
    "Projection",
    "attention",
    "attention_map",
    "check_projectable",
    "cwd",
    "fitnet",
    "heatmap_mse",
    "projection_for",
    "resized",
    "rkd",
]

_TINY = 1e-12


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the hint loss of FitNets (Romero 2015, arXiv:1412.6550).

    ``mean((s - t)²) / 2`` over all elements.

    The paper's regressor is the projection before it, where the shapes differ. The paper sums; the mean makes the
    weight independent of the size of the map.

    Args:
        student: Any shape; gradients flow.
        teacher: The same shape; detached here.

    Raises:
        ValueError: The shapes differ.
    """
    check_same_shape(student, teacher)
    return 0.5 * F.mse_loss(student, teacher.detach())


def cwd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Compute channel-wise distillation (Shu 2021, arXiv:2011.13256).

    ``T² / (N C) Σ_n Σ_c KL(φ(t_nc) ‖ φ(s_nc))``.

    ``φ`` is the softmax of a channel over its positions: it compares where a channel responds, not how much. For
    segmentation logits, heat maps and feature maps.

    Args:
        student: ``[N, C, ...]`` with at least one axis of positions; gradients flow.
        teacher: The same shape; detached here.
        temperature: Temperature ``T > 0``.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: The shapes differ or have no positions, or ``temperature`` is not positive.
    """
    check_same_shape(student, teacher)
    check_temperature(temperature)
    if student.ndim < 3:
        raise ValueError(f"cwd needs maps [N, C, positions...], got {list(student.shape)}: use 'kl' for logits.")
    log_p = F.log_softmax(student.flatten(2) / temperature, axis=-1)
    log_q = F.log_softmax(teacher.detach().flatten(2) / temperature, axis=-1)
    return (log_q.exp() * (log_q - log_p)).sum(axis=-1).mean() * temperature**2


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute attention transfer (Zagoruyko 2017, arXiv:1612.03928).

    ``mean((Q(s) - Q(t))²)``.

    ``Q(x)`` is ``mean over channels of x²``, flattened and divided by its Euclidean norm. Squared and averaged over
    samples and positions as in the authors' code; the paper has the norm itself.

    Args:
        student: ``[N, C, ...]``; gradients flow.
        teacher: ``[N, C', ...]`` with the same positions; channels may differ; detached here.

    Raises:
        ValueError: The positions differ.
    """
    if student.ndim < 3 or [student.shape[0], *student.shape[2:]] != [teacher.shape[0], *teacher.shape[2:]]:
        raise ValueError(
            f"attention needs maps [N, channels, positions...] of the same positions, got {list(student.shape)} and "
            f"{list(teacher.shape)}: choose layers that return maps; features= resizes them where their sizes differ."
        )
    return F.mse_loss(attention_map(student), attention_map(teacher.detach()))


def attention_map(x: Tensor) -> Tensor:
    """Return the mean over channels of ``x²`` as ``[N, positions]`` of norm 1.

    Args:
        x: Maps ``[N, C, positions...]``.
    """
    energy = (x * x).mean(axis=1).flatten(1)
    return energy / ((energy * energy).sum(axis=1, keepdim=True) + _TINY**2).sqrt()


def rkd(student: Tensor, teacher: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Compute relational distillation (Park 2019, arXiv:1904.05068).

    ``distance L_D + angle L_A``.

    ``L_D``: Huber loss (delta 1) of the pairs' Euclidean distances, each network's divided by its mean over pairs of
    different samples. ``L_A``: Huber loss of the cosines of the angles ``i-j-k``. Means over all ``N²`` pairs and
    ``N³`` triplets, as in the authors' code. Widths may differ: no projection is needed.

    Args:
        student: ``[N, ...]``, flattened after the first axis; gradients flow. ``N >= 2``.
        teacher: ``[N, ...]``; detached here.
        distance: Weight of ``L_D``.
        angle: Weight of ``L_A``; 0 saves memory of order ``N³``.

    Raises:
        ValueError: The batch sizes differ.
    """
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"rkd needs the same samples, got batches of {student.shape[0]} and {teacher.shape[0]}: run both "
            "networks on the same inputs."
        )
    s, t = student.flatten(1), teacher.detach().flatten(1)
    total = distance * F.smooth_l1_loss(_relative_distances(s), _relative_distances(t))
    return total if angle == 0 else total + angle * F.smooth_l1_loss(_angles(s), _angles(t))


def _relative_distances(x: Tensor) -> Tensor:
    apart = x.unsqueeze(0) - x.unsqueeze(1)
    squares = (apart * apart).sum(axis=-1)
    different = 1 - paddle.eye(x.shape[0], dtype=x.dtype)
    # sqrt has no gradient at 0, on the diagonal (and for duplicates): clip stops it, the mask removes their value
    distances = paddle.clip(squares, min=_TINY).sqrt() * different
    mean = distances.sum() / max(x.shape[0] * (x.shape[0] - 1), 1)
    return distances / paddle.clip(mean, min=_TINY)


def _angles(x: Tensor) -> Tensor:
    apart = x.unsqueeze(0) - x.unsqueeze(1)  # [j, i]: from j to i
    units = apart / paddle.clip((apart * apart).sum(axis=-1, keepdim=True), min=_TINY).sqrt()
    return paddle.bmm(units, units.transpose([0, 2, 1]))


def heatmap_mse(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Compute the MSE of heat maps, masked by the labels' target weights.

    ``mean((w s - w t)²) / 2``.

    The weighting of the keypoint losses (Xiao 2018, arXiv:1804.06208; PaddleDetection's ``KeyPointMSELoss``), with the
    teacher's maps as targets: a joint without a label in an image does not count.

    Args:
        student: Heat maps ``[N, K, H, W]``; gradients flow.
        teacher: The same shape; detached here.
        label: Target weights ``w``, ``[N, K]`` or ``[N, K, 1]``; usually 0 or 1.

    Returns:
        Scalar; mean over all elements, masked ones included.

    Raises:
        ValueError: Shapes that do not match.
    """
    check_same_shape(student, teacher)
    if student.ndim != 4 or label.size != student.shape[0] * student.shape[1]:
        raise ValueError(
            f"heatmap_mse needs maps [N, K, H, W] and target weights [N, K], got {list(student.shape)} and "
            f"{list(label.shape)}: choose the label with OutputTerm('heatmap_mse', label=...)."
        )
    weight = label.reshape([student.shape[0], student.shape[1], 1, 1]).astype(student.dtype)
    return 0.5 * F.mse_loss(student * weight, teacher.detach() * weight)


class Projection(Layer):
    """Regression from a student's feature to the teacher's (arXiv:1412.6550).

    Maps ``[N, C, H, W]`` go through a 1x1 convolution, then, if the sizes differ, through adaptive average pooling (to
    a smaller map) or bilinear interpolation (to a larger one). Vectors ``[N, C]`` and tokens ``[N, L, C]`` go through a
    linear layer.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's feature.
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
    """Build a `Projection` between two shapes.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's feature.
        what: Names of both layers, for the error message.

    Raises:
        ValueError: Shapes of different kinds, or token sequences of different lengths.
    """
    check_projectable(student, teacher, what)
    return Projection(student, teacher)


def check_projectable(student: list[int], teacher: list[int], what: str) -> None:
    """Check that a `Projection` can join two shapes.

    Args:
        student: Shape of the student's feature.
        teacher: Shape of the teacher's feature.
        what: Names of both layers, for the message.

    Raises:
        ValueError: It cannot; names both shapes.
    """
    same_kind = len(student) == len(teacher) and len(student) in (2, 3, 4)
    if not same_kind or (len(student) == 3 and student[1] != teacher[1]):
        raise ValueError(
            f"{what}: the student's feature {student} and the teacher's {teacher} cannot be bridged by a projection, "
            "which joins two vectors [N, C], two token sequences [N, L, C] of one length, or two maps [N, C, H, W]. "
            "Choose other layers, or give project= a layer of your own."
        )


def resized(x: Tensor, size: list[int]) -> Tensor:
    """Resize maps ``x``, ``[N, C, H, W]``, to ``size`` by pooling or interpolation."""
    if list(x.shape[2:]) == list(size):
        return x
    if all(new <= old for new, old in zip(size, x.shape[2:], strict=True)):
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
