"""Read and validate COCO keypoint annotations."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from layouts import COCO_BODY, Layout

__all__ = ["People", "Person", "is_box", "load_json", "read_people"]


@dataclass(frozen=True, kw_only=True)
class Person:
    """One top-down sample.

    Args:
        image_id: ID of the image in the COCO file.
        path: Path of the image.
        box: Box ``(x, y, width, height)`` in pixels.
        joints: Joints ``[J, 2]`` in pixels; zeros for a detected box.
        visible: Visibility ``[J]``: 0 not labelled, 1 occluded, 2 visible.
        score: Score of the box; 1 for ground truth.
        head: Head size in pixels, for PCKh; 0 if unknown.
    """

    image_id: int
    path: Path
    box: tuple[float, float, float, float]
    joints: np.ndarray
    visible: np.ndarray
    score: float = 1.0
    head: float = 0.0


@dataclass(frozen=True, kw_only=True)
class People:
    """Samples of an annotation file, and counts of the skipped records.

    Args:
        people: Samples.
        dropped: Number of skipped records by reason.
        annotations: Path of the annotation file; `pycocotools` reads a COCO file from it.
        image_ids: IDs of all images of the file, as evaluation counts missed persons too.
        layout: Layout of the joints.
    """

    people: list[Person]
    dropped: Counter[str]
    annotations: Path
    image_ids: list[int]
    layout: Layout = COCO_BODY


def read_people(
    annotations: str | Path,
    images: str | Path,
    *,
    layout: Layout = COCO_BODY,
    boxes: str | Path | None = None,
    min_box_score: float = 0.0,
) -> People:
    """Read ground-truth persons, or the boxes of a detector.

    Args:
        annotations: Path of COCO's ``person_keypoints_*.json``.
        images: Folder of the images.
        layout: Layout of the joints of every record.
        boxes: Path of a detector's results, ``[{"image_id", "category_id", "bbox", "score"}, ...]``.
        min_box_score: Lowest score of a detected box; boxes below are skipped.

    Raises:
        FileNotFoundError: A file or the folder does not exist.
        ValueError: Not a COCO keypoint file, other joints, or no person left.
    """
    annotations, images = Path(annotations), Path(images)
    content = load_json(annotations)
    if not _is_coco(content):
        raise ValueError(
            f"{annotations} is no COCO file: it must be an object with 'images' (each with 'id' and 'file_name') and "
            "'annotations'."
        )
    _check_joints(content, layout, annotations)
    if not images.is_dir():
        raise FileNotFoundError(f"There is no image folder {images}.")
    num_joints = len(layout.joints)
    paths = {item["id"]: images / item["file_name"] for item in content["images"]}
    dropped: Counter[str] = Counter()
    if boxes is None:
        people = [_labelled(item, paths, num_joints, dropped) for item in content["annotations"]]
    else:
        people = [_detected(item, paths, num_joints, min_box_score, dropped) for item in _detections(Path(boxes))]
    missing = {path for path in paths.values() if not path.is_file()}
    kept = [person for person in people if person is not None and person.path not in missing]
    dropped["image file missing"] += sum(person is not None for person in people) - len(kept)
    if not kept:
        raise ValueError(f"No person left in {boxes or annotations}: {dict(+dropped) or 'there are no records'}.")
    return People(people=kept, dropped=+dropped, annotations=annotations, image_ids=sorted(paths), layout=layout)


def load_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error


def _is_coco(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    images, notes = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(notes, list):
        return False
    named = all(isinstance(item, dict) and {"id", "file_name"} <= item.keys() for item in images)
    return named and all(isinstance(item, dict) for item in notes)


def _check_joints(content: dict[str, Any], layout: Layout, path: Path) -> None:
    """Check the names of the joints, if the file has some."""
    for category in content.get("categories") or []:
        names = tuple(category.get("keypoints") or layout.joints)
        if names != layout.joints:
            raise ValueError(
                f"{path} has the joints {', '.join(names)}; expected are those of {layout.name!r}, in this order: "
                f"{', '.join(layout.joints)}."
            )


def _detections(path: Path) -> list[dict[str, Any]]:
    found = load_json(path)
    if not isinstance(found, list) or not all(isinstance(item, dict) and "bbox" in item for item in found):
        raise ValueError(f'{path} is no list of boxes: [{{"image_id", "category_id", "bbox", "score"}}, ...].')
    return found


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
            "the layout is wrong."
        )
    elif not any(points[2::3]):
        dropped["no visible joint"] += 1
    elif not is_box(item.get("bbox")):
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
    elif not is_box(item.get("bbox")):
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


def is_box(box: Any) -> bool:
    """Whether ``box`` is ``[x, y, width, height]`` with sizes above 0."""
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)
    return numbers and box[2] > 0 and box[3] > 0
