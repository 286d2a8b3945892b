"""Quantise networks after training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.config import QUANTIZABLE, PACTConfig
from paddlelite_callbacks.quant.prepare import activation_quantizers, prepare_pact_
from paddlelite_callbacks.quant.switch import quantizers_off
from paddlelite_callbacks.utils.deprecation import Moved, Renamed, old_arguments

__all__ = ["ptq_int8"]

_NAMED = (
    *("alpha_percentile", "weight_bits", "activation_bits", "reduce_range", "activation_symmetric"),
    *("quantize_outputs", "layer_types", "include", "skip"),
)
_OTHERS = tuple(name for name in PACTConfig.__dataclass_fields__ if name not in _NAMED)


@old_arguments(percentile=Renamed("alpha_percentile"), **dict.fromkeys(_OTHERS, Moved("config", lambda: PACTConfig)))
def ptq_int8(
    network: Layer,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    alpha_percentile: float = 99.9,
    weight_bits: int = 8,
    activation_bits: int = 8,
    reduce_range: bool = True,
    activation_symmetric: bool = False,
    quantize_outputs: bool = False,
    layer_types: Sequence[str] = QUANTIZABLE,
    include: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    config: PACTConfig | None = None,
) -> Layer:
    """Return a copy of ``network`` in int8, calibrated on ``batches``.

    Weights are scaled by each channel's largest magnitude, activations by the mean over batches of a percentile of
    ``|x|``, both as in quantisation-aware training before its first step, observed on the float network. Export the
    copy like a trained one, with `export_forms`. For a layer that runs several times in a batch the largest percentile
    is used; batches in which a layer does not run are not counted for it.

    Args:
        network: fp32 network; not changed.
        batches: Calibration inputs, a tensor or one per input of the network, some hundred images in all.
        alpha_percentile: Percentile of ``|x|`` to clip at, in (50, 100]; 100 for the maximum.
        weight_bits: Weight bits, 2-8; see `PACTConfig`, here and below.
        activation_bits: Activation bits, 2-8.
        reduce_range: Whether 8-bit weights use half their range.
        activation_symmetric: Whether activations use the symmetric grid of Paddle Lite.
        quantize_outputs: Whether to quantise outputs of convolutions too, for ONNX Runtime.
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
    if config is not None and not isinstance(config, PACTConfig):
        raise TypeError(f"config must be a PACTConfig, got {type(config).__name__}: PACTConfig(weight_bits=4).")
    defaults = PACTConfig.__dataclass_fields__
    config = replace(
        config or PACTConfig(), **{name: value for name, value in named.items() if value != defaults[name].default}
    )
    if not isinstance(network, Layer):
        prepare_pact_(network, config)  # raises the error
    duplicate = copy_network(network, keep_hook=lambda hook: True, keep_modes=True)
    waiting = iter(batches)
    first = list(islice(waiting, 1))
    prepare_pact_(duplicate, config, inputs=first[0] if first else None)
    duplicate.eval()
    quantizers = list(activation_quantizers(duplicate).values())
    found: dict[int, list[float]] = {id(quantizer): [] for quantizer in quantizers}
    lowest: dict[int, float] = {}
    now: dict[int, float] = {}  # largest percentile in the current batch
    count = 0

    def observe(quantizer: Layer, inputs: tuple[Tensor, ...]) -> None:
        value, least = quantizer.measure(inputs[0])
        now[id(quantizer)] = max(now.get(id(quantizer), value), value) if math.isfinite(value) else value
        lowest[id(quantizer)] = min(lowest.get(id(quantizer), least), least)

    with paddle.no_grad(), quantizers_off(duplicate):
        hooks = [quantizer.register_forward_pre_hook(observe) for quantizer in quantizers]
        for batch in chain(first, waiting):
            duplicate(*([batch] if isinstance(batch, Tensor) else batch))
            count += 1
            for key, value in now.items():
                found[key].append(value)
            now.clear()
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("batches must hold at least one batch to calibrate on, got []: give some hundred images.")
    for quantizer in quantizers:
        values = found[id(quantizer)]
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(
                "The batches give activations that are not finite, so no scale can be computed: clean them of NaN "
                "and infinite values, and check the network's weights."
            )
        if values:
            quantizer.set_range(sum(values) / len(values), signed=lowest[id(quantizer)] < 0)
    return duplicate
