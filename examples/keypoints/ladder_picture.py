"""Draw the predictions of exported files, one row of images per file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from dataset import KeypointDataset, read_image
from drawing import draw_skeletons
from evaluation import to_results
from layouts import Layout
from PIL import Image, ImageDraw

from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["draw_files"]

_TITLE, _HEIGHT = 16, 240  # of title and images in pixels


def draw_files(files: Mapping[str, Path], dataset: KeypointDataset, out: Path, *, pictures: int = 5) -> None:
    """Draw ground truth and the predictions of each ONNX file.

    Nothing is drawn if no engine for ONNX files is installed.

    Args:
        files: Paths of ONNX files by title.
        dataset: Data whose first persons are drawn.
        out: Path of the JPEG or PNG.
        pictures: Number of images per row.
    """
    engines = [ENGINES[name] for name in ("onnxruntime", "openvino") if not missing_reason(ENGINES[name])]
    if not engines:
        return
    indices = np.arange(min(pictures, len(dataset)))
    people, layout = [dataset.people[i] for i in indices], dataset.source.layout
    rows = {"truth": [np.concatenate([p.joints, p.visible[:, None]], axis=1) for p in people]}
    images = np.stack([dataset[int(i)][0] for i in indices])
    for title, path in files.items():
        predict = engines[0].load(Artefact(kind="onnx", path=path, files=(path,)), threads=1)
        results = to_results(predict([images])[0], indices, dataset, dark=True)
        rows[title] = [np.reshape(result["keypoints"], (-1, 3)) for result in results]
    pictures_of = [read_image(person.path) for person in people]
    sheet = np.concatenate([_row(title, found, pictures_of, layout) for title, found in rows.items()])
    with staged_file(out) as partial:
        Image.fromarray(sheet).save(partial, quality=85)


def _row(title: str, found: list[np.ndarray], images: list[np.ndarray | None], layout: Layout) -> np.ndarray:
    drawn = []
    for joints, image in zip(found, images, strict=True):
        picture = Image.fromarray(np.zeros((8, 8, 3), "uint8") if image is None else image)
        scale = _HEIGHT / picture.height
        larger = np.asarray(picture.resize((max(1, round(scale * picture.width)), _HEIGHT), Image.Resampling.BICUBIC))
        drawn.append(draw_skeletons(larger, [joints * [scale, scale, 1]], layout=layout))
    body = np.concatenate(drawn, axis=1)
    head = Image.new("RGB", (body.shape[1], _TITLE), "white")
    ImageDraw.Draw(head).text((4, 2), title, fill="black")
    return np.concatenate([np.asarray(head), body])
