"""HRNet, the teacher network of the guide.

Paper: Sun, Xiao, Liu, Wang, "Deep High-Resolution Representation Learning for Human Pose Estimation", CVPR 2019,
arXiv:1902.09212. Reference code: github.com/leoxiaobin/deep-high-resolution-net.pytorch (MIT); the guide's port:
PaddleDetection (Apache-2.0). Implemented from the paper; `models.guide_weights` loads the guide's weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle.nn.functional as F
from paddle import Tensor, nn

from .layers import ConvBN, raised
from .shapes import check_image

__all__ = ["HRNet", "hrnet_w18", "hrnet_w18_small_v2", "hrnet_w32", "hrnet_w48"]


class _Bottleneck(nn.Layer):
    """Residual bottleneck block (He et al., 2015, arXiv:1512.03385), expansion 4."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, channels, act=F.relu)
        self.conv2 = ConvBN(channels, channels, 3, act=F.relu)
        self.conv3 = ConvBN(channels, 4 * channels)
        self.conv_down = ConvBN(in_channels, 4 * channels) if in_channels != 4 * channels else None

    def forward(self, x: Tensor) -> Tensor:
        same = x if self.conv_down is None else self.conv_down(x)
        return F.relu(same + self.conv3(self.conv2(self.conv1(x))))


class _BasicBlock(nn.Layer):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(channels, channels, 3, act=F.relu)
        self.conv2 = ConvBN(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(self.conv1(x)))


def _down(in_channels: int, out_channels: int, steps: int) -> nn.Sequential:
    """Return 3x3 convolutions of stride 2; only the last changes the width."""
    last = steps - 1
    return nn.Sequential(
        *(
            ConvBN(
                in_channels, out_channels if k == last else in_channels, 3, stride=2, act=None if k == last else F.relu
            )
            for k in range(steps)
        )
    )


class _Fuse(nn.Layer):
    """Fuse branches: each output is the ReLU of the sum of all, resized."""

    def __init__(self, channels: list[int], outputs: int) -> None:
        super().__init__()
        self.paths = nn.LayerDict()
        for i in range(outputs):
            for j in range(len(channels)):
                if j > i:
                    self.paths[f"{j}_to_{i}"] = ConvBN(channels[j], channels[i])
                elif j < i:
                    self.paths[f"{j}_to_{i}"] = _down(channels[j], channels[i], i - j)
        self.outputs = outputs

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fused = []
        for i in range(self.outputs):
            total = maps[i]
            for j in range(i):
                total = total + self.paths[f"{j}_to_{i}"](maps[j])
            finer = raised(i, maps, self.paths)
            fused.append(F.relu(total if finer is None else total + finer))
        return fused


