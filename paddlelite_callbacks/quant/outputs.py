"""Quantised outputs of convolutions: what ONNX Runtime needs to compute them in int8.

It fuses ``DQ, Conv, [Relu,] Q`` into one integer convolution. So the quantiser belongs behind the batch normalisation
(which is folded) and behind a ReLU (which the unsigned grid contains), but before any other activation. The place is
taken from the order in which layers are defined, conv - norm - ReLU; where a network runs them in another order the
quantiser is still simulated exactly where it is shipped, only the engine cannot use it.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.kinds import is_batch_norm
from paddlelite_callbacks.quant.quanters import PACTActivationQuanter

__all__ = ["attach_output_quanter_", "detach_output_quanter_", "output_places", "quantized_outputs"]

_RELUS = (paddle.nn.ReLU, paddle.nn.ReLU6)


class _QuantizedOutput:
    """Mixed into the class of a layer whose output is fake-quantised; the layer keeps its type, name and keys."""

    _plain_class: type
    output_quanter: PACTActivationQuanter

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        return self.output_quanter(self._plain_class.forward(self, *inputs, **options))  # type: ignore[attr-defined]


def output_places(network: Layer, convolutions: list[str]) -> list[str]:
    """Return the names of the layers whose outputs are quantised for ``convolutions``.

    The output of the last convolution is left alone, unless something normalises it: it may be what the network gives.

    Args:
        network: not changed.
        convolutions: names, in the network's order.
    """
    leaves = [(name, layer) for name, layer in network.named_sublayers() if not list(layer.children())]
    order = [name for name, _ in leaves]
    places = []
    for name in convolutions:
        at = order.index(name)
        followers = [*leaves[at + 1 : at + 3], ("", None), ("", None)]
        place = name
        if _normalises(followers[0][1], leaves[at][1]):
            place = followers[1][0] if isinstance(followers[1][1], _RELUS) else followers[0][0]
        elif isinstance(followers[0][1], _RELUS):
            place = followers[0][0]
        elif name == convolutions[-1]:
            continue
        places.append(place)
    return list(dict.fromkeys(places))


def attach_output_quanter_(layer: Layer, quanter: PACTActivationQuanter) -> None:
    """Let ``layer`` quantise what it gives; new keys ``<layer>.output_quanter.alpha`` and ``.grid``.

    Args:
        layer: whose class is changed.
        quanter: that its output goes through.
    """
    plain = type(layer)
    layer.__class__ = type(f"{plain.__name__}WithQuantizedOutput", (_QuantizedOutput, plain), {"_plain_class": plain})
    layer.output_quanter = quanter
    quanter.training = layer.training


def detach_output_quanter_(layer: Layer) -> PACTActivationQuanter:
    """Undo `attach_output_quanter_`; return the quanter.

    Args:
        layer: that `attach_output_quanter_` was given.
    """
    quanter = layer._sub_layers.pop("output_quanter")
    layer.__class__ = layer._plain_class
    return quanter


def quantized_outputs(network: Layer) -> dict[str, Layer]:
    """Return the layers whose output is quantised, by name.

    Args:
        network: looked through.
    """
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, _QuantizedOutput)}


def _normalises(norm: Layer | None, convolution: Layer) -> bool:
    if norm is None or not is_batch_norm(norm):
        return False
    weight = convolution.weight
    channels = norm._mean.shape[0]
    return channels in (weight.shape[0], weight.shape[1] * getattr(convolution, "_groups", 1))
