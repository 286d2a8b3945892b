"""Read the Leeds Sports Pose data sets: LSP, LSP Extended (LSPET), and cut-outs of them in COCO's form.

Johnson and Everingham, BMVC 2010 (LSP, 2,000 images) and CVPR 2011 (LSPET, 10,000 images; labels by Mechanical Turk,
noisy). A folder as published holds ``joints.mat``, whose ``joints`` have the shape ``[3, 14, N]`` (LSP) or
``[14, 3, N]`` (LSPET), and ``images/im0001.jpg`` or ``images/im00001.jpg``, ... The other form is
``annotations/train.json`` and ``annotations/val.json`` as COCO's, with 14 joints, and the images that they name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from coco import People, Person, read_people
from layouts import LSP_BODY
from PIL import Image

__all__ = ["LEAST_JOINTS", "ground_truth", "read_lsp"]

LEAST_JOINTS = 6  # LSPET has a handful of persons with fewer
_MARGIN = 0.1  # of width and height of the labelled joints, on each side of the box
_HELD_OUT = 1000
_AREA = 0.53  # of the box, as in CrowdPose's evaluation (arXiv:1812.00324) of persons without masks


def read_lsp(folder: str | Path) -> tuple[People, People]:
    """Read training and evaluation data.

    Of a folder as published the last 1,000 images are for evaluation (LSPET: 9,000 and 1,000, LSP: 1,000 and 1,000; of
    fewer than 2,000 images the last tenth). A person's box surrounds the labelled joints with a tenth of its size on
    each side, within the image. Labelled joints outside the image count as unlabelled; persons with fewer than
    `LEAST_JOINTS` labelled joints are left out. Both are counted in ``dropped``.

    Args:
        folder: Folder in one of the two forms.

    Raises:
        FileNotFoundError: The folder has neither form, or lacks its images.
        ValueError: A damaged file, other joints, or no person left.
    """
    folder = Path(folder)
    if (folder / "joints.mat").is_file():
        parts = _published(folder)
    elif (folder / "annotations").is_dir():
        notes = [folder / "annotations" / f"{part}.json" for part in ("train", "val")]
        parts = [read_people(path, folder, layout=LSP_BODY) for path in notes]
    else:
        raise FileNotFoundError(
            f"{folder} holds neither joints.mat and images/ (LSP or LSPET as published) nor annotations/train.json and "
            "annotations/val.json (COCO's form with 14 joints): give the folder that holds one of them."
        )
    return _usable(parts[0]), _usable(parts[1])


def ground_truth(source: People) -> dict[str, Any]:
    """Return the persons as the content of a COCO file, for `pycocotools`.

    Args:
        source: Persons, one or more per image.
    """
    notes = [
        {
            "id": number,
            "image_id": person.image_id,
            "category_id": 1,
            "iscrowd": 0,
            "bbox": list(person.box),
            "area": _AREA * person.box[2] * person.box[3],
            "num_keypoints": int((person.visible > 0).sum()),
            "keypoints": np.concatenate([person.joints, person.visible[:, None]], axis=1).reshape(-1).tolist(),
        }
        for number, person in enumerate(source.people, 1)
    ]
    category = {"id": 1, "name": "person", "keypoints": list(source.layout.joints)}
    images = [{"id": image_id} for image_id in source.image_ids]
    return {"info": {}, "images": images, "annotations": notes, "categories": [category]}


def _published(folder: Path) -> list[People]:
    table = _joints_in(folder / "joints.mat")
    paths, count = _images_of(folder / "images", len(table)), len(table)
    held_out = _HELD_OUT if count >= 2 * _HELD_OUT else max(1, count // 10)
    parts = range(count - held_out), range(count - held_out, count)
    return [_part(part, table, paths, folder / "joints.mat") for part in parts]


def _part(chosen: range, table: np.ndarray, paths: list[Path], annotations: Path) -> People:
    people, dropped = [], Counter[str]()
    for k in chosen:
        labelled = table[k, :, 2] > 0
        if not paths[k].is_file():
            dropped["image file missing"] += 1
            continue
        joints = np.where(labelled[:, None], table[k, :, :2], 0.0)
        people.append(Person(image_id=k + 1, path=paths[k], box=(0, 0, 0, 0), joints=joints, visible=2.0 * labelled))
    ids = [k + 1 for k in chosen]
    return People(people=people, dropped=dropped, annotations=annotations, image_ids=ids, layout=LSP_BODY)


def _joints_in(path: Path) -> np.ndarray:
    """Return ``[N, 14, 3]``: x, y and whether the joint is labelled.

    All joints of LSP are labelled: its third number tells occluded ones.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(str(path)).get("joints")
    except Exception as error:  # loadmat raises many kinds
        raise ValueError(f"{path} is no MATLAB file, or it is damaged ({error}): download it again.") from error
    joints = len(LSP_BODY.joints)
    extended = found is not None and found.ndim == 3 and found.shape[:2] == (joints, 3)
    if not extended and (found is None or found.ndim != 3 or found.shape[:2] != (3, joints)):
        shape = "nothing" if found is None else f"the shape {list(found.shape)}"
        raise ValueError(
            f"{path} must hold 'joints' of the shape [14, 3, N] (LSPET) or [3, 14, N] (LSP), it holds {shape}."
        )
    table = found.transpose(2, 0, 1) if extended else found.transpose(2, 1, 0)
    if table.dtype.kind not in "fiu" or len(table) < 2:
        raise ValueError(f"{path} must hold the numbers of at least 2 persons, it holds {len(table)} x {table.dtype}.")
    table = table.astype(float)
    if not extended:
        table[:, :, 2] = 1
    wrong = np.flatnonzero((~np.isfinite(table) & (table[:, :, 2:] != 0)).any(axis=(1, 2)))
    if len(wrong):
        raise ValueError(f"{path} is damaged: joints of image {wrong[0] + 1} are no finite numbers.")
    return table


