"""Draw skeletons on images."""

from __future__ import annotations

import numpy as np
from layouts import COCO_BODY, Layout
from PIL import Image, ImageDraw

__all__ = ["draw_skeletons"]

_COLOURS = {"left": (255, 140, 0), "right": (0, 160, 255), "middle": (80, 220, 80)}
_RIM = (20, 20, 20)


def draw_skeletons(
    image: np.ndarray, people: list[np.ndarray], *, least: float = 0.2, layout: Layout = COCO_BODY
) -> np.ndarray:
    """Draw joints and bones: left orange, right blue, others green.

    Args:
        image: Image ``[H, W, 3]`` uint8; not changed.
        people: Joints ``[J, 3]`` of each person: x, y and score (or visibility).
        least: Lowest score of a drawn joint.
        layout: Layout of the joints.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for person in people:
        _draw(pen, person[:, :2], person[:, 2] >= least, layout)
    return np.asarray(picture)


def _draw(pen: ImageDraw.ImageDraw, joints: np.ndarray, shown: np.ndarray, layout: Layout) -> None:
    """Draw bones with a dark outline, and joints as dots that do not overlap."""
    extent = np.ptp(joints[shown], axis=0).max() if shown.any() else 0
    width = max(1, int(extent / 80))
    bones = [(a, b) for a, b in layout.skeleton if shown[a] and shown[b]]
    for rim in (1, 0):
        for a, b in bones:
            fill = _RIM if rim else _colour(layout, a, b)
            pen.line([*joints[a], *joints[b]], fill=fill, width=width + 2 * rim)
    apart = np.linalg.norm(joints[:, None] - joints, axis=2)
    np.fill_diagonal(apart, np.inf)
    for k in np.flatnonzero(shown):
        radius = max(1.0, min(width + 1.0, apart[k][shown].min() / 2.5))
        low, high = joints[k] - radius, joints[k] + radius
        pen.ellipse([*low, *high], fill=_colour(layout, k), outline=_RIM if radius > width else None)


def _colour(layout: Layout, *joints: int) -> tuple[int, int, int]:
    sides = {layout.side(joint) for joint in joints}
    return _COLOURS[sides.pop()] if len(sides) == 1 else _COLOURS["middle"]
