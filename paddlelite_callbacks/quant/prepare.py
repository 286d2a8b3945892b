"""Insert fake quantizers: replace layers by Paddle's quantised ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import paddle
import paddle.quantization.quanters
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.nn.kinds import computes_as
from paddlelite_callbacks.nn.surgery import computes_weight, match_sublayers, matches_any, replace_sublayer
from paddlelite_callbacks.nn.trace import example_inputs
from paddlelite_callbacks.quant.calibration import count_passes_, stop_counting_
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.direct_use import check_no_direct_use
from paddlelite_callbacks.quant.layers import QuantedConv2DTranspose
from paddlelite_callbacks.quant.output_quantizers import (
    OutputPlace,
    attach_output_quantizer_,
    detach_output_quantizer_,
    output_places,
)
from paddlelite_callbacks.quant.paddle_layers import QuantedConv2D, QuantedLinear, single_layer_config
from paddlelite_callbacks.quant.quantizers import ChannelWeightQuantizer, LSQWeightQuantizer, PACTActivationQuantizer
from paddlelite_callbacks.quant.subclasses import keep_additions_
from paddlelite_callbacks.utils.deprecation import forwarded
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = [
    "activation_quantizers",
    "convertible_layers",
    "prepare_pact_",
    "quantization_of",
    "quantized_layers",
    "trained_scales",
]

__getattr__, _ = forwarded(  # old names
    __name__,
    {
        "activation_quanters": "quant.prepare:activation_quantizers",
    },
)

_QUANTED = {
    paddle.nn.Conv2D: QuantedConv2D,
    paddle.nn.Conv2DTranspose: QuantedConv2DTranspose,
    paddle.nn.Linear: QuantedLinear,
}


class _Factory:
    """Factory that Paddle's quantised layers ask for a quantizer."""

    def __init__(self, make: Callable[[Layer], Layer]) -> None:
        self._make = make

    def _instance(self, layer: Layer) -> Layer:
        return self._make(layer)


def prepare_pact_(
    network: Layer,
    config: PACTConfig | None = None,
    *,
    inputs: Tensor | Sequence[Tensor] | None = None,
    outputs: Sequence[str] | None = None,
) -> ExitStack:
    """Convert the layers that ``config`` selects to fake-quantised ones, in place.

    Weights and biases stay the same tensors under their names. A converted layer fake-quantises its input with a
    learned ``alpha`` (`PACTActivationQuantizer`) and its weight per output channel (`ChannelWeightQuantizer`). New keys
    of ``state_dict``: ``<layer>.activation_quanter.alpha`` and ``.grid``, ``<layer>.weight_quanter.grid`` (bits and
    range, for checkpoints); with ``quantize_outputs`` also ``<layer>.output_quanter.*`` of the layers of
    `output_places`, with ``method="lsq"`` ``<layer>.weight_quanter.alpha``. Hooks of a converted layer stay, also those
    of ``weight_norm`` and ``spectral_norm``: the effective weight is quantised. Two hooks on ``network`` count
    calibration batches: one call of ``network`` is one batch. A second call converts only remaining layers. A
    checkpoint of a quantised network can be loaded after this call.

    Args:
        network: Network to convert.
        config: Options; ``None`` for the defaults.
        inputs: A batch, or one tensor per input of ``network``, to run a copy on: this finds layers whose weight
            ``forward`` uses itself, and with ``quantize_outputs`` the order of layers. ``None`` for random inputs of a
            shape that fits the first layer.
        outputs: Names of the layers whose output is quantised, instead of those that are found (for a checkpoint).

    Returns:
        Undo stack: closing it restores the original layers.

    Raises:
        TypeError: Not a network, or not a `PACTConfig`.
        ValueError: Nothing to convert, a pattern that matches nothing, a network quantised otherwise, or a ``forward``
            that calls a layer and uses its weight itself.

    Example:
        >>> prepare_pact_(network, PACTConfig(skip=["head"]))  # as in training  # doctest: +SKIP
        >>> network.set_state_dict(read_saved("quantised.pdparams"))  # doctest: +SKIP
    """
    config = PACTConfig() if config is None else config
    _check_types(network, config)
    undo = ExitStack()
    try:
        layers = convertible_layers(network, config)
        if outputs is None:
            given = [inputs] if isinstance(inputs, Tensor) else inputs
            inputs = example_inputs(network) if given is None else given
            check_no_direct_use(network, list(layers), inputs)
        convolutions = [name for name, layer in layers.items() if not isinstance(layer, paddle.nn.Linear)]
        places = _output_places(network, config, convolutions, inputs, outputs)
        for name, layer in layers.items():
            with same_random_streams():  # a new layer draws weights, which the old ones replace
                new = _quantized(layer, config)
            replace_sublayer(network, name, new)
            undo.callback(replace_sublayer, network, name, layer)
        sublayers = dict(network.named_sublayers())
        for place in places:
            attach_output_quantizer_(sublayers[place.name], _activation_quanter(config, rectified=place.rectified))
            undo.callback(detach_output_quantizer_, sublayers[place.name])
        _count_batches(network, undo)
    except BaseException:
        undo.close()
        raise
    return undo