class _Module(nn.Layer):
    """Parallel branches of residual blocks, followed by their fusion."""

    def __init__(self, channels: list[int], blocks: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.LayerList([nn.Sequential(*(_BasicBlock(c) for _ in range(blocks))) for c in channels])
        self.fuse = _Fuse(channels, outputs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return self.fuse([branch(maps[i]) for i, branch in enumerate(self.branches)])


class HRNet(nn.Layer):
    """HRNet; returns a list of maps of strides 4, 8, 16, 32.

    Args:
        width: Number of channels of the stride-4 branch; coarser branches have 2, 4 and 8 times as many.
        in_channels: Number of channels of the image.
        multi_scale: Whether to return all maps; ``False`` omits the paths to strides 8 to 32 of the last fusion, as in
            the papers' pose networks, and returns a list of only the stride-4 map.
        modules: Numbers of modules of the stages with two, three and four branches.
        blocks: Number of residual blocks of each branch of a module, and of bottleneck blocks before the branches.

    Attributes:
        channels: Numbers of channels of the maps.
    """

    def __init__(
        self,
        width: int,
        *,
        in_channels: int = 3,
        multi_scale: bool = True,
        modules: Sequence[int] = (1, 4, 3),
        blocks: int = 4,
    ) -> None:
        super().__init__()
        self.channels = [width * 2**i for i in range(4 if multi_scale else 1)]
        self.stem = nn.Sequential(
            ConvBN(in_channels, 64, 3, stride=2, act=F.relu), ConvBN(64, 64, 3, stride=2, act=F.relu)
        )
        self.layer1 = nn.Sequential(_Bottleneck(64, 64), *(_Bottleneck(256, 64) for _ in range(blocks - 1)))
        self.transitions, self.stages = nn.LayerList(), nn.LayerList()
        before = [256]
        for branches, count in zip((2, 3, 4), modules, strict=True):
            channels = [width * 2**i for i in range(branches)]
            self.transitions.append(_transition(before, channels))
            outputs = [branches] * (count - 1) + [branches if branches < 4 or multi_scale else 1]
            self.stages.append(nn.LayerList([_Module(channels, blocks, number) for number in outputs]))
            before = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps ``[N, C, H/4, W/4]``, ... of images ``[N, 3, H, W]``.

        Raises:
            ValueError: Height or width is dynamic or not a multiple of 32.
        """
        check_image(x)
        maps = [self.layer1(self.stem(x))]
        for transition, stage in zip(self.transitions, self.stages):  # noqa: B905 (export does not support `strict`)
            maps = [change(maps[min(i, len(maps) - 1)]) for i, change in enumerate(transition)]
            for module in stage:
                maps = module(maps)
        return maps


def _transition(before: list[int], channels: list[int]) -> nn.LayerList:
    """Return layers that change the widths of branches and add one from the coarsest."""
    changes: list[nn.Layer] = []
    for i, wanted in enumerate(channels):
        if i >= len(before):
            changes.append(ConvBN(before[-1], wanted, 3, stride=2, act=F.relu))
        elif before[i] != wanted:
            changes.append(ConvBN(before[i], wanted, 3, act=F.relu))
        else:
            changes.append(nn.Identity())
    return nn.LayerList(changes)


def hrnet_w18(*, in_channels: int = 3, multi_scale: bool = True) -> HRNet:
    """Build HRNet-W18 (Wang et al., 2019, arXiv:1908.07919); see `HRNet`.

    Args:
        in_channels: Number of channels of the image.
        multi_scale: Whether to return all maps, see `HRNet`.
    """
    return HRNet(18, in_channels=in_channels, multi_scale=multi_scale)


def hrnet_w18_small_v2(*, in_channels: int = 3, multi_scale: bool = True) -> HRNet:
    """Build HRNet-W18-Small-v2 of the authors' github.com/HRNet/HRNet-Image-Classification; see `HRNet`.

    Args:
        in_channels: Number of channels of the image.
        multi_scale: Whether to return all maps, see `HRNet`.
    """
    return HRNet(18, in_channels=in_channels, multi_scale=multi_scale, modules=(1, 3, 2), blocks=2)


def hrnet_w32(*, in_channels: int = 3, multi_scale: bool = True) -> HRNet:
    """Build HRNet-W32 (arXiv:1902.09212); see `HRNet`.

    As a pose network at 256x192 it has 28.5 M parameters and 7.1 G multiply-adds.

    Args:
        in_channels: Number of channels of the image.
        multi_scale: Whether to return all maps, see `HRNet`.
    """
    return HRNet(32, in_channels=in_channels, multi_scale=multi_scale)


def hrnet_w48(*, in_channels: int = 3, multi_scale: bool = True) -> HRNet:
    """Build HRNet-W48 (arXiv:1902.09212); see `HRNet`.

    As a pose network at 256x192 it has 63.6 M parameters and 14.6 G multiply-adds.

    Args:
        in_channels: Number of channels of the image.
        multi_scale: Whether to return all maps, see `HRNet`.
    """
    return HRNet(48, in_channels=in_channels, multi_scale=multi_scale)
