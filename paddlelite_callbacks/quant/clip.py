"""Convert a quantised network to float, with clips and weights on the grid.

Training saw no activation beyond its learned alpha. Without quantizers the network would see them, and may compute
something else (one head on all levels of a pyramid: 98.8 % with, 81.6 % without clips). So the float form keeps the
clips and the quantised weights; only the rounding of activations is removed.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.quantization import BaseQuanter

from paddlelite_callbacks.nn.surgery import replace_sublayer
from paddlelite_callbacks.quant.convert import FixedActivation, has_run
from paddlelite_callbacks.quant.output_quantizers import detach_output_quantizer_, quantized_outputs
from paddlelite_callbacks.quant.prepare import quantized_layers

__all__ = ["Clip", "clip_activations_", "store_weights_on_grid_"]


class Clip(Layer):
    """Clip to fixed limits, in units of the input.

    Args:
        low: Lower limit.
        high: Upper limit.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    @classmethod
    def of(cls, quantizer: BaseQuanter) -> Clip:
        """Return the clip to a trained quantizer's range.

        Args:
            quantizer: Calibrated quantizer.
        """
        grid = FixedActivation.of(quantizer)
        low, high = grid.low * grid.step, grid.high * grid.step
        return cls(low, high) if grid.clip is None else cls(max(low, -grid.clip), min(high, grid.clip))

    def forward(self, x: Tensor) -> Tensor:
        """Clip ``x`` of any shape."""
        return paddle.clip(x, self.low, self.high)


def clip_activations_(network: Layer) -> Layer:
    """Replace activation quantizers by clips, in place; pass a copy.

    Quantizers of layers that never ran are removed. Weights stay fake-quantised.

    Args:
        network: Quantised network; others are returned unchanged.
    """
    for name, layer in quantized_outputs(network).items():
        quantizer = detach_output_quantizer_(layer)
        if has_run(quantizer):
            replace_sublayer(network, name, paddle.nn.Sequential(layer, Clip.of(quantizer)))
    for layer in quantized_layers(network).values():
        quantizer = layer.activation_quanter
        if not isinstance(quantizer, BaseQuanter):
            continue
        if has_run(quantizer):
            layer.activation_quanter = Clip.of(quantizer)
        else:
            layer.activation_quanter = layer.weight_quanter = None
    return network


@paddle.no_grad()
def store_weights_on_grid_(network: Layer) -> Layer:
    """Replace weights by their fake-quantised values, in place; pass a copy.

    Args:
        network: Result of `clip_activations_`.
    """
    layers = [layer for layer in quantized_layers(network).values() if layer.weight_quanter is not None]
    holders = Counter(id(layer.weight) for layer in layers)
    trained: dict[int, np.ndarray] = {}  # weights of several layers, which may round differently
    for layer in layers:
        own = trained.get(id(layer.weight), layer.weight.numpy())
        if holders[id(layer.weight)] > 1:
            trained[id(layer.weight)] = own
        value = layer.weight_quanter(paddle.to_tensor(own))
        shared = not np.array_equal(layer.weight.numpy(), own)
        if shared and not np.array_equal(layer.weight.numpy(), value.numpy()):  # with another step
            layer.weight = layer.create_parameter(list(own.shape))
        layer.weight.set_value(value)
        layer.weight_quanter = None
    return network
