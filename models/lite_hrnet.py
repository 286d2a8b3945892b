"""Lite-HRNet, the light network of the guide, and naive Lite-HRNet.

Paper: Yu et al., "Lite-HRNet: A Lightweight High-Resolution Network", CVPR 2021, arXiv:2104.06403.
Reference code: github.com/HRNet/Lite-HRNet (Apache-2.0); the guide's port: PaddleDetection (Apache-2.0).
Implemented from the paper; `models.guide_weights` loads the guide's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .layers import ConvBN, SeparableConv, raised, upsample_bilinear
from .lite_blocks import ChannelWeighting, PairedBlocks, ShuffleUnit
from .shapes import check_image

__all__ = [
    "LiteHRNet",
    "StageTable",
    "lite_hrnet_18",
    "lite_hrnet_30",
    "naive_lite_hrnet_18",
    "naive_lite_hrnet_30",
    "wider_naive_lite_hrnet_18",
]

_STEM = 32


@dataclass(frozen=True, kw_only=True)
class StageTable:
    """Stages of a Lite-HRNet.

    Args:
        modules: Number of modules of each stage.
        width: Channels of the branch with the finest maps.
        weighting: Whether blocks weight channels (Lite-HRNet), else they convolve (naive Lite-HRNet).
    """

    modules: tuple[int, int, int]
    width: int
    weighting: bool


class _Stem(nn.Layer):
    """Stem of stride 4: a 3x3 convolution and a shuffle block, each of stride 2."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvBN(in_channels, channels, 3, stride=2, act=F.relu)
        self.branch1 = nn.Sequential(ConvBN(half, half, 3, stride=2, groups=half), ConvBN(half, half, act=F.relu))
        self.expand_conv = ConvBN(half, channels, act=F.relu)
        self.depthwise_conv = ConvBN(channels, channels, 3, stride=2, groups=channels)
        self.linear_conv = ConvBN(channels, half, act=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``[N, C, H/4, W/4]`` without the paper's last shuffle.

        The next layers store their weights in the order of these channels.
        """
        one, two = paddle.chunk(self.conv1(x), 2, axis=1)
        two = self.linear_conv(self.depthwise_conv(self.expand_conv(two)))
        return paddle.concat([self.branch1(one), two], axis=1)


class _Fuse(nn.Layer):
    """Fuse branches: each output is the ReLU of the sum of all, resized.

    As in the authors' code, on which their weights and the guide's depend, each sum counts the finest branch twice, and
    it is downsampled after its own fusion (before the ReLU).
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.paths = nn.LayerDict()
        for i in range(len(channels)):
            for j in range(len(channels)):
                if j > i:
                    self.paths[f"{j}_to_{i}"] = ConvBN(channels[j], channels[i])
                elif j < i:
                    self.paths[f"{j}_to_{i}"] = _down(channels[j], channels[i], i - j)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        finest = self._with_coarser(maps[0] + maps[0], 0, maps)
        fused = [finest]
        for i in range(1, len(maps)):
            down = self.paths[f"0_to_{i}"](finest)
            total = down + down + maps[i]
            for j in range(1, i):
                total = total + self.paths[f"{j}_to_{i}"](maps[j])
            fused.append(self._with_coarser(total, i, maps))
        return [F.relu(x) for x in fused]

    def _with_coarser(self, total: Tensor, i: int, maps: list[Tensor]) -> Tensor:
        coarser = raised(i, maps, self.paths)
        return total if coarser is None else total + coarser


def _down(in_channels: int, out_channels: int, steps: int) -> nn.Sequential:
    """Return separable convolutions of stride 2; only the last changes the width."""
    last = steps - 1
    return nn.Sequential(
        *(
            SeparableConv(
                in_channels,
                out_channels if k == last else in_channels,
                stride=2,
                act=None if k == last else F.relu,
            )
            for k in range(steps)
        )
    )


class _Module(nn.Layer):
    """Two shuffle blocks of all branches, followed by their fusion."""

    def __init__(self, channels: list[int], *, weighting: bool) -> None:
        super().__init__()
        block = ChannelWeighting if weighting else ShuffleUnit
        halves = [c // 2 for c in channels]
        self.blocks = PairedBlocks(block(halves), block(halves), channels)
        self.fuse = _Fuse(channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return self.fuse(self.blocks(maps))


class _IterativeHead(nn.Layer):
    """Head that adds each map, upsampled, to the next finer one and projects it."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.out_channels = [channels[0], *channels[:-1]]
        pairs = zip(channels, self.out_channels, strict=True)
        self.projects = nn.LayerList([SeparableConv(a, b, act=F.relu) for a, b in reversed(list(pairs))])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        results: list[Tensor] = []
        for i, project in enumerate(self.projects):
            x = maps[-1 - i]
            if results:
                x = x + upsample_bilinear(results[0], x.shape[2], x.shape[3])
            results.insert(0, project(x))
        return results


class LiteHRNet(nn.Layer):
    """Lite-HRNet; returns a list of maps of strides 4, 8, 16, 32.

    Args:
        table: Stages, see the factory functions.
        in_channels: Number of channels of the image.

    Attributes:
        channels: Numbers of channels of the maps: ``width`` times 1, 1, 2, 4.
    """

    def __init__(self, table: StageTable, *, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _Stem(in_channels, _STEM)
        self.transitions, self.stages = nn.LayerList(), nn.LayerList()
        widths = [table.width * 2**i for i in range(len(table.modules) + 1)]
        before = [_STEM]
        for branches, modules in enumerate(table.modules, 2):
            channels = widths[:branches]
            self.transitions.append(_transition(before, channels))
            self.stages.append(nn.LayerList([_Module(channels, weighting=table.weighting) for _ in range(modules)]))
            before = channels
        self.head = _IterativeHead(before)
        self.channels = self.head.out_channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps ``[N, C, H/4, W/4]``, ... of images ``[N, 3, H, W]``.

        Raises:
            ValueError: Height or width is dynamic or not a multiple of 32.
        """
        check_image(x)
        maps = [self.stem(x)]
        for transition, stage in zip(self.transitions, self.stages):  # noqa: B905 (export does not support `strict`)
            maps = [change(maps[min(i, len(maps) - 1)]) for i, change in enumerate(transition)]
            for module in stage:
                maps = module(maps)
        return self.head(maps)


def _transition(before: list[int], channels: list[int]) -> nn.LayerList:
    """Return layers that change the widths of branches and add one from the coarsest."""
    changes: list[nn.Layer] = []
    for i, wanted in enumerate(channels):
        if i >= len(before):
            changes.append(SeparableConv(before[-1], wanted, stride=2, act=F.relu))
        elif before[i] != wanted:
            changes.append(SeparableConv(before[i], wanted, act=F.relu))
        else:
            changes.append(nn.Identity())
    return nn.LayerList(changes)


def lite_hrnet_18(*, in_channels: int = 3) -> LiteHRNet:
    """Build Lite-HRNet-18 (arXiv:2104.06403).

    As a pose network at 256x192 it has 1.1 M parameters and 205 M multiply-adds.

    Args:
        in_channels: Number of channels of the image.
    """
    return LiteHRNet(StageTable(modules=(2, 4, 2), width=40, weighting=True), in_channels=in_channels)


def lite_hrnet_30(*, in_channels: int = 3) -> LiteHRNet:
    """Build Lite-HRNet-30 (arXiv:2104.06403).

    As a pose network at 256x192 it has 1.8 M parameters and 319 M multiply-adds.

    Args:
        in_channels: Number of channels of the image.
    """
    return LiteHRNet(StageTable(modules=(3, 8, 3), width=40, weighting=True), in_channels=in_channels)


def naive_lite_hrnet_18(*, in_channels: int = 3) -> LiteHRNet:
    """Build naive Lite-HRNet-18 (arXiv:2104.06403), only shuffle blocks.

    As a pose network at 256x192 it has 0.7 M parameters and 195 M multiply-adds.

    Args:
        in_channels: Number of channels of the image.
    """
    return LiteHRNet(StageTable(modules=(2, 4, 2), width=30, weighting=False), in_channels=in_channels)


def wider_naive_lite_hrnet_18(*, in_channels: int = 3) -> LiteHRNet:
    """Build wider naive Lite-HRNet-18 (arXiv:2104.06403).

    As a pose network at 256x192 it has 1.3 M parameters and 311 M multiply-adds.

    Args:
        in_channels: Number of channels of the image.
    """
    return LiteHRNet(StageTable(modules=(2, 4, 2), width=40, weighting=False), in_channels=in_channels)


def naive_lite_hrnet_30(*, in_channels: int = 3) -> LiteHRNet:
    """Build naive Lite-HRNet with the depth of Lite-HRNet-30; not in the paper.

    Args:
        in_channels: Number of channels of the image.
    """
    return LiteHRNet(StageTable(modules=(3, 8, 3), width=30, weighting=False), in_channels=in_channels)
