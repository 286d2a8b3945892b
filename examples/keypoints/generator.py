"""Generate a COCO keypoint data set of drawn figures with 17 joints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from layouts import COCO_BODY
from PIL import Image, ImageDraw, ImageFilter

from paddlelite_callbacks.utils.atomic_files import staged_folder

__all__ = ["Scene", "generate"]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Difficulty of the images.

    Args:
        size: Size ``(height, width)`` of an image in pixels.
        people: Largest number of figures per image.
        clutter: Number of stray limbs, discs and bars per image.
        occluders: Number of bars in front of the figures per image.
        noise: Standard deviation of the pixel noise, in 0-255.
    """

    size: tuple[int, int] = (240, 320)
    people: int = 3
    clutter: int = 14
    occluders: int = 2
    noise: float = 8.0


def generate(folder: str | Path, count: int, *, seed: int, scene: Scene | None = None) -> tuple[Path, Path]:
    """Write images and their annotation file; the same seed gives the same bytes.

    Args:
        folder: Folder for ``images/`` and ``annotations.json``; an existing equal data set is kept.
        count: Number of images.
        seed: Random seed.
        scene: Difficulty of the images; ``None`` for the defaults.

    Returns:
        Paths of the annotation file and of the image folder, for `read_people`.
    """
    folder, scene = Path(folder), scene or Scene()
    images, annotations = folder / "images", folder / "annotations.json"
    stamp = {"count": count, "seed": seed, "scene": repr(scene)}
    if annotations.is_file() and json.loads(annotations.read_text()).get("info") == stamp:
        return annotations, images
    with staged_folder(folder) as stage:
        content = _drawn_in(stage / "images", np.random.RandomState(seed), count, scene)
        (stage / "annotations.json").write_text(json.dumps({"info": stamp, **content}), encoding="utf-8")
    return annotations, images


def _drawn_in(images: Path, random: np.random.RandomState, count: int, scene: Scene) -> dict[str, Any]:
    """Draw ``count`` images into ``images`` and return their COCO annotations."""
    images.mkdir()
    bones = [[a + 1, b + 1] for a, b in COCO_BODY.skeleton]
    person = {"id": 1, "name": "person", "keypoints": list(COCO_BODY.joints), "skeleton": bones}
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [person]}
    height, width = scene.size
    for image_id in range(1, count + 1):
        picture, figures = draw_scene(random, scene)
        name = f"{image_id:06d}.png"
        picture.save(images / name)
        content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for joints, visible in figures:
            record = _record(joints, visible, scene.size)
            if record is not None:
                ids = {"id": len(content["annotations"]) + 1, "image_id": image_id}
                content["annotations"].append({**ids, **record})
    return content


def draw_scene(random: np.random.RandomState, scene: Scene) -> tuple[Image.Image, list[tuple[np.ndarray, np.ndarray]]]:
    """Return an image, and joints ``[17, 2]`` and visibility of each figure."""
    height, width = scene.size
    picture = _background(random, scene)
    pen = ImageDraw.Draw(picture)
    figures: list[tuple[np.ndarray, np.ndarray]] = []
    owner = np.zeros(
        (height, width), dtype=int
    )  # visible object per pixel: 0 background, k the k-th figure, -1 an occluder
    for number in range(1, random.randint(1, scene.people + 1) + 1):
        tall = height * random.uniform(0.45, 0.95)
        middle = np.array([random.uniform(0.15, 0.85) * width, random.uniform(0.45, 0.6) * height])
        joints = _pose(random, tall) + middle
        mask = Image.new("L", picture.size)
        _draw_figure(random, pen, ImageDraw.Draw(mask), joints, tall)
        owner[np.asarray(mask) > 0] = number
        figures.append((joints, np.zeros(17)))
    for _ in range(scene.occluders):
        shape = _bar(random, scene)
        pen.polygon(shape, fill=_colour(random))
        mask = Image.new("L", picture.size)
        ImageDraw.Draw(mask).polygon(shape, fill=255)
        owner[np.asarray(mask) > 0] = -1
    picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.0)))
    pixels = np.asarray(picture) + random.randn(height, width, 3) * scene.noise
    seen = [(joints, _visibility(joints, owner, number)) for number, (joints, _) in enumerate(figures, 1)]
    return Image.fromarray(pixels.clip(0, 255).astype("uint8")), seen


