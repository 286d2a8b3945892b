"""Enable, disable, refresh and remove quantizers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from paddle.nn import Layer

from paddlelite_callbacks.quant.output_quantizers import detach_output_quantizer_, quantized_outputs
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.quantizers import Switched
from paddlelite_callbacks.utils.deprecation import forwarded

__all__ = ["put_back", "put_back_", "quantizers_off", "refresh_quantizers_", "strip_quantizers_", "switch_quantizers_"]

__getattr__, _ = forwarded(  # old names
    __name__,
    {
        "quantisers_off": "quant.switch:quantizers_off",
        "refresh_quantisers_": "quant.switch:refresh_quantizers_",
        "strip_quantisers_": "quant.switch:strip_quantizers_",
        "switch_quantisers_": "quant.switch:switch_quantizers_",
    },
)

_INNER = ("activation_quanter", "weight_quanter")


@contextmanager
def quantizers_off(network: Layer, layers: Collection[str] | None = None) -> Iterator[None]:
    """Disable the quantizers of ``network`` inside the block.

    Args:
        network: Quantised network.
        layers: Names of the layers with the quantizers; ``None`` for all.
    """
    held = [(quantizer, quantizer.enabled) for quantizer in _quantizers(network, layers)]
    foreign = [
        (layer, layer.activation_quanter)
        for name, layer in quantized_layers(network).items()
        if (layers is None or name in layers) and not isinstance(layer.activation_quanter, Switched)
    ]
    try:
        for quantizer, _ in held:
            quantizer.enabled = False
        for layer, _ in foreign:
            layer.activation_quanter = None
        yield
    finally:
        for quantizer, enabled in held:
            quantizer.enabled = enabled
        for layer, quantizer in foreign:
            layer.activation_quanter = quantizer


def put_back_(network: Layer, layers: Collection[str]) -> None:
    """Put layers back to float: remove the quantizers of their inputs and weights.

    Quantizers of outputs, which other layers read, stay.

    Args:
        network: Quantised network, changed in place.
        layers: Names of quantised layers.
    """
    for name, layer in quantized_layers(network).items():
        if name in layers:
            for inner in _INNER:
                setattr(layer, inner, None)


@contextmanager
def put_back(network: Layer, layers: Collection[str]) -> Iterator[None]:
    """Put layers back to float inside the block, see `put_back_`.

    Args:
        network: Quantised network.
        layers: Names of quantised layers.
    """
    held = [
        (layer, {inner: getattr(layer, inner) for inner in _INNER})
        for name, layer in quantized_layers(network).items()
        if name in layers
    ]
    put_back_(network, layers)
    try:
        yield
    finally:
        for layer, quantizers in held:
            for inner, quantizer in quantizers.items():
                setattr(layer, inner, quantizer)


def switch_quantizers_(network: Layer, enabled: bool) -> None:
    """Enable or disable quantizers.

    Args:
        network: Quantised network.
        enabled: Whether to enable them.
    """
    for quantizer in _quantizers(network, None):
        quantizer.enabled = enabled


def refresh_quantizers_(network: Layer) -> None:
    """Re-read the grids of a loaded checkpoint in all quantizers.

    Args:
        network: Quantised network.

    Raises:
        ValueError: The checkpoint has other bits, or another range.
    """
    for quantizer in _quantizers(network, None):
        quantizer.refresh()


def strip_quantizers_(network: Layer) -> Layer:
    """Remove the quantizers, in place (pass a copy), and return the float network."""
    for layer in quantized_outputs(network).values():
        detach_output_quantizer_(layer)
    put_back_(network, quantized_layers(network))
    return network


def _quantizers(network: Layer, layers: Collection[str] | None) -> list[Switched]:
    return [
        layer
        for name, layer in network.named_sublayers()
        if isinstance(layer, Switched) and (layers is None or name.rpartition(".")[0] in layers)
    ]
