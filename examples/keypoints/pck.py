"""Compute PCK: the share of joints near their ground truth, measured in torsos or heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from coco import Person
from dataset import KeypointDataset
from evaluation import KeypointAP
from layouts import LSP_BODY
from lsp import ground_truth

__all__ = ["PCKAndAP", "pck", "shares_within"]

_PARTS = {
    "Head": ("neck", "head_top"),
    **{
        part.capitalize(): (f"right_{part}", f"left_{part}")
        for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    },
}
_TORSO = ("left_shoulder", "right_hip")


def shares_within(
    distances: np.ndarray, reach: np.ndarray, counted: np.ndarray, parts: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Return the share of joints within ``reach``, by body part and over all joints.

    A part's value is the mean over its joints; "Mean" is the share of all counted joints.

    Args:
        distances: Distances ``[N, J]`` from the ground truth in pixels.
        reach: Largest distance ``[N]`` of each person in pixels.
        counted: Whether a joint counts, ``[N, J]``.
        parts: Indices of joints by part.
    """
    right = (distances <= reach[:, None]) & counted
    by_joint = right.sum(0) / counted.sum(0).clip(1)
    figures = {part: float(by_joint[list(joints)].mean()) for part, joints in parts.items()}
    return {**figures, "Mean": float(right.sum() / max(1, counted.sum()))}


def pck(places: np.ndarray, people: Sequence[Person], *, threshold: float = 0.2) -> dict[str, float]:
    """Return PCK by body part, and its mean, on LSP's joints.

    PCK (Yang and Ramanan, PAMI 2013) is the share of labelled joints within ``threshold`` torsos of the ground truth.
    The torso is the distance of left shoulder and right hip in the ground truth. Persons of whom one of these two is
    not labelled are excluded.

    Args:
        places: Predicted joints ``[N, 14, 2]`` in pixels of the image.
        people: Persons from `read_lsp`, ``N`` of them.
        threshold: Largest distance in torsos.
    """
    names = list(LSP_BODY.joints)
    shoulder, hip = (names.index(name) for name in _TORSO)
    truth, labelled = np.stack([p.joints for p in people]), np.stack([p.visible > 0 for p in people])
    torso = np.linalg.norm(truth[:, shoulder] - truth[:, hip], axis=1)
    counted = labelled & (labelled[:, [shoulder]] & labelled[:, [hip]])
    parts = {part: [names.index(name) for name in joints] for part, joints in _PARTS.items()}
    return shares_within(np.linalg.norm(places - truth, axis=2), threshold * torso, counted, parts)


class PCKAndAP(KeypointAP):
    """PCK@0.2 of LSP's joints, by body part, and COCO's AP and AR with their constants.

    Args:
        dataset: Data of the indices in the labels, without augmentation.
        dark: Whether to decode with DARK.
    """

    def __init__(self, dataset: KeypointDataset, *, dark: bool = False) -> None:
        super().__init__(dataset, dark=dark)
        self.truth = ground_truth(dataset.source)

    def figures(self, raw: list[dict[str, Any]]) -> list[float]:
        """Return PCK and AP of ``raw``; samples duplicated across processes count once."""
        by_index = {item["index"]: item for item in raw}
        places = np.stack([np.reshape(item["keypoints"], (-1, 3))[:, :2] for item in by_index.values()])
        values = pck(places, [self.dataset.people[index] for index in by_index])
        return [values.pop("Mean"), *values.values(), *super().figures(raw)]

    def name(self) -> list[str]:
        """Return the names of the values; "PCK" is the mean."""
        return ["PCK", *_PARTS, *super().name()]