def _output_places(
    network: Layer,
    config: PACTConfig,
    convolutions: Sequence[str],
    inputs: Sequence[Tensor] | None,
    outputs: Sequence[str] | None,
) -> list[OutputPlace]:
    if outputs is not None:
        return [OutputPlace(name) for name in outputs]
    if not config.quantize_outputs or not convolutions:
        return []
    return output_places(network, convolutions, inputs)


def _count_batches(network: Layer, undo: ExitStack) -> None:
    """Make all quantizers of ``network`` count one call of it as one batch."""
    passes, new = count_passes_(network)
    if new:
        undo.callback(stop_counting_, network)
    for quantizer in activation_quantizers(network).values():
        quantizer.count_by(passes)


def _check_types(network: Any, config: Any) -> None:
    if not isinstance(network, Layer):
        of_model = ": give model.network" if isinstance(network, paddle.Model) else ": build one first"
        raise TypeError(f"network must be a paddle.nn.Layer, got {type(network).__name__}{of_model}.")
    if not isinstance(config, PACTConfig):
        raise TypeError(
            f"config must be a PACTConfig, got {type(config).__name__}: build PACTConfig(weight_bits=8), or call "
            f"PACTConfig.from_guide({{...}}) for the guide's dictionary."
        )


def convertible_layers(network: Layer, config: PACTConfig) -> dict[str, Layer]:
    """Return the layers that ``config`` selects by name, each shared layer once.

    Raises:
        ValueError: A ``skip`` or ``include`` pattern matches no layer, nothing is left to convert and nothing was
            converted before, a weight is not float32, or the network has quantised layers of another tool or with other
            bits.
    """
    for pattern in (*config.skip, *(p for p in config.include if p != "*")):
        match_sublayers(network, pattern)
    _check_quantizers(network, config)
    types = tuple(getattr(paddle.nn, name) for name in config.layer_types)
    wanted = {
        name: layer
        for name, layer in network.named_sublayers()  # a shared layer has one name here
        if computes_as(layer, *types) and matches_any(name, config.include) and not matches_any(name, config.skip)
    }
    other = {name: str(layer.weight.dtype) for name, layer in wanted.items() if layer.weight.dtype != paddle.float32}
    if other:
        name = next(iter(other))
        raise ValueError(
            f"The weight of {name} is {other[name]}: fake quantisation needs float32 to be exact. Cast the network "
            "with network.to(dtype='float32') (its data, too), before the optimizer is made."
        )
    if not wanted and not quantized_layers(network):
        raise ValueError(
            f"{type(network).__name__} has no {' or '.join(config.layer_types)} to quantise with "
            f"include={list(config.include)}, skip={list(config.skip)}. Functional calls, and subclasses with a "
            "forward of their own, are not found. Widen include, skip or layer_types."
        )
    return wanted


def quantized_layers(network: Layer) -> dict[str, Layer]:
    """Return the layers that `prepare_pact_` converted, by name.

    Args:
        network: Network to search.
    """
    kinds = tuple(_QUANTED.values())
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, kinds)}


def quantization_of(network: Layer) -> dict[str, Any] | None:
    """Return method, bits and grids of ``network``; ``None`` for a float network.

    Args:
        network: Network to search.
    """
    for layer in quantized_layers(network).values():
        weight, activation = layer.weight_quanter, layer.activation_quanter
        if isinstance(weight, ChannelWeightQuantizer):
            return {
                "method": "lsq" if isinstance(weight, LSQWeightQuantizer) else "pact",
                "weight_bits": weight.bit_length(),
                "reduce_range": weight.reduce_range,
                "activation_bits": int(activation.bit_length()),
                "activation_symmetric": getattr(activation, "symmetric", False),
            }
    return None


def activation_quantizers(network: Layer) -> dict[str, PACTActivationQuantizer]:
    """Return this package's input and output quantizers by their own names.

    Args:
        network: Quantised network.
    """
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, PACTActivationQuantizer)}


def trained_scales(network: Layer) -> list[Tensor]:
    """Return the alphas: parameters to register with the optimizer.

    Args:
        network: Quantised network.
    """
    names = (".activation_quanter.alpha", ".output_quanter.alpha", ".weight_quanter.alpha")
    return [parameter for name, parameter in network.named_parameters() if f".{name}".endswith(names)]


