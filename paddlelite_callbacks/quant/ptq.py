"""Post-training quantisation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.config import pact_config
from paddlelite_callbacks.quant.prepare import activation_quantizers, prepare_pact_
from paddlelite_callbacks.quant.switch import quantizers_off

__all__ = ["ptq_int8"]


def ptq_int8(
    network: Layer, batches: Iterable[Tensor | Sequence[Tensor]], *, percentile: float = 99.9, **options: Any
) -> Layer:
    """Return a quantised copy of ``network``, calibrated on ``batches``.

    Weights are scaled by each channel's largest magnitude, activations by the mean over batches of a percentile of
    ``|x|``, both as in quantisation-aware training before its first step; the float network is what is observed. The
    copy is exported like a trained one, with `export_forms`. Of a layer that runs several times in a batch the largest
    percentile counts, and of one that does not run in all of them those in which it does.

    Args:
        network: in fp32; not changed.
        batches: inputs to calibrate on, a tensor or one per input of the network, some hundred images in all.
        percentile: of ``|x|``; 100 for the maximum.
        options: fields of `PACTConfig`: ``weight_bits``, ``reduce_range``, ``activation_bits``, ``skip``, ...

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
    config = pact_config(alpha_percentile=percentile, **options)
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
