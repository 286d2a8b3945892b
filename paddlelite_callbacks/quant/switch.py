"""Enable, disable, refresh and remove quantizers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from paddle.nn import Layer

from paddlelite_callbacks.quant.output_quantizers import detach_output_quanter_, quantized_outputs
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.quantizers import Switched

__all__ = ["quantisers_off", "refresh_quantisers_", "strip_quantisers_", "switch_quantisers_"]

_INNER = ("activation_quanter", "weight_quanter")


@contextmanager
def quantisers_off(network: Layer, layers: Collection[str] | None = None) -> Iterator[None]:
    """Disable the quantizers of ``network`` inside the block.

    Args:
        network: changed for the time of the block.
        layers: names of the layers that hold the quantisers; ``None`` for all.
    """
    held = [(quanter, quanter.enabled) for quanter in _quanters(network, layers)]
    foreign = [
        (layer, layer.activation_quanter)
        for name, layer in quantized_layers(network).items()
        if (layers is None or name in layers) and not isinstance(layer.activation_quanter, Switched)
    ]
    try:
        for quanter, _ in held:
            quanter.enabled = False
        for layer, _ in foreign:
            layer.activation_quanter = None
        yield
    finally:
        for quanter, enabled in held:
            quanter.enabled = enabled
        for layer, quanter in foreign:
            layer.activation_quanter = quanter


def switch_quantisers_(network: Layer, enabled: bool) -> None:
    """Enable or disable quantizers.

    Args:
        network: quantised.
        enabled: whether they are on.
    """
    for quanter in _quanters(network, None):
        quanter.enabled = enabled


def refresh_quantisers_(network: Layer) -> None:
    """Let quantizers re-read grids of a loaded checkpoint.

    Args:
        network: quantised.

    Raises:
        ValueError: the checkpoint is of other bits, or of another range.
    """
    for quanter in _quanters(network, None):
        quanter.refresh()


def strip_quantisers_(network: Layer) -> Layer:
    """Remove the quantizers in place (pass a copy): the trained float network."""
    for layer in quantized_outputs(network).values():
        detach_output_quanter_(layer)
    for layer in quantized_layers(network).values():
        for name in _INNER:
            setattr(layer, name, None)
    return network


def _quanters(network: Layer, layers: Collection[str] | None) -> list[Switched]:
    return [
        layer
        for name, layer in network.named_sublayers()
        if isinstance(layer, Switched) and (layers is None or name.rpartition(".")[0] in layers)
    ]
