"""Define fake quantizers on Paddle's ``BaseQuanter`` interface."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.quantization import BaseQuanter

from paddlelite_callbacks.quant.calibration import ForwardPasses
from paddlelite_callbacks.quant.functional import (
    SMALLEST_ALPHA,
    grid_levels,
    highest_weight,
    lsq_fake_quantize,
    pact_fake_quantize,
    round_weight,
    shifted_levels,
    weight_steps,
)
from paddlelite_callbacks.quant.histogram import ValueHistogram, sampling_stride
from paddlelite_callbacks.quant.ranges import range_and_grid
from paddlelite_callbacks.utils.deprecation import forwarded
from paddlelite_callbacks.utils.distributed import gathered, several_ranks

__all__ = [
    "ChannelWeightQuantizer",
    "LSQWeightQuantizer",
    "PACTActivationQuantizer",
    "Switched",
    "activation_settings",
    "read_grid",
    "weight_settings",
]

__getattr__, _ = forwarded(  # old names
    __name__,
    {
        "ChannelWeightQuanter": "quant.quantizers:ChannelWeightQuantizer",
        "LSQWeightQuanter": "quant.quantizers:LSQWeightQuantizer",
        "PACTActivationQuanter": "quant.quantizers:PACTActivationQuantizer",
    },
)

_SAMPLE = 1 << 18  # number of values of one call to compute a range from
_BITS = range(2, 9)
_NEAR = 0.1  # tolerance of an average of equal integers
_SAME = 0.03  # tolerance where an average of other integers may match by chance


class Switched(BaseQuanter):
    """Quantizer that can be disabled (identity).

    Args:
        bits: Grid width in bits, 2-8.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self._bits = bits
        self.enabled = True

    def check_not_traced(self) -> None:
        """Check that ``paddle.jit`` does not trace the fake-quantised network.

        Raises:
            RuntimeError: It does.
        """
        if not paddle.in_dynamic_mode():
            raise RuntimeError(
                "A fake-quantised layer cannot be traced by paddle.jit (to_static, jit.save, "
                "model.save(training=False)): export the network with ExportBenchCallback, or with export_forms of "
                "paddlelite_callbacks.export.variants."
            )

    def refresh(self) -> None:
        """Re-read the grid after a checkpoint was loaded.

        Raises:
            ValueError: The checkpoint has another setting.
        """

    def zero_points(self) -> Tensor | None:
        """Return None: every grid represents zero exactly."""
        return None

    def bit_length(self) -> int:
        """Return the bits."""
        return self._bits


