"""Fake quantisation as functions.

PACT (Choi et al. 2018, arXiv:1805.06085) learns the clip value of activations. Here the learned ``alpha`` is also the
scale (``step = alpha / high``), so that no second, unlearned scale enters the exported file. LSQ (Esser et al. 2020,
arXiv:1902.08153) learns the step itself, of weights too.

Cost: on the CPU each is one clip into new memory and two scalings in place; new memory is what takes the time.
"""

from __future__ import annotations

import math

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext

__all__ = [
    "SMALLEST_ALPHA",
    "grid_levels",
    "highest_weight",
    "lsq_fake_quantize",
    "pact_fake_quantize",
    "round_weight",
    "weight_steps",
]

SMALLEST_ALPHA = 1e-6
_TINY = float(np.finfo("float32").tiny)
_NO_STEP = 128 * _TINY


def grid_levels(bits: int, signed: bool, *, symmetric: bool = False) -> tuple[float, float]:
    """Return the lowest and highest integer of a grid of ``2^bits`` values with 0, or of one less.

    Args:
        bits: 2-8.
        signed: whether the grid reaches below zero.
        symmetric: whether it reaches as far below zero as above, whatever ``signed`` says: ``[-127, 127]`` of 8 bits.
    """
    if symmetric:
        return -float(2 ** (bits - 1) - 1), float(2 ** (bits - 1) - 1)
    return (-float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)) if signed else (0.0, float(2**bits - 1))


def highest_weight(bits: int, *, reduce_range: bool = True) -> int:
    """Return the highest integer of a symmetric weight grid.

    ``2^(bits-1) - 1``; 64 for 8 bits on the reduced range. CPUs without VNNI add two products of a uint8 activation
    and an int8 weight in 16 bits: ``2 * 255 * 64`` fits, anything above may saturate (``vpmaddubsw``).

    Args:
        bits: 2-8.
        reduce_range: whether 8 bits use half the range; fewer bits fit as they are.
    """
    return 64 if bits == 8 and reduce_range else 2 ** (bits - 1) - 1


def pact_fake_quantize(
    x: Tensor, alpha: Tensor, *, bits: int = 8, signed: bool = False, symmetric: bool = False
) -> Tensor:
    """PACT: clip to the learned range, then round to its grid (arXiv:1805.06085, eq. 1-3).

    Unsigned, for inputs that are never negative: ``clip(round(x / s), 0, 2^bits - 1) s`` with
    ``s = alpha / (2^bits - 1)``; the gradient of ``alpha`` is 1 where ``x >= alpha`` and 0 elsewhere. Signed:
    ``clip(round(x / s), -2^(bits-1), 2^(bits-1) - 1) s`` with ``s = alpha / (2^(bits-1) - 1)``; where ``x`` is clipped
    from below the gradient of ``alpha`` is ``-2^(bits-1) / (2^(bits-1) - 1)``. ``x`` gets the gradient where it is not
    clipped; rounding passes it straight through.

    Args:
        x: any shape.
        alpha: shape ``[1]``, the largest value that can be represented, in units of ``x``.
        bits: 2-8.
        signed: whether the grid reaches below zero.
        symmetric: whether it ends at ``-alpha`` below, see `grid_levels`; the gradient of ``alpha`` is -1 there.

    Returns:
        A tensor like ``x`` with at most ``2^bits`` different values.
    """
    return _PACT.apply(x, alpha, *grid_levels(bits, signed, symmetric=symmetric))


def lsq_fake_quantize(
    x: Tensor,
    alpha: Tensor,
    *,
    bits: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    reduce_range: bool = True,
) -> Tensor:
    """LSQ: the same grid as `pact_fake_quantize`, with the gradient of the step (arXiv:1902.08153, eq. 3).

    ``d/ds`` is ``round(x / s) - x / s`` inside the range and the clipped integer outside; with ``s = alpha / high``
    that of ``alpha`` is ``1 / high`` of it. It is multiplied by the paper's ``1 / sqrt(n high)``, ``n`` the number of
    values in ``x``.

    Args:
        x: any shape.
        alpha: shape ``[1]``, or one per channel shaped to broadcast against ``x``; in units of ``x``.
        bits: 2-8.
        signed: whether the grid reaches below zero.
        symmetric: whether it is that of a weight, from ``-high`` to ``high``, see `highest_weight`.
        reduce_range: of a weight of 8 bits: half the range.

    Returns:
        A tensor like ``x``.
    """
    if symmetric:
        high = float(highest_weight(bits, reduce_range=reduce_range))
        return _LSQ.apply(x, alpha, -high, high)
    return _LSQ.apply(x, alpha, *grid_levels(bits, signed))


def round_weight(weight: Tensor, step: Tensor) -> Tensor:
    """``round(weight / step) * step``; the gradient passes straight through to ``weight``."""
    return _RoundWeight.apply(weight, step)


def weight_steps(weight: Tensor, *, bits: int, axis: int, reduce_range: bool = True) -> Tensor:
    """``max |w| / highest_weight`` per channel along ``axis``, shaped to broadcast; a channel of zeros counts as 1.

    So does what is so small that its step would be 0 in fp32: weight decay takes dead channels there.

    Args:
        weight: any shape.
        bits: 2-8.
        axis: of the output channels.
        reduce_range: see `highest_weight`.
    """
    others = [dim for dim in range(len(weight.shape)) if dim != axis]
    # Two reductions instead of |w|: no second copy of the weight is made.
    largest = paddle.maximum(weight.max(axis=others, keepdim=True), -weight.min(axis=others, keepdim=True))
    high = highest_weight(bits, reduce_range=reduce_range)
    return paddle.where(largest > _NO_STEP, largest, paddle.ones_like(largest)) / high


