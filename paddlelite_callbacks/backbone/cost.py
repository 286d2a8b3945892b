"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Conv1D, Conv2D, Conv2DTranspose, Conv3D, Layer, Linear
from paddle.nn.quant.qat import QuantedConv2D, QuantedLinear

__all__ = ["count_macs", "count_parameters"]

_STATISTICS = ("._mean", "._variance", ".activation_quanter.alpha")


def count_parameters(network: Layer) -> int:
    """Return the number of weights of ``network``; batch-norm statistics and quantisation scales are none."""
    return sum(
        math.prod(parameter.shape)
        for name, parameter in network.named_parameters()
        if not f".{name}".endswith(_STATISTICS)
    )


def count_macs(network: Layer, inputs: Sequence[Tensor]) -> int:
    """Return the multiply-accumulates of convolutions and linear layers for one image, as papers count them.

    Counted on a copy by hooks on the layers; what ``forward`` computes itself with ``F.conv2d`` or ``matmul``
    (attention) is not seen.

    Args:
        network: any mode; not changed.
        inputs: of ``forward``, the batch in front.
    """
    total, batch = 0, int(inputs[0].shape[0])

    def count(layer: Layer, given: Any, output: Tensor) -> None:
        nonlocal total
        weights = math.prod(layer.weight.shape)
        if isinstance(layer, Conv2DTranspose):
            total += weights * math.prod(given[0].shape[2:]) * given[0].shape[0]
        elif isinstance(layer, (Linear, QuantedLinear)):
            total += weights * math.prod(output.shape[:-1])
        else:
            total += weights * math.prod(output.shape[2:]) * output.shape[0]

    duplicate = copy.deepcopy(network)
    kinds = (Conv1D, Conv2D, Conv3D, Conv2DTranspose, Linear, QuantedConv2D, QuantedLinear)
    for layer in duplicate.sublayers(include_self=True):
        if isinstance(layer, kinds):
            layer.register_forward_post_hook(count)
    duplicate.eval()
    with paddle.no_grad():
        duplicate(*inputs)
    return total // batch