def _visibility(joints: np.ndarray, owner: np.ndarray, number: int) -> np.ndarray:
    """Return the visibility ``[17]``: 2 visible, 1 occluded, 0 outside the image."""
    height, width = owner.shape
    x, y = np.floor(joints + 0.5).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    at = owner[y.clip(0, height - 1), x.clip(0, width - 1)]
    return np.where(inside, np.where(at == number, 2, 1), 0)


def _pose(random: np.random.RandomState, tall: float) -> np.ndarray:
    """Return joints ``[17, 2]`` relative to the middle of the body.

    The figure faces the viewer: its left is on the right of the image.
    """
    torso, upper, lower, head = 0.3 * tall, 0.24 * tall, 0.24 * tall, 0.13 * tall
    lean, wide = random.uniform(-0.35, 0.35), random.uniform(0.75, 1.1)
    down, side = np.array([np.sin(lean), np.cos(lean)]), np.array([np.cos(lean), -np.sin(lean)])
    neck, hips = -down * torso / 2, down * torso / 2
    joints = np.zeros((17, 2))
    nod = random.uniform(-0.3, 0.3)
    up, across = np.array([np.sin(lean + nod), -np.cos(lean + nod)]), np.array([np.cos(lean + nod), np.sin(lean + nod)])
    face = neck + up * head * 0.95
    joints[0] = face + across * random.uniform(-0.12, 0.12) * head
    for sign, eye, ear, shoulder, elbow, wrist, hip, knee, ankle in ((1, *range(1, 16, 2)), (-1, *range(2, 17, 2))):
        joints[eye] = face + up * 0.17 * head + sign * across * 0.22 * head
        joints[ear] = face + up * 0.08 * head + sign * across * 0.48 * head
        joints[shoulder] = neck + sign * side * 0.13 * tall * wide
        joints[hip] = hips + sign * side * 0.08 * tall * wide
        arm = random.uniform(-0.5, 2.9)
        bend = arm + random.uniform(-1.9, 1.9)
        joints[elbow] = joints[shoulder] + 0.17 * tall * np.array([sign * np.sin(arm), np.cos(arm)])
        joints[wrist] = joints[elbow] + 0.16 * tall * np.array([sign * np.sin(bend), np.cos(bend)])
        leg = random.uniform(-0.3, 1.0)
        shin = leg + random.uniform(-1.2, 0.4)
        joints[knee] = joints[hip] + upper * np.array([sign * np.sin(leg), np.cos(leg)])
        joints[ankle] = joints[knee] + lower * np.array([sign * np.sin(shin), np.cos(shin)])
    return joints


def _draw_figure(
    random: np.random.RandomState, pen: ImageDraw.ImageDraw, mask: ImageDraw.ImageDraw, joints: np.ndarray, tall: float
) -> None:
    skin, shirt, trousers = _colour(random, low=110), _colour(random), _colour(random)
    thick = max(3, int(tall * random.uniform(0.045, 0.075)))

    def limb(a: int, b: int, colour: tuple[int, ...], width: int) -> None:
        for surface, fill in ((pen, colour), (mask, 255)):
            surface.line([*joints[a], *joints[b]], fill=fill, width=width)
            for x, y in (joints[a], joints[b]):
                surface.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=fill)

    def body() -> None:
        outline = [tuple(joints[k]) for k in (5, 6, 12, 11)]
        pen.polygon(outline, fill=shirt)
        mask.polygon(outline, fill=255)

    legs = [lambda a=a, b=b: limb(a, b, trousers, thick) for a, b in ((11, 13), (13, 15), (12, 14), (14, 16))]
    arms = [
        lambda a=a, b=b, c=c: limb(a, b, c, max(2, int(thick * 0.8)))
        for a, b, c in ((5, 7, shirt), (7, 9, skin), (6, 8, shirt), (8, 10, skin))
    ]
    parts = [*legs, body, *arms] if random.rand() < 0.7 else [*legs, *arms, body]
    for part in parts:
        part()
    _draw_head(pen, mask, joints, skin)


