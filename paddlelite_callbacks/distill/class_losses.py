"""Distillation losses on class scores: mutual, decoupled, and by relations; the teacher's side is detached."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddlelite_callbacks.distill.losses import check_temperature, kl, same_shape

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
) -> Tensor:
    """``T² (alpha TCKD + beta NCKD)``, decoupled distillation (Zhao 2022, arXiv:2203.08679).

    TCKD is the KL divergence of the two-way split (true class, any other); NCKD that of the distributions over the
    other classes alone. With ``alpha = 1`` and ``beta`` = the teacher's probability of the other classes, it is `kl`.

    Args:
        student: logits ``[N, C]``, ``C >= 2``; gradients flow.
        teacher: logits ``[N, C]``; detached here.
        label: true classes, integers ``[N]`` or ``[N, 1]``.
        alpha: weight of TCKD.
        beta: weight of NCKD.
        temperature: ``T > 0``.

    Returns:
        Scalar, nats; mean over ``N``.

    Raises:
        ValueError: shapes that do not fit, or ``temperature`` is not positive.
    """
    same_shape(student, teacher)
    check_temperature(temperature)
    if student.ndim != 2 or label.shape[0] != student.shape[0] or label.size != student.shape[0]:
        raise ValueError(
            f"dkd takes logits [N, C] and one class index per row, got logits {list(student.shape)} and labels "
            f"{list(label.shape)}: choose the label with OutputTerm('dkd', label=...)."
        )
    true = F.one_hot(label.reshape([-1]), student.shape[1]).astype(student.dtype)
    log_p = F.log_softmax(student / temperature, axis=-1)
    log_q = F.log_softmax(teacher.detach() / temperature, axis=-1)
    target = _target_kl(log_p, log_q, true)
    # The true class gets a score so low that it has no share in the softmax over the others.
    others = -1e4 * true
    log_p_others = F.log_softmax(student / temperature + others, axis=-1)
    log_q_others = F.log_softmax(teacher.detach() / temperature + others, axis=-1)
    non_target = (log_q_others.exp() * (log_q_others - log_p_others) * (1 - true)).sum(axis=-1)
    return (alpha * target + beta * non_target).mean() * temperature**2


def _target_kl(log_p: Tensor, log_q: Tensor, true: Tensor) -> Tensor:
    """KL of the two-way distributions (true class, others) per row."""
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
