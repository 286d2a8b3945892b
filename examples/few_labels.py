"""Measure the gain of distillation with few labels, on handwritten digits.

A teacher is trained on all training images of scikit-learn's digits. For each of ten seeds, ten images per class are
drawn, and a small network is trained on them with several methods, from the same initial weights and for the same
number of steps. The 500 test images are used neither for training nor for selection. The table gives the mean test
accuracy and the paired gain over training alone, with a 95 % interval (Student's t over the seeds).

    python examples/few_labels.py            about 10 minutes on one core
    python examples/few_labels.py --quick    smoke test: two seeds and short trainings
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(mkl_environment())

import numpy as np
import paddle
from paddle import nn
from paddle.io import TensorDataset
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from paddlelite_callbacks import DistillCallback, EMATeacher, FeatureTerm, MutualPeer
from paddlelite_callbacks.distill.losses.afd import AttentionFeatureLoss
from paddlelite_callbacks.nn.cost import count_parameters
from paddlelite_callbacks.utils.atomic_files import staged_file

TEST_IMAGES, PER_CLASS, BATCH = 500, 10, 20
Callbacks = list[paddle.callbacks.Callback]


class Block(nn.Layer):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(inputs, outputs, 3, stride=stride, padding=1, bias_attr=False)
        self.bn1 = nn.BatchNorm2D(outputs)
        self.conv2 = nn.Conv2D(outputs, outputs, 3, padding=1, bias_attr=False)
        self.bn2 = nn.BatchNorm2D(outputs)
        self.shortcut = nn.Conv2D(inputs, outputs, 1, stride=stride, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Return maps ``[N, C', H / stride, W / stride]`` of ``x`` ``[N, C, H, W]``."""
        y = nn.functional.relu(self.bn1(self.conv1(x)))
        return nn.functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Layer):
    """Three residual blocks for 8x8 images.

    Args:
        width: Number of channels of the first block.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage1 = Block(1, width, 1)
        self.stage2 = Block(width, 2 * width, 2)
        self.stage3 = Block(2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Return scores ``[N, 10]`` of images ``[N, 1, 8, 8]``."""
        return self.fc(self.stage3(self.stage2(self.stage1(x))).mean(axis=[2, 3]))


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images and labels, test images and labels."""
    bunch = load_digits()
    images = (bunch.images[:, None] / 8.0 - 1.0).astype("float32")
    split = train_test_split(images, bunch.target, test_size=TEST_IMAGES, stratify=bunch.target, random_state=0)
    return split[0], split[2].astype("int64"), split[1], split[3].astype("int64")


def few(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the indices of ten images per class."""
    random = np.random.RandomState(seed)
    return np.concatenate([random.choice(np.flatnonzero(labels == c), PER_CLASS, replace=False) for c in range(10)])