class PACTActivationQuantizer(Switched):
    """Fake quantizer of activations with a trained scale ``alpha``.

    In the first training batches ``alpha`` is set by ``calibration``, and the grid's zero point by the smallest value
    (`range_and_grid`); before that, also in evaluation, inputs pass unchanged. If the layer runs several times in a
    batch (one head on all levels of a pyramid), all its calls are counted; of percentiles the largest is used, so that
    no call is clipped by more than the percentile. ``alpha`` (parameter, ``[1]``) and ``grid`` (buffer, ``[2]``: lowest
    and highest integer, zeros before the first batch) are in the ``state_dict``, so that a loaded checkpoint needs no
    calibration. The lowest integer of a symmetric grid is set from the beginning.

    Args:
        bits: Grid width in bits, 2-8.
        calibration: Initial ``alpha``: ``"percentile"``, or ``"min_max"``, ``"mse"``, ``"kl"`` of `range_of`.
        percentile: Percentile of ``|x|`` for ``"percentile"``, in (50, 100].
        lr_scale: Factor on the optimizer's learning rate for ``alpha``.
        method: Gradient of ``alpha``: ``"pact"`` or ``"lsq"``.
        decay: L2 penalty on ``alpha`` instead of the optimizer's own; ``None`` leaves it to the optimizer.
        batches: Number of calibration batches, at least 1; with more than one, ``alpha`` is a moving average of
            percentiles, else all batches' values are taken together. Batches in which the layer does not run are not
            counted.
        momentum: Momentum of that average, in [0, 1).
        rectified: Whether only ReLUs read the output: negative values are ignored, and an unsigned grid clips them.
        symmetric: Whether the grid covers ``[-alpha, alpha]`` for all inputs, see `grid_levels`.
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        calibration: str = "percentile",
        percentile: float = 99.9,
        lr_scale: float = 1.0,
        method: str = "pact",
        decay: float | None = None,
        batches: int = 1,
        momentum: float = 0.9,
        rectified: bool = False,
        symmetric: bool = False,
    ) -> None:
        super().__init__(bits)
        self.calibration, self._percentile = calibration, percentile
        self._batches, self._momentum = batches, momentum
        self._rectified, self.symmetric = rectified, symmetric
        self._method = method
        self.alpha = self.create_parameter(
            [1],
            dtype="float32",
            attr=paddle.ParamAttr(
                learning_rate=lr_scale,
                regularizer=None if decay is None else paddle.regularizer.L2Decay(decay),
            ),
            default_initializer=paddle.nn.initializer.Constant(0.0),
        )
        # Before calibration the grid is identified by the limit that no batch changes.
        self._unset = (grid_levels(bits, True, symmetric=True)[0], 0.0) if symmetric else (0.0, 0.0)
        self.register_buffer("grid", paddle.to_tensor(self._unset, dtype="float32"))
        # The buffer may be averaged (an EMA of the state_dict) or cast when loaded: the values in use are on the host.
        self._levels = (0.0, 0.0)  # of ``grid``, on the host: training steps do not wait for the device
        self._passes: ForwardPasses | None = None
        self._seen, self._batch = 0, 0  # number of observed batches; number of the last one's pass
        self._observed, self._earlier, self._largest, self._lowest = 0.0, 0.0, 0.0, 0.0
        self._histogram: ValueHistogram | None = None  # of the calibration batches

    def forward(self, input: Tensor) -> Tensor:
        """Quantise and dequantise ``input`` (any shape)."""
        if not self.enabled:
            return input
        self.check_not_traced()
        if not self.training or self._levels[1] == 0:
            self.refresh()
        if self.training and (self._levels[1] == 0 or self._calibrating()):
            self.observe(input)
        elif self.training:
            self._histogram = None
        if self._levels[1] == 0:
            return input
        fake_quantize = pact_fake_quantize if self._method == "pact" else lsq_fake_quantize
        return fake_quantize(input, self.alpha, grid=self._levels)

    def refresh(self) -> None:
        """Re-read the grid after a checkpoint was loaded.

        An average of grids (an EMA of the ``state_dict``) is replaced by the grid that was averaged, and ``alpha`` is
        corrected for the zeros before the first batch.

        Raises:
            ValueError: The checkpoint has other bits, or another kind of grid.
        """
        low, high = read_grid(self.grid)
        self._levels = self._nearest_levels(low, high) if high > 0 else (0.0, 0.0)
        if (low, high) == (self._levels if high > 0 else self._unset):
            return
        self._check_loaded(low, high)
        if high > 0:
            share = self._share_of_calibrated(low, high)
            if 0 < share < 0.999:
                _set_(self.alpha, self.alpha.astype("float32").numpy() / share)
        _set_(self.grid, self._levels if high > 0 else self._unset)

    def _nearest_levels(self, low: float, high: float) -> tuple[float, float]:
        """Return the calibrated grid behind a loaded one, perhaps an average."""
        if self.symmetric:
            return grid_levels(self._bits, True, symmetric=True)
        return shifted_levels(low, high, self._bits)

    def _check_loaded(self, low: float, high: float) -> None:
        """Check that a loaded grid, perhaps an average, is one of this quantizer."""
        settings = activation_settings(low, high)
        bits, symmetric = settings[0] if settings else (self._bits, self.symmetric)
        if self.symmetric and not settings and abs(low - self._unset[0]) > _NEAR:  # an average of other grids
            symmetric = False
        if (bits, symmetric) == (self._bits, self.symmetric):
            return
        names = [("activation_bits", bits, self._bits)] if bits != self._bits else []
        if symmetric != self.symmetric:
            names.append(("activation_symmetric", symmetric, self.symmetric))
        loaded, own = (", ".join(f"{item[0]}={item[place]}" for item in names) for place in (1, 2))
        raise ValueError(
            f"A loaded activation grid from {low:g} to {high:g} belongs to {loaded}; this network was prepared with "
            f"{own}: give the options of the training, or call load_pact_ to read them."
        )

    def _share_of_calibrated(self, low: float, high: float) -> float:
        """Return the share of calibrated grids in a loaded average."""
        return high / self._levels[1] if self.symmetric else (high - low) / (self._levels[1] - self._levels[0])

    def count_by(self, passes: ForwardPasses) -> None:
        """Calibrate once per pass counted by ``passes``, not per call."""
        if passes is not self._passes:
            self._passes, self._batch = passes, 0

    @property
    def calibrated(self) -> bool:
        """Whether ``alpha`` is calibrated or loaded."""
        return self.levels()[1] > 0

    def levels(self) -> tuple[int, int]:
        """Return the grid's lowest and highest integer; zeros before calibration."""
        self.refresh()
        return int(self._levels[0]), int(self._levels[1])

    def step(self) -> float:
        """Return the quantisation step, in units of the input."""
        return max(float(self.alpha), SMALLEST_ALPHA) / max(self.levels()[1], 1)

    def scales(self) -> Tensor:
        """Return ``alpha``, the value of the highest integer, shape ``[1]``."""
        return self.alpha

    def quant_axis(self) -> int:
        """Return -1: one scale for the whole tensor."""
        return -1

    def observe(self, x: Tensor) -> None:
        """Update ``alpha`` by the values of one call."""
        sample, largest, lowest = self._sampled(x)
        by_percentile = self.calibration == "percentile"
        found = self._percentile_of(sample, largest) if by_percentile else largest
        if not math.isfinite(found):
            return  # skip a batch that is not finite
        number = self._passes.number if self._passes is not None and self._passes.running else 0
        if self._seen == 0 or number == 0 or number != self._batch:
            self._seen, self._batch = self._seen + 1, number
            self._earlier, self._largest = self._observed, found
        self._lowest = min(self._lowest, lowest)
        if by_percentile:
            self._largest = max(self._largest, found)
            rest = 0.0 if self._seen == 1 else self._momentum
            self._observed = rest * self._earlier + (1 - rest) * self._largest
            self.set_range(self._observed, lowest=self._lowest)
        else:
            self._histogram = self._histogram or ValueHistogram()
            self._histogram.add(sample, largest=largest)
            self.set_range(self._histogram, lowest=self._lowest)

    def set_range(self, values: ValueHistogram | float, *, lowest: float) -> None:
        """Set ``alpha`` and the grid, see `range_and_grid`.

        Args:
            values: Histogram of inputs, from which ``calibration`` chooses the range; or the range, finite and above 0.
            lowest: Smallest input.
        """
        alpha, self._levels = range_and_grid(
            values, self.calibration, bits=self._bits, lowest=lowest, symmetric=self.symmetric
        )
        _set_(self.alpha, [alpha])
        _set_(self.grid, self._levels)

    def make_symmetric(self) -> None:
        """Use the symmetric grid of the same range instead of the trained one."""
        self._levels = grid_levels(self._bits, True, symmetric=True)
        self.symmetric, self._unset = True, (self._levels[0], 0.0)
        _set_(self.grid, self._levels)

    def measure(self, x: Tensor) -> tuple[float, float]:
        """Return percentile and minimum over all ranks.

        Args:
            x: Input of one call.
        """
        sample, largest, lowest = self._sampled(x)
        return self._percentile_of(sample, largest), lowest

    def collect(self, x: Tensor, histogram: ValueHistogram) -> float:
        """Add the values of one call to ``histogram`` and return their minimum.

        Args:
            x: Input of one call.
            histogram: Where to add them.

        Returns:
            The minimum; NaN if a value is not finite, and then nothing is added.
        """
        sample, largest, lowest = self._sampled(x)
        if not math.isfinite(largest):
            return math.nan
        histogram.add(sample, largest=largest)
        return lowest

    def _percentile_of(self, sample: np.ndarray, largest: float) -> float:
        found = float(np.percentile(np.abs(sample), self._percentile))
        return found if found > 0 else largest or 1.0

    @paddle.no_grad()
    def _sampled(self, x: Tensor) -> tuple[np.ndarray, float, float]:
        """Return a sample, the largest magnitude and the minimum, over all ranks."""
        x = x.detach() if x.dtype == paddle.float32 else x.detach().astype("float32")  # no copy
        values = x.reshape([-1])
        values = paddle.nn.functional.relu(values) if self._rectified else values
        lowest, highest = values.min(), values.max()
        ranks = paddle.distributed.get_world_size() if several_ranks() else 1
        sample = gathered(values[:: sampling_stride(values.shape[0], max(1, _SAMPLE // ranks))])
        if ranks > 1:
            paddle.distributed.all_reduce(lowest, op=paddle.distributed.ReduceOp.MIN)
            paddle.distributed.all_reduce(highest, op=paddle.distributed.ReduceOp.MAX)
        least, most, found = float(lowest), float(highest), sample.numpy()
        finite = least <= most and not np.isnan(found).any()  # NaN compares as False
        return found, max(abs(least), abs(most)) if finite else math.nan, least

    def _calibrating(self) -> bool:
        """Whether this call belongs to a calibration batch.

        A call after the pass in which the layer ran before (recomputed activations) does not.
        """
        if not 0 < self._seen <= self._batches:
            return False
        passes = self._passes
        if passes is not None and passes.attached and self._batch == passes.number > 0:
            return passes.running
        return self._seen < self._batches


class ChannelWeightQuantizer(Switched):
    """Symmetric fake quantizer of weights, scaled by each channel's maximum.

    The scale follows the weight, so what is simulated at the last step is what is exported. The buffer ``grid``
    (``[2]``: lowest and highest integer) records bits and range in checkpoints; nothing is computed with it.

    Args:
        bits: Grid width in bits, 2-8; the grid is ``[-high, high]``, see `highest_weight`.
        axis: Axis of the output channels: 0 for ``Conv2D`` (``[out, in, kh, kw]``), 1 for ``Conv2DTranspose`` and
            ``Linear``.
        reduce_range: Whether 8 bits use half the range, on which no CPU saturates.
    """

    def __init__(self, *, bits: int = 8, axis: int = 0, reduce_range: bool = True) -> None:
        super().__init__(bits)
        self._axis, self.reduce_range = axis, reduce_range
        self._high = highest_weight(bits, reduce_range=reduce_range)
        self.register_buffer("grid", paddle.to_tensor([-float(self._high), float(self._high)], dtype="float32"))

    def forward(self, input: Tensor) -> Tensor:
        """Quantise and dequantise the weight ``input``."""
        if not self.enabled:
            return input
        if not self.training and paddle.in_dynamic_mode():
            self.refresh()
        return self._quantize(input)

    def refresh(self) -> None:
        """Compare the grid with that of a loaded checkpoint.

        Raises:
            ValueError: The checkpoint has other bits, or another range.
        """
        low, high = read_grid(self.grid)
        if (low, high) == (-self._high, self._high):
            return
        loaded = weight_settings(high)
        if loaded and round(high) != self._high:
            raise ValueError(
                f"Weights trained with {_words(*loaded[0])} (integers up to {round(high)}) were loaded; this network "
                f"was prepared with {_words(self._bits, self.reduce_range)}: give the options of the training, or "
                "call load_pact_ to read them."
            )
        _set_(self.grid, [-float(self._high), float(self._high)])

    @property
    def high(self) -> int:
        """Highest integer of the grid."""
        return self._high

    def steps(self, weight: Tensor) -> Tensor:
        """Return each channel's step, shaped to broadcast against ``weight``."""
        return weight_steps(weight.detach(), bits=self._bits, axis=self._axis, reduce_range=self.reduce_range)

    def integers(self, weight: Tensor) -> Tensor:
        """Return the int8 weight that training simulates."""
        self.refresh()
        steps = self.steps(weight)
        return paddle.clip(paddle.round(weight.detach() / steps), -self._high, self._high).astype("int8")

    def _quantize(self, weight: Tensor) -> Tensor:
        return round_weight(weight, self.steps(weight))

    def scales(self) -> Any:
        """Return None: the scale is computed from the weight, see `steps`."""

    def quant_axis(self) -> int:
        """Return the axis of the output channels."""
        return self._axis


class LSQWeightQuantizer(ChannelWeightQuantizer):
    """Fake quantizer of weights with trained steps (LSQ, arXiv:1902.08153).

    ``alpha`` (parameter, shaped to broadcast: the step times the highest integer) starts from the paper's ``2 mean |w|
    / sqrt(high)`` per step, and is in the ``state_dict``. The grid is the symmetric one of `ChannelWeightQuantizer`, so
    that both methods are exported alike.

    Args:
        weight: Weight to quantise.
        bits: Grid width in bits, 2-8.
        axis: Axis of the output channels.
        lr_scale: Factor on the optimizer's learning rate.
        reduce_range: See `ChannelWeightQuantizer`.
    """

    def __init__(
        self, weight: Tensor, *, bits: int = 8, axis: int = 0, lr_scale: float = 1.0, reduce_range: bool = True
    ) -> None:
        super().__init__(bits=bits, axis=axis, reduce_range=reduce_range)
        others = [dim for dim in range(len(weight.shape)) if dim != axis]
        with paddle.no_grad():
            mean = weight.detach().abs().mean(axis=others, keepdim=True)
            start = paddle.where(mean > 0, 2 * mean * self._high**0.5, paddle.full_like(mean, float(self._high)))
        self.alpha = self.create_parameter(start.shape, dtype="float32", attr=paddle.ParamAttr(learning_rate=lr_scale))
        self.alpha.set_value(start)

    def steps(self, weight: Tensor) -> Tensor:
        """Return each channel's trained step."""
        return self.alpha.detach().clip(min=SMALLEST_ALPHA) / self._high

    def scales(self) -> Tensor:
        """Return the value of the highest integer, per channel."""
        return self.alpha

    def _quantize(self, weight: Tensor) -> Tensor:
        return lsq_fake_quantize(weight, self.alpha, bits=self._bits, symmetric=True, reduce_range=self.reduce_range)


def weight_settings(high: float) -> list[tuple[int, bool]]:
    """Return bits and ``reduce_range`` of a weight grid that ends at ``high``.

    Args:
        high: Value read from a checkpoint, perhaps averaged.
    """
    settings = [(bits, True) for bits in _BITS] + [(8, False)]
    return [(bits, half) for bits, half in settings if abs(highest_weight(bits, reduce_range=half) - high) < _NEAR]


def activation_settings(low: float, high: float) -> list[tuple[int, bool]]:
    """Return bits and symmetry of an activation grid; empty before calibration.

    Args:
        low: Value read from a checkpoint, perhaps averaged.
        high: Value read from a checkpoint, perhaps averaged.
    """

    def near(bits: int) -> bool:  # to a grid with any zero point
        levels = shifted_levels(low, high, bits) if high > 0 and math.isfinite(high - low) else (0.0, 0.0)
        return max(abs(levels[0] - low), abs(levels[1] - high)) < _NEAR

    found = [(bits, False) for bits in _BITS if near(bits)]
    for bits in _BITS:
        least, most = grid_levels(bits, True, symmetric=True)
        # Between these limits it is the average of a grid and of its value before the first batch.
        if abs(least - low) < _SAME and -_SAME < high < most + _NEAR:
            found.append((bits, True))
    return found


def _words(bits: int, reduce_range: bool) -> str:
    return f"weight_bits={bits}" + (f", reduce_range={reduce_range}" if bits == 8 else "")


def read_grid(grid: Any) -> tuple[float, float]:
    """Return a grid's lowest and highest integer, rounded."""
    values = grid.astype("float32").numpy() if isinstance(grid, Tensor) else np.asarray(grid, "float32")
    return float(values[0]), float(values[1])


def _set_(tensor: Tensor, values: Any) -> None:
    """Write ``values`` into ``tensor`` in its own dtype."""
    tensor.set_value(paddle.to_tensor(np.asarray(values, "float32")).astype(tensor.dtype))
