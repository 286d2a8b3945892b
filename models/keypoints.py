"""Heatmap network with its targets, loss and decoding.

Head and targets: Sun et al., 2019, arXiv:1902.09212 (and its code, MIT). Decoding: a quarter pixel towards the second
highest neighbour, or DARK, Zhang et al., CVPR 2020, arXiv:1910.06278. Implemented from the papers.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn.initializer import Normal

__all__ = ["FlipTest", "HeatmapLoss", "KeypointNet", "decode_heatmaps", "draw_heatmaps", "keypoint_net"]


class KeypointNet(nn.Layer):
    """Keypoint network: backbone and 1x1 convolution to heatmaps.

    Args:
        backbone: Network that returns a list of maps, stride 4 first, with their numbers of channels in ``channels``.
        num_joints: Number of joints, one heatmap each.
    """

    def __init__(self, backbone: nn.Layer, num_joints: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2D(backbone.channels[0], num_joints, 1, weight_attr=Normal(std=0.001))

    def forward(self, x: Tensor) -> Tensor:
        """Return heatmaps ``[N, num_joints, H/4, W/4]`` of images ``[N, 3, H, W]``."""
        return self.head(self.backbone(x)[0])


def keypoint_net(backbone: nn.Layer, num_joints: int = 17) -> KeypointNet:
    """Add a keypoint head to ``backbone``.

    For an HRNet use ``hrnet_w32(multi_scale=False)``: the papers' pose networks have no paths to the coarse maps of the
    last exchange; here their weights would get no gradient.

    Args:
        backbone: Network of this package, or a layer that returns a list of maps, stride 4 first, with their numbers of
            channels in ``channels``.
        num_joints: Number of joints, 17 for COCO, 16 for MPII.

    Raises:
        TypeError: ``backbone`` has no ``channels``.
        ValueError: ``num_joints`` is less than 1.
    """
    if not getattr(backbone, "channels", None):
        raise TypeError(
            f"backbone must have `channels`, a list of widths, {type(backbone).__name__} has none: take one of this "
            "package, such as lite_hrnet_18()."
        )
    if num_joints < 1:
        raise ValueError(f"num_joints must be at least 1, got {num_joints}: give 17 for COCO, 16 for MPII.")
    return KeypointNet(backbone, num_joints)


class FlipTest(nn.Layer):
    """Average the heatmaps of an image and its mirror image, as in the papers.

    Args:
        network: Network that returns heatmaps.
        flip_pairs: Indices of joints to swap when mirroring, ``[(left, right), ...]``.
        shift: Whether to shift the mirrored heatmaps right by one pixel, which aligns them for data prepared without
            UDP (Huang et al., CVPR 2020, arXiv:1911.07524).
    """

    def __init__(self, network: nn.Layer, flip_pairs: list[tuple[int, int]], *, shift: bool = True) -> None:
        super().__init__()
        self.network, self.flip_pairs, self.shift = network, flip_pairs, shift

    def forward(self, x: Tensor) -> Tensor:
        """Return heatmaps ``[N, J, h, w]`` of images ``[N, 3, H, W]``."""
        straight, mirrored = self.network(x), paddle.flip(self.network(paddle.flip(x, [3])), [3])
        order = list(range(straight.shape[1]))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        mirrored = mirrored[:, order]
        if self.shift:
            mirrored = paddle.concat([mirrored[..., :1], mirrored[..., :-1]], axis=3)
        return (straight + mirrored) / 2


class HeatmapLoss(nn.Layer):
    """Half the mean squared error of heatmaps of labelled joints, as in the guide."""

    def forward(self, output: Tensor, target: Tensor, weight: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the scalar loss.

        Args:
            output: Heatmaps ``[N, J, h, w]``.
            target: Target heatmaps ``[N, J, h, w]``.
            weight: Weights ``[N, J]``, 0 for unlabelled joints.
            index: Indices of the samples; unused (hapi passes every label to the loss).
        """
        error = (output - target) * weight.unsqueeze([-1, -1])
        return 0.5 * (error * error).mean()