def _quantized(layer: Layer, config: PACTConfig) -> Layer:
    kind = computes_as(layer, *_QUANTED)
    assert kind is not None  # of `convertible_layers`
    axis = 0 if kind is paddle.nn.Conv2D else 1
    bits = config.weight_bits
    if config.method == "lsq":
        weight = _Factory(
            lambda one: LSQWeightQuantizer(
                one.weight, bits=bits, axis=axis, lr_scale=config.alpha_lr_scale, reduce_range=config.reduce_range
            )
        )
    else:
        weight = _Factory(lambda _: ChannelWeightQuantizer(bits=bits, axis=axis, reduce_range=config.reduce_range))
    new = _QUANTED[kind](layer, single_layer_config(_activation_factory(config), weight))
    # The hook tables are shared, not copied: handles of the original layer still remove its hooks.
    new._forward_pre_hooks = layer._forward_pre_hooks
    new._forward_post_hooks = layer._forward_post_hooks
    if any(computes_weight(hook) for hook in layer._forward_pre_hooks.values()):
        _take_over_parts(new, layer)
    keep_additions_(new, layer, kind)
    return new


def _take_over_parts(new: Layer, layer: Layer) -> None:
    """Move the parameters that a hook of ``weight_norm`` or ``spectral_norm`` reads."""
    for name in list(new._parameters):
        if name == "weight":
            del new._parameters[name]
    for name, value in layer._parameters.items():
        new._parameters.setdefault(name, value)
    for name, value in layer._buffers.items():
        new._buffers.setdefault(name, value)
    new._non_persistable_buffer_names_set |= layer._non_persistable_buffer_names_set


def _activation_factory(config: PACTConfig) -> Any:
    if config.activation == "paddleslim":
        slim = require("paddleslim.quant.quanters", needed_for="PACTConfig(activation='paddleslim')")
        inner = paddle.quantization.quanters.FakeQuanterWithAbsMaxObserver(moving_rate=0.9)
        return slim.PACTQuanter(quanter=inner, learning_rate=config.alpha_lr_scale)
    return _Factory(lambda _: _activation_quanter(config))


def _activation_quanter(config: PACTConfig, *, rectified: bool = False) -> PACTActivationQuantizer:
    calibration, percentile = config.resolved_calibration
    return PACTActivationQuantizer(
        bits=config.activation_bits,
        calibration=calibration,
        percentile=percentile,
        lr_scale=config.alpha_lr_scale,
        method=config.method,
        decay=config.alpha_decay,
        batches=config.calibration_batches,
        momentum=config.observer_momentum,
        rectified=rectified,
        symmetric=config.activation_symmetric,
    )


def _check_quantizers(network: Layer, config: PACTConfig) -> None:
    ours = quantized_layers(network)
    for name, layer in network.named_sublayers():
        home = type(layer).__module__
        foreign = home.startswith(("paddleslim.", "paddle.nn.quant.", "paddle.quantization."))
        if foreign and not any(name == one or name.startswith(f"{one}.") for one in ours):
            raise ValueError(
                f"{type(network).__name__} is already quantised by another tool ({name} is a {home}."
                f"{type(layer).__name__}): start from the fp32 network."
            )
    for name, layer in ours.items():
        quantizer = layer.weight_quanter
        if quantizer is None:
            continue
        if not isinstance(quantizer, ChannelWeightQuantizer):
            raise ValueError(
                f"{type(network).__name__} is already quantised by another tool ({name} holds a "
                f"{type(quantizer).__name__}): start from the fp32 network."
            )
        method = "lsq" if isinstance(quantizer, LSQWeightQuantizer) else "pact"
        has = (quantizer.bit_length(), layer.activation_quanter.bit_length(), method)
        if has != (config.weight_bits, config.activation_bits, config.method):
            raise ValueError(
                f"{name} is already quantised with weight_bits={has[0]}, activation_bits={has[1]}, method={method!r}; "
                f"got {config.weight_bits}, {config.activation_bits}, {config.method!r}. Start from the fp32 "
                "network, or give the same options."
            )
        symmetric = getattr(layer.activation_quanter, "symmetric", False)
        if symmetric != config.activation_symmetric:
            raise ValueError(
                f"{name} is already quantised with activation_symmetric={symmetric}; got "
                f"{config.activation_symmetric}. Start from the fp32 network, or give the same options."
            )
        if config.weight_bits == 8 and quantizer.reduce_range != config.reduce_range:
            raise ValueError(
                f"{name} is already quantised with reduce_range={quantizer.reduce_range}; got "
                f"{config.reduce_range}. Start from the fp32 network, or give the same options."
            )
