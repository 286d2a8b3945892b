"""Joint layouts of data sets: names, order and mirrored pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["COCO_BODY", "LAYOUTS", "LSP_BODY", "MPII_BODY", "Layout"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Joints of a data set.

    Args:
        name: Name on the command line.
        joints: Names of the joints in the order of annotations and heatmaps.
        flip_pairs: Indices of joints to swap when mirroring, left first.
        upper_body: Indices of the joints of the upper body.
        skeleton: Indices of joints connected by a bone.
        sigmas: COCO's constants for object keypoint similarity, one per joint; ``None`` if not defined.
    """

    name: str
    joints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    upper_body: tuple[int, ...]
    skeleton: tuple[tuple[int, int], ...]
    sigmas: np.ndarray | None = None

    def side(self, joint: int) -> str:
        """Return the side of a joint: ``"left"``, ``"right"`` or ``"middle"``."""
        for left, right in self.flip_pairs:
            if joint in (left, right):
                return "left" if joint == left else "right"
        return "middle"


_COCO_PARTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_BODY = Layout(
    name="coco",
    joints=("nose", *(f"{side}_{part}" for part in _COCO_PARTS for side in ("left", "right"))),
    flip_pairs=tuple((k, k + 1) for k in range(1, 17, 2)),
    upper_body=tuple(range(11)),
    skeleton=(
        *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
    ),
    # pycocotools' constants
    sigmas=np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000,
)
MPII_BODY = Layout(
    name="mpii",
    joints=(
        *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax"),
        *("upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow"),
        "left_wrist",
    ),
    flip_pairs=((5, 0), (4, 1), (3, 2), (15, 10), (14, 11), (13, 12)),
    upper_body=tuple(range(7, 16)),
    skeleton=(
        *((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
        *((8, 12), (12, 11), (11, 10), (8, 13), (13, 14), (14, 15)),
    ),
)
LSP_BODY = Layout(
    name="lsp",
    joints=(
        *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
        *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
        *("neck", "head_top"),
    ),
    flip_pairs=((5, 0), (4, 1), (3, 2), (11, 6), (10, 7), (9, 8)),
    upper_body=tuple(range(6, 14)),
    skeleton=(
        *((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (2, 8), (3, 9)),
        *((6, 7), (7, 8), (9, 10), (10, 11), (8, 12), (9, 12), (12, 13)),
    ),
    # pycocotools' constants; neck and head top as in CrowdPose (Li et al., CVPR 2019, arXiv:1812.00324), which has the
    # same 14 joints
    sigmas=np.array([89, 87, 107, 107, 87, 89, 62, 72, 79, 79, 72, 62, 79, 79]) / 1000,
)
LAYOUTS = {layout.name: layout for layout in (COCO_BODY, MPII_BODY, LSP_BODY)}
