"""Read the images or arrays that a file is calibrated and evaluated on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from PIL import Image

from paddlelite_callbacks.errors import near_names, require
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.nn.nested import listed
from paddlelite_callbacks.recipes.pictures import MEAN, STD, load_picture
from paddlelite_callbacks.utils.numbers import is_finite, is_whole
from paddlelite_callbacks.utils.progress import tqdm
from paddlelite_callbacks.workarounds.data_loader import ended_with_the_epoch, loader_of

__all__ = ["Preprocess", "SampleData", "read_metadata", "read_samples"]

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_LIST = "list.txt"  # of PaddleClas: a path and a class number a line
_LABELS = ("label", "labels", "y", "target")
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes the input of a network.

    The picture is resized to a square, or with ``crop`` its shorter side to ``size / crop`` and its centre cut out.

    Args:
        size: Height and width of the input, pixels; ``None`` for those that the file declares.
        crop: Share of the shorter side that is kept, in (0, 1]; ``None`` squeezes the whole picture.
        mean: Mean of each channel, for pixels of 0-255.
        std: Standard deviation of each channel, for pixels of 0-255.

    Raises:
        ValueError: A value is out of range.
    """

    size: int | None = None
    crop: float | None = None
    mean: Sequence[float] = tuple(MEAN)
    std: Sequence[float] = tuple(STD)

    def __post_init__(self) -> None:
        if self.size is not None and not is_whole(self.size, 1):
            raise ValueError(f"size must be a whole number of at least 1 pixel, got {self.size!r}: 224 is usual.")
        if self.crop is not None and not (is_finite(self.crop) and 0 < self.crop <= 1):
            raise ValueError(f"crop must be a share in (0, 1], got {self.crop!r}: 0.875 cuts 224 out of 256 pixels.")
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            values = getattr(self, name)
            if len(values) not in (1, 3) or not all(is_finite(value) and value > least for value in values):
                raise ValueError(
                    f"{name} must be one or three numbers{' above 0' if name == 'std' else ''} for pixels of 0-255, "
                    f"got {list(values)}: leave it out for ImageNet's {list(MEAN if name == 'mean' else STD)}."
                )

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, known: Mapping[str, Any]) -> Preprocess:
        """Return the options that are given, completed by those that a file tells.

        Args:
            given: ``size``, ``crop``, ``mean``, ``std``; ``None`` for none.
            known: ``preprocess`` in the metadata of a file.

        Raises:
            ValueError: An unknown option, or a value out of range.
        """
        names = tuple(cls.__dataclass_fields__)
        if unknown := sorted(set(given or {}) - set(names)):
            raise ValueError(
                f"Unknown keys {unknown} of preprocess; near names: {near_names(unknown[0], names)}. Available: "
                f"{', '.join(names)}."
            )
        told = {name: known[name] for name in names if known.get(name) is not None}
        chosen = {**told, **{name: value for name, value in (given or {}).items() if value is not None}}
        held: dict[str, Any] = {name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in chosen.items()}
        return cls(**held)

    def array(self, picture: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
        """Return one picture as an array ``[channels, height, width]``.

        Args:
            picture: Picture in RGB.
            size: Height and width.
            channels: 3, or 1 for grey.
        """
        height, width = size
        if self.crop is not None:
            scale = max(height, width) / self.crop / min(picture.size)
            wide, high = (
                max(round(side * scale), least) for side, least in zip(picture.size, (width, height), strict=True)
            )
            picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
            left, top = (wide - width) // 2, (high - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        else:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if channels == 1:
            picture = picture.convert("L")
        pixels = np.asarray(picture, "float32").reshape(height, width, channels)
        mean, std = (np.asarray(values, "float32")[:channels] for values in (self.mean, self.std))
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


@dataclass(frozen=True, kw_only=True)
class SampleData:
    """Inputs of a file, with their labels if known.

    Args:
        inputs: Arrays by input name, ``[N, ...]`` each; large ones are on disk.
        labels: Class number of each, ``[N]``, or labels of another metric; ``None`` where unknown.
        broken: Reasons by path of pictures that could not be read.
        preprocess: How pictures became inputs; ``None`` for arrays.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    broken: Mapping[str, str]
    preprocess: Preprocess | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def rows(self, places: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return some rows of every input.

        Args:
            places: Their indices.
        """
        return {name: np.ascontiguousarray(array[places]) for name, array in self.inputs.items()}

    def batches(self, places: Sequence[int] | np.ndarray, size: int = _BATCH) -> Iterator[dict[str, np.ndarray]]:
        """Yield rows in batches.

        Args:
            places: Their indices.
            size: Rows of a batch.
        """
        for start in range(0, len(places), size):
            yield self.rows(places[start : start + size])

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows to calibrate on, evenly spread, and those to evaluate on.

        The two are apart where the rest is at least as large; else all rows are evaluated.

        Args:
            count: Number of rows to calibrate on.
        """
        total = len(self)
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
        rest = np.setdiff1d(np.arange(total), chosen)
        return chosen, rest if len(rest) >= len(chosen) else np.arange(total)


def read_metadata(artefact: Artefact) -> dict[str, Any]:
    """Return ``preprocess`` and ``labels`` of a file's metadata or ``deploy.json``.

    Args:
        artefact: Result of `find_model`.
    """
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((artefact.path.parent / "deploy.json").read_text(encoding="utf-8"))
        if any(artefact.path.name in entry["sha256"] for entry in content["files"]):
            found = {key: content[key] for key in ("preprocess", "labels") if content.get(key) is not None}
    if artefact.kind == "onnx":
        model = require("onnx", needed_for="ONNX files").load(str(artefact.path), load_external_data=False)
        for item in model.metadata_props:
            if item.key in ("preprocess", "labels"):
                with suppress(ValueError):
                    found[item.key] = json.loads(item.value)
    kinds = {"preprocess": dict, "labels": list}
    return {key: value for key, value in found.items() if isinstance(value, kinds[key])}


def read_samples(
    data: Any,
    declared: Mapping[str, tuple[Sequence[int], str]],
    *,
    preprocess: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    most: int | None = None,
    work: Path,
    verbose: int = 1,
) -> SampleData:
    """Read pictures, arrays or batches as inputs of a file.

    Args:
        data: A folder of pictures (labels are its sub-folders, or ``list.txt`` with a path and a class number a line),
            a ``.npy`` or ``.npz`` file (arrays by input name, labels as ``label``), an array or several (by input
            name, or in the file's order, labels last), or a data set or loader of such.
        declared: Shape (-1 for dynamic sizes) and dtype of each input by name.
        preprocess: See `Preprocess`; only for pictures.
        metadata: Result of `read_metadata`.
        most: Largest number of samples, evenly spread over a folder; ``None`` for all.
        work: Folder for what is too large for memory.
        verbose: 1 shows a progress bar, 0 nothing.

    Raises:
        TypeError: Data of another kind.
        ValueError: No sample, or arrays that do not fit the inputs.
    """
    told = metadata or {}
    if isinstance(data, (str, Path)):
        place = Path(data).expanduser()
        if place.is_dir():
            return _pictures(place, declared, preprocess, told, most, work, verbose)
        if place.suffix not in (".npy", ".npz") or not place.is_file():
            raise ValueError(f"No data at {place}: give a folder of pictures, or a .npy or .npz file of inputs.")
        return _arrays(_stored(place), declared, most, str(place))
    if preprocess:
        raise ValueError(f"preprocess is for pictures, got {sorted(preprocess)} for arrays: leave it out.")
    if isinstance(data, (np.ndarray, Tensor)) or (isinstance(data, Mapping) and data):
        return _arrays(data, declared, most, "data")
    if isinstance(data, (list, tuple)) and data and all(isinstance(item, (np.ndarray, Tensor)) for item in data):
        return _arrays(data, declared, most, "data")
    if isinstance(data, (paddle.io.Dataset, paddle.io.IterableDataset, paddle.io.DataLoader)):
        return _arrays(_collected(data, len(declared), most), declared, most, "data")
    raise TypeError(
        f"data must be a folder, a .npy or .npz file, arrays, a data set or a loader, got {type(data).__name__}: "
        "quantize('model.onnx', 'pictures')."
    )


def _stored(path: Path) -> Any:
    try:
        content = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Write it with numpy.save or numpy.savez.") from error
    return content if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}


def _collected(data: Any, inputs: int, most: int | None) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = []
    with ended_with_the_epoch(loader_of(data, batch_size=_BATCH)) as batches:
        for batch in batches:
            items = [item.numpy() if isinstance(item, Tensor) else np.asarray(item) for item in listed(batch)]
            parts.append(items[: inputs + 1])
            if most is not None and sum(len(part[0]) for part in parts) >= most:
                break
    if not parts:
        raise ValueError("data gives no batch: give some hundred images.")
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _arrays(given: Any, declared: Mapping[str, tuple[Sequence[int], str]], most: int | None, what: str) -> SampleData:
    names, labels = list(declared), None
    if isinstance(given, Mapping):
        arrays = {str(name): _plain(value) for name, value in given.items()}
        key = next((name for name in _LABELS if name in arrays and name not in declared), None)
        labels = None if key is None else arrays.pop(key)
        if len(names) == len(arrays) == 1:
            arrays = {names[0]: next(iter(arrays.values()))}
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"{what} holds no {missing}, only {sorted(arrays)}: name each array like its input.")
    else:
        items = [_plain(item) for item in (given if isinstance(given, (list, tuple)) else [given])]
        if len(items) not in (len(names), len(names) + 1):
            raise ValueError(
                f"{what} holds {len(items)} arrays, the file takes {len(names)} inputs ({', '.join(names)}): give one "
                "each, and the labels last."
            )
        labels = items.pop() if len(items) > len(names) else None
        arrays = dict(zip(names, items, strict=True))
    counts = {len(item) if item.ndim else 0 for item in (*arrays.values(), *([] if labels is None else [labels]))}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"{what} must hold as many rows for every input and label, got {sorted(counts)}: cut them.")
    checked = {name: _fitting(name, arrays[name], *declared[name], what)[:most] for name in names}
    return SampleData(inputs=checked, labels=None if labels is None else labels[:most], broken={})


def _plain(value: Any) -> np.ndarray:
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)


def _fitting(name: str, array: np.ndarray, shape: Sequence[int], kind: str, what: str) -> np.ndarray:
    fits = array.ndim == len(shape) and all(
        size in (-1, got) for size, got in zip(shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"{what} holds {list(array.shape)} for the input {name}, which takes {list(shape)} (-1: any): give "
            "[rows, ...] of its sizes."
        )
    return array if array.dtype == np.dtype(kind) else array.astype(kind)


def _pictures(
    folder: Path,
    declared: Mapping[str, tuple[Sequence[int], str]],
    preprocess: Mapping[str, Any] | None,
    told: Mapping[str, Any],
    most: int | None,
    work: Path,
    verbose: int,
) -> SampleData:
    if len(declared) != 1:
        raise ValueError(
            f"The file takes {len(declared)} inputs ({', '.join(declared)}), and pictures are one: give a .npz file "
            "with an array for each."
        )
    ((name, (shape, kind)),) = declared.items()
    options = Preprocess.of(preprocess, told.get("preprocess", {}))
    size, channels, last = _layout(name, shape, options)
    samples = _listed_pictures(folder, told.get("labels"))
    if not samples:
        raise ValueError(f"{folder} holds no pictures ({', '.join(_PICTURES)}): give a folder with some hundred.")
    if most is not None and most < len(samples):
        samples = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, most).round().astype(int))]
    kept: list[int] = []
    labels: list[int | None] = []
    broken: dict[str, str] = {}
    whole = (len(samples), *((*size, channels) if last else (channels, *size)))
    array = np.lib.format.open_memmap(work / "pictures.npy", mode="w+", dtype=kind, shape=whole)
    for path, label in tqdm(samples, desc="pictures", unit="", leave=False, disable=not verbose):
        try:
            value = options.array(load_picture(path), size, channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken[str(path)] = str(error)
            continue
        array[len(kept)] = value.transpose(1, 2, 0) if last else value
        kept.append(len(kept))
        labels.append(label)
    if not kept:
        raise ValueError(f"No picture in {folder} can be read: {next(iter(broken.values()))}.")
    known = [label for label in labels if label is not None]
    return SampleData(
        inputs={name: array[: len(kept)]},
        labels=np.asarray(known, "int64") if len(known) == len(kept) else None,
        broken=broken,
        preprocess=options,
    )


def _layout(name: str, shape: Sequence[int], options: Preprocess) -> tuple[tuple[int, int], int, bool]:
    """Return height and width, channels, and whether these are last."""
    if len(shape) != 4 or not {int(shape[1]), int(shape[3])} & {1, 3}:
        raise ValueError(
            f"The input {name} of {list(shape)} takes no pictures ([N, 3, H, W] or [N, H, W, 3]): give a .npy file."
        )
    last = shape[1] not in (1, 3)
    sizes = [int(size) for size in (shape[1:3] if last else shape[2:4])]
    if options.size is None and min(sizes) < 1:
        raise ValueError(f"The input {name} of {list(shape)} has dynamic sizes: give size (--size), for instance 224.")
    wanted = [size if size > 0 else int(options.size or 0) for size in sizes]
    if options.size is not None and any(size != options.size for size in wanted):
        raise ValueError(f"The input {name} takes {sizes[0]} x {sizes[1]} pixels, not {options.size}: leave size out.")
    return (wanted[0], wanted[1]), int(shape[3] if last else shape[1]), last


def _listed_pictures(folder: Path, names: Sequence[str] | None) -> list[tuple[Path, int | None]]:
    if (file := folder / _LIST).is_file():
        return _by_list(folder, file)
    classes = sorted(item.name for item in folder.iterdir() if item.is_dir())
    within = {name: _in(folder / name) for name in classes}
    classes = [name for name in classes if within[name]]
    loose = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _PICTURES]
    if not classes or loose:
        return [(path, None) for path in (*loose, *(path for name in classes for path in within[name]))]
    if names is not None and set(classes) <= set(names):
        numbers = {name: list(names).index(name) for name in classes}
    elif all(name.isdecimal() for name in classes):
        numbers = {name: int(name) for name in classes}
    else:
        numbers = {name: place for place, name in enumerate(classes)}
    return [(path, numbers[name]) for name in classes for path in within[name]]


def _in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)


def _by_list(folder: Path, file: Path) -> list[tuple[Path, int | None]]:
    found: list[tuple[Path, int | None]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal():
            raise ValueError(
                f"{file}, line {number}, must be a path and a class number, got {line[:60]!r}: write images/a.jpg 3."
            )
        found.append((folder / path, int(label)))
    return found
