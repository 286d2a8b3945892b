"""Define distillation losses on outputs as pure functions.

The teacher's side is detached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddlelite_callbacks.nn.nested import check_same_shape
from paddlelite_callbacks.utils.numbers import check_number

__all__ = [
    "DistillLoss",
    "bce",
    "check_temperature",
    "class_axis",
    "dist",
    "dkd",
    "dml",
    "jsdiv",
    "kl",
    "l1",
    "loss_for_task",
    "mse",
    "smooth_l1",
]

DistillLoss = Callable[[Tensor, Tensor], Tensor]


def kl(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, axis: int | None = None) -> Tensor:
    """Compute the KL divergence at a temperature (Hinton 2015, arXiv:1503.02531).

    ``T² KL(softmax(t / T) ‖ softmax(s / T))``, mean over all but the class axis.

    Args:
        student: Logits ``[N, C]``, ``[N, L, C]`` or maps ``[N, C, H, W]``; gradients flow.
        teacher: Logits of the same shape; detached here.
        temperature: Temperature ``T > 0``; the factor ``T²`` keeps the gradient's size independent of it.
        axis: Class axis; ``None``: 1 for maps (four and more axes), else the last.

    Returns:
        Scalar, nats. Paddle's softmax on the CPU clips at ``exp(-64)``: logits further below the largest count as that.

    Raises:
        ValueError: The shapes differ or are not class scores, or ``temperature`` is not positive.
    """
    axis = class_axis(student.shape, axis)
    log_p, log_q = _log_probabilities(student, teacher, temperature, axis)
    return _kl(log_q, log_p, axis) * temperature**2


def jsdiv(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, axis: int | None = None) -> Tensor:
    """Compute the symmetrised KL divergence (Jeffreys) at a temperature.

    ``T² (KL(q ‖ p) + KL(p ‖ q)) / 2`` with ``p = softmax(s / T)``, ``q = softmax(t / T)``.

    PaddleClas calls it ``JSDIV``, also in its ``DistillationDMLLoss`` (Zhang 2018, arXiv:1706.00384). It is not the
    Jensen-Shannon divergence, which compares with the mean of both.

    Args:
        student: Logits ``[N, C]``, ``[N, L, C]`` or maps ``[N, C, H, W]``; gradients flow.
        teacher: Logits of the same shape; detached here.
        temperature: Temperature ``T > 0``.
        axis: Class axis, see `kl`.

    Returns:
        Scalar, nats; mean over all but the class axis.

    Raises:
        ValueError: The shapes differ or are not class scores, or ``temperature`` is not positive.
    """
    axis = class_axis(student.shape, axis)
    log_p, log_q = _log_probabilities(student, teacher, temperature, axis)
    return 0.5 * (_kl(log_q, log_p, axis) + _kl(log_p, log_q, axis)) * temperature**2


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared error, the guide's ``l2``.

    ``mean((s - t)²)`` over all elements.

    Args:
        student: Any shape; gradients flow.
        teacher: The same shape; detached here.

    Raises:
        ValueError: The shapes differ.
    """
    check_same_shape(student, teacher)
    return F.mse_loss(student, teacher.detach())


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean absolute error, ``mean(|s - t|)`` over all elements.

    Args:
        student: Any shape; gradients flow.
        teacher: The same shape; detached here.

    Raises:
        ValueError: The shapes differ.
    """
    check_same_shape(student, teacher)
    return F.l1_loss(student, teacher.detach())


def smooth_l1(student: Tensor, teacher: Tensor, *, delta: float = 1.0) -> Tensor:
    """Compute the Huber loss.

    ``mean(h(s - t))``, ``h(d) = d²/2`` for ``|d| < delta`` and ``delta |d| - delta²/2`` beyond.

    Args:
        student: Any shape; gradients flow.
        teacher: The same shape; detached here.
        delta: Transition from quadratic to linear, in units of the output.

    Raises:
        ValueError: The shapes differ, or ``delta`` is not positive.
    """
    check_same_shape(student, teacher)
    if delta <= 0:
        raise ValueError(f"delta must be positive, got {delta}: leave it out for 1, the usual Huber loss.")
    return F.smooth_l1_loss(student, teacher.detach(), delta=delta)


def loss_for_task(task_loss: Any) -> str:
    """Choose a loss by the task loss: ``kl``, ``bce`` or ``mse``.

    ``kl`` for classes, ``bce`` for independent labels, ``mse`` for regressions.

    Args:
        task_loss: Loss of ``model.prepare(loss=...)``.

    Raises:
        ValueError: This loss does not tell; names what to pass.
    """
    if isinstance(task_loss, (paddle.nn.CrossEntropyLoss, paddle.nn.CTCLoss)):
        return "kl"
    if isinstance(task_loss, (paddle.nn.BCEWithLogitsLoss, paddle.nn.MultiLabelSoftMarginLoss)):
        return "bce"
    if isinstance(task_loss, (paddle.nn.MSELoss, paddle.nn.L1Loss, paddle.nn.SmoothL1Loss)):
        return "mse"
    raise ValueError(
        f"Cannot tell from the task loss {getattr(task_loss, '__name__', type(task_loss).__name__)} whether the "
        "outputs are class scores or regressions: pass loss='kl' (or 'jsdiv') for class scores, loss='bce' for "
        "multi-label outputs, loss='mse' (or 'l1', 'smooth_l1') for regressions, or a callable (student, teacher) -> "
        "scalar."
    )


def class_axis(shape: Sequence[int], axis: int | None = None) -> int:
    """Return the class axis, counted from 0.

    Args:
        shape: Shape of the class scores.
        axis: Given axis; ``None`` takes 1 for maps ``[N, C, H, W]`` (Paddle's layout), else the last.

    Raises:
        ValueError: There is no such axis besides the batch, or it has fewer than two classes, over which every softmax
            is 1 and every divergence 0.
    """
    shape = list(shape)
    found = (1 if len(shape) >= 4 else len(shape) - 1) if axis is None else axis % max(len(shape), 1)
    if len(shape) < 2 or found == 0 or shape[found] < 2:
        raise ValueError(
            f"Class scores need a class axis of two and more, got {shape} with class axis {found}: use loss='bce' "
            "for binary scores, 'mse', 'l1' or 'smooth_l1' for regressions."
        )
    return found


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float, axis: int) -> tuple[Tensor, Tensor]:
    check_same_shape(student, teacher)
    check_temperature(temperature)
    log_p = F.log_softmax(student / temperature, axis=axis)
    log_q = F.log_softmax(teacher.detach() / temperature, axis=axis)
    return log_p, log_q


def _kl(log_a: Tensor, log_b: Tensor, axis: int) -> Tensor:
    """Compute ``KL(a ‖ b)``: sum over the class axis, mean over the others."""
    return (log_a.exp() * (log_a - log_b)).sum(axis=axis).mean()


def check_temperature(temperature: float) -> None:
    """Check that a temperature is positive.

    Raises:
        ValueError: It is not; names it.
    """
    if type(temperature) in (int, float) and 0 < temperature < math.inf:  # the usual case, in every batch
        return
    words, remedy = "a positive number or None", "leave it out for the loss's own default"
    check_number("temperature", temperature, lambda degrees: degrees > 0, words, remedy=remedy)


_TINY = 1e-12


def dml(student: Tensor, teacher: Tensor, *, axis: int | None = None) -> Tensor:
    """Compute the loss of deep mutual learning (Zhang 2018, arXiv:1706.00384).

    ``KL(softmax(t) ‖ softmax(s))``, mean over all but the class axis.

    It is `kl` at temperature 1. PaddleClas's ``DistillationDMLLoss`` is the symmetrised `jsdiv` instead.

    Args:
        student: Logits ``[N, C]``, ``[N, L, C]`` or maps ``[N, C, H, W]``, not regressions; gradients flow.
        teacher: Logits of the same shape (the peer's); detached here.
        axis: Class axis, see `kl`.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: The shapes differ.
    """
    return kl(student, teacher, temperature=1.0, axis=axis)


def bce(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Compute the binary KL divergence of each score, for multi-label outputs.

    ``T² mean KL(σ(t / T) ‖ σ(s / T))``.

    It is `kl` with a sigmoid instead of the softmax: binary cross entropy with the teacher's probabilities as labels,
    minus their entropy, so that it is 0 where both agree.

    Args:
        student: Logits of any shape; gradients flow.
        teacher: Logits of the same shape; detached here.
        temperature: Temperature ``T > 0``; the factor ``T²`` keeps the gradient's size independent of it.

    Returns:
        Scalar, nats; mean over all elements.

    Raises:
        ValueError: The shapes differ, or ``temperature`` is not positive.
    """
    check_same_shape(student, teacher)
    check_temperature(temperature)
    s, t = student / temperature, teacher.detach() / temperature
    q = F.sigmoid(t)
    yes, no = F.log_sigmoid(t) - F.log_sigmoid(s), F.log_sigmoid(-t) - F.log_sigmoid(-s)
    return (q * yes + (1 - q) * no).mean() * temperature**2


def dkd(
    student: Tensor,
    teacher: Tensor,
    label: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    axis: int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Compute decoupled distillation (Zhao 2022, arXiv:2203.08679).

    ``T² (alpha TCKD + beta NCKD)``.

    TCKD is the KL divergence of the two-way split (target class, any other); NCKD that of the distributions over the
    other classes. With ``alpha = 1`` and ``beta`` = the teacher's probability of the other classes, it is `kl`.

    The target class of a soft label (MixUp, CutMix, label smoothing) is its largest one, the first of equals, as in
    code that trains DKD or NKD (Yang 2023, arXiv:2303.13005) with MixUp (``label.max(1)[1]``); smoothed labels then
    have the value of hard ones. The paper has only hard labels.

    Args:
        student: Logits ``[N, C]``, ``[N, L, C]`` or maps ``[N, C, H, W]``, ``C >= 2``; gradients flow.
        teacher: Logits of the same shape; detached here.
        label: Class indices in the shape of the logits without their class axis (``[N]``, ``[N, 1]``, ``[N, H, W]``);
            or soft labels in the shape of the logits.
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
        temperature: Temperature ``T > 0``.
        axis: Class axis, see `kl`.
        ignore_index: Class of unlabelled positions, which do not count; nor do soft labels of zeros.

    Returns:
        Scalar, nats; mean over all labelled positions.

    Raises:
        ValueError: Shapes that do not match, or ``temperature`` is not positive.
    """
    check_same_shape(student, teacher)
    check_temperature(temperature)
    axis = class_axis(student.shape, axis)
    target, labelled = _target_classes(label, list(student.shape), axis, ignore_index)
    last = [i for i in range(student.ndim) if i != axis] + [axis]
    s, t = student.transpose(last) / temperature, teacher.detach().transpose(last) / temperature
    true = F.one_hot(target, s.shape[-1]).astype(s.dtype)
    log_p, log_q = F.log_softmax(s, axis=-1), F.log_softmax(t, axis=-1)
    target_kl = _target_kl(log_p, log_q, true)
    # The target class gets a score so low that it vanishes in the softmax over the others.
    log_p_others, log_q_others = (F.log_softmax(x - 1e4 * true, axis=-1) for x in (s, t))
    non_target = (log_q_others.exp() * (log_q_others - log_p_others) * (1 - true)).sum(axis=-1)
    weight = labelled.astype(s.dtype)
    return ((alpha * target_kl + beta * non_target) * weight).sum() / weight.sum().clip(min=1) * temperature**2


def _target_classes(label: Tensor, shape: list[int], axis: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the target class of every position, and a mask of labelled positions."""
    positions = shape[:axis] + shape[axis + 1 :]
    if list(label.shape) == shape:
        return label.argmax(axis=axis), (label != 0).any(axis=axis)
    if label.size != math.prod(positions) or label.shape[0] != shape[0]:
        raise ValueError(
            f"dkd needs one class index per row, got logits {shape} and labels {list(label.shape)}: give indices "
            f"{positions} or soft labels {shape}, or choose another label with OutputTerm('dkd', label=...)."
        )
    target = label.reshape(positions).astype("int64")
    labelled = target != ignore_index
    return paddle.where(labelled, target, paddle.zeros_like(target)), labelled


def _target_kl(log_p: Tensor, log_q: Tensor, true: Tensor) -> Tensor:
    """Compute the KL of the two-way distributions (target class, others), last axis."""
    q_true, q_others = (log_q.exp() * true).sum(axis=-1), (log_q.exp() * (1 - true)).sum(axis=-1)
    # logsumexp over the others keeps values near 0 that 1 - p would round away
    log_p_true, log_q_true = (log_p * true).sum(axis=-1), (log_q * true).sum(axis=-1)
    log_p_others, log_q_others = (paddle.logsumexp(x - 1e4 * true, axis=-1) for x in (log_p, log_q))
    return q_true * (log_q_true - log_p_true) + q_others * (log_q_others - log_p_others)


def dist(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Compute DIST, the correlation of class scores (Huang 2022, arXiv:2205.10536).

    ``T² (beta L_inter + gamma L_intra)``.

    ``L_inter = 1 - mean over samples of corr(p_n, q_n)`` over the classes, ``L_intra = 1 - mean over classes of
    corr(p_:c, q_:c)`` over the batch; Pearson's correlation of ``p = softmax(s / T)``, ``q = softmax(t / T)``. It
    transfers the teacher's ranking rather than its exact probabilities. The factor ``T²`` is that of the authors' code.

    Args:
        student: Logits ``[N, C]``; gradients flow. With a batch of one, relations within classes are undefined and
            count as uncorrelated.
        teacher: Logits ``[N, C]``; detached here.
        beta: Weight of the relations between classes.
        gamma: Weight of the relations within classes.
        temperature: Temperature ``T > 0``.

    Returns:
        Scalar between 0 and ``2 T² (beta + gamma)``.

    Raises:
        ValueError: The shapes differ or are not ``[N, C]``, or ``temperature`` is not positive.
    """
    check_same_shape(student, teacher)
    check_temperature(temperature)
    class_axis(student.shape)
    if student.ndim != 2:
        raise ValueError(f"dist needs logits [N, C], got {list(student.shape)}: flatten other axes, or use 'kl'.")
    p = F.softmax(student / temperature, axis=-1)
    q = F.softmax(teacher.detach() / temperature, axis=-1)
    between = 1 - _correlation(p, q, axis=1).mean()
    within = 1 - _correlation(p, q, axis=0).mean()
    return (beta * between + gamma * within) * temperature**2


def _correlation(a: Tensor, b: Tensor, *, axis: int) -> Tensor:
    """Compute Pearson's correlation along ``axis``."""
    a, b = a - a.mean(axis=axis, keepdim=True), b - b.mean(axis=axis, keepdim=True)
    norms = ((a * a).sum(axis=axis) * (b * b).sum(axis=axis) + _TINY**2).sqrt()
    return (a * b).sum(axis=axis) / norms
