"""Fake quantisation as differentiable functions.

PACT (Choi et al. 2018, arXiv:1805.06085) learns the clip value of activations. Here the learned ``alpha`` also sets the
scale (``step = alpha / high``), so that the exported file has no second, unlearned scale. LSQ (Esser et al. 2020,
arXiv:1902.08153) learns the step itself, for weights too.

Cost: on the CPU each is one clip into new memory, which dominates, and two scalings in place.
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
    "shifted_levels",
    "weight_steps",
]

SMALLEST_ALPHA = 1e-6
_TINY = float(np.finfo("float32").tiny)
_NO_STEP = 128 * _TINY


def grid_levels(bits: int, signed: bool, *, symmetric: bool = False) -> tuple[float, float]:
    """Return the lowest and highest integer of a grid of up to ``2^bits`` values.

    Args:
        bits: Grid width in bits, 2-8.
        signed: Whether the grid includes negative values.
        symmetric: Whether it is symmetric, whatever ``signed`` is: ``[-127, 127]`` for 8 bits.
    """
    if symmetric:
        return -float(2 ** (bits - 1) - 1), float(2 ** (bits - 1) - 1)
    return (-float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)) if signed else (0.0, float(2**bits - 1))


def highest_weight(bits: int, *, reduce_range: bool = True) -> int:
    """Return the highest integer of a symmetric weight grid.

    ``2^(bits-1) - 1``; 64 for 8 bits on the reduced range. CPUs without VNNI add two products of a uint8 activation and
    an int8 weight in 16 bits: ``2 * 255 * 64`` fits, larger weights may saturate (``vpmaddubsw``).

    Args:
        bits: Grid width in bits, 2-8.
        reduce_range: Whether 8 bits use half the range; no effect below 8 bits.
    """
    return 64 if bits == 8 and reduce_range else 2 ** (bits - 1) - 1


def shifted_levels(lowest: float, highest: float, bits: int) -> tuple[float, float]:
    """Return lowest and highest integer of an asymmetric grid.

    The zero point, ``-low``, lies where the values are: the ``2^bits`` values reach from about ``lowest`` to
    ``highest``, and zero is one of them.

    Args:
        lowest: Smallest value, at most 0.
        highest: Largest value in the same units, above 0.
        bits: Grid width in bits, 2-8.
    """
    levels = 2**bits - 1
    zero_point = min(max(round(-lowest * levels / (highest - lowest)), 0), levels - 1)
    return -float(zero_point), float(levels - zero_point)


def pact_fake_quantize(
    x: Tensor,
    alpha: Tensor,
    *,
    bits: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    grid: tuple[float, float] | None = None,
) -> Tensor:
    """Apply PACT: clip to the learned range, round to its grid (arXiv:1805.06085).

    Equations 1-3. Unsigned, for non-negative inputs: ``clip(round(x / s), 0, 2^bits - 1) s`` with ``s = alpha / (2^bits
    - 1)``; the gradient of ``alpha`` is 1 where ``x >= alpha`` and 0 elsewhere. Signed: ``clip(round(x / s),
    -2^(bits-1), 2^(bits-1) - 1) s`` with ``s = alpha / (2^(bits-1) - 1)``; where ``x`` is clipped from below the
    gradient of ``alpha`` is ``-2^(bits-1) / (2^(bits-1) - 1)``. ``x`` gets the gradient where it is not clipped
    (straight-through rounding).

    Args:
        x: Tensor of any shape.
        alpha: Largest representable value in units of ``x``, shape ``[1]``.
        bits: Grid width in bits, 2-8.
        signed: Whether the grid includes negative values.
        symmetric: Whether it ends at ``-alpha``, see `grid_levels`; the gradient of ``alpha`` is -1 there.
        grid: Lowest and highest integer instead of those of ``bits``, ``signed`` and ``symmetric``; with ``s = alpha /
            high``, the gradient of ``alpha`` is ``low / high`` where ``x`` is clipped from below.

    Returns:
        Tensor like ``x`` with at most ``2^bits`` different values.
    """
    return _PACT.apply(x, alpha, *(grid or grid_levels(bits, signed, symmetric=symmetric)))


def lsq_fake_quantize(
    x: Tensor,
    alpha: Tensor,
    *,
    bits: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    reduce_range: bool = True,
    grid: tuple[float, float] | None = None,
) -> Tensor:
    """Apply LSQ: `pact_fake_quantize` with a learned step (arXiv:1902.08153, eq. 3).

    The gradient ``d/ds`` is ``round(x / s) - x / s`` inside the range and the clipped integer outside; with ``s = alpha
    / high`` that of ``alpha`` is ``1 / high`` of it. It is multiplied by the paper's ``1 / sqrt(n high)``, with ``n``
    the number of values in ``x``.

    Args:
        x: Tensor of any shape.
        alpha: Range in units of ``x``, shape ``[1]``, or one per channel shaped to broadcast against ``x``.
        bits: Grid width in bits, 2-8.
        signed: Whether the grid includes negative values.
        symmetric: Whether it is a weight grid from ``-high`` to ``high``, see `highest_weight`.
        reduce_range: Whether an 8-bit weight uses half the range.
        grid: Lowest and highest integer instead of those of the other arguments.

    Returns:
        Tensor like ``x``.
    """
    if grid is not None:
        return _LSQ.apply(x, alpha, *grid)
    if symmetric:
        high = float(highest_weight(bits, reduce_range=reduce_range))
        return _LSQ.apply(x, alpha, -high, high)
    return _LSQ.apply(x, alpha, *grid_levels(bits, signed))


def round_weight(weight: Tensor, step: Tensor) -> Tensor:
    """Round to ``round(weight / step) * step`` with a straight-through gradient."""
    return _RoundWeight.apply(weight, step)


def weight_steps(weight: Tensor, *, bits: int, axis: int, reduce_range: bool = True) -> Tensor:
    """Return ``max |w| / highest_weight`` per channel along ``axis``, to broadcast.

    A channel of zeros counts as 1, as does one whose step would underflow in fp32: weight decay takes dead channels
    there.

    Args:
        weight: Tensor of any shape.
        bits: Grid width in bits, 2-8.
        axis: Axis of the output channels.
        reduce_range: See `highest_weight`.
    """
    others = [dim for dim in range(len(weight.shape)) if dim != axis]
    # Two reductions instead of |w| avoid a second copy of the weight.
    largest = paddle.maximum(weight.max(axis=others, keepdim=True), -weight.min(axis=others, keepdim=True))
    high = highest_weight(bits, reduce_range=reduce_range)
    return paddle.where(largest > _NO_STEP, largest, paddle.ones_like(largest)) / high


class _PACT(PyLayer):
    """Compute ``clip(round(x / step), low, high) * step``; gradients as in the paper."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, alpha: Tensor, low: float, high: float) -> Tensor:
        ctx.low, ctx.high = low, high
        ctx.wanted = (not x.stop_gradient, not alpha.stop_gradient)
        y = _on_grid(x, alpha, low, high)
        ctx.save_for_backward(x, alpha, y.detach())  # y itself would keep its own graph alive
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
        ctx.save_for_backward(x, alpha, y.detach())  # y itself would keep its own graph alive
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
    """Return the range limits: numbers on the CPU, tensors on a device (no wait)."""
    if alpha.place.is_cpu_place() and math.isfinite(value := float(alpha)):
        top = max(value, SMALLEST_ALPHA)
        return top, top * (low / high)
    top = _at_least_smallest(alpha)
    return top, top * (low / high)


def _at_least_smallest(alpha: Tensor) -> Tensor:
    """Clamp ``alpha`` to `SMALLEST_ALPHA`; NaN and Inf pass, and show in the loss."""
    return paddle.maximum(alpha, paddle.full_like(alpha, SMALLEST_ALPHA))


def _where_inside(x: Tensor, grad: Tensor, bottom: float | Tensor, top: float | Tensor) -> Tensor:
    """Return ``grad`` where ``bottom < x < top``, 0 elsewhere."""
    clip_grad = getattr(getattr(paddle, "_C_ops", None), "clip_grad", None)  # private: later Paddles may lack it
    if isinstance(top, float) and clip_grad is not None:
        # The gradient of clip in one pass; it includes the limits, which the paper does not.
        least, most = np.nextafter(np.float32([bottom, top]), np.float32([np.inf, -np.inf]))
        return clip_grad(x, grad, max(float(least), _TINY) if bottom == 0 else float(least), float(most))
    inside = paddle.logical_and(x > bottom, x < top)
    return paddle.where(inside, grad, paddle.zeros_like(grad))
