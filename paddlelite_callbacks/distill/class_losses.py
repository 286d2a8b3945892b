"""Distillation losses on class scores: mutual, decoupled, and by relations; the teacher's side is detached."""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddlelite_callbacks.distill.losses import check_temperature, class_axis, kl, same_shape

__all__ = ["bce", "dist", "dkd", "dml"]

_TINY = 1e-12


def dml(student: Tensor, teacher: Tensor, *, axis: int | None = None) -> Tensor:
    """``KL(softmax(t) ‖ softmax(s))``, mean over all but the class axis (Zhang 2018, arXiv:1706.00384).

    The mimicry term of deep mutual learning: `kl` at temperature 1. PaddleClas's ``DistillationDMLLoss`` is the
    symmetrised `jsdiv` instead.

    Args:
        student: logits ``[N, C]``, ``[N, L, C]`` or maps ``[N, C, H, W]``, not regressions; gradients flow.
        teacher: logits of the same shape (the peer's); detached here.
        axis: of the classes, see `kl`.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: the shapes differ.
    """
    return kl(student, teacher, temperature=1.0, axis=axis)


def bce(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """``T² mean KL(σ(t / T) ‖ σ(s / T))``, each score a yes or no of its own: for multi-label outputs.

    `kl` with a sigmoid in place of the softmax: binary cross entropy with the teacher's probabilities as labels, less
    their entropy, so that it is 0 where the two agree.

    Args:
        student: logits of any shape; gradients flow.
        teacher: logits of the same shape; detached here.
        temperature: ``T > 0``; the factor ``T²`` keeps the gradient's size independent of it.

    Returns:
        Scalar, nats; mean over all elements.

    Raises:
        ValueError: the shapes differ, or ``temperature`` is not positive.
    """
    same_shape(student, teacher)
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
    """``T² (alpha TCKD + beta NCKD)``, decoupled distillation (Zhao 2022, arXiv:2203.08679).

    TCKD is the KL divergence of the two-way split (target class, any other); NCKD that of the distributions over the
    other classes alone. With ``alpha = 1`` and ``beta`` = the teacher's probability of the other classes, it is `kl`.

    The target class of a soft label (MixUp, CutMix, label smoothing) is its largest one, the first of equals: what
    code that trains DKD or NKD (Yang 2023, arXiv:2303.13005) with MixUp does, ``label.max(1)[1]``, and what gives
    smoothed labels the value of hard ones. The paper knows hard labels only.

    Args:
        student: logits ``[N, C]``, ``[N, L, C]`` or maps ``[N, C, H, W]``, ``C >= 2``; gradients flow.
        teacher: logits of the same shape; detached here.
        label: classes, integers in the shape of the logits without their class axis (``[N]``, ``[N, 1]``,
            ``[N, H, W]``); or soft labels in the very shape of the logits.
        alpha: weight of TCKD.
        beta: weight of NCKD.
        temperature: ``T > 0``.
        axis: of the classes, see `kl`.
        ignore_index: class that marks what is not labelled and teaches nothing; so do soft labels of zeros.

    Returns:
        Scalar, nats; mean over all that is labelled.

    Raises:
        ValueError: shapes that do not fit, or ``temperature`` is not positive.
    """
    same_shape(student, teacher)
    check_temperature(temperature)
    axis = class_axis(student.shape, axis)
    target, labelled = _target_classes(label, list(student.shape), axis, ignore_index)
    last = [i for i in range(student.ndim) if i != axis] + [axis]
    s, t = student.transpose(last) / temperature, teacher.detach().transpose(last) / temperature
    true = F.one_hot(target, s.shape[-1]).astype(s.dtype)
    log_p, log_q = F.log_softmax(s, axis=-1), F.log_softmax(t, axis=-1)
    target_kl = _target_kl(log_p, log_q, true)
    # The target class gets a score so low that it has no share in the softmax over the others.
    log_p_others, log_q_others = (F.log_softmax(x - 1e4 * true, axis=-1) for x in (s, t))
    non_target = (log_q_others.exp() * (log_q_others - log_p_others) * (1 - true)).sum(axis=-1)
    weight = labelled.astype(s.dtype)
    return ((alpha * target_kl + beta * non_target) * weight).sum() / weight.sum().clip(min=1) * temperature**2


def _target_classes(label: Tensor, shape: list[int], axis: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the target class of every position, and which positions have one."""
    positions = shape[:axis] + shape[axis + 1 :]
    if list(label.shape) == shape:
        return label.argmax(axis=axis), (label != 0).any(axis=axis)
    if label.size != math.prod(positions) or label.shape[0] != shape[0]:
        raise ValueError(
            f"dkd takes one class index per row, got logits {shape} and labels {list(label.shape)}: give indices "
            f"{positions} or soft labels {shape}, or choose another label with OutputTerm('dkd', label=...)."
        )
    target = label.reshape(positions).astype("int64")
    labelled = target != ignore_index
    return paddle.where(labelled, target, paddle.zeros_like(target)), labelled


def _target_kl(log_p: Tensor, log_q: Tensor, true: Tensor) -> Tensor:
    """KL of the two-way distributions (target class, others), along the last axis."""
    q_true, q_others = (log_q.exp() * true).sum(axis=-1), (log_q.exp() * (1 - true)).sum(axis=-1)
    # logsumexp over the others keeps figures near 0 that 1 - p would round away
    log_p_true, log_q_true = (log_p * true).sum(axis=-1), (log_q * true).sum(axis=-1)
    log_p_others, log_q_others = (paddle.logsumexp(x - 1e4 * true, axis=-1) for x in (log_p, log_q))
    return q_true * (log_q_true - log_p_true) + q_others * (log_q_others - log_p_others)


def dist(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """``T² (beta L_inter + gamma L_intra)``, DIST (Huang 2022, arXiv:2205.10536).

    ``L_inter = 1 - mean over samples of corr(p_n, q_n)`` over the classes, ``L_intra = 1 - mean over classes of
    corr(p_:c, q_:c)`` over the batch; Pearson's correlation of ``p = softmax(s / T)``, ``q = softmax(t / T)``. It
    asks for the teacher's ranking rather than its very probabilities. The factor ``T²`` is that of the authors' code.

    Args:
        student: logits ``[N, C]``; gradients flow. A batch of at least two, else the relations within classes are
            undefined and count as unrelated.
        teacher: logits ``[N, C]``; detached here.
        beta: weight of the relations between classes.
        gamma: weight of the relations within classes.
        temperature: ``T > 0``.

    Returns:
        Scalar between 0 and ``2 T² (beta + gamma)``.

    Raises:
        ValueError: the shapes differ or are not ``[N, C]``, or ``temperature`` is not positive.
    """
    same_shape(student, teacher)
    check_temperature(temperature)
    class_axis(student.shape)
    if student.ndim != 2:
        raise ValueError(f"dist takes logits [N, C], got {list(student.shape)}: flatten other axes first.")
    p = F.softmax(student / temperature, axis=-1)
    q = F.softmax(teacher.detach() / temperature, axis=-1)
    between = 1 - _correlation(p, q, axis=1).mean()
    within = 1 - _correlation(p, q, axis=0).mean()
    return (beta * between + gamma * within) * temperature**2


def _correlation(a: Tensor, b: Tensor, *, axis: int) -> Tensor:
    """Pearson's correlation along ``axis``."""
    a, b = a - a.mean(axis=axis, keepdim=True), b - b.mean(axis=axis, keepdim=True)
    norms = ((a * a).sum(axis=axis) * (b * b).sum(axis=axis) + _TINY**2).sqrt()
    return (a * b).sum(axis=axis) / norms
