"""Measure the sensitivity of layers to quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.switch import quantizers_off
from paddlelite_callbacks.utils.deprecation import Renamed, old_arguments
from paddlelite_callbacks.utils.numbers import check_number
from paddlelite_callbacks.utils.progress import tqdm

__all__ = ["find_skips", "layer_sqnr", "leave_one_out"]


def layer_sqnr(network: Layer, batches: Iterable[Sequence[Tensor]]) -> dict[str, float]:
    """Return each quantised layer's SQNR in dB, worst first.

    ``10 log10(sum y^2 / sum (y - y_q)^2)`` over all batches, with ``y`` the layer's output in float and ``y_q`` with
    quantised input and weight, on the same inputs: those of the float network, without the noise of earlier layers.

    Args:
        network: Quantised network; not changed.
        batches: Inputs, one tensor per input of the network.
    """
    layers = quantized_layers(network)
    power = {name: [0.0, 0.0] for name in layers}
    quantizers = {name: (layer.activation_quanter, layer.weight_quanter) for name, layer in layers.items()}

    def compare(name: str, layer: Layer, inputs: tuple[Any, ...], output: Tensor) -> None:
        held = [(quantizer, quantizer.enabled) for quantizer in quantizers[name] if hasattr(quantizer, "enabled")]
        for quantizer, _ in held:
            quantizer.enabled = True
        quantized = type(layer).forward(layer, *inputs)
        for quantizer, enabled in held:
            quantizer.enabled = enabled
        power[name][0] += float(output.square().sum())
        power[name][1] += float((output - quantized).square().sum())

    with paddle.no_grad(), same_modes(network), ExitStack() as scope:
        network.eval()
        scope.enter_context(quantizers_off(network))
        for name, layer in layers.items():
            hook = layer.register_forward_post_hook(lambda one, ins, out, name=name: compare(name, one, ins, out))
            scope.callback(hook.remove)
        for batch in batches:
            network(*batch)
    ratios = {
        name: math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)
        for name, (signal, noise) in power.items()
    }
    return dict(sorted(ratios.items(), key=lambda item: item[1]))


def leave_one_out(network: Layer, score: Callable[[], float], layers: Sequence[str] | None = None) -> dict[str, float]:
    """Return the gain in ``score`` of leaving each layer in float, largest first.

    Args:
        network: Quantised network; not changed.
        score: Evaluates the network in its current state; higher is better.
        layers: Layers to try; ``None`` for all quantised ones.

    Raises:
        ValueError: Nothing is quantised, or one of ``layers`` is not a quantised layer.
    """
    base = score()
    gains = {}
    for name in tqdm(_quantized(network, layers), desc="Sensitivity", unit="layer", leave=False):
        with quantizers_off(network, [name]):
            gains[name] = score() - base
    return dict(sorted(gains.items(), key=lambda item: -item[1]))


@old_arguments(budget=Renamed("metric_drop"))
def find_skips(
    network: Layer,
    score: Callable[[], float],
    *,
    metric_drop: float,
    most: int = 5,
    candidates: Sequence[str] | None = None,
) -> list[str]:
    """Greedily select layers to leave in float for a drop of at most ``metric_drop``.

    Args:
        network: Quantised network; not changed.
        score: Evaluates the network in its current state; higher is better.
        metric_drop: Accepted drop, as a share of the float network's score.
        most: Largest number of layers to return.
        candidates: Layers to choose from; ``None`` for all quantised ones.

    Returns:
        Names for ``skip``; empty where the drop is small enough already, and where leaving ``most`` layers in float
        gains nothing. Train again with them: these scores are of the network as it was trained.

    Raises:
        ValueError: ``metric_drop`` is negative, nothing is quantised, or a candidate is not a quantised layer.
    """
    remedy = "give 0.01 for one per cent of the score"
    check_number("metric_drop", metric_drop, lambda drop: drop >= 0, "a share of at least 0", remedy=remedy)
    left = _quantized(network, candidates)
    with quantizers_off(network):
        wanted = score()
    wanted -= metric_drop * abs(wanted)
    chosen: list[str] = []
    start = reached = score()
    while reached < wanted and left and len(chosen) < most:
        with quantizers_off(network, chosen):
            best = next(iter(leave_one_out(network, score, left)))
        chosen.append(best)
        left.remove(best)
        with quantizers_off(network, chosen):
            reached = score()
    return chosen if reached > start else []


def _quantized(network: Layer, names: Sequence[str] | None) -> list[str]:
    known = list(quantized_layers(network))
    if not known:
        raise ValueError(
            f"The network {type(network).__name__} has no quantised layer: convert it with prepare_pact_, then call "
            "again."
        )
    wrong = [name for name in names or () if name not in known]
    if wrong:
        raise ValueError(
            f"Unknown layers {wrong}: not quantised; near names: {near_names(wrong[0], known)}. Choose among {known}."
        )
    return list(names or known)
