"""Small networks of the three kinds that carry a backbone: FPN detector, pose network, segmentation network."""

# ruff: noqa: B905 - zip(strict=True) cannot be traced by paddle.jit
from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.static import InputSpec

SIZE = 64
SPEC = [InputSpec([None, 3, SIZE, SIZE], name="x")]
CHANNELS = {2: 8, 4: 12, 8: 16, 16: 24, 32: 32}


class Stages(nn.Layer):
    """The old backbone: conv, BN, ReLU with stride 2, five times; gives the maps of ``strides``."""

    def __init__(self, strides, pack=list):
        super().__init__()
        self.strides, self.pack = strides, pack
        self.stages, before = nn.LayerList(), 3
        for channels in CHANNELS.values():
            conv = nn.Conv2D(before, channels, 3, stride=2, padding=1, bias_attr=False)
            self.stages.append(nn.Sequential(conv, nn.BatchNorm2D(channels), nn.ReLU()))
            before = channels

    def forward(self, x):
        maps = {}
        for stride, stage in zip(CHANNELS, self.stages):
            x = maps[stride] = stage(x)
        wanted = {f"c{stride}": maps[stride] for stride in self.strides}
        if self.pack is None:
            return maps[self.strides[0]]
        return wanted if self.pack is dict else self.pack(wanted.values())


class Detector(nn.Layer):
    """Feature pyramid (Lin 2017, arXiv:1612.03144) with one score map a level, strides 4 to 32."""

    def __init__(self, width=8):
        super().__init__()
        strides = [4, 8, 16, 32]
        self.backbone = Stages(strides)
        self.lateral = nn.LayerList([nn.Conv2D(CHANNELS[stride], width, 1) for stride in strides])
        self.smooth = nn.LayerList([nn.Conv2D(width, width, 3, padding=1) for _ in strides])
        self.score = nn.Conv2D(width, 1, 1)

    def forward(self, x):
        levels = [lateral(level) for lateral, level in zip(self.lateral, self.backbone(x))]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], scale_factor=2, mode="nearest")
        return [self.score(smooth(level)) for smooth, level in zip(self.smooth, levels)]


class Pose(nn.Layer):
    """Deconvolution head on one map of stride 32 (Xiao 2018, arXiv:1804.06208); heatmaps of stride 8."""

    def __init__(self, joints=2):
        super().__init__()
        self.backbone = Stages([32], pack=None)
        self.deconv = nn.Sequential(
            nn.Conv2DTranspose(CHANNELS[32], 16, 4, stride=2, padding=1),
            nn.BatchNorm2D(16),
            nn.ReLU(),
            nn.Conv2DTranspose(16, 16, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.heatmaps = nn.Conv2D(16, joints, 1)

    def forward(self, x):
        return self.heatmaps(self.deconv(self.backbone(x)))


class Segmenter(nn.Layer):
    """Scores at stride 8 (the resolution is kept there), brought to full size."""

    def __init__(self, classes=2):
        super().__init__()
        self.backbone = Stages([8], pack=tuple)
        self.scores = nn.Conv2D(CHANNELS[8], classes, 1)
        self.upscale = nn.Conv2DTranspose(classes, classes, 8, stride=8)

    def forward(self, x):
        return self.upscale(self.scores(self.backbone(x)[0]))


class Scenes(paddle.io.Dataset):
    """Noise with one bright square; targets are masks of it at the strides ``strides``, repeated ``channels`` times."""

    def __init__(self, strides, channels=1, count=8):
        random = np.random.RandomState(2)
        self.images = random.randn(count, 3, SIZE, SIZE).astype("float32") * 0.3
        self.masks = np.zeros([count, 1, SIZE, SIZE], "float32")
        for image, mask in zip(self.images, self.masks, strict=True):
            top, left = random.randint(0, SIZE // 2, 2)
            mask[0, top : top + SIZE // 2, left : left + SIZE // 2] = 1
            image += 2 * mask
        self.strides, self.channels = strides, channels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        targets = [np.repeat(self.masks[i][:, ::stride, ::stride], self.channels, 0) for stride in self.strides]
        return (self.images[i], *targets)


def mask_loss(*outputs_and_targets):
    half = len(outputs_and_targets) // 2
    pairs = zip(outputs_and_targets[:half], outputs_and_targets[half:], strict=True)
    return paddle.add_n([F.binary_cross_entropy_with_logits(score, target) for score, target in pairs])