class _PACT(PyLayer):
    """``clip(round(x / step), low, high) * step`` with ``step = alpha / high``; gradients as in the paper."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, alpha: Tensor, low: float, high: float) -> Tensor:
        ctx.low, ctx.high = low, high
        ctx.wanted = (not x.stop_gradient, not alpha.stop_gradient)
        y = _on_grid(x, alpha, low, high)
        ctx.save_for_backward(x, alpha, y.detach())  # saving y itself would tie it to its own graph for good
        return y

    @staticmethod
    def backward(ctx: PyLayerContext, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, alpha, y = ctx.saved_tensor()
        top, bottom = _ends(alpha, ctx.low, ctx.high)
        wants_x, wants_alpha = ctx.wanted
        passed = _where_inside(x, grad, bottom, top)
        if not wants_alpha:
            return (passed if wants_x else None), None
        # Where x is clipped y is alpha times 1, or times low / high: so d(alpha) is <grad there, y> / alpha.
        clipped = paddle.subtract(grad, passed).reshape([1, -1])
        grad_alpha = paddle.matmul(clipped, y.reshape([-1, 1])).reshape([1]) / _at_least_smallest(alpha)
        return (passed if wants_x else None), grad_alpha


class _LSQ(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, alpha: Tensor, low: float, high: float) -> Tensor:
        ctx.low, ctx.high = low, high
        ctx.wanted = (not x.stop_gradient, not alpha.stop_gradient)
        step = _at_least_smallest(alpha) / high
        y = paddle.clip(paddle.round(x / step), low, high).multiply_(step)
        ctx.save_for_backward(x, alpha, y.detach())  # saving y itself would tie it to its own graph for good
        return y

    @staticmethod
    def backward(ctx: PyLayerContext, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, alpha, y = ctx.saved_tensor()
        safe = _at_least_smallest(alpha)
        inside = paddle.logical_and(x < safe, x > safe * (ctx.low / ctx.high))
        passed = paddle.where(inside, grad, paddle.zeros_like(grad))
        wants_x, wants_alpha = ctx.wanted
        if not wants_alpha:
            return (passed if wants_x else None), None
        axes = [dim for dim in range(x.ndim) if alpha.ndim != x.ndim or alpha.shape[dim] == 1]
        # alpha * d(y)/d(alpha) is y outside of the range and y - x inside.
        total = (grad * y - passed * x).sum(axis=axes, keepdim=alpha.ndim == x.ndim).reshape(alpha.shape)
        count = x.size if alpha.size == 1 else x.size // alpha.size
        return (passed if wants_x else None), total / safe / (count * ctx.high) ** 0.5


class _RoundWeight(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, weight: Tensor, step: Tensor) -> Tensor:
        ctx.wanted = not weight.stop_gradient
        return paddle.divide(weight, step).round_().multiply_(step)

    @staticmethod
    def backward(ctx: PyLayerContext, grad: Tensor) -> tuple[Tensor | None, None]:
        return (grad if ctx.wanted else None), None


def _on_grid(x: Tensor, alpha: Tensor, low: float, high: float) -> Tensor:
    top, bottom = _ends(alpha, low, high)
    if isinstance(top, float):
        return paddle.clip(x, bottom, top).scale_(high / top).round_().scale_(top / high)
    step = top / high
    return paddle.minimum(paddle.maximum(x, bottom), top).divide_(step).round_().multiply_(step)


def _ends(alpha: Tensor, low: float, high: float) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """Return the largest and the lowest value: numbers on the CPU, tensors on a device, which is not waited for."""
    if alpha.place.is_cpu_place() and math.isfinite(value := float(alpha)):
        top = max(value, SMALLEST_ALPHA)
        return top, top * (low / high)
    top = _at_least_smallest(alpha)
    return top, top * (low / high)


def _at_least_smallest(alpha: Tensor) -> Tensor:
    """Return ``alpha`` from `SMALLEST_ALPHA` on; what is not finite stays so, and the loss shows it."""
    return paddle.maximum(alpha, paddle.full_like(alpha, SMALLEST_ALPHA))


def _where_inside(x: Tensor, grad: Tensor, bottom: float | Tensor, top: float | Tensor) -> Tensor:
    """``grad`` where ``bottom < x < top``, 0 elsewhere."""
    clip_grad = getattr(getattr(paddle, "_C_ops", None), "clip_grad", None)  # private: a later Paddle may not have it
    if isinstance(top, float) and clip_grad is not None:
        # The gradient of clip, in one pass; it lets the ends themselves through, which the paper does not.
        least, most = np.nextafter(np.float32([bottom, top]), np.float32([np.inf, -np.inf]))
        return clip_grad(x, grad, max(float(least), _TINY) if bottom == 0 else float(least), float(most))
    inside = paddle.logical_and(x > bottom, x < top)
    return paddle.where(inside, grad, paddle.zeros_like(grad))
