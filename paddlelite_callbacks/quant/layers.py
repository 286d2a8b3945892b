"""Define a fake-quantised ``Conv2DTranspose``, which Paddle lacks."""

from __future__ import annotations

from typing import Any

import paddle.nn.functional as F
from paddle import Tensor
from paddle.nn import Conv2DTranspose, Layer

__all__ = ["QuantedConv2DTranspose", "transpose_options"]


class QuantedConv2DTranspose(Layer):
    """Fake-quantise input and weight of a ``Conv2DTranspose``.

    Args:
        layer: Layer whose weight and bias tensors are used.
        q_config: Paddle's ``SingleLayerConfig``.
    """

    def __init__(self, layer: Conv2DTranspose, q_config: Any) -> None:
        super().__init__()
        self._options = transpose_options(layer)
        self._groups, self._data_format = layer._groups, layer._data_format
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quanter = q_config.weight._instance(layer)
        self.activation_quanter = q_config.activation._instance(layer)

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out, H', W']``."""
        weight = self.weight if self.weight_quanter is None else self.weight_quanter(self.weight)
        x = x if self.activation_quanter is None else self.activation_quanter(x)
        options = self._options if output_size is None else {**self._options, "output_padding": 0}
        return F.conv2d_transpose(x, weight, bias=self.bias, output_size=output_size, **options)


def transpose_options(layer: Conv2DTranspose) -> dict[str, Any]:
    """Return the arguments of ``conv2d_transpose`` for ``layer``."""
    return {
        "padding": layer._padding,
        "output_padding": layer.output_padding,
        "stride": layer._stride,
        "dilation": layer._dilation,
        "groups": layer._groups,
        "data_format": layer._data_format,
    }
