"""The heatmap network: a backbone and one 1x1 convolution on its finest map, as in the papers' pose networks."""

from __future__ import annotations

from paddle import Tensor, nn
from paddle.nn.initializer import Normal

__all__ = ["KeypointNet", "keypoint_net"]


class KeypointNet(nn.Layer):
    """``[N, 3, H, W]`` to heatmaps ``[N, num_joints, H/4, W/4]``.

    Args:
        backbone: gives a list of maps, the stride-4 one first, and has ``channels``, their widths.
        num_joints: of the heatmaps.
    """

    def __init__(self, backbone: nn.Layer, num_joints: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2D(backbone.channels[0], num_joints, 1, weight_attr=Normal(std=0.001))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, num_joints, H/4, W/4]``."""
        return self.head(self.backbone(x)[0])


def keypoint_net(backbone: nn.Layer, num_joints: int = 17) -> KeypointNet:
    """Put a keypoint head on ``backbone``.

    For an HRNet take ``hrnet_w32(multi_scale=False)``: the papers' pose networks have no paths to the coarse maps of
    the last exchange, which would be weights without a gradient here.

    Args:
        backbone: one of this package's, or any layer that gives a list of maps with the stride-4 one first and tells
            their widths in ``channels``.
        num_joints: 17 for COCO, 16 for MPII.

    Raises:
        TypeError: a backbone without ``channels``.
        ValueError: fewer than one joint.
    """
    if not getattr(backbone, "channels", None):
        raise TypeError(f"keypoint_net needs a backbone with `channels`, a list of widths; {type(backbone)} has none.")
    if num_joints < 1:
        raise ValueError(f"num_joints must be at least 1, got {num_joints}.")
    return KeypointNet(backbone, num_joints)
