"""Put fake quantisers into a network: ``Conv2D`` and ``Linear`` become Paddle's quantised layers, under their names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.nn.quant.qat import QuantedConv2D, QuantedLinear
from paddle.quantization.config import SingleLayerConfig

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.fake_quant import ChannelWeightQuanter, PACTActivationQuanter
from paddlelite_callbacks.surgery import match_sublayers, replace_sublayer

__all__ = ["convertible_layers", "prepare_pact_", "quantized_layers", "trained_scales"]

_QUANTED = {paddle.nn.Conv2D: QuantedConv2D, paddle.nn.Linear: QuantedLinear}


class _Factory:
    """Paddle's quantised layers ask a factory for the quanter of the layer they replace."""

    def __init__(self, make: Callable[[Layer], Layer]) -> None:
        self._make = make

    def _instance(self, layer: Layer) -> Layer:
        return self._make(layer)


def prepare_pact_(network: Layer, config: PACTConfig | None = None) -> ExitStack:
    """Convert the layers that ``config`` names, in place; weights and biases stay the same tensors under their names.

    A converted layer computes with its input fake-quantised by a learned ``alpha`` (`PACTActivationQuanter`) and its
    weight fake-quantised per output channel (`ChannelWeightQuanter`). New keys of ``state_dict``:
    ``<layer>.activation_quanter.alpha`` and ``.grid``. Hooks on a converted layer go on firing. A second call
    converts only what the first has left. A checkpoint of a quantised network loads after this call.

    Args:
        network: in which layers are replaced.
        config: ``None`` for the defaults.

    Returns:
        An undo: closing it puts the original layers back.

    Raises:
        ValueError: nothing to convert, or a pattern that matches nothing.
    """
    config = config or PACTConfig()
    undo = ExitStack()
    try:
        for name, layer in convertible_layers(network, config).items():
            replace_sublayer(network, name, _quantized(layer, config))
            undo.callback(replace_sublayer, network, name, layer)
    except BaseException:
        undo.close()
        raise
    return undo


def convertible_layers(network: Layer, config: PACTConfig) -> dict[str, Layer]:
    """Return the layers that ``config`` would convert, by name, each shared layer once.

    Raises:
        ValueError: a ``skip`` or ``include`` pattern matches no layer, or nothing is left to convert and nothing has
            been converted before.
    """
    for pattern in (*config.skip, *(p for p in config.include if p != "*")):
        match_sublayers(network, pattern)
    types = tuple(getattr(paddle.nn, name) for name in config.layer_types)
    wanted = {
        name: layer
        for name, layer in network.named_sublayers()  # names a shared layer once
        if type(layer) in types and _matches(name, config.include) and not _matches(name, config.skip)
    }
    if not wanted and not quantized_layers(network):
        raise ValueError(
            f"{type(network).__name__} has no {' or '.join(config.layer_types)} to quantise with "
            f"include={list(config.include)}, skip={list(config.skip)}. Subclasses and functional calls are not seen."
        )
    return wanted


def quantized_layers(network: Layer) -> dict[str, Layer]:
    """Return the layers that `prepare_pact_` has converted, by name."""
    kinds = tuple(_QUANTED.values())
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, kinds)}


def trained_scales(network: Layer) -> list[Tensor]:
    """Return the alphas (of PaddleSlim's quanters too): parameters that the optimizer must be told of."""
    quanters = [layer.activation_quanter for layer in quantized_layers(network).values()]
    return [quanter.alpha for quanter in quanters if hasattr(quanter, "alpha")]


def _quantized(layer: Layer, config: PACTConfig) -> Layer:
    axis = 0 if type(layer) is paddle.nn.Conv2D else 1
    weight = _Factory(lambda _: ChannelWeightQuanter(bits=config.weight_bits, axis=axis))
    new = _QUANTED[type(layer)](layer, SingleLayerConfig(_activation_factory(config), weight))
    # The hook tables are shared, not copied: a handle got from the original layer still removes its hook.
    new._forward_pre_hooks = layer._forward_pre_hooks
    new._forward_post_hooks = layer._forward_post_hooks
    return new


def _activation_factory(config: PACTConfig) -> Any:
    if config.activation == "paddleslim":
        quanters = require("paddleslim.quant.quanters", needed_for="PACTConfig(activation='paddleslim')")
        inner = paddle.quantization.quanters.FakeQuanterWithAbsMaxObserver(moving_rate=0.9)
        return quanters.PACTQuanter(quanter=inner, learning_rate=config.alpha_lr_scale)
    return _Factory(
        lambda _: PACTActivationQuanter(
            bits=config.activation_bits, percentile=config.alpha_percentile, lr_scale=config.alpha_lr_scale
        )
    )


def _matches(name: str, patterns: Any) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)
