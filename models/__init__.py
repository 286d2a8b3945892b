"""Keypoint networks of the guide; installed as ``paddlelite_callbacks.models``."""

from .hrnet import HRNet, hrnet_w18, hrnet_w18_small_v2, hrnet_w32, hrnet_w48
from .inference import fuse_for_inference_
from .keypoints import FlipTest, HeatmapLoss, KeypointNet, decode_heatmaps, draw_heatmaps, keypoint_net
from .lite_hrnet import (
    LiteHRNet,
    lite_hrnet_18,
    lite_hrnet_30,
    naive_lite_hrnet_18,
    naive_lite_hrnet_30,
    wider_naive_lite_hrnet_18,
)

__all__ = [
    "FlipTest",
    "HRNet",
    "HeatmapLoss",
    "KeypointNet",
    "LiteHRNet",
    "decode_heatmaps",
    "draw_heatmaps",
    "fuse_for_inference_",
    "hrnet_w18",
    "hrnet_w18_small_v2",
    "hrnet_w32",
    "hrnet_w48",
    "keypoint_net",
    "lite_hrnet_18",
    "lite_hrnet_30",
    "naive_lite_hrnet_18",
    "naive_lite_hrnet_30",
    "wider_naive_lite_hrnet_18",
]
