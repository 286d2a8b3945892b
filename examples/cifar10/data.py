"""Load CIFAR-10 as arrays, and augment whole batches with NumPy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from PIL import Image

from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["CLASSES", "MEAN", "STD", "Batches", "Pictures", "default_cache", "drawn", "held_out", "load", "normalized"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (125.31, 122.95, 113.87), (62.99, 62.09, 66.70)  # of the training images, for pixels in 0-255


@dataclass(frozen=True)
class Pictures:
    """Images ``[N, 3, 32, 32]`` (uint8) and labels ``[N]`` (int64)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, chosen: np.ndarray | slice) -> Pictures:
        """Return the subset ``chosen``."""
        return Pictures(self.images[chosen], self.labels[chosen])


def load(*, archive: Path | None, folder: Path | None, cache: Path) -> tuple[Pictures, Pictures]:
    """Read training and test images, from ``cache`` if they were read before.

    Args:
        archive: Path of ``cifar-10-python.tar.gz``, as for `paddle.vision.datasets.Cifar10`.
        folder: Folder with ``train|test/CLASS/*.jpg`` or ``*.png``, instead of ``archive``.
        cache: Folder for the decoded arrays, outside the repository.

    Raises:
        SystemExit: Neither or both were given, the file or folder does not exist, or its content is not CIFAR-10.
    """
    source = archive or folder
    if source is None or (archive and folder):
        raise SystemExit(
            "Give either --data cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) or --images DIR "
            "with train|test/CLASS/*.jpg; --quick needs neither."
        )
    if not source.exists():
        raise SystemExit(f"There is no {source}.")
    kept = cache / f"{_fingerprint(source)}.npz"
    if not kept.is_file():
        print(f"Reading {source}; the next time this comes from {kept}", flush=True)
        train, test = (_of_archive(source, part) if archive else _of_folder(source, part) for part in ("train", "test"))
        cache.mkdir(parents=True, exist_ok=True)
        with staged_file(kept) as partial, partial.open("wb") as file:
            np.savez(file, train=train.images, train_labels=train.labels, test=test.images, test_labels=test.labels)
    with np.load(kept) as held:
        return Pictures(held["train"], held["train_labels"]), Pictures(held["test"], held["test_labels"])


def _fingerprint(source: Path) -> str:
    """Return a hash of the path and the modification times of its files."""
    seen = [source, *sorted(source.glob("*/*"))] if source.is_dir() else [source]
    text = "\n".join(f"{path.resolve()} {path.stat().st_mtime_ns}" for path in seen)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_archive(path: Path, part: str) -> Pictures:
    held = paddle.vision.datasets.Cifar10(data_file=str(path), mode=part, backend="cv2")
    images, labels = zip(*(held[k] for k in range(len(held))), strict=True)
    return Pictures(np.stack(images).astype("uint8").transpose(0, 3, 1, 2).copy(), np.array(labels, "int64").ravel())


