"""Read a folder of images, one sub-folder per class, as training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.vision import transforms
from PIL import Image, ImageOps

from paddlelite_callbacks.utils.safe_load import read_saved

__all__ = [
    "MEAN",
    "STD",
    "LoadedWeights",
    "PictureFolder",
    "Pictures",
    "class_weights",
    "load_fitting_weights_",
    "load_picture",
    "readable",
    "split",
]

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ImageNet's, for pixels of 0-255
BACKGROUND = (255, 255, 255)  # background of transparent pixels
Sample = tuple[str, int]  # path and class number


def load_picture(path: str | Path) -> Image.Image:
    """Return the image at ``path`` as upright RGB."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)  # applies the rotation that a phone stores
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            ground = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
            return Image.alpha_composite(ground, picture).convert("RGB")
        return picture.convert("RGB")


def readable(samples: Sequence[Sample]) -> tuple[list[Sample], dict[str, str]]:
    """Return the readable samples, and path and reason of the others.

    Call it before ``fit``, which ends at the first sample that raises.

    Args:
        samples: Paths and class numbers.
    """
    good: list[Sample] = []
    broken: dict[str, str] = {}
    for path, label in samples:
        try:
            load_picture(path)
            good.append((path, label))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken[path] = str(error)
    return good, broken


class Pictures(paddle.io.Dataset):
    """Data set of samples ``(image [3, size, size], class)``.

    Args:
        samples: Paths and class numbers.
        size: Height and width of an image, pixels.
        train: Whether to crop and flip at random.
    """

    def __init__(self, samples: Sequence[Sample], size: int, *, train: bool) -> None:
        super().__init__()
        self.samples = list(samples)
        view = (
            [transforms.RandomResizedCrop(size, scale=(0.6, 1.0)), transforms.RandomHorizontalFlip()]
            if train
            else [transforms.Resize((size, size))]
        )
        self.transform = transforms.Compose([*view, transforms.Transpose(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        path, label = self.samples[index]
        return self.transform(load_picture(path)).astype("float32"), np.asarray(label, "int64")


def split(samples: Sequence[Sample], classes: Sequence[str], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Return training and test samples, a fifth of each class for the test.

    Args:
        samples: Paths and class numbers.
        classes: Class names, by class number.
        seed: Seed of the random choice.

    Raises:
        ValueError: A class has fewer than two samples.
    """
    stream, train, test = np.random.RandomState(seed), [], []
    for number, name in enumerate(classes):
        own = [sample for sample in samples if sample[1] == number]
        if len(own) < 2:
            raise ValueError(
                f"Class {name!r} has {len(own)} readable pictures; at least 2 are needed, one for the test: add some, "
                "or remove its folder."
            )
        order, count = stream.permutation(len(own)), max(1, len(own) // 5)
        test += [own[i] for i in order[:count]]
        train += [own[i] for i in order[count:]]
    return train, test


def class_weights(train: Sequence[Sample], classes: Sequence[str]) -> np.ndarray:
    """Return class weights of mean 1, so that rare classes count as much as others.

    Args:
        train: Paths and class numbers of the training samples.
        classes: Class names, by class number.
    """
    counts = np.bincount([label for _, label in train], minlength=len(classes))
    return (counts.sum() / (len(classes) * counts)).astype("float32")


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """Images of a folder, split into training and test data, with class weights.

    Args:
        classes: Names of the sub-folders, sorted.
        train: Augmented training data.
        test: Test data.
        weights: Class weights for the loss, mean 1.
        broken: Paths of unreadable images, which are left out, with the reasons.
        found: Number of all images.
        size: Height and width of an image, pixels.
    """

    classes: tuple[str, ...]
    train: Pictures
    test: Pictures
    weights: np.ndarray
    broken: Mapping[str, str]
    found: int
    size: int

    @classmethod
    def read(cls, folder: str | Path, *, size: int, seed: int = 0) -> PictureFolder:
        """Read every image once, and split them.

        Args:
            folder: Folder with one sub-folder per class.
            size: Height and width of the network's input, pixels.
            seed: Seed of the split.

        Raises:
            ValueError: The folder does not exist, or has fewer than two classes, or a class has fewer than two images.
        """
        place = Path(folder)
        if not place.is_dir() or len([item for item in place.iterdir() if item.is_dir()]) < 2:
            raise ValueError(
                f"{place} must hold pictures in one sub-folder per class, and at least two of these: "
                "sort them into such folders."
            )
        try:
            listed = paddle.vision.datasets.DatasetFolder(str(place))
        except RuntimeError as error:
            raise ValueError(f"{place} holds no pictures that can be read: {error}".rstrip(". ") + ".") from error
        good, broken = readable(listed.samples)
        train, test = split(good, listed.classes, seed)
        return cls(
            classes=tuple(listed.classes),
            train=Pictures(train, size, train=True),
            test=Pictures(test, size, train=False),
            weights=class_weights(train, listed.classes),
            broken=broken,
            found=len(listed.samples),
            size=size,
        )

    @property
    def sidecar(self) -> dict[str, Any]:
        """Return labels and preprocessing for ``deploy.json``."""
        return {"labels": list(self.classes), "preprocess": {"size": self.size, "mean": MEAN, "std": STD}}

    def lines(self) -> list[str]:
        """Return unreadable images by path, and the number of training images per class."""
        lines = []
        if self.broken:
            lines.append(f"{len(self.broken)} of {self.found} pictures cannot be read and are left out:")
            lines += [f"  {path}: {reason}" for path, reason in self.broken.items()]
        counts = np.bincount([label for _, label in self.train.samples], minlength=len(self.classes))
        named = ", ".join(f"{name} {n}" for name, n in zip(self.classes, counts, strict=True))
        return [*lines, f"Training pictures: {named}"]


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Result of `load_fitting_weights_`.

    Args:
        loaded: Keys that were loaded.
        left: Keys of the network that are missing in the file or have another shape there.
    """

    loaded: tuple[str, ...]
    left: tuple[str, ...]


def load_fitting_weights_(network: Layer, path: str | Path) -> LoadedWeights:
    """Load weights of equal shape, such as ImageNet's except the last layer.

    Args:
        network: Network to load the weights into, in place.
        path: Path of a ``.pdparams`` file.

    Raises:
        ValueError: No weight fits.
    """
    state, own = read_saved(path), network.state_dict()
    fits = {key: value for key, value in state.items() if key in own and list(value.shape) == list(own[key].shape)}
    if not fits:
        raise ValueError(
            f"{path} holds no weight of this network: its keys are {list(state)[:3]} ...; give a file of the same "
            "network."
        )
    network.set_state_dict(fits)
    return LoadedWeights(loaded=tuple(fits), left=tuple(sorted(own.keys() - fits.keys())))
