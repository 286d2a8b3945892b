"""Blocks of Lite-HRNet: channel weighting, shuffle units, and pairs of both.

Paper: Yu et al., "Lite-HRNet: A Lightweight High-Resolution Network", CVPR 2021, arXiv:2104.06403.
Reference code: github.com/HRNet/Lite-HRNet (Apache-2.0). Implemented from the paper.
"""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .layers import ConvBN, downsample_mean, upsample_nearest

__all__ = ["ChannelWeighting", "PairedBlocks", "ShuffleUnit", "paired_order"]


class _CrossResolutionWeighting(nn.Layer):
    """Weights per channel and pixel from all branches, pooled to the coarsest."""

    def __init__(self, channels: list[int], ratio: int) -> None:
        super().__init__()
        self.channels = channels
        total = sum(channels)
        self.conv1 = ConvBN(total, total // ratio, act=F.relu)
        self.conv2 = ConvBN(total // ratio, total, act=F.sigmoid)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        last = len(maps) - 1
        low = paddle.concat([downsample_mean(x, 2 ** (last - i)) for i, x in enumerate(maps)], axis=1)
        weights = paddle.split(self.conv2(self.conv1(low)), self.channels, axis=1)
        finer = [maps[i] * upsample_nearest(weights[i], 2 ** (last - i)) for i in range(last)]
        return [*finer, maps[last] * weights[last]]


class _SpatialWeighting(nn.Layer):
    """Channel weights by squeeze-and-excitation (arXiv:1709.01507)."""

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // ratio)
        self.fc2 = nn.Linear(channels // ratio, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = F.sigmoid(self.fc2(F.relu(self.fc1(paddle.flatten(F.adaptive_avg_pool2d(x, 1), 1)))))
        return x * paddle.unsqueeze(weights, [2, 3])


class ChannelWeighting(nn.Layer):
    """Conditional channel weighting of the processed half of each branch.

    Cross-resolution weighting, 3x3 depthwise convolution, spatial weighting.

    Args:
        channels: Channels of the processed half of each branch, finest first.
        ratio: Reduction ratio of the cross-resolution weighting.
    """

    def __init__(self, channels: list[int], ratio: int = 8) -> None:
        super().__init__()
        self.cross_resolution_weighting = _CrossResolutionWeighting(channels, ratio)
        self.depthwise_convs = nn.LayerList([ConvBN(c, c, 3, groups=c) for c in channels])
        self.spatial_weighting = nn.LayerList([_SpatialWeighting(c) for c in channels])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return maps of the same shapes ``[N, C_i, H_i, W_i]``, finest first."""
        weighted = self.cross_resolution_weighting(maps)
        convolved = [conv(weighted[i]) for i, conv in enumerate(self.depthwise_convs)]
        return [weigh(convolved[i]) for i, weigh in enumerate(self.spatial_weighting)]


class ShuffleUnit(nn.Layer):
    """Processed half of the ShuffleNetV2 unit (Ma et al., 2018, arXiv:1807.11164).

    Each branch is processed separately.

    Args:
        channels: Channels of the processed half of each branch.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.branches = nn.LayerList(
            [
                nn.Sequential(ConvBN(c, c, act=F.relu), ConvBN(c, c, 3, groups=c), ConvBN(c, c, act=F.relu))
                for c in channels
            ]
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return maps of the same shapes ``[N, C_i, H_i, W_i]``."""
        return [branch(maps[i]) for i, branch in enumerate(self.branches)]


class PairedBlocks(nn.Layer):
    """Two consecutive shuffle blocks with one channel permutation instead of two.

    The paper's block keeps the first half of the channels, processes the second, and interleaves the two. A block's
    weights may be stored in any order of its channels. Therefore the second block here processes ``[rest of the kept
    half, rest of the processed half]`` without interleaving, and a single gather then puts the channels into the order
    of two shuffles.

    Args:
        first: Layer from a list of maps to a list of maps, such as `ChannelWeighting`.
        second: Layer of the same type.
        channels: Channels of each branch, even numbers.
    """

    def __init__(self, first: nn.Layer, second: nn.Layer, channels: list[int]) -> None:
        super().__init__()
        self.first, self.second = first, second
        self._halves = [c // 2 for c in channels]
        for i, c in enumerate(channels):
            self.register_buffer(f"order{i}", _regrouping(c), persistable=False)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return maps of the same shapes ``[N, C_i, H_i, W_i]``."""
        parts = [paddle.split(x, _thirds(self._halves[i]), axis=1) for i, x in enumerate(maps)]
        worked = self.first([part[2] for part in parts])
        kept, again = [], []
        for i, part in enumerate(parts):
            keep, more = paddle.split(worked[i], _thirds(self._halves[i])[1::-1], axis=1)
            kept.append(paddle.concat([part[0], keep], axis=1))
            again.append(paddle.concat([part[1], more], axis=1))
        again = self.second(again)
        return [self._regrouped(i, kept[i], again[i]) for i in range(len(maps))]

    def _regrouped(self, branch: int, kept: Tensor, worked: Tensor) -> Tensor:
        x, order = paddle.concat([kept, worked], axis=1), getattr(self, f"order{branch}")
        if order.ndim == 4:
            return F.conv2d(x, order.astype(x.dtype))
        if order.dtype != paddle.int64:  # `Layer.to(dtype=...)` casts indices too
            order = _regrouping(x.shape[1])
        return paddle.gather(x, order, axis=1)


def _regrouping(channels: int) -> Tensor:
    """Return the final order of `paired_order` as a tensor.

    Returns:
        ``[C]`` int64 indices; if the width is not a multiple of 16, a permutation matrix as 1x1 kernel
        ``[C, C, 1, 1]``, since for engines with blocked channel layouts the conversions around a gather are expensive.
    """
    order = paired_order(channels)[1]
    if channels % 16 == 0:
        return paddle.to_tensor(order, dtype="int64")
    kernel = np.eye(channels, dtype="float32")[order]
    return paddle.to_tensor(kernel[:, :, None, None])


def _thirds(half: int) -> list[int]:
    return [half - half // 2, half // 2, half]


def paired_order(channels: int) -> tuple[list[int], list[int]]:
    """Return the channel orders of one branch of `PairedBlocks`.

    Args:
        channels: Number of channels of the branch, even.

    Returns:
        ``(working, final)``: ``working[k]`` is the index, within the paper's processed half of the second block, of
        channel ``k`` here; ``final[k]`` is the index before the final gather of output channel ``k``.
    """
    half = channels // 2
    shuffled = [k // 2 if k % 2 == 0 else half + k // 2 for k in range(channels)]  # channel at k after the first block
    mine = [k for k in range(channels) if k < half - half // 2]  # kept by both blocks
    mine += range(half, half + half // 2)  # processed, then kept
    mine += range(half - half // 2, half)  # kept, then processed
    mine += range(half + half // 2, channels)  # processed by both
    working = [shuffled[half:].index(channel) for channel in mine[half:]]
    twice = [shuffled[shuffled[k]] for k in range(channels)]
    return working, [mine.index(channel) for channel in twice]
