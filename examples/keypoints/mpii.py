"""Read MPII annotations in the JSON format of HRNet, and compute PCKh.

Data set and PCKh: Andriluka et al., CVPR 2014. A file is a list of persons, ``{"image": name, "center": [x, y],
"scale": s, "joints": [[x, y], ...], "joints_vis": [0 or 1, ...]}``, with 16 joints, 1-based coordinates as in MATLAB
and a person's height of about ``200 * scale`` pixels. (HRNet's repositories: github.com/leoxiaobin, MIT.)
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from coco import People, Person, load_json
from evaluation import KeypointMetric
from layouts import MPII_BODY
from pck import shares_within

__all__ = ["PCKh", "pckh", "read_mpii"]

_FIELDS = ("image", "center", "scale", "joints", "joints_vis")
_HEAD_TOP, _NECK, _UNCOUNTED = 9, 8, (6, 7)  # PCKh excludes pelvis and thorax
_PARTS = {
    "Head": (9,),
    "Shoulder": (12, 13),
    "Elbow": (11, 14),
    "Wrist": (10, 15),
    "Hip": (2, 3),
    "Knee": (1, 4),
    "Ankle": (0, 5),
}


def read_mpii(annotations: str | Path, images: str | Path, *, heads: str | Path | None = None) -> People:
    """Read the persons of ``annotations``.

    Args:
        annotations: Path of MPII's ``train.json`` or ``valid.json``.
        images: Folder of the images.
        heads: Path of ``gt_valid.mat`` with the official head sizes (0.6 of the diagonal of ``headboxes_src``) in the
            order of ``annotations``; needs SciPy. Without it the head size is the distance from upper neck to head top,
            and PCKh differs slightly from published values.

    Raises:
        FileNotFoundError: A file or the folder does not exist.
        ValueError: Not an MPII file, another number of joints, heads of other persons, or no person left.
    """
    annotations, images = Path(annotations), Path(images)
    content = load_json(annotations)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ValueError(f"{annotations} is no MPII file: it must be a list of objects with {', '.join(_FIELDS)}.")
    if not images.is_dir():
        raise FileNotFoundError(f"There is no image folder {images}.")
    sizes = [None] * len(content) if heads is None else _head_sizes(Path(heads), len(content))
    ids: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    people = [_person(k, item, images, ids, size) for k, (item, size) in enumerate(zip(content, sizes, strict=True))]
    kept = [person for person in people if person.path.is_file()]
    dropped["image file missing"] = len(people) - len(kept)
    labelled = [person for person in kept if person.visible.any()]
    dropped["no visible joint"] = len(kept) - len(labelled)
    if not labelled:
        raise ValueError(f"No person left in {annotations}: {dict(+dropped) or 'there are no records'}.")
    return People(
        people=labelled, dropped=+dropped, annotations=annotations, image_ids=sorted(ids.values()), layout=MPII_BODY
    )


def _person(number: int, item: dict[str, Any], images: Path, ids: dict[str, int], head: float | None) -> Person:
    missing = [name for name in _FIELDS if name not in item]
    if missing:
        raise ValueError(f"Record {number} lacks {missing}: an MPII person has {', '.join(_FIELDS)}.")
    count = len(MPII_BODY.joints)
    if len(item["joints"]) != count or len(item["joints_vis"]) != count:
        raise ValueError(
            f"Record {number} has {len(item['joints'])} joints and {len(item['joints_vis'])} visibilities, expected "
            f"{count} each: this is no MPII file."
        )
    if not item["scale"] > 0:
        raise ValueError(f"Record {number} has scale {item['scale']}, it must be above 0.")
    joints, visible = np.asarray(item["joints"], dtype=float) - 1, np.asarray(item["joints_vis"], dtype=float)
    side = 200 * float(item["scale"])
    x, y = np.asarray(item["center"], dtype=float) - 1 + [0, 15 * item["scale"]]  # moved down to include the ankles
    if head is None:
        seen = visible[_HEAD_TOP] and visible[_NECK]
        head = float(np.linalg.norm(joints[_HEAD_TOP] - joints[_NECK])) if seen else 0.0
    return Person(
        image_id=ids.setdefault(item["image"], len(ids) + 1),
        path=images / item["image"],
        box=(x - side / 2, y - side / 2, side, side),
        joints=joints * (visible[:, None] > 0),
        visible=2 * (visible > 0).astype(float),
        head=head,
    )


def _head_sizes(path: Path, count: int) -> list[float]:
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    boxes = loadmat(str(path)).get("headboxes_src")
    if boxes is None or boxes.shape != (2, 2, count):
        shape = None if boxes is None else boxes.shape
        raise ValueError(f"{path} must hold headboxes_src of shape {(2, 2, count)}, one per person, got {shape}.")
    return (0.6 * np.linalg.norm(boxes[1] - boxes[0], axis=0)).tolist()


def pckh(places: np.ndarray, people: list[Person], *, threshold: float = 0.5) -> dict[str, float]:
    """Return PCKh by body part, and its mean.

    PCKh is the share of labelled joints within ``threshold`` head sizes of the ground truth. Persons without a known
    head size, pelvis and thorax are excluded.

    Args:
        places: Predicted joints ``[N, 16, 2]`` in pixels of the image.
        people: Persons from `read_mpii`, ``N`` of them.
        threshold: Largest distance in head sizes.
    """
    truth = np.stack([person.joints for person in people])
    counted = np.stack([(person.visible > 0) & (person.head > 0) for person in people])
    counted[:, _UNCOUNTED] = False
    heads = np.array([person.head for person in people])
    return shares_within(np.linalg.norm(places - truth, axis=2), threshold * heads, counted, _PARTS)


class PCKh(KeypointMetric):
    """PCKh@0.5 by body part, its mean, and the mean of PCKh@0.1, over a dataset.

    Args:
        dataset: Data of the indices in the labels, without augmentation.
        dark: Whether to decode with DARK.
    """

    def figures(self, raw: list[dict[str, Any]]) -> list[float]:
        """Return PCKh of ``raw``; samples duplicated across processes count once."""
        by_index = {item["index"]: item for item in raw}
        self.results = list(by_index.values())
        places = np.stack([np.reshape(item["keypoints"], (-1, 3))[:, :2] for item in self.results])
        people = [self.dataset.people[index] for index in by_index]
        return [*pckh(places, people).values(), pckh(places, people, threshold=0.1)["Mean"]]

    def name(self) -> list[str]:
        """Return the names of the values."""
        return [*_PARTS, "Mean", "Mean@0.1"]