def _images_of(folder: Path, count: int) -> list[Path]:
    for digits in (5, 4):
        if any(folder.glob(f"im{'[0-9]' * digits}.jpg")):
            return [folder / f"im{number:0{digits}d}.jpg" for number in range(1, count + 1)]
    raise FileNotFoundError(f"There are no im00001.jpg, im00002.jpg, ... (LSPET) or im0001.jpg, ... (LSP) in {folder}.")


def _usable(source: People) -> People:
    """Return ``source`` with boxes around its labelled joints, without unusable labels."""
    people, dropped = [], Counter(source.dropped)
    for person in source.people:
        size = _size(person.path)
        visible = person.visible
        if size is not None:
            inside = ((person.joints > -1) & (person.joints < size)).all(axis=1)
            dropped["joint outside the image"] += int(((visible > 0) & ~inside).sum())
            visible = np.where(inside, visible, 0.0)
        box = _box(person.joints[visible > 0], size)
        if (visible > 0).sum() < LEAST_JOINTS:
            dropped[f"fewer than {LEAST_JOINTS} joints"] += 1
        elif not min(box[2:]) > 0:
            dropped["empty box"] += 1
        else:
            people.append(replace(person, visible=visible, box=box))
    if not people:
        raise ValueError(f"No person left in {source.annotations}: {dict(+dropped) or 'there are no records'}.")
    return replace(source, people=people, dropped=+dropped)


def _box(joints: np.ndarray, size: np.ndarray | None) -> tuple[float, float, float, float]:
    if not len(joints):
        return (0.0, 0.0, 0.0, 0.0)
    low, high = joints.min(axis=0), joints.max(axis=0)
    margin = _MARGIN * (high - low)
    low, high = low - margin, high + margin
    if size is not None:
        low, high = low.clip(0), np.minimum(high, size)
    x, y, width, height = map(float, (*low, *(high - low)))
    return (x, y, width, height)


def _size(path: Path) -> np.ndarray | None:
    """Return width and height of an image from its header; ``None`` if it is damaged."""
    try:
        with Image.open(path) as image:
            return np.array(image.size, dtype=float)
    except OSError:
        return None
