"""Fake quantisers on Paddle's ``BaseQuanter`` interface, with what they learn or observe."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.quantization.base_quanter import BaseQuanter

from paddlelite_callbacks.quant.fake_quant import (
    SMALLEST_ALPHA,
    grid_levels,
    lsq_fake_quantize,
    pact_fake_quantize,
    round_weight,
    weight_steps,
)
from paddlelite_callbacks.ranks import gathered, several_ranks

__all__ = ["ChannelWeightQuanter", "LSQWeightQuanter", "PACTActivationQuanter", "Switched"]

_SAMPLE = 1 << 18  # values that a percentile is taken from


class Switched(BaseQuanter):
    """A quanter that can be off, and then passes its input on unchanged.

    Args:
        bits: of the grid.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self._bits = bits
        self.enabled = True

    def refuse_tracing(self) -> None:
        """Say what to do instead where ``paddle.jit`` traces the network.

        Raises:
            RuntimeError: it does.
        """
        if not paddle.in_dynamic_mode():
            raise RuntimeError(
                "A fake-quantised layer cannot be traced by paddle.jit (to_static, jit.save, "
                "model.save(training=False)): export the network with ExportBenchCallback, or with export_forms of "
                "paddlelite_callbacks.deploy.forms, which write what it simulates."
            )

    def zero_points(self) -> Tensor | None:
        """Return None: every grid here holds zero exactly."""
        return None

    def bit_length(self) -> int:
        """Return the bits."""
        return self._bits


class PACTActivationQuanter(Switched):
    """Fake quantiser of one tensor of activations, with a trained ``alpha`` that is the scale.

    In the first training batches ``alpha`` becomes a percentile of ``|x|`` and the grid becomes unsigned if no value
    is negative; until then, and in evaluation before it, inputs pass unchanged. ``alpha`` (parameter, ``[1]``) and
    ``grid`` (buffer, ``[2]``: lowest and highest integer, zeros before the first batch) are in the ``state_dict``, so
    that a loaded checkpoint needs no first batch.

    Args:
        bits: 2-8.
        percentile: of ``|x|`` that ``alpha`` starts from.
        lr_scale: factor on the optimizer's learning rate for ``alpha``.
        method: ``"pact"`` or ``"lsq"``, the gradient of ``alpha``.
        decay: L2 penalty on ``alpha`` in place of the optimizer's own; ``None`` leaves it to the optimizer.
        batches: that set ``alpha``, at least 1; over several it is a moving average.
        momentum: of that average, in [0, 1).
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        percentile: float = 99.9,
        lr_scale: float = 1.0,
        method: str = "pact",
        decay: float | None = None,
        batches: int = 1,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(bits)
        self._percentile, self._batches, self._momentum = percentile, batches, momentum
        self._function = pact_fake_quantize if method == "pact" else lsq_fake_quantize
        self.alpha = self.create_parameter(
            [1],
            attr=paddle.ParamAttr(
                learning_rate=lr_scale,
                regularizer=None if decay is None else paddle.regularizer.L2Decay(decay),
            ),
            default_initializer=paddle.nn.initializer.Constant(0.0),
        )
        self.register_buffer("grid", paddle.zeros([2]))
        self._levels = (0.0, 0.0)  # of ``grid``, on the host: training steps do not wait for the device to read it
        self._seen, self._observed = 0, 0.0

    def forward(self, input: Tensor) -> Tensor:
        """Quantise and dequantise ``input`` (any shape)."""
        if not self.enabled:
            return input
        self.refuse_tracing()
        if not self.training or self._levels[1] == 0:
            self.refresh()
        if self.training and (self._levels[1] == 0 or 0 < self._seen < self._batches):
            self.observe(input)
        if self._levels[1] == 0:
            return input
        return self._function(input, self.alpha, bits=self._bits, signed=self._levels[0] < 0)

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
        return max(float(self.alpha), SMALLEST_ALPHA) / max(self.levels()[1], 1)

    def scales(self) -> Tensor:
        """Return ``alpha``, the value that the highest integer stands for, shape ``[1]``."""
        return self.alpha

    def quant_axis(self) -> int:
        """Return -1: one scale for the whole tensor."""
        return -1

    @paddle.no_grad()
    def observe(self, x: Tensor) -> None:
        """Move ``alpha`` to the percentile of ``|x|`` over all processes (the first time), or towards it."""
        values = x.detach().astype("float32").flatten()
        lowest = values.min()
        ranks = paddle.distributed.get_world_size() if several_ranks() else 1
        sample = gathered(values[:: max(1, values.shape[0] * ranks // _SAMPLE)].abs())
        found = float(np.percentile(sample.numpy(), self._percentile))
        largest = values.abs().max()
        if ranks > 1:
            paddle.distributed.all_reduce(lowest, op=paddle.distributed.ReduceOp.MIN)
            paddle.distributed.all_reduce(largest, op=paddle.distributed.ReduceOp.MAX)
        found = found if found > 0 else float(largest) or 1.0
        if not math.isfinite(found):
            return  # a batch that is not finite sets nothing; the next one will
        first = self._seen == 0
        self._observed = found if first else self._follow(found)
        self._seen += 1
        self.alpha.set_value(np.array([self._observed], "float32"))
        signed = float(lowest) < 0 or self._levels[0] < 0
        self._levels = grid_levels(self._bits, signed)
        self.grid.set_value(np.array(self._levels, "float32"))

    def _follow(self, value: float) -> float:
        return self._momentum * self._observed + (1 - self._momentum) * value


class ChannelWeightQuanter(Switched):
    """Fake quantiser of a weight: per output channel, symmetric, scaled by the channel's largest magnitude.

    Stateless: the scale follows the weight, so what is simulated at the last step is what is shipped.

    Args:
        bits: 2-8; the grid is ``[-(2^(bits-1) - 1), 2^(bits-1) - 1]``.
        axis: of the output channels: 0 for ``Conv2D`` (``[out, in, kh, kw]``), 1 for ``Conv2DTranspose`` and
            ``Linear``.
    """

    def __init__(self, *, bits: int = 8, axis: int = 0) -> None:
        super().__init__(bits)
        self._axis = axis

    def forward(self, input: Tensor) -> Tensor:
        """Quantise and dequantise the weight ``input``."""
        return round_weight(input, self.steps(input)) if self.enabled else input

    def steps(self, weight: Tensor) -> Tensor:
        """Return each channel's step, shaped to broadcast against ``weight``."""
        return weight_steps(weight.detach(), bits=self._bits, axis=self._axis)

    def integers(self, weight: Tensor) -> Tensor:
        """Return the int8 weight that training simulates."""
        high = 2 ** (self._bits - 1) - 1
        return paddle.clip(paddle.round(weight.detach() / self.steps(weight)), -high, high).astype("int8")

    def scales(self) -> Any:
        """Return None: the scale is a function of the weight, see `steps`."""

    def quant_axis(self) -> int:
        """Return the axis of the output channels."""
        return self._axis


