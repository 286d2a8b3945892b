"""Detect and draw the joints of people in an image or a folder of images.

Without ``--boxes``, one person is assumed to fill each image.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import paddle
from coco import People, Person, is_box, load_json
from dataset import KeypointDataset, read_image
from drawing import draw_skeletons
from evaluation import suppressed, to_results, write_results
from layouts import COCO_BODY, LAYOUTS, Layout
from PIL import Image
from settings import NETWORKS, SETTINGS, flip_tested, load_weights, network

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}


def main() -> None:
    """Predict and draw as given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="an image or a folder of images")
    parser.add_argument("--network", choices=NETWORKS, default="lite_hrnet_30")
    parser.add_argument("--weights", type=Path, required=True, help=".pdparams, ours or the guide's")
    parser.add_argument("--layout", choices=LAYOUTS, default="coco", help="joint layout of the network (default: coco)")
    parser.add_argument("--settings", choices=SETTINGS, default="coco-lite", help="settings with the size of the input")
    parser.add_argument("--boxes", type=Path, help='{"picture.png": [[x, y, width, height], ...], ...}')
    parser.add_argument("--least", type=float, default=0.2, help="lowest score of a drawn joint")
    parser.add_argument("--dark", action="store_true", help="DARK decoding (arXiv:1910.06278)")
    parser.add_argument("--udp", action="store_true", help="for networks trained with --udp")
    parser.add_argument("--out", type=Path, default=Path("keypoints-out/drawn"))
    flags = parser.parse_args()
    layout = LAYOUTS[flags.layout]
    people = find_people(flags.source, read_boxes(flags.boxes) if flags.boxes else None, layout)
    layer = network(flags.network, layout)
    load_weights(layer, flags.weights)
    dataset = KeypointDataset(people, SETTINGS[flags.settings].size, udp=flags.udp)
    results = predict(layer, dataset, dark=flags.dark)
    write_results(results, flags.out / "results.json")
    draw(people, results, flags.out, flags.least)


def read_boxes(path: Path) -> dict[str, list[list[float]]]:
    """Read the boxes of each image.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It does not hold boxes by file name.
    """
    boxes = load_json(path)
    good = isinstance(boxes, dict) and all(isinstance(b, list) and all(map(is_box, b)) for b in boxes.values())
    if not good:
        raise ValueError(f'{path} must be {{"picture.png": [[x, y, width, height], ...], ...}} with sizes above 0.')
    return boxes


def find_people(source: Path, boxes: dict[str, list[list[float]]] | None, layout: Layout = COCO_BODY) -> People:
    """Return one sample per box, or one per image without boxes.

    Raises:
        FileNotFoundError: There is no image with a person.
    """
    paths = sorted(p for p in source.iterdir() if p.suffix.lower() in _SUFFIXES) if source.is_dir() else [source]
    count = len(layout.joints)
    people, dropped = [], Counter[str]()
    for number, path in enumerate(paths, 1):
        image = read_image(path) if path.is_file() else None
        if image is None:
            dropped["no picture"] += 1
            continue
        whole = [[0, 0, image.shape[1], image.shape[0]]]
        for box in whole if boxes is None else boxes.get(path.name, []):
            nobody = {"joints": np.zeros((count, 2)), "visible": np.zeros(count)}
            people.append(Person(image_id=number, path=path, box=tuple(box), **nobody))  # type: ignore[arg-type]
    if not people:
        raise FileNotFoundError(f"No picture with a person in {source} ({dict(dropped)}).")
    ids = list(range(1, len(paths) + 1))
    return People(people=people, dropped=dropped, annotations=Path(), image_ids=ids, layout=layout)


def predict(layer: paddle.nn.Layer, dataset: KeypointDataset, *, dark: bool = False) -> list[dict]:
    """Return COCO results of all samples, after OKS-NMS if the layout has constants for it."""
    tested = flip_tested(layer, udp=dataset.udp, layout=dataset.source.layout)
    tested.eval()
    results = []
    with paddle.no_grad():
        for index in range(len(dataset)):
            heatmaps = tested(paddle.to_tensor(dataset[index][0][None])).numpy()
            results += to_results(heatmaps, np.array([index]), dataset, dark=dark)
    sigmas = dataset.source.layout.sigmas
    return results if sigmas is None else suppressed(results, sigmas=sigmas)


def draw(people: People, results: list[dict], out: Path, least: float) -> None:
    """Write one image with skeletons per source image to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted({person.path for person in people.people}):
        ids = {person.image_id for person in people.people if person.path == path}
        found = [np.reshape(item["keypoints"], (-1, 3)) for item in results if item["image_id"] in ids]
        image = read_image(path)
        if image is not None:
            drawn = draw_skeletons(image, found, least=least, layout=people.layout)
            Image.fromarray(drawn).save(out / f"{path.stem}.png")
            print(f"{out / path.stem}.png: {len(found)} persons")


if __name__ == "__main__":
    main()