def _of_folder(folder: Path, part: str) -> Pictures:
    paths = sorted(path for path in folder.glob(f"{part}/*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    classes = sorted({path.parent.name for path in paths})
    if len(classes) != len(CLASSES):
        raise SystemExit(f"{folder}/{part} must hold {len(CLASSES)} folders with .jpg or .png, it has {classes}.")
    images = np.empty([len(paths), 32, 32, 3], "uint8")
    for k, path in enumerate(paths):
        with Image.open(path) as picture:
            if picture.size != (32, 32):
                raise SystemExit(f"{path} is {picture.size[0]}x{picture.size[1]} pixels, CIFAR's have 32x32.")
            images[k] = np.asarray(picture.convert("RGB"))
    labels = np.array([classes.index(path.parent.name) for path in paths], "int64")
    return Pictures(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels)


def drawn(count: int, seed: int) -> Pictures:
    """Draw noisy images for smoke tests, one colour and stripe width per class."""
    stream = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    colours = np.random.default_rng(0).uniform(40, 215, [len(CLASSES), 3])[labels]
    stripes = np.sign(np.sin(np.arange(32)[None] * (0.3 + 0.2 * labels[:, None])))[:, None, None, :]
    images = colours[:, :, None, None] + 30 * stripes + stream.normal(0, 25, [count, 3, 32, 32])
    return Pictures(images.clip(0, 255).astype("uint8"), labels.astype("int64"))


def normalized(images: np.ndarray) -> np.ndarray:
    """Normalise pixels in 0-255 to the networks' input, float32."""
    scale = np.array([1 / s for s in STD], "float32").reshape(3, 1, 1)
    return (images - np.array(MEAN, "float32").reshape(3, 1, 1)) * scale


def held_out(train: Pictures, count: int = 5000) -> tuple[Pictures, Pictures]:
    """Split training images into training and ``count`` validation images.

    The validation images are balanced over the classes.
    """
    order = np.random.default_rng(10).permutation(len(train))
    each = count // len(CLASSES)
    apart = np.concatenate([order[train.labels[order] == number][:each] for number in range(len(CLASSES))])
    rest = np.setdiff1d(np.arange(len(train)), apart)
    return train.part(rest), train.part(np.sort(apart))


class Batches:
    """Loader of batches ``(images, labels)`` of one epoch for ``paddle.Model.fit``.

    Order and augmentation depend only on the seed and the epoch, so a resumed training gets the same batches. Each
    image is mirrored in every other epoch, half of them in even ones, which converges faster than random mirroring
    (Jordan 2024, arXiv:2404.00498).

    Args:
        pictures: Images and labels.
        size: Images per batch; an incomplete last batch is dropped.
        seed: Seed of order and augmentation.
        crop: Largest shift in each direction in pixels, with reflected border; 0 for none.
        step: Shifts are multiples of so many pixels from the largest; with 2 of 2 an image has 18 views.
        cutout: Side in pixels of a random square set to the mean; 0 for none.

    Attributes:
        epoch: Number of the next epoch, from 0.
    """

    def __init__(
        self, pictures: Pictures, size: int, seed: int, *, crop: int = 2, step: int = 1, cutout: int = 0
    ) -> None:
        if len(pictures) < size:
            raise ValueError(f"{len(pictures)} pictures make no batch of {size}; take a smaller batch.")
        self.pictures, self.size, self.seed = pictures, size, seed
        self.crop, self.step, self.cutout = crop, step, cutout
        self.epoch = 0
        images = normalized(pictures.images)
        self._padded = np.pad(images, ((0, 0), (0, 0), (crop, crop), (crop, crop)), mode="reflect")

    def __len__(self) -> int:
        return len(self.pictures) // self.size

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        stream = np.random.default_rng([self.seed, self.epoch])
        even = np.random.default_rng(self.seed).random(len(self.pictures)) < 0.5
        mirror = even ^ bool(self.epoch % 2)
        order = stream.permutation(len(self.pictures))
        for begin in range(0, len(self) * self.size, self.size):
            chosen = order[begin : begin + self.size]
            yield self._augmented(chosen, mirror[chosen], stream), self.pictures.labels[chosen]

    def _augmented(self, chosen: np.ndarray, mirror: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        """Crop, mirror and cut out a whole batch with one advanced index."""
        side, count = self.pictures.images.shape[-1], len(chosen)
        top, left = self.step * stream.integers(0, 2 * self.crop // self.step + 1, [2, count, 1])
        rows, columns = top + np.arange(side), left + np.arange(side)
        columns[mirror] = columns[mirror, ::-1]
        channels, rows, columns = np.arange(3)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
        images = self._padded[chosen[:, None, None, None], channels, rows, columns]
        if self.cutout:
            y, x = stream.integers(0, side - self.cutout + 1, [2, count, 1])
            down, across = np.arange(side) - y, np.arange(side) - x
            inside = [(place >= 0) & (place < self.cutout) for place in (down, across)]
            images *= 1 - (inside[0][:, None, :, None] & inside[1][:, None, None, :])
        return images


def default_cache() -> Path:
    """Return the folder of the decoded images."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "paddlelite_callbacks" / "cifar10"
