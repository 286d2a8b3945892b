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
from paddlelite_callbacks.quant.prepare import activation_quanters, prepare_pact_
from paddlelite_callbacks.quant.switch import quantisers_off

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
    quanters = list(activation_quanters(duplicate).values())
    found: dict[int, list[float]] = {id(quanter): [] for quanter in quanters}
    lowest: dict[int, float] = {}
    now: dict[int, float] = {}  # the largest percentile of the batch under way
    count = 0

    def observe(quanter: Layer, inputs: tuple[Tensor, ...]) -> None:
        value, least = quanter.measure(inputs[0])
        now[id(quanter)] = max(now.get(id(quanter), value), value) if math.isfinite(value) else value
        lowest[id(quanter)] = min(lowest.get(id(quanter), least), least)

    with paddle.no_grad(), quantisers_off(duplicate):
        hooks = [quanter.register_forward_pre_hook(observe) for quanter in quanters]
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
    for quanter in quanters:
        values = found[id(quanter)]
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(
                "The batches give activations that are not finite, from which no scale can be had: clean them of NaN "
                "and infinite values, and check the network's weights."
            )
        if values:
            quanter.set_range(sum(values) / len(values), signed=lowest[id(quanter)] < 0)
    return duplicate
