"""Building blocks of the high-resolution networks, in operations that export, fuse and quantise everywhere.

Resizing is written as a depthwise transposed convolution or as matrix products: Paddle Inference with oneDNN (its
default) fails on every interpolation operator, and converters refuse float scale factors.
"""

from __future__ import annotations

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

__all__ = ["Act", "ConvBN", "SeparableConv", "downsample_mean", "raised", "upsample_bilinear", "upsample_nearest"]

Act = Callable[[Tensor], Tensor] | None


class ConvBN(nn.Layer):
    """Convolution without bias, batch normalisation, activation; "same" padding.

    Args:
        in_channels: of ``x``.
        out_channels: of the result.
        kernel: odd size of the window.
        stride: of the window.
        groups: of the convolution.
        act: behind the normalisation; ``None`` for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: Act = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2D(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            weight_attr=paddle.ParamAttr(initializer=nn.initializer.KaimingNormal()),
            bias_attr=False,
        )
        self.norm = nn.BatchNorm2D(out_channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class SeparableConv(nn.Layer):
    """Depthwise 3x3 and pointwise 1x1 `ConvBN`, the activation behind the second alone.

    Args:
        in_channels: of ``x``.
        out_channels: of the result.
        stride: of the depthwise window.
        act: behind the pointwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, act: Act = None) -> None:
        super().__init__()
        self.depthwise = ConvBN(in_channels, in_channels, 3, stride=stride, groups=in_channels)
        self.pointwise = ConvBN(in_channels, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        return self.pointwise(self.depthwise(x))


def upsample_nearest(x: Tensor, factor: int) -> Tensor:
    """Repeat every pixel of ``[N, C, H, W]`` ``factor`` x ``factor`` times, as a depthwise transposed convolution."""
    channels = x.shape[1]
    ones = paddle.ones([channels, 1, factor, factor], dtype=x.dtype)
    return F.conv2d_transpose(x, ones, stride=factor, groups=channels)


def upsample_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Bring ``[N, C, h, w]`` to ``height`` x ``width``, bilinear with aligned corners, as two matrix products.

    With three axes: Paddle Inference with oneDNN computes a product of four wrongly behind a convolution.
    """
    _, channels, low, narrow = x.shape
    rows, columns = _hat_weights(height, low), paddle.t(_hat_weights(width, narrow))
    maps = paddle.reshape(x, [-1, low, narrow])
    maps = paddle.matmul(paddle.matmul(rows.astype(x.dtype), maps), columns.astype(x.dtype))
    return paddle.reshape(maps, [-1, channels, height, width])


def _hat_weights(target: int, size: int) -> Tensor:
    """Share ``[target, size]`` of every source position in every target position along one axis."""
    place = paddle.arange(target, dtype="float32") * ((size - 1) / max(target - 1, 1))
    return F.relu(1.0 - paddle.abs(place.unsqueeze(1) - paddle.arange(size, dtype="float32")))


def downsample_mean(x: Tensor, factor: int) -> Tensor:
    """Average ``[N, C, H, W]`` over windows of ``factor`` x ``factor``: adaptive pooling where sizes divide."""
    return x if factor == 1 else F.avg_pool2d(x, factor, stride=factor)


def raised(target: int, maps: list[Tensor], paths: nn.LayerDict) -> Tensor | None:
    """Sum the maps coarser than ``target``, each through its path and upsampled to it; ``None`` for the coarsest.

    Goes from the coarsest map up, doubling the sum so far: fewer and smaller upsampled maps than one a source.

    Args:
        target: index of the map whose size is wanted.
        maps: each half the size of the one before.
        paths: 1x1 layers, ``"<source>_to_<target>"``.
    """
    total: Tensor | None = None
    for source in range(len(maps) - 1, target, -1):
        here = paths[f"{source}_to_{target}"](maps[source])
        total = upsample_nearest(here if total is None else here + total, 2)
    return total
