"""Fold batch normalisation into the convolutions before it, for export."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .layers import Act, ConvBN

__all__ = ["FoldedConv", "fuse_for_inference_"]


class FoldedConv(nn.Layer):
    """A `ConvBN` in eval mode as one convolution and one addition: fewer operations and parameters in the file.

    Args:
        layer: whose weight, statistics and activation are taken; not changed.
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
        """``[N, in, H, W]`` to ``[N, out, H', W']``."""
        x = F.conv2d(x, self.weight, **self._options) + self.bias
        return x if self.act is None else self.act(x)


def fuse_for_inference_(network: nn.Layer) -> int:
    """Replace every plain `ConvBN` of ``network`` by a `FoldedConv`, in place: give it a copy in eval mode.

    The output stays the same but for rounding. One whose convolution has been quantised is left as it is. The keys of
    ``state_dict`` change, so save weights before.

    Returns:
        How many have been replaced.

    Raises:
        ValueError: ``network`` is in training mode, where the statistics of the batch count.
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
