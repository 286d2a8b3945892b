"""Post-training quantisation."""

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
    """Return a quantised copy of ``network``, calibrated on ``batches``.

    Weights are scaled by each channel's largest magnitude, activations by the mean over batches of a percentile of
    ``|x|``, both as in quantisation-aware training before its first step; the float network is what is observed. The
    copy is exported like a trained one, with `export_forms`. Of a layer that runs several times in a batch the largest
    percentile counts, and of one that does not run in all of them those in which it does.

    Args:
        network: in fp32; not changed.
        batches: inputs to calibrate on, a tensor or one per input of the network, some hundred images in all.
        alpha_percentile: percentile of ``|x|`` that is clipped at, in (50, 100]; 100 for the maximum.
        weight_bits: see `PACTConfig`, here and below.
        activation_bits: 2-8.
        reduce_range: whether 8-bit weights use half their range.
        activation_symmetric: whether activations use the grid of Paddle Lite.
        quantize_outputs: whether outputs of convolutions are quantised too, for ONNX Runtime.
        layer_types: names of layer classes.
        include: globs of layers to convert.
        skip: globs of layers to leave in fp32.
        config: options that are not named above; arguments that are not default go before it.

    Returns:
        The copy, in eval mode.

    Raises:
        TypeError: an unknown option, or no network.
        ValueError: no batch was given, one that is not finite, an option is out of range, or nothing can be quantised.

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
        prepare_pact_(network, config)  # refuses it
    duplicate = copy_network(network, keep_hook=lambda hook: True, keep_modes=True)
    waiting = iter(batches)
    first = list(islice(waiting, 1))
    prepare_pact_(duplicate, config, inputs=first[0] if first else None)
    duplicate.eval()
    quantizers = list(activation_quantizers(duplicate).values())
    found: dict[int, list[float]] = {id(quantizer): [] for quantizer in quantizers}
    lowest: dict[int, float] = {}
    now: dict[int, float] = {}  # the largest percentile of the batch under way
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
                "The batches give activations that are not finite, from which no scale can be had: clean them of NaN "
                "and infinite values, and check the network's weights."
            )
        if values:
            quantizer.set_range(sum(values) / len(values), signed=lowest[id(quantizer)] < 0)
    return duplicate
