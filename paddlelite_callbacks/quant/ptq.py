"""Quantise networks after training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.nested import forward_batch
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.bias_correction import correct_biases_, recorded_means
from paddlelite_callbacks.quant.config import QUANTIZABLE, PACTConfig, ptq_defaults
from paddlelite_callbacks.quant.equalization import absorb_high_biases_, equalize_
from paddlelite_callbacks.quant.histogram import ValueHistogram
from paddlelite_callbacks.quant.prepare import activation_quantizers, prepare_pact_
from paddlelite_callbacks.quant.quantizers import PACTActivationQuantizer
from paddlelite_callbacks.quant.rounding import optimize_rounding_
from paddlelite_callbacks.quant.switch import quantizers_off
from paddlelite_callbacks.utils.deprecation import Moved, Renamed, old_arguments

__all__ = ["ptq_int8"]

_ROUNDINGS = ("nearest", "gptq")
_NAMED = (
    *("calibration", "alpha_percentile", "weight_bits", "activation_bits", "reduce_range", "activation_symmetric"),
    *("quantize_outputs", "layer_types", "include", "skip"),
)
_OTHERS = tuple(name for name in PACTConfig.__dataclass_fields__ if name not in _NAMED)


@old_arguments(percentile=Renamed("alpha_percentile"), **dict.fromkeys(_OTHERS, Moved("config", lambda: PACTConfig)))
def ptq_int8(
    network: Layer,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    calibration: str | None = None,
    alpha_percentile: float | None = None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    reduce_range: bool = True,
    activation_symmetric: bool = False,
    quantize_outputs: bool = False,
    bias_correction: bool = True,
    rounding: str = "nearest",
    equalization: bool = False,
    layer_types: Sequence[str] = QUANTIZABLE,
    include: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    config: PACTConfig | None = None,
) -> Layer:
    """Return a copy of ``network`` in int8, calibrated on ``batches``.

    Weights are scaled by each channel's largest magnitude. Activations are clipped to a range that ``calibration``
    chooses from the values of all batches, observed on the float network; ``"percentile"`` is the mean over batches of
    a percentile of ``|x|``, for a layer that runs several times in a batch the largest one. Export the copy like a
    trained one, with `export_forms`. Batches in which a layer does not run are not counted for it.

    Args:
        network: fp32 network; not changed.
        batches: Calibration inputs, a tensor or one per input of the network, some hundred images in all.
        calibration: Choice of the activations' ranges: ``"min_max"``, ``"percentile"``, ``"mse"`` or ``"kl"``, see
            `PACTConfig`; ``None`` for ``"percentile"`` with ``alpha_percentile``, else ``"kl"`` up to 4 bits and
            ``"mse"`` above.
        alpha_percentile: Percentile of ``|x|`` to clip at, in (50, 100]; ``None`` for 99.9.
        weight_bits: Weight bits, 2-8; see `PACTConfig`, here and below.
        activation_bits: Activation bits, 2-8.
        reduce_range: Whether 8-bit weights use half their range.
        activation_symmetric: Whether activations use the symmetric grid of Paddle Lite.
        quantize_outputs: Whether to quantise outputs of convolutions too, for ONNX Runtime.
        bias_correction: Whether to correct the mean error of each output channel through the biases (Nagel et al. 2019,
            arXiv:1906.04721); layers without a bias get one. The batches are then kept in memory, and run twice.
        rounding: ``"nearest"``, or ``"gptq"`` to round weights so that the layers' outputs change least (Frantar et al.
            2022, arXiv:2210.17323), for grids of few bits. The batches are then kept in memory, too.
        equalization: Whether to equalise the weight ranges of neighbouring layers first, and to absorb high biases
            (Nagel et al. 2019, section 4.1). For networks whose channels differ much in size.
        layer_types: Names of layer classes.
        include: Globs of layers to convert.
        skip: Globs of layers to leave in fp32.
        config: Options that are not named above; arguments that are not default override it.

    Returns:
        The copy, in eval mode.

    Raises:
        TypeError: Unknown option, or not a network.
        ValueError: No batch, a batch that is not finite, an option out of range, or nothing to quantise.

    Example:
        >>> images = [paddle.rand([32, 3, 224, 224]) for _ in range(4)]  # yours  # doctest: +SKIP
        >>> quantised = ptq_int8(network, images, skip=["head"])  # doctest: +SKIP
        >>> export_forms(quantised, Path("out"), input_spec=[InputSpec([None, 3, 224, 224])])  # doctest: +SKIP
    """
    named: dict[str, Any] = {
        "calibration": calibration,
        "alpha_percentile": alpha_percentile,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "reduce_range": reduce_range,
        "activation_symmetric": activation_symmetric,
        "quantize_outputs": quantize_outputs,
        "layer_types": layer_types,
        "include": include,
        "skip": skip,
    }
    if not isinstance(bias_correction, bool):
        raise ValueError(f"bias_correction must be True or False, got {bias_correction!r}: leave it out for True.")
    if not isinstance(equalization, bool):
        raise ValueError(f"equalization must be True or False, got {equalization!r}: leave it out for False.")
    if rounding not in _ROUNDINGS:
        raise ValueError(f"rounding must be one of {list(_ROUNDINGS)}, got {rounding!r}: leave it out for 'nearest'.")
    if config is not None and not isinstance(config, PACTConfig):
        raise TypeError(f"config must be a PACTConfig, got {type(config).__name__}: PACTConfig(weight_bits=4).")
    defaults = PACTConfig.__dataclass_fields__
    given = {name: value for name, value in named.items() if value != defaults[name].default}
    config = ptq_defaults(replace(config or PACTConfig(), **given))
    if not isinstance(network, Layer):
        prepare_pact_(network, config)  # raises the error
    duplicate = copy_network(network, keep_hook=lambda hook: True, keep_modes=True)
    waiting: Iterator[Tensor | Sequence[Tensor]] = iter(batches)
    first = list(islice(waiting, 1))
    if bias_correction or equalization or rounding != "nearest":
        first.extend(waiting)
    if equalization and first:
        absorb_high_biases_(duplicate, list(equalize_(duplicate, first)))
    prepare_pact_(duplicate, config, inputs=first[0] if first else None)
    duplicate.eval()
    with recorded_means(duplicate) if bias_correction else nullcontext() as means:
        count = _calibrate_(duplicate, chain(first, waiting))
    if not count:
        raise ValueError("batches must hold at least one batch to calibrate on, got []: give some hundred images.")
    if rounding == "gptq":
        optimize_rounding_(duplicate, first)
    if means is not None:
        correct_biases_(duplicate, first, wanted=means)
    return duplicate


def _calibrate_(network: Layer, batches: Iterable[Tensor | Sequence[Tensor]]) -> int:
    """Calibrate all activation quantizers and return the number of batches."""
    observers = [_Observer(quantizer) for quantizer in activation_quantizers(network).values()]
    count = 0
    with ExitStack() as scope:
        scope.enter_context(paddle.no_grad())
        scope.enter_context(quantizers_off(network))
        for observer in observers:
            scope.callback(observer.quantizer.register_forward_pre_hook(observer.observe).remove)
        for batch in batches:
            forward_batch(network, batch)
            count += 1
            for observer in observers:
                observer.end_batch()
    for observer in observers:
        observer.set_range()
    return count


class _Observer:
    """Collects what a quantizer sees in the float network."""

    def __init__(self, quantizer: PACTActivationQuantizer) -> None:
        self.quantizer = quantizer
        self._by_percentile = quantizer.calibration == "percentile"
        self._histogram = ValueHistogram()
        self._found: list[float] = []  # largest percentile of each batch
        self._now: list[float] = []  # percentiles of the current batch
        self._lowest = math.inf
        self._finite = True

    def observe(self, _: Layer, inputs: tuple[Tensor, ...]) -> None:
        """Add the values of one call (forward pre-hook)."""
        if self._by_percentile:
            value, least = self.quantizer.measure(inputs[0])
            self._now.append(value)
            self._finite &= math.isfinite(value)
        else:
            least = self.quantizer.collect(inputs[0], self._histogram)
            self._finite &= math.isfinite(least)
        self._lowest = min(self._lowest, least)

    def end_batch(self) -> None:
        """End a batch."""
        if self._now:
            self._found.append(max(self._now))
        self._now = []

    def set_range(self) -> None:
        """Set the quantizer's range, unless it never ran."""
        if not self._finite:
            raise ValueError(
                "The batches give activations that are not finite, so no scale can be computed: clean them of NaN "
                "and infinite values, and check the network's weights."
            )
        if self._found:
            self.quantizer.set_range(sum(self._found) / len(self._found), lowest=self._lowest)
        elif not self._by_percentile and self._lowest < math.inf:
            self.quantizer.set_range(self._histogram, lowest=self._lowest)
