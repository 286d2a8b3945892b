"""Affine transforms between image pixels and the network's input."""

from __future__ import annotations

import importlib.util

import numpy as np

__all__ = ["box_to_region", "joints_through", "region_matrix", "warp"]

_CV2 = importlib.util.find_spec("cv2") is not None


def box_to_region(
    box: tuple[float, float, float, float], aspect: float, *, padding: float = 1.25
) -> tuple[np.ndarray, np.ndarray]:
    """Extend a box to an aspect ratio and by ``padding``, about its centre.

    Args:
        box: Box ``(x, y, width, height)`` in pixels of the image.
        aspect: Width over height of the region.
        padding: Scale factor of the region.

    Returns:
        ``(centre [2], size [2])`` in pixels of the image.
    """
    x, y, width, height = box
    centre = np.array([x + width / 2, y + height / 2])
    if width > aspect * height:
        height = width / aspect
    else:
        width = height * aspect
    return centre, np.array([width, height]) * padding


def region_matrix(
    centre: np.ndarray, size: np.ndarray, target: tuple[int, int], *, degrees: float = 0.0, udp: bool = False
) -> np.ndarray:
    """Return the 2x3 matrix from image pixels to pixels of the input or heatmap.

    Args:
        centre: Centre ``[2]`` of the region in pixels of the image.
        size: Size ``(width, height)`` of the region in pixels of the image; the width sets the scale.
        target: Size ``(height, width)`` of the input or heatmap in pixels.
        degrees: Rotation of the region in degrees.
        udp: Whether to measure sizes between pixel centres (UDP; Huang et al., 2020, arXiv:1911.07524).
    """
    height, width = target
    less = 1 if udp else 0
    scale, angle = (width - less) / size[0], np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array([(width - less) / 2, (height - less) / 2])
    return np.concatenate([turn, (middle - turn @ centre)[:, None]], axis=1)


def joints_through(matrix: np.ndarray, joints: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    """Transform points ``[..., 2]`` by ``matrix``, or by its inverse."""
    linear, shift = matrix[:, :2], matrix[:, 2]
    return (joints - shift) @ np.linalg.inv(linear).T if inverse else joints @ linear.T + shift


def warp(image: np.ndarray, matrix: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """Warp ``image`` ``[H, W, 3]`` uint8 to ``target`` (height, width).

    Bilinear; pixels outside the image are black.
    """
    if not _CV2:
        return warp_numpy(image, matrix, target)
    import cv2

    return cv2.warpAffine(image, matrix, (target[1], target[0]), flags=cv2.INTER_LINEAR)


def warp_numpy(image: np.ndarray, matrix: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """Warp as `warp` does, without OpenCV; slower."""
    grid = np.stack(np.meshgrid(np.arange(target[1]), np.arange(target[0])), axis=-1).astype(float)
    place = joints_through(matrix, grid, inverse=True)
    corner = np.floor(place).astype(int)
    share, padded = place - corner, np.pad(image, ((1, 1), (1, 1), (0, 0))).astype(float)
    result = np.zeros((*target, image.shape[2]))
    for dx in (0, 1):
        for dy in (0, 1):
            x = (corner[..., 0] + dx + 1).clip(0, image.shape[1] + 1)
            y = (corner[..., 1] + dy + 1).clip(0, image.shape[0] + 1)
            part = (share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1])
            result += padded[y, x] * part[..., None]
    return (result + 0.5).astype("uint8")
