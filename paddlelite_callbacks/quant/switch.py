"""Quantisers on and off: for a float evaluation, and for taking them out of a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paddle.nn import Layer

from paddlelite_callbacks.quant.prepare import quantized_layers

__all__ = ["quantisers_off", "strip_quantisers_"]

_QUANTERS = ("activation_quanter", "weight_quanter")


@contextmanager
def quantisers_off(network: Layer, names: set[str] | None = None) -> Iterator[None]:
    """Let the quantised layers of ``network`` compute in float inside the block.

    Args:
        network: changed for the time of the block.
        names: of the layers; ``None`` for all.
    """
    layers = [layer for name, layer in quantized_layers(network).items() if names is None or name in names]
    held = [(layer, name, getattr(layer, name)) for layer in layers for name in _QUANTERS]
    try:
        for layer, name, _ in held:
            setattr(layer, name, None)
        yield
    finally:
        for layer, name, quanter in held:
            setattr(layer, name, quanter)


def strip_quantisers_(network: Layer) -> Layer:
    """Take the quantisers out of ``network``, in place (give it a copy): the float network with the trained weights."""
    for layer in quantized_layers(network).values():
        for name in _QUANTERS:
            setattr(layer, name, None)
    return network
