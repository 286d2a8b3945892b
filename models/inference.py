"""Fold batch normalisation into the convolutions before it, for export."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .layers import Act, ConvBN

__all__ = ["FoldedConv", "fuse_for_inference_"]


class FoldedConv(nn.Layer):
    """`ConvBN` in eval mode as one convolution and one addition.

    Exported files then hold fewer operators and parameters.

    Args:
        layer: Layer whose weight, statistics and activation are used; not changed.
    """

    def __init__(self, layer: ConvBN) -> None:
        super().__init__()
        norm, conv = layer.norm, layer.conv
        factor = norm.weight * paddle.rsqrt(norm._variance + norm._epsilon)
        self.weight = _parameter(conv.weight * factor.reshape([-1, 1, 1, 1]))
        self.bias = _parameter((norm.bias - norm._mean * factor).reshape([1, -1, 1, 1]))
        self.act: Act = layer.act
        self._options = {"stride": conv._stride, "padding": conv._padding, "groups": conv._groups}

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``[N, out, H', W']`` of ``x`` ``[N, in, H, W]``."""
        x = F.conv2d(x, self.weight, **self._options) + self.bias
        return x if self.act is None else self.act(x)


def fuse_for_inference_(network: nn.Layer) -> int:
    """Replace each `ConvBN` of ``network`` by a `FoldedConv`, in place.

    Outputs stay the same except for rounding. Layers with a quantised convolution are not replaced. The keys of
    ``state_dict`` change, so pass a copy or save the weights first.

    Args:
        network: Network in eval mode.

    Returns:
        Number of replaced layers.

    Raises:
        ValueError: ``network`` is in training mode, where batch statistics are used.
    """
    if network.training:
        raise ValueError("fuse_for_inference_ folds the running statistics: call network.eval() first.")
    count = 0
    for parent in network.sublayers(include_self=True):
        for name, child in list(parent.named_children()):
            if type(child) is ConvBN and type(child.conv) is nn.Conv2D:
                parent.add_sublayer(name, FoldedConv(child))
                count += 1
    return count


def _parameter(value: Tensor) -> Tensor:
    return paddle.create_parameter(
        value.shape, str(value.dtype).split(".")[-1], default_initializer=nn.initializer.Assign(value.numpy())
    )
