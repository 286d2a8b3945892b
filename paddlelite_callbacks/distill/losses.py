"""Distillation losses: pure functions of the student's and the teacher's output; the teacher's is detached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddlelite_callbacks.errors import near_names

__all__ = [
    "LOSSES",
    "DistillLoss",
    "check_temperature",
    "class_axis",
    "jsdiv",
    "kl",
    "l1",
    "loss_for_task",
    "mse",
    "named_loss",
    "same_shape",
    "smooth_l1",
    "sum_over_outputs",
]

DistillLoss = Callable[[Tensor, Tensor], Tensor]


def kl(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, axis: int | None = None) -> Tensor:
    """``T² KL(softmax(t / T) ‖ softmax(s / T))``, mean over all but the class axis (Hinton 2015, arXiv:1503.02531).

    Args:
        student: logits ``[N, C]``, ``[N, L, C]`` or maps ``[N, C, H, W]``; gradients flow.
        teacher: logits of the same shape; detached here.
        temperature: ``T > 0``; the factor ``T²`` keeps the gradient's size independent of it.
        axis: of the classes; ``None``: 1 for maps (four and more axes), else the last.

    Returns:
        Scalar, nats. On the CPU Paddle's softmax ends at ``exp(-64)``: logits further below the largest count as that.

    Raises:
        ValueError: the shapes differ or are no class scores, or ``temperature`` is not positive.
    """
    axis = class_axis(student.shape, axis)
    log_p, log_q = _log_probabilities(student, teacher, temperature, axis)
    return _kl(log_q, log_p, axis) * temperature**2


def jsdiv(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, axis: int | None = None) -> Tensor:
    """``T² (KL(q ‖ p) + KL(p ‖ q)) / 2`` with ``p = softmax(s / T)``, ``q = softmax(t / T)``.

    The symmetrised divergence (Jeffreys) that PaddleClas names ``JSDIV``, in its ``DistillationDMLLoss`` too
    (Zhang 2018, arXiv:1706.00384). The Jensen-Shannon divergence against the mean of the two is a different one.

    Args:
        student: logits ``[N, C]``, ``[N, L, C]`` or maps ``[N, C, H, W]``; gradients flow.
        teacher: logits of the same shape; detached here.
        temperature: ``T > 0``.
        axis: of the classes, see `kl`.

    Returns:
        Scalar, nats; mean over all but the class axis.

    Raises:
        ValueError: the shapes differ or are no class scores, or ``temperature`` is not positive.
    """
    axis = class_axis(student.shape, axis)
    log_p, log_q = _log_probabilities(student, teacher, temperature, axis)
    return 0.5 * (_kl(log_q, log_p, axis) + _kl(log_p, log_q, axis)) * temperature**2


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean((s - t)²)`` over all elements; any equal shapes, ``teacher`` detached (the guide's ``l2``).

    Args:
        student: any shape; gradients flow.
        teacher: the same shape; detached here.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student, teacher)
    return F.mse_loss(student, teacher.detach())


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean(|s - t|)`` over all elements; any equal shapes, ``teacher`` detached.

    Args:
        student: any shape; gradients flow.
        teacher: the same shape; detached here.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student, teacher)
    return F.l1_loss(student, teacher.detach())


def smooth_l1(student: Tensor, teacher: Tensor, *, delta: float = 1.0) -> Tensor:
    """``mean(h(s - t))``, ``h(d) = d²/2`` for ``|d| < delta`` and ``delta |d| - delta²/2`` beyond (Huber).

    Args:
        student: any shape; gradients flow.
        teacher: the same shape; detached here.
        delta: where the square turns into a line, in units of the output.

    Raises:
        ValueError: the shapes differ, or ``delta`` is not positive.
    """
    same_shape(student, teacher)
    if delta <= 0:
        raise ValueError(f"delta must be positive, got {delta}: leave it out for 1, the usual Huber loss.")
    return F.smooth_l1_loss(student, teacher.detach(), delta=delta)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "kl": kl,
    "jsdiv": jsdiv,
    "mse": mse,
    "l2": mse,
    "l1": l1,
    "smooth_l1": smooth_l1,
}

_TEMPERED = ("kl", "jsdiv")


def named_loss(name: str, *, temperature: float | None = None) -> DistillLoss:
    """Return the loss ``name`` of `LOSSES` (case does not matter: the guide writes ``JSDIV``).

    Args:
        name: a key of `LOSSES`.
        temperature: for ``kl`` and ``jsdiv``; ``None`` takes the loss's own default.

    Raises:
        ValueError: no such loss, a temperature that is not positive, or one for a loss that has none.
    """
    key = name.lower()
    if key not in LOSSES:
        raise ValueError(f"No distillation loss {name!r}; near names: {near_names(key, LOSSES)}, or pass a callable.")
    if temperature is None:
        return LOSSES[key]
    if key not in _TEMPERED:
        raise ValueError(f"The loss {key!r} has no temperature; only {list(_TEMPERED)} have. Leave it out.")
    check_temperature(temperature)
    return lambda student, teacher: LOSSES[key](student, teacher, temperature=temperature)


def loss_for_task(task_loss: Any) -> str:
    """Choose by the task's loss: ``kl`` for classes, ``bce`` for independent labels, ``mse`` for regressions.

    Args:
        task_loss: what ``model.prepare(loss=...)`` was given.

    Raises:
        ValueError: it cannot be told from this loss; names what to pass.
    """
    if isinstance(task_loss, (paddle.nn.CrossEntropyLoss, paddle.nn.CTCLoss)):
        return "kl"
    if isinstance(task_loss, (paddle.nn.BCEWithLogitsLoss, paddle.nn.MultiLabelSoftMarginLoss)):
        return "bce"
    if isinstance(task_loss, (paddle.nn.MSELoss, paddle.nn.L1Loss, paddle.nn.SmoothL1Loss)):
        return "mse"
    raise ValueError(
        f"Cannot tell from the task loss {getattr(task_loss, '__name__', type(task_loss).__name__)} whether the "
        "outputs are class scores or regressions: pass loss='kl' (or 'jsdiv') for class scores, loss='bce' for several "
        "labels an image, loss='mse' (or 'l1', 'smooth_l1') for regressions, or a callable (student, teacher) -> "
        "scalar."
    )


def sum_over_outputs(loss: DistillLoss, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum ``loss`` over pairs of outputs in their order.

    Args:
        loss: of one pair.
        student: the student's outputs.
        teacher: the teacher's, as many.

    Raises:
        ValueError: the networks give different numbers of outputs.
    """
    if len(student) != len(teacher):
        raise ValueError(
            f"The student gives {len(student)} outputs {_shapes(student)}, the teacher {len(teacher)} "
            f"{_shapes(teacher)}: distillation pairs them in order, so the numbers must be equal. Give lists of the "
            "same length, or the pairs that you want."
        )
    return paddle.add_n([loss(s, t) for s, t in zip(student, teacher, strict=True)])


