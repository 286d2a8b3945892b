"""Put fake quantizers into a network: layers become Paddle's quantised ones, under their names."""

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

__getattr__, _ = forwarded(  # names as they were
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
    """Paddle's quantised layers ask a factory for the quantizer of the layer they replace."""

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
    """Convert the layers that ``config`` names, in place; weights and biases stay the same tensors under their names.

    A converted layer computes with its input fake-quantised by a learned ``alpha`` (`PACTActivationQuantizer`) and its
    weight fake-quantised per output channel (`ChannelWeightQuantizer`). New keys of ``state_dict``:
    ``<layer>.activation_quanter.alpha`` and ``.grid``, ``<layer>.weight_quanter.grid`` (which tells bits and range of
    a checkpoint); with ``quantize_outputs`` also ``<layer>.output_quanter.*`` of
    the layers that `output_places` names, with ``method="lsq"`` ``<layer>.weight_quanter.alpha``. Hooks on a converted
    layer go on firing, those of ``weight_norm`` and ``spectral_norm`` too: the effective weight is quantised. Two hooks
    on ``network`` tell which calls of a layer are one calibration batch: those of one call of ``network``. A second
    call converts only what the first has left. A checkpoint of a quantised network loads after this call.

    Args:
        network: in which layers are replaced.
        config: ``None`` for the defaults.
        inputs: a batch, or one per input of ``network``, to run a copy on: that tells whose weight ``forward`` uses
            itself, and with ``quantize_outputs`` what follows which convolution. ``None`` for noise of a shape that
            the first layer takes.
        outputs: names of the layers whose output is quantised, in place of those that are found (of a checkpoint).

    Returns:
        An undo: closing it puts the original layers back.

    Raises:
        TypeError: no network, or no `PACTConfig`.
        ValueError: nothing to convert, a pattern that matches nothing, a network quantised otherwise, or a ``forward``
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
            with same_random_streams():  # a layer draws weights when it is made, which the old ones replace
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
    """Let all quantizers of ``network`` know which of their calls are one batch: those of one call of ``network``."""
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
    """Return the layers that ``config`` would convert, by name, each shared layer once.

    Raises:
        ValueError: a ``skip`` or ``include`` pattern matches no layer, nothing is left to convert and nothing has
            been converted before, a weight is not of type float32, or the network holds quantised layers of another
            tool or of other bits.
    """
    for pattern in (*config.skip, *(p for p in config.include if p != "*")):
        match_sublayers(network, pattern)
    _check_quantizers(network, config)
    types = tuple(getattr(paddle.nn, name) for name in config.layer_types)
    wanted = {
        name: layer
        for name, layer in network.named_sublayers()  # names a shared layer once
        if computes_as(layer, *types) and matches_any(name, config.include) and not matches_any(name, config.skip)
    }
    other = {name: str(layer.weight.dtype) for name, layer in wanted.items() if layer.weight.dtype != paddle.float32}
    if other:
        name = next(iter(other))
        raise ValueError(
            f"The weight of {name} is of type {other[name]}: fake quantisation needs float32 to be exact. Cast the "
            "network with network.to(dtype='float32') (its data, too), before the optimizer is made."
        )
    if not wanted and not quantized_layers(network):
        raise ValueError(
            f"{type(network).__name__} has no {' or '.join(config.layer_types)} to quantise with "
            f"include={list(config.include)}, skip={list(config.skip)}. Functional calls, and "
            "subclasses with a forward of their own, are not seen. Widen include, skip or layer_types."
        )
    return wanted


def quantized_layers(network: Layer) -> dict[str, Layer]:
    """Return the layers that `prepare_pact_` has converted, by name.

    Args:
        network: looked through.
    """
    kinds = tuple(_QUANTED.values())
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, kinds)}


def quantization_of(network: Layer) -> dict[str, Any] | None:
    """Return method, bits and kinds of grids that ``network`` was quantised with; ``None`` for a network in float.

    Args:
        network: looked through.
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
    """Return our quantizers of inputs and outputs by their own names; a layer can hold both.

    Args:
        network: quantised.
    """
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, PACTActivationQuantizer)}


def trained_scales(network: Layer) -> list[Tensor]:
    """Return the alphas (of PaddleSlim's quantizers too): parameters that the optimizer must be told of.

    Args:
        network: quantised.
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
    # The hook tables are shared, not copied: a handle got from the original layer still removes its hook.
    new._forward_pre_hooks = layer._forward_pre_hooks
    new._forward_post_hooks = layer._forward_post_hooks
    if any(computes_weight(hook) for hook in layer._forward_pre_hooks.values()):
        _take_over_parts(new, layer)
    keep_additions_(new, layer, kind)
    return new


def _take_over_parts(new: Layer, layer: Layer) -> None:
    """Let the hook of ``weight_norm`` or ``spectral_norm`` find in ``new`` what it computes the weight from."""
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
    return PACTActivationQuantizer(
        bits=config.activation_bits,
        percentile=config.alpha_percentile,
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
                f"asked are {config.weight_bits}, {config.activation_bits}, {config.method!r}. Start from the fp32 "
                "network, or give the same options."
            )
        symmetric = getattr(layer.activation_quanter, "symmetric", False)
        if symmetric != config.activation_symmetric:
            raise ValueError(
                f"{name} is already quantised with activation_symmetric={symmetric}; asked is "
                f"{config.activation_symmetric}. Start from the fp32 network, or give the same options."
            )
        if config.weight_bits == 8 and quantizer.reduce_range != config.reduce_range:
            raise ValueError(
                f"{name} is already quantised with reduce_range={quantizer.reduce_range}; asked is "
                f"{config.reduce_range}. Start from the fp32 network, or give the same options."
            )
