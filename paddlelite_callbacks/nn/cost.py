"""Count parameters and multiply-accumulates (MACs)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.nn.kinds import RECURRENT, SCALES, kind_of, running_statistics
from paddlelite_callbacks.nn.surgery import copy_network, restored

__all__ = ["count_macs", "count_parameters", "layer_macs"]


def count_parameters(network: Layer) -> int:
    """Count the weights of ``network``, without statistics and quantizer scales."""
    statistics = {id(item) for layer in network.sublayers(include_self=True) for item in running_statistics(layer)}
    return sum(
        math.prod(parameter.shape)
        for name, parameter in network.named_parameters()
        if id(parameter) not in statistics and not f".{name}".endswith(SCALES)
    )


def count_macs(network: Layer, inputs: Sequence[Any], *, in_place: bool = False) -> int:
    """Count MACs of convolutions, linear and recurrent layers for one image.

    Counted by hooks on the layers of a copy; operations in ``forward`` itself (``F.conv2d``, ``matmul`` in attention)
    are not counted.

    Args:
        network: Network in any mode; not changed.
        inputs: Arguments of ``forward``, batch first.
        in_place: Whether to run ``network`` itself, which must be a copy in eval mode.
    """
    return sum(layer_macs(network, inputs, in_place=in_place).values())


def layer_macs(network: Layer, inputs: Sequence[Any], *, in_place: bool = False) -> dict[str, int]:
    """Return the MACs of each layer over all its calls, by name.

    Args:
        network: Network in any mode; not changed.
        inputs: Arguments of ``forward``, batch first.
        in_place: See `count_macs`.
    """
    if in_place:
        with restored(network):
            return _counted(network, inputs)
    return _counted(copy_network(network, keep_hook=lambda hook: True), inputs)  # a hook may change sizes


def _counted(duplicate: Layer, inputs: Sequence[Any]) -> dict[str, int]:
    layers = duplicate.named_sublayers(include_self=True)
    counted: dict[str, int] = {}
    inside = {
        id(part)
        for layer in duplicate.sublayers(include_self=True)
        if isinstance(layer, RECURRENT)
        for part in layer.sublayers()
    }

    def counter(name: str) -> Any:
        def count(layer: Layer, given: Any, output: Any) -> None:
            counted[name] = counted.get(name, 0) + _macs(layer, given, output)

        return count

    for name, layer in layers:
        if kind_of(layer) is not None and id(layer) not in inside:
            layer.register_forward_post_hook(counter(name))
    duplicate.eval()
    with paddle.no_grad():
        duplicate(*inputs)
    batch = int(paddle.utils.flatten(list(inputs))[0].shape[0])
    return {name: count // batch for name, count in counted.items()}


def _macs(layer: Layer, given: Any, output: Any) -> int:
    kind = kind_of(layer) or ""
    if kind in ("SimpleRNN", "LSTM", "GRU") or kind.endswith("Cell"):
        matrices = [item for item in layer.parameters() if len(item.shape) == 2]
        first = output[0] if isinstance(output, (list, tuple)) else output
        return sum(math.prod(item.shape) for item in matrices) * math.prod(first.shape[:-1])
    weights = math.prod(layer.weight.shape)
    if kind == "Linear":
        return weights * math.prod(output.shape[:-1])
    channels_last = str(getattr(layer, "_data_format", "NCHW")).endswith("C")
    moved = given[0] if kind.endswith("Transpose") else output  # the side that the kernel moves over
    places = moved.shape[1:-1] if channels_last else moved.shape[2:]
    return weights * math.prod(places) * int(moved.shape[0])
