"""Skeletons on pictures."""

from __future__ import annotations

import numpy as np
from layouts import COCO_BODY, Layout
from PIL import Image, ImageDraw

__all__ = ["draw_skeletons"]

_COLOURS = {"left": (255, 140, 0), "right": (0, 160, 255), "middle": (80, 220, 80)}


def draw_skeletons(
    image: np.ndarray, people: list[np.ndarray], *, least: float = 0.2, layout: Layout = COCO_BODY
) -> np.ndarray:
    """Draw joints and bones: left orange, right blue, others green.

    Args:
        image: ``[H, W, 3]`` uint8; not changed.
        people: ``[J, 3]`` each: x, y and the height of the joint's heatmap (or its visibility).
        least: joints below are left out.
        layout: of the joints.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for person in people:
        extent = np.ptp(person[person[:, 2] >= least, :2], axis=0).max() if (person[:, 2] >= least).any() else 0
        width = max(1, int(extent / 80))
        for a, b in layout.skeleton:
            if min(person[a, 2], person[b, 2]) >= least:
                pen.line([*person[a, :2], *person[b, :2]], fill=_colour(layout, a, b), width=width)
        for k, (x, y, height) in enumerate(person):
            if height >= least:
                pen.ellipse([x - width - 1, y - width - 1, x + width + 1, y + width + 1], fill=_colour(layout, k))
    return np.asarray(picture)


def _colour(layout: Layout, *joints: int) -> tuple[int, int, int]:
    sides = {layout.side(joint) for joint in joints}
    return _COLOURS[sides.pop()] if len(sides) == 1 else _COLOURS["middle"]