def class_axis(shape: Sequence[int], axis: int | None = None) -> int:
    """Return the axis of the classes, counted from 0.

    Args:
        shape: of the class scores.
        axis: as given; ``None`` takes 1 for maps ``[N, C, H, W]`` (Paddle's layout), else the last one.

    Raises:
        ValueError: there is no such axis beside the batch, or it holds fewer than two classes, over which every softmax
            is 1 and every divergence 0.
    """
    shape = list(shape)
    found = (1 if len(shape) >= 4 else len(shape) - 1) if axis is None else axis % max(len(shape), 1)
    if len(shape) < 2 or found == 0 or shape[found] < 2:
        raise ValueError(
            f"Class scores are [N, C], [N, L, C] or [N, C, H, W] with at least two classes, got {shape} (class axis "
            f"{found}): take loss='bce' for yes-or-no scores, 'mse', 'l1' or 'smooth_l1' for regressions."
        )
    return found


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float, axis: int) -> tuple[Tensor, Tensor]:
    same_shape(student, teacher)
    check_temperature(temperature)
    log_p = F.log_softmax(student / temperature, axis=axis)
    log_q = F.log_softmax(teacher.detach() / temperature, axis=axis)
    return log_p, log_q


def _kl(log_a: Tensor, log_b: Tensor, axis: int) -> Tensor:
    """``KL(a ‖ b)``: sum over the axis of the classes, mean over the others."""
    return (log_a.exp() * (log_a - log_b)).sum(axis=axis).mean()


def same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse a pair of different shapes.

    Args:
        student: what the student gives.
        teacher: what the teacher gives.

    Raises:
        TypeError: one of them is no tensor.
        ValueError: names both shapes.
    """
    for who, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{who} must be a paddle.Tensor, got {type(value).__name__}: paddle.to_tensor makes one.")
    if list(student.shape) != list(teacher.shape):
        raise ValueError(
            f"The student's output {list(student.shape)} and the teacher's {list(teacher.shape)} must have the same "
            "shape: give both the same number of classes or outputs, or distil with a callable that bridges them."
        )


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive.

    Raises:
        ValueError: names it.
    """
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be positive, got {temperature!r}: a finite number, or None for the loss's own default."
        )


def _shapes(outputs: Sequence[Tensor]) -> list[list[int]]:
    return [list(output.shape) for output in outputs]