def _draw_head(pen: ImageDraw.ImageDraw, mask: ImageDraw.ImageDraw, joints: np.ndarray, skin: tuple[int, ...]) -> None:
    centre, reach = (joints[3] + joints[4]) / 2, np.linalg.norm(joints[3] - joints[4]) / 2
    size = np.array([reach, 1.25 * reach])
    box = [*(centre - size), *(centre + size)]
    pen.ellipse(box, fill=skin)
    mask.ellipse(box, fill=255)
    dark, dot = tuple(int(c * 0.3) for c in skin), max(1.0, reach * 0.14)
    for k, factor in ((0, 0.8), (1, 1.0), (2, 1.0), (3, 1.6), (4, 1.6)):
        x, y, r = *joints[k], dot * factor
        for surface, fill in ((pen, dark), (mask, 255)):
            surface.ellipse([x - r, y - r, x + r, y + r], fill=fill)


def _background(random: np.random.RandomState, scene: Scene) -> Image.Image:
    height, width = scene.size
    coarse = random.randint(40, 216, (random.randint(2, 6), random.randint(2, 8), 3)).astype("uint8")
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    for _ in range(scene.clutter):
        x, y = random.uniform(0, width), random.uniform(0, height)
        length, turn = random.uniform(10, 60), random.uniform(0, 2 * np.pi)
        kind = random.randint(3)
        if kind == 0:  # looks like a limb
            end = [x + length * np.cos(turn), y + length * np.sin(turn)]
            pen.line([x, y, *end], fill=_colour(random), width=random.randint(2, 12))
        elif kind == 1:  # looks like a head or a hand
            pen.ellipse([x - length / 4, y - length / 4, x + length / 4, y + length / 4], fill=_colour(random))
        else:
            pen.polygon(_bar(random, scene), outline=_colour(random))
    return picture


def _bar(random: np.random.RandomState, scene: Scene) -> list[tuple[float, float]]:
    height, width = scene.size
    centre = np.array([random.uniform(0, width), random.uniform(0.2, 1.0) * height])
    turn, long, short = random.uniform(0, np.pi), random.uniform(20, 80), random.uniform(5, 16)
    a, b = np.array([np.cos(turn), np.sin(turn)]) * long, np.array([-np.sin(turn), np.cos(turn)]) * short
    return [tuple(centre + s * a + t * b) for s, t in ((1, 1), (1, -1), (-1, -1), (-1, 1))]


def _colour(random: np.random.RandomState, low: int = 20) -> tuple[int, ...]:
    return tuple(int(c) for c in random.randint(low, 236, 3))


def _record(joints: np.ndarray, visible: np.ndarray, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return COCO's fields; ``None`` for fewer than 4 joints inside the image."""
    inside = visible > 0
    if inside.sum() < 4:
        return None
    height, width = size
    margin = 0.05 * np.ptp(joints[:, 1])
    low = (joints.min(0) - margin).clip(0, [width - 1, height - 1])
    high = (joints.max(0) + margin).clip(0, [width - 1, height - 1])
    box = [*low, *(high - low)]
    points = np.concatenate([joints * inside[:, None], visible[:, None]], axis=1)
    return {
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [round(float(v), 2) for v in box],
        "area": round(float(box[2] * box[3] * 0.53), 2),  # a figure fills about half of its box, as people in COCO
        "num_keypoints": int(inside.sum()),
        "keypoints": [round(float(v), 2) for v in points.reshape(-1)],
    }