def draw_heatmaps(
    joints: np.ndarray, visible: np.ndarray, size: tuple[int, int], *, sigma: float, unbiased: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw target heatmaps, one Gaussian of height 1 per joint.

    Args:
        joints: x and y ``[J, 2]`` in pixels of the heatmap.
        visible: Visibility ``[J]``, 0 for unlabelled joints.
        size: Size ``(h, w)`` of the heatmap in pixels.
        sigma: Standard deviation of the Gaussian in pixels of the heatmap.
        unbiased: Whether to keep the fraction of the centre (DARK, section 3.2) instead of rounding it, as the guide
            does.

    Returns:
        ``([J, h, w], [J])`` fp32: heatmaps, and weights, which are 0 for joints that are unlabelled or whose Gaussian
        (three sigma) lies outside the map.
    """
    height, width = size
    centres = joints if unbiased else np.floor(joints + 0.5)
    x, y = centres[:, 0, None], centres[:, 1, None]
    across = np.exp(-((np.arange(width) - x) ** 2) / (2 * sigma**2))
    down = np.exp(-((np.arange(height) - y) ** 2) / (2 * sigma**2))
    reach = 3 * sigma
    inside = (x[:, 0] >= -reach) & (y[:, 0] >= -reach) & (x[:, 0] < width + reach) & (y[:, 0] < height + reach)
    weight = ((visible > 0) & inside).astype("float32")
    maps = down[:, :, None] * across[:, None, :]
    maps[maps < np.exp(-(reach**2) / sigma**2)] = 0
    return (maps * weight[:, None, None]).astype("float32"), weight


def decode_heatmaps(heatmaps: np.ndarray, *, dark: bool = False, blur: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Decode joint positions from heatmaps.

    Args:
        heatmaps: Heatmaps ``[N, J, h, w]``; not changed.
        dark: Whether to refine the maximum by a Taylor expansion of the logarithm (DARK) instead of a quarter pixel.
        blur: Window of the Gaussian filter before DARK in pixels, odd.

    Returns:
        ``([N, J, 2], [N, J])``: x and y in pixels of the heatmap, and the value of the maximum. Maps without a positive
        value give (0, 0).
    """
    count, joints, height, width = heatmaps.shape
    maps = heatmaps.reshape(count * joints, height, width).astype("float64")
    best = maps.reshape(len(maps), -1).argmax(1)
    y, x = best // width, best % width
    scores = maps[np.arange(len(maps)), y, x]
    step = _dark_step(_smoothed(maps, blur), x, y) if dark else _quarter_step(maps, x, y)
    places = np.stack([x, y], axis=1) + step
    places[scores <= 0] = 0
    return places.reshape(count, joints, 2), scores.reshape(count, joints)


def _quarter_step(maps: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rows, (height, width) = np.arange(len(maps)), maps.shape[1:]
    inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    x, y = x.clip(1, width - 2), y.clip(1, height - 2)
    slope_x = maps[rows, y, x + 1] - maps[rows, y, x - 1]
    slope_y = maps[rows, y + 1, x] - maps[rows, y - 1, x]
    return np.sign(np.stack([slope_x, slope_y], axis=1)) * 0.25 * inside[:, None]


def _dark_step(maps: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``-H^-1 g`` of the logarithm at the maximum, clipped to one pixel.

    It is 0 at the border and where there is no peak.
    """
    rows, (height, width) = np.arange(len(maps)), maps.shape[1:]
    inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    x, y, logs = x.clip(2, width - 3), y.clip(2, height - 3), np.log(np.maximum(maps, 1e-10))

    def at(dx: int, dy: int) -> np.ndarray:
        return logs[rows, y + dy, x + dx]

    gx, gy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    xx, yy = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4, (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    xy = (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1)) / 4
    determinant = xx * yy - xy**2
    peak = inside & (determinant > 1e-12) & (xx < 0)
    safe = np.where(peak, determinant, 1.0)
    step = np.stack([-(yy * gx - xy * gy) / safe, -(xx * gy - xy * gx) / safe], axis=1)
    return step.clip(-1, 1) * peak[:, None]


def _smoothed(maps: np.ndarray, window: int) -> np.ndarray:
    """Blur with OpenCV's sigma for ``window``; each map keeps its maximum."""
    sigma, reach = 0.3 * ((window - 1) * 0.5 - 1) + 0.8, window // 2
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    height, width = maps.shape[1:]
    padded = np.pad(maps, ((0, 0), (reach, reach), (reach, reach)))
    across = sum(k * padded[:, :, i : i + width] for i, k in enumerate(kernel))
    blurred = sum(k * across[:, i : i + height] for i, k in enumerate(kernel))
    old, new = maps.max((1, 2), keepdims=True), blurred.max((1, 2), keepdims=True)
    return blurred * np.where(new > 0, old / np.where(new > 0, new, 1), 1)
