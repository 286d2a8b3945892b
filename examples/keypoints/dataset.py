"""Top-down keypoint samples for `paddle.Model`: crops, augmentation, targets."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import paddle
from affine import box_to_region, joints_through, region_matrix, warp
from coco import People, Person

from paddlelite_callbacks.models import draw_heatmaps

__all__ = ["Augment", "KeypointDataset", "normalised", "read_image"]

_log = logging.getLogger(__name__)
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random augmentation as in the guide.

    Args:
        scale: Standard deviation of the region's scale factor, clipped to 1 -+ ``scale``.
        degrees: Standard deviation of the rotation in degrees, clipped to twice this; applied to 60 % of the samples.
        flip: Probability of mirroring.
        half_body: Probability of a crop to the upper or lower body, if enough joints are labelled.
        half_body_joints: Least number of labelled joints for such a crop.
    """

    scale: float = 0.25
    degrees: float = 30.0
    flip: float = 0.5
    half_body: float = 0.3
    half_body_joints: int = 8


class KeypointDataset(paddle.io.Dataset):
    """Samples ``(image [3, H, W], heatmaps [J, h, w], weight [J], index)``.

    The index is int64, the rest fp32. A damaged image gives a black sample with weights of 0, is added to ``damaged``,
    and is reported once (with workers, once per worker process).

    Args:
        source: Result of `read_people`.
        size: Size ``(H, W)`` of the network's input in pixels.
        sigma: Standard deviation of the targets in pixels of the heatmap.
        augment: Augmentation; ``None`` for evaluation.
        udp: Whether to use unbiased data preparation, see `region_matrix`.
        unbiased: Whether targets keep the fraction of a pixel, for DARK.
        keep_images: Whether to keep decoded images in memory.
    """

    def __init__(
        self,
        source: People,
        size: tuple[int, int],
        *,
        sigma: float = 2.0,
        augment: Augment | None = None,
        udp: bool = False,
        unbiased: bool = False,
        keep_images: bool = False,
    ) -> None:
        super().__init__()
        self.source, self.people, self.size = source, source.people, size
        self.sigma, self.augment, self.udp, self.unbiased = sigma, augment, udp, unbiased or udp
        self.heatmap_size = (size[0] // 4, size[1] // 4)
        self.damaged: set[Path] = set()
        self._images: dict[Path, np.ndarray | None] | None = {} if keep_images else None

    def __len__(self) -> int:
        return len(self.people)

    def first(self, images: int, *, others_unlabelled: bool = False) -> KeypointDataset:
        """Return a dataset of only the first images, or with only these labelled.

        Args:
            images: Number of images.
            others_unlabelled: Whether to keep the other images, without labels.

        Raises:
            ValueError: There is no person in these images.
        """
        ids = set(self.source.image_ids[:images])
        people = [person for person in self.people if person.image_id in ids]
        if not people:
            raise ValueError(f"Nobody is on the first {images} of {len(self.source.image_ids)} images.")
        if others_unlabelled:
            others = [person for person in self.people if person.image_id not in ids]
            people += [replace(person, visible=np.zeros_like(person.visible)) for person in others]
        part = copy.copy(self)
        part.source = replace(self.source, people=people)
        part.people, part.damaged = people, set()
        return part

    def region(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return centre and size of the region of person ``index``, without augmentation."""
        return box_to_region(self.people[index].box, self.size[1] / self.size[0])

    def to_image(self, index: int, places: np.ndarray) -> np.ndarray:
        """Transform joints ``[J, 2]`` from heatmap to image pixels, without augmentation."""
        matrix = region_matrix(*self.region(index), self.heatmap_size, udp=self.udp)
        return joints_through(matrix, places, inverse=True)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        image, joints, visible = self.sample(index)
        ratio = np.array(self.heatmap_size[::-1]) - self.udp
        places = joints * ratio / (np.array(self.size[::-1]) - self.udp)
        maps, weight = draw_heatmaps(places, visible, self.heatmap_size, sigma=self.sigma, unbiased=self.unbiased)
        return normalised(image), maps, weight, np.array(index, dtype="int64")

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return crop ``[H, W, 3]`` uint8, joints ``[J, 2]`` and visibility ``[J]``.

        The crop is augmented; joints are in its pixels.
        """
        person = self.people[index]
        image = self._image(person.path)
        if image is None:
            if person.path not in self.damaged:
                _log.warning("%s cannot be read as an image; its persons count as unlabelled.", person.path)
            self.damaged.add(person.path)
            return np.zeros((*self.size, 3), "uint8"), person.joints, np.zeros_like(person.visible)
        joints, visible = person.joints.copy(), person.visible.copy()
        centre, size, degrees = *self.region(index), 0.0
        if self.augment is not None:
            image, joints, visible, centre, size, degrees = self._augmented(image, person, centre, size)
        matrix = region_matrix(centre, size, self.size, degrees=degrees, udp=self.udp)
        return warp(image, matrix, self.size), joints_through(matrix, joints), visible

    def _image(self, path: Path) -> np.ndarray | None:
        if self._images is None:
            return read_image(path)
        if path not in self._images:
            self._images[path] = read_image(path)
        return self._images[path]

    def _augmented(self, image: np.ndarray, person: Person, centre: np.ndarray, size: np.ndarray) -> tuple:
        change, random = self.augment or Augment(), np.random
        joints, visible = person.joints.copy(), person.visible.copy()
        if (visible > 0).sum() >= change.half_body_joints and random.rand() < change.half_body:
            centre, size = self._half_body(joints, visible) or (centre, size)
        if random.rand() < change.flip:
            image, width = image[:, ::-1], image.shape[1]
            joints[:, 0], centre = width - 1 - joints[:, 0], np.array([width - 1 - centre[0], centre[1]])
            for left, right in self.source.layout.flip_pairs:
                joints[[left, right]], visible[[left, right]] = joints[[right, left]], visible[[right, left]]
        size = size * np.clip(1 + change.scale * random.randn(), 1 - change.scale, 1 + change.scale)
        turned = random.rand() < 0.6
        degrees = np.clip(random.randn() * change.degrees, -2 * change.degrees, 2 * change.degrees) if turned else 0.0
        return np.ascontiguousarray(image), joints, visible, centre, size, degrees

    def _half_body(self, joints: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the region of the upper or lower body; ``None`` below three joints."""
        upper = np.isin(np.arange(len(joints)), self.source.layout.upper_body)
        chosen = (upper if np.random.rand() < 0.5 else ~upper) & (visible > 0)
        if chosen.sum() < 3:
            return None
        low, high = joints[chosen].min(0), joints[chosen].max(0)
        middle, (width, height) = joints[chosen].mean(0), np.maximum(high - low, 1.0)
        region = box_to_region((0, 0, width, height), self.size[1] / self.size[0], padding=1.5)
        return middle, region[1]


def normalised(image: np.ndarray) -> np.ndarray:
    """Normalise ``[H, W, 3]`` uint8 RGB to ``[3, H, W]`` fp32, as for ImageNet."""
    return np.ascontiguousarray(((image / 255.0 - _MEAN) / _STD).transpose(2, 0, 1), dtype="float32")


def read_image(path: Path) -> np.ndarray | None:
    """Return an image as ``[H, W, 3]`` uint8 RGB; ``None`` if it cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None
