"""Fake quantisers on Paddle's ``BaseQuanter`` interface: what they simulate is exactly what is shipped.

PACT (Choi et al. 2018, arXiv:1805.06085) learns the clip value of activations. Here the learned ``alpha`` is also the
scale (``step = alpha / high``), so that no second, unlearned scale enters the exported file.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext
from paddle.quantization.base_quanter import BaseQuanter

__all__ = ["ChannelWeightQuanter", "PACTActivationQuanter", "pact_fake_quantize", "weight_steps"]

_SMALLEST_ALPHA = 1e-6
_SAMPLE = 1 << 18  # values that a percentile is taken from


class _PACTFakeQuantize(PyLayer):
    """``clip(round(x / step), low, high) * step`` with ``step = alpha / high``; gradients as in the paper."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, alpha: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.low, ctx.high = low, high
        ctx.wanted = (not x.stop_gradient, not alpha.stop_gradient)
        step = alpha.clip(min=_SMALLEST_ALPHA) / high
        return paddle.clip(paddle.round(x / step), low, high) * step

    @staticmethod
    def backward(ctx: PyLayerContext, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, alpha = ctx.saved_tensor()
        alpha = alpha.clip(min=_SMALLEST_ALPHA)
        above = (x >= alpha).astype(grad.dtype)
        below = (x <= alpha * (ctx.low / ctx.high)).astype(grad.dtype)
        wants_x, wants_alpha = ctx.wanted
        grad_x = grad * (1.0 - above - below) if wants_x else None
        grad_alpha = (grad * (above + below * (ctx.low / ctx.high))).sum().reshape([1]) if wants_alpha else None
        return grad_x, grad_alpha


class _RoundWeight(PyLayer):
    """``round(w / step) * step``; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: PyLayerContext, weight: Tensor, step: Tensor) -> Tensor:
        ctx.wanted = not weight.stop_gradient
        return paddle.round(weight / step) * step

    @staticmethod
    def backward(ctx: PyLayerContext, grad: Tensor) -> tuple[Tensor | None, None]:
        return (grad if ctx.wanted else None), None


def pact_fake_quantize(x: Tensor, alpha: Tensor, *, bits: int = 8, signed: bool = False) -> Tensor:
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

    Returns:
        A tensor like ``x`` with at most ``2^bits`` different values.
    """
    low, high = _levels(bits, signed)
    return _PACTFakeQuantize.apply(x, alpha, low, high)


class PACTActivationQuanter(BaseQuanter):
    """Fake quantiser of one layer's input, with a trained ``alpha`` that is the scale.

    In the first training batch ``alpha`` becomes a percentile of ``|x|`` and the grid becomes unsigned if no value
    is negative; until then, and in evaluation before it, inputs pass unchanged. ``alpha`` (parameter, ``[1]``) and
    ``grid`` (buffer, ``[2]``: lowest and highest integer, zeros before the first batch) are in the ``state_dict``, so
    that a loaded checkpoint needs no first batch.

    Args:
        bits: 2-8.
        percentile: of ``|x|`` that ``alpha`` starts from.
        lr_scale: factor on the optimizer's learning rate for ``alpha``.
    """

    def __init__(self, *, bits: int = 8, percentile: float = 99.9, lr_scale: float = 1.0) -> None:
        super().__init__()
        self._bits, self._percentile = bits, percentile
        self.alpha = self.create_parameter(
            [1],
            attr=paddle.ParamAttr(learning_rate=lr_scale),
            default_initializer=paddle.nn.initializer.Constant(0.0),
        )
        self.register_buffer("grid", paddle.zeros([2]))
        self._levels = (0.0, 0.0)  # of ``grid``, on the host: training steps do not wait for the device to read it

    def forward(self, input: Tensor) -> Tensor:
        """Quantise and dequantise ``input`` (any shape)."""
        if not self.training or self._levels[1] == 0:
            self.refresh()
        if self._levels[1] == 0:
            if not self.training:
                return input
            self._calibrate(input)
        return _PACTFakeQuantize.apply(input, self.alpha, *self._levels)

    def refresh(self) -> None:
        """Read the grid anew, after a checkpoint was loaded; evaluation and the start of ``fit`` do so."""
        low, high = (float(value) for value in self.grid.numpy())
        self._levels = (low, high)

    @property
    def calibrated(self) -> bool:
        """Whether ``alpha`` has been set, by a first batch or by loading."""
        return self.levels()[1] > 0

    def levels(self) -> tuple[int, int]:
        """Return the lowest and the highest integer of the grid; zeros before calibration."""
        self.refresh()
        return int(self._levels[0]), int(self._levels[1])

    def step(self) -> float:
        """Return the width of one quantisation step, in units of the input."""
        return max(float(self.alpha), _SMALLEST_ALPHA) / max(self.levels()[1], 1)

    def scales(self) -> Tensor:
        """Return ``alpha``, the value that the highest integer stands for, shape ``[1]``."""
        return self.alpha

    def zero_points(self) -> Tensor:
        """Return 0: both grids hold zero exactly."""
        return paddle.zeros([1])

    def quant_axis(self) -> int:
        """Return -1: one scale for the whole tensor."""
        return -1

    def bit_length(self) -> int:
        """Return the bits."""
        return self._bits

    def _calibrate(self, x: Tensor) -> None:
        with paddle.no_grad():
            values = x.detach().astype("float32").flatten()
            lowest = values.min()
            sample = values[:: max(1, values.shape[0] // _SAMPLE)].abs()
            top = np.percentile(sample.numpy(), self._percentile)
            alpha = paddle.to_tensor([float(top) if top > 0 else float(values.abs().max()) or 1.0])
            if paddle.distributed.is_initialized() and paddle.distributed.get_world_size() > 1:
                paddle.distributed.all_reduce(alpha, op=paddle.distributed.ReduceOp.MAX)
                paddle.distributed.all_reduce(lowest, op=paddle.distributed.ReduceOp.MIN)
            self.alpha.set_value(alpha)
            low, high = _levels(self._bits, signed=float(lowest) < 0)
            self.grid.set_value(paddle.to_tensor([low, high]))
            self._levels = (low, high)


class ChannelWeightQuanter(BaseQuanter):
    """Fake quantiser of a weight: per output channel, symmetric, scaled by the channel's largest magnitude.

    Stateless: the scale follows the weight, so what is simulated at the last step is what is shipped.

    Args:
        bits: 2-8; the grid is ``[-(2^(bits-1) - 1), 2^(bits-1) - 1]``.
        axis: of the output channels: 0 for ``Conv2D`` (``[out, in, kh, kw]``), 1 for ``Linear`` (``[in, out]``).
    """

    def __init__(self, *, bits: int = 8, axis: int = 0) -> None:
        super().__init__()
        self._bits, self._axis = bits, axis

    def forward(self, input: Tensor) -> Tensor:
        """Quantise and dequantise the weight ``input``."""
        return _RoundWeight.apply(input, self.steps(input))

    def steps(self, weight: Tensor) -> Tensor:
        """Return each channel's step, shaped to broadcast against ``weight``."""
        return weight_steps(weight.detach(), bits=self._bits, axis=self._axis)

    def scales(self) -> None:
        """Return None: the scale is a function of the weight, see `steps`."""

    def zero_points(self) -> None:
        """Return None: symmetric."""

    def quant_axis(self) -> int:
        """Return the axis of the output channels."""
        return self._axis

    def bit_length(self) -> int:
        """Return the bits."""
        return self._bits


def weight_steps(weight: Tensor, *, bits: int, axis: int) -> Tensor:
    """``max |w| / (2^(bits-1) - 1)`` per channel along ``axis``, shaped to broadcast; 1 for an all-zero channel."""
    others = [dim for dim in range(len(weight.shape)) if dim != axis]
    largest = weight.abs().max(axis=others, keepdim=True)
    return paddle.where(largest > 0, largest, paddle.ones_like(largest)) / (2 ** (bits - 1) - 1)


def _levels(bits: int, signed: bool) -> tuple[float, float]:
    return (-float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)) if signed else (0.0, float(2**bits - 1))