def train(
    network: nn.Layer, images: np.ndarray, labels: np.ndarray, callbacks: Sequence[Callbacks], steps: int, seed: int
) -> None:
    """Train for ``steps`` batches with a cosine learning rate."""
    np.random.seed(seed)
    paddle.seed(seed)
    model = paddle.Model(network)
    model.prepare(adam(network, steps), nn.CrossEntropyLoss())
    data = TensorDataset([paddle.to_tensor(images), paddle.to_tensor(labels)])
    epochs = -(-steps // (len(labels) // BATCH))
    model.fit(
        data, batch_size=BATCH, epochs=epochs, num_iters=steps, drop_last=True, verbose=0, callbacks=list(callbacks)
    )


def adam(network: nn.Layer, steps: int) -> paddle.optimizer.Optimizer:
    """Return the optimizer of all runs."""
    rate = paddle.optimizer.lr.CosineAnnealingDecay(3e-3, T_max=steps)
    return paddle.optimizer.AdamW(rate, parameters=network.parameters(), weight_decay=1e-3)


def accuracy(network: nn.Layer, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy in per cent."""
    network.eval()
    with paddle.no_grad():
        return float((network(paddle.to_tensor(images)).argmax(axis=-1).numpy() == labels).mean() * 100)


def peer_of(student: nn.Layer, steps: int, seed: int) -> MutualPeer:
    """Return a peer with the student's architecture and other initial weights.

    The student is always kept, so that no evaluation selects between the two.
    """
    paddle.seed(10_000 + seed)
    network = SmallResNet(student.stage1.bn1.weight.shape[0])
    return MutualPeer(network, adam(network, steps), keep="student")


STAGES = ("stage1", "stage2", "stage3")
FEATURES = {name: name for name in STAGES[1:]}
ATTENTION = [FeatureTerm(name, name, loss="attention") for name in FEATURES]
DML = "dml (two students, no teacher)"
WAYS: dict[str, Callable[[nn.Layer, nn.Layer, int, int], Callbacks]] = {
    "alone": lambda teacher, student, steps, seed: [],
    "kl": lambda teacher, student, steps, seed: [DistillCallback(teacher)],
    "jsdiv": lambda teacher, student, steps, seed: [DistillCallback(teacher, loss="jsdiv")],
    "dkd": lambda teacher, student, steps, seed: [DistillCallback(teacher, loss="dkd", weight=0.5)],
    "dist": lambda teacher, student, steps, seed: [DistillCallback(teacher, loss="dist", weight=2.0)],
    "mse of scores": lambda teacher, student, steps, seed: [DistillCallback(teacher, loss="mse", weight=0.1)],
    "fitnet": lambda teacher, student, steps, seed: [DistillCallback(teacher, features=FEATURES)],
    "attention": lambda teacher, student, steps, seed: [DistillCallback(teacher, features=ATTENTION, weight=100.0)],
    "l1 of scores": lambda teacher, student, steps, seed: [DistillCallback(teacher, loss="l1")],
    "smooth_l1 of scores": lambda teacher, student, steps, seed: [DistillCallback(teacher, loss="smooth_l1")],
    "bce": lambda teacher, student, steps, seed: [DistillCallback(teacher, loss="bce")],
    "cwd": lambda teacher, student, steps, seed: [
        DistillCallback(teacher, features=[FeatureTerm(name, name, loss="cwd") for name in FEATURES])
    ],
    "rkd": lambda teacher, student, steps, seed: [
        DistillCallback(teacher, features=FeatureTerm("stage3", "stage3", loss="rkd"), weight=0.1)
    ],
    "afd": lambda teacher, student, steps, seed: [
        DistillCallback(teacher, features=FeatureTerm(STAGES, STAGES, loss=AttentionFeatureLoss(32)), weight=100.0)
    ],
    "kl + fitnet": lambda teacher, student, steps, seed: [DistillCallback(teacher, loss="kl", features=FEATURES)],
    DML: lambda teacher, student, steps, seed: [DistillCallback(peer_of(student, steps, seed), loss="dml")],
    "dml at temperature 4": lambda teacher, student, steps, seed: [
        DistillCallback(peer_of(student, steps, seed), loss="kl", temperature=4.0)
    ],
    "own average (no teacher)": lambda teacher, student, steps, seed: [
        DistillCallback(EMATeacher(0.99), temperature=1.0)
    ],
}
UNLABELLED = "kl on all images, no labels"


def study(
    seeds: Sequence[int], ways: Sequence[str], *, width: int, teacher_width: int, steps: int, teacher_steps: int
) -> dict[str, object]:
    """Train all networks; return accuracies by method and seed."""
    images, labels, test_images, test_labels = digits()
    teacher = SmallResNet(teacher_width)
    with tqdm(total=1 + len(seeds) * len(ways), desc="trainings") as bar:
        train(teacher, images, labels, [], teacher_steps, seed=0)
        bar.update()
        results: dict[str, list[float]] = {way: [] for way in ways}
        for seed in seeds:
            chosen = few(labels, seed)
            paddle.seed(seed)
            start = SmallResNet(width)
            for way in ways:
                bar.set_postfix_str(f"seed {seed}, {way}")
                student = copy.deepcopy(start)
                if way == UNLABELLED:
                    callbacks, data = [DistillCallback(teacher, loss="kl", task_weight=0.0)], (images, labels)
                else:
                    callbacks = WAYS[way](teacher, student, steps, seed)
                    data = (images[chosen], labels[chosen])
                train(student, *data, callbacks, steps, seed)
                results[way].append(accuracy(student, test_images, test_labels))
                bar.update()
    return {
        "teacher": accuracy(teacher, test_images, test_labels),
        "parameters": {"teacher": count_parameters(teacher), "student": count_parameters(start)},
        "seeds": list(seeds),
        "accuracy": results,
    }


def gain(way: Sequence[float], alone: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean paired difference and its 95 % interval."""
    difference = np.subtract(way, alone)
    mean, error = float(difference.mean()), float(stats.sem(difference))
    half = float(stats.t.ppf(0.975, len(difference) - 1)) * error
    return mean, mean - half, mean + half


def table(figures: dict[str, object]) -> str:
    """Return the results as Markdown."""
    results, sizes = figures["accuracy"], figures["parameters"]
    lines = [
        f"Teacher ({sizes['teacher']:,} parameters, all training images with labels): {figures['teacher']:.1f} %. "
        f"Student: {sizes['student']:,} parameters, {PER_CLASS} labelled images a class, "
        f"{len(figures['seeds'])} seeds, {TEST_IMAGES} test images.",
        "",
        "| Way | Accuracy, % | Gain over alone, points (95 % interval) | Helps |",
        "|---|---|---|---|",
    ]
    for way, values in results.items():
        row = f"| {way} | {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |"
        if way == "alone":
            lines.append(f"{row} | |")
            continue
        mean, low, high = gain(values, results["alone"])
        verdict = "yes" if low > 0 else "it harms" if high < 0 else "not shown"
        lines.append(f"{row} {mean:+.2f} ({low:+.2f} to {high:+.2f}) | {verdict} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test: two seeds, four methods; under 30 s")
    parser.add_argument("--seeds", type=int, default=10, help="number of draws of labelled images (default 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--steps", type=int, default=300, help="batches of 20 images in each training (default 300)")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, UNLABELLED], help="methods besides 'alone' (default all)")
    parser.add_argument("--json", type=Path, help="also write all accuracies to this file")
    options = parser.parse_args(arguments)
    ways = options.ways or (["kl", "fitnet", DML] if options.quick else [*WAYS, UNLABELLED][1:])
    seeds = range(options.first_seed, options.first_seed + (2 if options.quick else options.seeds))
    if len(seeds) < 2:
        parser.error("an interval needs at least 2 seeds")
    figures = study(
        seeds,
        list(dict.fromkeys(["alone", *ways])),
        width=8,
        teacher_width=32,
        steps=40 if options.quick else options.steps,
        teacher_steps=60 if options.quick else 650,
    )
    print(table(figures))
    if options.json:
        with staged_file(options.json) as partial:
            partial.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
