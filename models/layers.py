"""Building blocks of the high-resolution networks, in operations that export, fuse and quantise everywhere.

Resizing is written as a matrix product along the width and a broadcast along the height: Paddle Inference with oneDNN
(its default) fails on every interpolation operator, and converters refuse float scale factors.
"""

from __future__ import annotations

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

__all__ = ["Act", "ConvBN", "Resizer", "SeparableConv", "downsample_mean"]

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
        norm: ``False`` puts a bias in the place of the normalisation.
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
        norm: bool = True,
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
            bias_attr=None if not norm else False,
        )
        self.norm = nn.BatchNorm2D(out_channels) if norm else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
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


class Resizer:
    """Upsampling by whole factors, with the matrices it needs kept for one forward pass.

    ``nearest`` combines a fine map with an upsampled coarse one without ever writing the upsampled one down.
    """

    def __init__(self) -> None:
        self._matrices: dict[tuple[int, int, bool], Tensor] = {}

    def nearest(self, combine: Callable[[Tensor, Tensor], Tensor], fine: Tensor, coarse: Tensor) -> Tensor:
        """Return ``combine(fine, upsampled coarse)``, nearest neighbour.

        Args:
            combine: ``paddle.add`` or another elementwise operator.
            fine: ``[N, C, k h, k w]`` with a whole ``k``.
            coarse: ``[N, C, h, w]``.
        """
        (channels, height, width), (low, narrow) = fine.shape[1:], coarse.shape[2:]
        wide = paddle.matmul(coarse, self._matrix(narrow, width, align_corners=False))
        split = paddle.reshape(fine, [-1, channels, low, height // low, width])
        return paddle.reshape(combine(split, paddle.unsqueeze(wide, 3)), [-1, channels, height, width])

    def bilinear(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``x`` ``[N, C, h, w]`` at ``size`` ``(H, W)``, bilinear with aligned corners."""
        rows = self._matrix(x.shape[2], size[0], align_corners=True)
        columns = self._matrix(x.shape[3], size[1], align_corners=True)
        return paddle.matmul(paddle.matmul(rows, x, transpose_x=True), columns)

    def _matrix(self, size: int, target: int, *, align_corners: bool) -> Tensor:
        """Weights ``[size, target]`` of every source position for every target position, one axis."""
        key = (size, target, align_corners)
        if key not in self._matrices:
            place = paddle.arange(target, dtype="float32")
            if align_corners:
                place = place * ((size - 1) / (target - 1))
            else:
                place = paddle.floor((place + 0.5) * (size / target))
            distance = paddle.abs(place - paddle.arange(size, dtype="float32").unsqueeze(1))
            self._matrices[key] = F.relu(1.0 - distance)
        return self._matrices[key]


def downsample_mean(x: Tensor, factor: int) -> Tensor:
    """Average ``[N, C, H, W]`` over windows of ``factor`` x ``factor``: adaptive pooling where sizes divide."""
    return x if factor == 1 else F.avg_pool2d(x, factor, stride=factor)
