"""Measure the gain of heatmap distillation with few labelled figures.

A teacher is trained on all generated training figures. For each seed some of them are drawn, and a small network is
trained on these alone, with `heatmap_mse` and with `mse`, from the same initial weights and for the same number of
steps: once with all joints labelled, once with half of them, drawn at random. The test figures are used neither for
training nor for selection. The table gives the mean PCK@0.2 (share of labelled joints within 0.2 torsos of the ground
truth) and the paired gain over training alone, with a 95 % interval (Student's t over the seeds).

    python examples/keypoints/heatmap_study.py --out out/heatmaps
    python examples/keypoints/heatmap_study.py --quick    smoke test: two seeds and short trainings
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(mkl_environment())

import numpy as np
import paddle
from coco import Person, read_people
from dataset import Augment, KeypointDataset
from evaluation import to_results
from generator import Scene, generate
from ladder_table import interval
from layouts import COCO_BODY
from paddle import nn
from pck import shares_within
from settings import Settings, hapi_model
from tqdm import tqdm

from paddlelite_callbacks import DistillCallback, OutputTerm
from paddlelite_callbacks.nn.cost import count_parameters
from paddlelite_callbacks.utils.atomic_files import staged_file

JOINTS = len(COCO_BODY.joints)
TORSO = [COCO_BODY.joints.index(name) for name in ("left_shoulder", "right_hip")]
# small figures on a calm background: a training takes seconds
SCENE = Scene(size=(96, 96), people=1, clutter=2, occluders=0, noise=4.0)
SETTINGS = Settings(
    size=(48, 48),
    sigma=1.5,
    batch_size=20,
    learning_rate=1.2e-2,
    augment=Augment(scale=0.2, degrees=15.0, half_body=0.0),
)
WAYS = {
    "alone": (),
    "heatmap_mse": (OutputTerm("heatmap_mse", label=1),),  # the labels are heatmaps, weights and indices
    "mse of heatmaps": (OutputTerm("mse"),),
}
LABELS = {"": 1.0, ", half of the joints labelled": 0.5}
Results = dict[str, list[float]]


class SmallPoseNet(nn.Sequential):
    """Network of dilated 3x3 convolutions with heatmaps at a quarter of the input's size.

    Args:
        width: Number of channels of the first convolution.
    """

    def __init__(self, width: int) -> None:
        def conv(ins: int, outs: int, stride: int = 1, dilation: int = 1) -> list[nn.Layer]:
            layer = nn.Conv2D(ins, outs, 3, stride, dilation, dilation, bias_attr=False)
            return [layer, nn.BatchNorm2D(outs), nn.ReLU()]

        wide = 2 * width
        body = [layer for dilation in (1, 2, 4, 1) for layer in conv(wide, wide, dilation=dilation)]
        super().__init__(*conv(3, width, 2), *conv(width, wide, 2), *body, nn.Conv2D(wide, JOINTS, 1))


def fit(
    network: nn.Layer, data: KeypointDataset, steps: int, seed: int, terms: Sequence[OutputTerm], teacher: nn.Layer
) -> None:
    """Train for ``steps`` batches with Adam on a cosine schedule."""
    paddle.seed(seed)
    np.random.seed(seed)  # order and augmentation
    rate = paddle.optimizer.lr.CosineAnnealingDecay(SETTINGS.learning_rate, T_max=steps)
    adam = paddle.optimizer.Adam(rate, parameters=network.parameters())
    model = hapi_model(network, SETTINGS, optim=adam, joints=JOINTS)
    callbacks = [DistillCallback(teacher, loss=list(terms))] if terms else []
    batch = SETTINGS.batch_size
    epochs = -(-steps // (len(data) // batch))
    model.fit(data, batch_size=batch, epochs=epochs, num_iters=steps, drop_last=True, verbose=0, callbacks=callbacks)


def near_joints(network: nn.Layer, data: KeypointDataset) -> float:
    """Return PCK@0.2 in [0, 1] over all labelled joints."""
    network.eval()
    with paddle.no_grad():
        heatmaps = network(paddle.to_tensor(np.stack([data[index][0] for index in range(len(data))]))).numpy()
    results = to_results(heatmaps, np.arange(len(data)), data)
    places = np.stack([np.reshape(item["keypoints"], (JOINTS, 3))[:, :2] for item in results])
    truth, labelled = (np.stack([getattr(one, name) for one in data.people]) for name in ("joints", "visible"))
    torso = np.linalg.norm(truth[:, TORSO[0]] - truth[:, TORSO[1]], axis=1)
    counted = (labelled > 0) & (labelled[:, TORSO] > 0).all(axis=1, keepdims=True)
    return shares_within(np.linalg.norm(places - truth, axis=2), 0.2 * torso, counted, {})["Mean"]


def few(people: Sequence[Person], count: int, labelled: float, seed: int) -> list[Person]:
    """Return ``count`` persons, drawn at random.

    Each of their joints keeps its label with probability ``labelled``.
    """
    random = np.random.RandomState(seed)
    chosen = [people[index] for index in random.choice(len(people), count, replace=False)]
    return [replace(one, visible=one.visible * (random.rand(len(one.visible)) < labelled)) for one in chosen]


def part_of(data: KeypointDataset, people: list[Person]) -> KeypointDataset:
    """Return the data set of ``people`` only."""
    part = copy.copy(data)
    part.people, part.source = people, replace(data.source, people=people)
    return part


def study(
    folder: Path, seeds: Sequence[int], *, images: tuple[int, int], figures: int, steps: int, teacher_steps: int
) -> dict[str, object]:
    """Train all networks; return PCK by row and seed."""
    counts = dict(zip(("train", "test"), images, strict=True))
    parts = [generate(folder / f"{name}-{n}", n, seed=k, scene=SCENE) for k, (name, n) in enumerate(counts.items())]
    train, test = (
        KeypointDataset(read_people(*part), SETTINGS.size, sigma=SETTINGS.sigma, augment=augment, keep_images=True)
        for part, augment in zip(parts, (SETTINGS.augment, None), strict=True)
    )
    results: Results = {f"{way}{words}": [] for words in LABELS for way in WAYS}
    with tqdm(total=1 + len(seeds) * len(results), desc="trainings") as bar:
        paddle.seed(1000)
        teacher = SmallPoseNet(16)
        fit(teacher, train, teacher_steps, 1000, (), teacher)
        bar.update()
        for seed in seeds:
            paddle.seed(seed)
            start = SmallPoseNet(8)
            for words, labelled in LABELS.items():
                data = part_of(train, few(train.people, figures, labelled, seed))
                for way, terms in WAYS.items():
                    bar.set_postfix_str(f"seed {seed}, {way}{words}")
                    student = copy.deepcopy(start)
                    fit(student, data, steps, seed, terms, teacher)
                    results[f"{way}{words}"].append(near_joints(student, test))
                    bar.update()
    return {
        "teacher": near_joints(teacher, test),
        "parameters": {"teacher": count_parameters(teacher), "student": count_parameters(start)},
        "images": list(images),
        "figures": figures,
        "steps": steps,
        "PCK": results,
    }


def table(found: dict) -> str:
    """Return the results as Markdown."""
    sizes, results = found["parameters"], found["PCK"]
    lines = [
        f"Teacher ({sizes['teacher']:,} parameters, {found['images'][0]} generated images with labels): PCK "
        f"{100 * found['teacher']:.1f} %. Student: {sizes['student']:,} parameters, {found['figures']} labelled "
        f"figures, {found['steps']} steps, {len(results['alone'])} seeds, {found['images'][1]} test images.",
        "",
        "| Way | PCK@0.2, % (95 % interval) | Gain over alone, points | Gain over mse, points |",
        "|---|---|---|---|",
    ]
    for words in LABELS:
        for way in WAYS:
            values = results[way + words]
            gains = [
                interval(np.subtract(values, results[other + words]), sign=True) if shown else ""
                for other, shown in (("alone", way != "alone"), ("mse of heatmaps", way == "heatmap_mse"))
            ]
            lines.append(f"| {way}{words} | {interval(values)} | {gains[0]} | {gains[1]} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, print its table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test: two seeds and few steps")
    parser.add_argument("--seeds", type=int, default=5, help="number of draws of labelled figures (default 5)")
    parser.add_argument("--figures", type=int, default=60, help="labelled figures of the student (default 60)")
    parser.add_argument("--steps", type=int, default=250, help="batches of 20 in each training (default 250)")
    parser.add_argument("--out", type=Path, default=Path("out/heatmaps"), help="folder of the images and results")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("an interval needs at least 2 seeds")
    if options.quick:
        size = {"images": (60, 20), "figures": 20, "steps": 4, "teacher_steps": 6}
    else:
        size = {"images": (600, 200), "figures": options.figures, "steps": options.steps, "teacher_steps": 700}
    found = study(options.out, range(2 if options.quick else options.seeds), **size)
    print(table(found))
    for name, text in (("heatmaps.md", table(found) + "\n"), ("heatmaps.json", json.dumps(found, indent=1))):
        with staged_file(options.out / name) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
