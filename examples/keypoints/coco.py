"""Read people from a COCO keypoint file, count what is left out and why, and refuse what cannot be trained on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FLIP_PAIRS", "SIGMAS", "SKELETON", "UPPER_BODY", "People", "Person", "read_people"]

FLIP_PAIRS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]
UPPER_BODY = list(range(11))
SKELETON = [
    *[(0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)],
    *[(5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)],
]
# pycocotools' per-joint constants
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


@dataclass(frozen=True, kw_only=True)
class Person:
    """One top-down sample.

    Args:
        image_id: of the COCO file.
        path: of the image.
        box: ``(x, y, width, height)`` in pixels.
        joints: ``[J, 2]`` pixels; zeros for a detected box.
        visible: ``[J]``: 0 not labelled, 1 hidden, 2 seen.
        score: of the box; 1 for ground truth.
    """

    image_id: int
    path: Path
    box: tuple[float, float, float, float]
    joints: np.ndarray
    visible: np.ndarray
    score: float = 1.0


@dataclass(frozen=True, kw_only=True)
class People:
    """The samples of a file, and how many records were left out by reason.

    Args:
        people: the samples.
        dropped: counts by reason.
        annotations: the COCO file itself, for `pycocotools`.
        image_ids: of all images of the file; evaluation counts persons nobody found.
    """

    people: list[Person]
    dropped: Counter[str]
    annotations: Path
    image_ids: list[int]


def read_people(
    annotations: str | Path,
    images: str | Path,
    *,
    num_joints: int = 17,
    boxes: str | Path | None = None,
    min_box_score: float = 0.0,
) -> People:
    """Read ground-truth persons, or a detector's boxes for the images of ``annotations``.

    Args:
        annotations: COCO's ``person_keypoints_*.json``.
        images: folder of the images.
        num_joints: that every record must have.
        boxes: a detector's results, ``[{"image_id", "category_id", "bbox", "score"}, ...]``.
        min_box_score: detected boxes below are left out.

    Raises:
        FileNotFoundError: a file or the folder is not there.
        ValueError: no COCO keypoint file, another number of joints, or nobody left.
    """
    annotations, images = Path(annotations), Path(images)
    content = _load(annotations)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{annotations} is no COCO file: it must be an object with 'images' and 'annotations'.")
    if not images.is_dir():
        raise FileNotFoundError(f"There is no image folder {images}.")
    paths = {item["id"]: images / item["file_name"] for item in content["images"]}
    dropped: Counter[str] = Counter()
    if boxes is None:
        people = [_labelled(item, paths, num_joints, dropped) for item in content["annotations"]]
    else:
        people = [_detected(item, paths, num_joints, min_box_score, dropped) for item in _load(Path(boxes))]
    missing = {path for path in paths.values() if not path.is_file()}
    kept = [person for person in people if person is not None and person.path not in missing]
    dropped["image file missing"] += sum(person is not None for person in people) - len(kept)
    if not kept:
        raise ValueError(f"No person left in {boxes or annotations}: {dict(+dropped) or 'there are no records'}.")
    return People(people=kept, dropped=+dropped, annotations=annotations, image_ids=sorted(paths))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error


def _labelled(item: dict[str, Any], paths: dict[int, Path], count: int, dropped: Counter[str]) -> Person | None:
    points = item.get("keypoints") or []
    if item.get("iscrowd"):
        dropped["crowd"] += 1
    elif item.get("image_id") not in paths:
        dropped["image not listed"] += 1
    elif not points:
        dropped["no keypoints"] += 1
    elif len(points) != 3 * count:
        raise ValueError(
            f"Annotation {item.get('id')} has {len(points) / 3:g} joints, expected {count}: another data set, or "
            "num_joints is wrong."
        )
    elif not any(points[2::3]):
        dropped["no visible joint"] += 1
    elif not _is_box(item.get("bbox")):
        dropped["empty box"] += 1
    else:
        joints = np.asarray(points, dtype=float).reshape(-1, 3)
        box = tuple(float(value) for value in item["bbox"])
        return Person(
            image_id=item["image_id"],
            path=paths[item["image_id"]],
            box=box,  # type: ignore[arg-type]
            joints=joints[:, :2],
            visible=joints[:, 2],
        )
    return None


def _detected(
    item: dict[str, Any], paths: dict[int, Path], count: int, least: float, dropped: Counter[str]
) -> Person | None:
    if item.get("category_id", 1) != 1:
        dropped["not a person"] += 1
    elif item.get("image_id") not in paths:
        dropped["image not listed"] += 1
    elif item.get("score", 1.0) < least:
        dropped["box score too low"] += 1
    elif not _is_box(item.get("bbox")):
        dropped["empty box"] += 1
    else:
        return Person(
            image_id=item["image_id"],
            path=paths[item["image_id"]],
            box=tuple(float(value) for value in item["bbox"]),  # type: ignore[arg-type]
            joints=np.zeros((count, 2)),
            visible=np.zeros(count),
            score=float(item.get("score", 1.0)),
        )
    return None


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and box[2] > 0 and box[3] > 0