class LSQWeightQuanter(ChannelWeightQuanter):
    """Fake quantiser of a weight with a trained step per output channel (Esser et al. 2020, arXiv:1902.08153).

    ``alpha`` (parameter, shaped to broadcast: the step times the highest integer) starts from the paper's
    ``2 mean |w| / sqrt(high)`` per step, and is in the ``state_dict``. The grid is the symmetric one of
    `ChannelWeightQuanter`, so that both methods ship alike.

    Args:
        weight: whose quantiser this is.
        bits: 2-8.
        axis: of the output channels.
        lr_scale: factor on the optimizer's learning rate.
    """

    def __init__(self, weight: Tensor, *, bits: int = 8, axis: int = 0, lr_scale: float = 1.0) -> None:
        super().__init__(bits=bits, axis=axis)
        others = [dim for dim in range(len(weight.shape)) if dim != axis]
        self._high = 2 ** (bits - 1) - 1
        with paddle.no_grad():
            mean = weight.detach().abs().mean(axis=others, keepdim=True)
            start = paddle.where(mean > 0, 2 * mean * self._high**0.5, paddle.full_like(mean, float(self._high)))
        self.alpha = self.create_parameter(start.shape, attr=paddle.ParamAttr(learning_rate=lr_scale))
        self.alpha.set_value(start)

    def forward(self, input: Tensor) -> Tensor:
        """Quantise and dequantise the weight ``input``."""
        return lsq_fake_quantize(input, self.alpha, bits=self._bits, symmetric=True) if self.enabled else input

    def steps(self, weight: Tensor) -> Tensor:
        """Return each channel's trained step."""
        return self.alpha.detach().clip(min=SMALLEST_ALPHA) / self._high

    def scales(self) -> Tensor:
        """Return the value that the highest integer stands for, per channel."""
        return self.alpha
