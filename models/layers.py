"""Building blocks of high-resolution networks, from portable operators.

They export, fuse and quantise on all engines. Resizing is a depthwise transposed convolution or matrix products: Paddle
Inference with oneDNN (its default) fails on every interpolation operator, and converters reject float scale factors.
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
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel: Kernel size in pixels, odd.
        stride: Stride in pixels.
        groups: Number of groups of the convolution.
        act: Activation after the normalisation; ``None`` for none.
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
        """Return maps ``[N, out, H / stride, W / stride]`` of ``x`` ``[N, in, H, W]``."""
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class SeparableConv(nn.Layer):
    """Depthwise 3x3 and pointwise 1x1 `ConvBN`, activation only after the second.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Stride of the depthwise convolution in pixels.
        act: Activation after the pointwise convolution; ``None`` for none.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, act: Act = None) -> None:
        super().__init__()
        self.depthwise = ConvBN(in_channels, in_channels, 3, stride=stride, groups=in_channels)
        self.pointwise = ConvBN(in_channels, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``[N, out, H / stride, W / stride]`` of ``x`` ``[N, in, H, W]``."""
        return self.pointwise(self.depthwise(x))


def upsample_nearest(x: Tensor, factor: int) -> Tensor:
    """Upsample ``[N, C, H, W]`` by ``factor``, nearest neighbour.

    Written as a depthwise transposed convolution.

    Args:
        x: Maps ``[N, C, H, W]``.
        factor: Integer scale factor.
    """
    channels = x.shape[1]
    ones = paddle.ones([channels, 1, factor, factor], dtype=x.dtype)
    return F.conv2d_transpose(x, ones, stride=factor, groups=channels)


def upsample_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Resize ``[N, C, h, w]`` bilinearly with aligned corners.

    Written as two matrix products of 3-D tensors: Paddle Inference with oneDNN computes 4-D products after a
    convolution wrongly.

    Args:
        x: Maps ``[N, C, h, w]``.
        height: Height of the result in pixels.
        width: Width of the result in pixels.
    """
    _, channels, low, narrow = x.shape
    rows, columns = _hat_weights(height, low), paddle.t(_hat_weights(width, narrow))
    maps = paddle.reshape(x, [-1, low, narrow])
    maps = paddle.matmul(paddle.matmul(rows.astype(x.dtype), maps), columns.astype(x.dtype))
    return paddle.reshape(maps, [-1, channels, height, width])


def _hat_weights(target: int, size: int) -> Tensor:
    """Return interpolation weights ``[target, size]`` of one axis."""
    place = paddle.arange(target, dtype="float32") * ((size - 1) / max(target - 1, 1))
    return F.relu(1.0 - paddle.abs(place.unsqueeze(1) - paddle.arange(size, dtype="float32")))


def downsample_mean(x: Tensor, factor: int) -> Tensor:
    """Average ``[N, C, H, W]`` over windows of ``factor`` x ``factor`` pixels."""
    return x if factor == 1 else F.avg_pool2d(x, factor, stride=factor)


def raised(target: int, maps: list[Tensor], paths: nn.LayerDict) -> Tensor | None:
    """Sum the maps coarser than ``target``, upsampled to its size.

    Starts from the coarsest map and doubles the running sum, which needs fewer and smaller upsampled maps than
    upsampling each source separately.

    Args:
        target: Index of the map whose size is wanted.
        maps: Maps ``[N, C, H, W]``, each half the size of the one before.
        paths: 1x1 layers by ``"<source>_to_<target>"``.

    Returns:
        The sum; ``None`` if ``target`` is the coarsest map.
    """
    total: Tensor | None = None
    for source in range(len(maps) - 1, target, -1):
        here = paths[f"{source}_to_{target}"](maps[source])
        total = upsample_nearest(here if total is None else here + total, 2)
    return total
