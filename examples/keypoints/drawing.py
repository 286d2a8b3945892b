"""Skeletons on pictures."""

from __future__ import annotations

import numpy as np
from coco import SKELETON
from PIL import Image, ImageDraw

__all__ = ["draw_skeletons"]

_LEFT, _RIGHT, _MIDDLE = (255, 140, 0), (0, 160, 255), (80, 220, 80)


def draw_skeletons(image: np.ndarray, people: list[np.ndarray], *, least: float = 0.2) -> np.ndarray:
    """Draw joints and bones: left orange, right blue, others green.

    Args:
        image: ``[H, W, 3]`` uint8; not changed.
        people: ``[17, 3]`` each: x, y and the height of the joint's heatmap (or its visibility).
        least: joints below are left out.
    """
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for person in people:
        extent = np.ptp(person[person[:, 2] >= least, :2], axis=0).max() if (person[:, 2] >= least).any() else 0
        width = max(1, int(extent / 80))
        for a, b in SKELETON:
            if min(person[a, 2], person[b, 2]) >= least:
                pen.line([*person[a, :2], *person[b, :2]], fill=_side(a, b), width=width)
        for k, (x, y, height) in enumerate(person):
            if height >= least:
                pen.ellipse([x - width - 1, y - width - 1, x + width + 1, y + width + 1], fill=_side(k, k))
    return np.asarray(picture)


def _side(a: int, b: int) -> tuple[int, int, int]:
    if a == 0 or b == 0 or a % 2 != b % 2:
        return _MIDDLE
    return _LEFT if a % 2 else _RIGHT
