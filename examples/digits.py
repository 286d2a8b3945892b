"""Compress a classifier of handwritten digits, in minutes on a CPU.

Trains a large teacher, then a light network alone, with distillation, with PACT quantisation-aware training, and with
both. Exports, validates and times each, and writes the ladder as Markdown, JSON lines and a figure.

    python examples/digits.py            # about seven minutes on two cores
    python examples/digits.py --quick    # smoke test, one minute, low accuracy
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small batches train faster on one thread than on two
os.environ.update(mkl_environment())
warnings.filterwarnings("ignore", message=".*(ccache|track global mean|To copy construct).*")

print("Loading Paddle ...", flush=True)
import numpy as np  # noqa: E402
import paddle  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from paddlelite_callbacks import (  # noqa: E402
    AdvancedPACTOptions,
    BackboneSwap,
    BenchOptions,
    Budget,
    DistillCallback,
    ExportBenchCallback,
    PACTQuantCallback,
)
from paddlelite_callbacks.errors import ExportError  # noqa: E402
from paddlelite_callbacks.report.record import Record  # noqa: E402
from paddlelite_callbacks.report.retime import timed_together  # noqa: E402
from paddlelite_callbacks.report.write import write_ladder  # noqa: E402

CLASSES, TEST_IMAGES, BATCH = 10, 500, 32


class Digits(paddle.io.Dataset):
    """Scikit-learn's 1,797 8x8 digits, enlarged to ``[3, size, size]``; labels 0-9.

    Training images are shifted randomly by up to two pixels.

    Args:
        train: Whether to use the training images instead of the 500 test images.
        size: Side of the enlarged image in pixels, a multiple of 8.
        limit: Largest number of images; ``None`` for all.
    """

    def __init__(self, *, train: bool, size: int = 32, limit: int | None = None) -> None:
        scans = load_digits()
        order = np.random.RandomState(0).permutation(len(scans.target))
        chosen = (order[TEST_IMAGES:] if train else order[:TEST_IMAGES])[:limit]
        self.shift = 2 if train else 0
        grey = enlarged(scans.images[chosen] / 16, size) * 2 - 0.6
        self.images = np.repeat(grey[:, None], 3, axis=1).astype("float32")
        self.labels = scans.target[chosen].astype("int64")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return shifted(self.images[index], self.shift), self.labels[index]


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Enlarge ``[N, 8, 8]`` to ``[N, size, size]``, bilinearly."""
    centre = (np.arange(size) + 0.5) * images.shape[1] / size - 0.5
    left = np.clip(np.floor(centre).astype(int), 0, images.shape[1] - 2)
    share = np.clip(centre - left, 0, 1)
    weights = np.zeros((size, images.shape[1]))
    weights[np.arange(size), left] = 1 - share
    weights[np.arange(size), left + 1] = share
    return np.einsum("ij,njk,lk->nil", weights, images, weights)


def shifted(image: np.ndarray, most: int) -> np.ndarray:
    """Shift ``[C, H, W]`` randomly by up to ``most`` pixels, with repeated border."""
    if not most:
        return image
    down, right = np.random.randint(0, 2 * most + 1, 2)
    padded = np.pad(image, ((0, 0), (most, most), (most, most)), mode="edge")
    return np.ascontiguousarray(padded[:, down : down + image.shape[1], right : right + image.shape[2]])


class TrainingLog(paddle.callbacks.Callback):
    """Log one JSON line per epoch: losses, accuracy, learning rate, seconds."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.line, self.began = path, {}, 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self.line, self.began = {"epoch": epoch}, time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the training metrics."""
        self.line |= {key: first(value) for key, value in (logs or {}).items() if key not in ("step", "batch_size")}
        self.line["seconds"] = round(time.perf_counter() - self.began, 2)

    def on_eval_end(self, logs: dict[str, Any] | None = None) -> None:
        """Write the line."""
        self.line |= {f"test_{key}": first((logs or {})[key]) for key in ("loss", "acc")}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.line) + "\n")


def first(value: Any) -> float:
    """Return a number that hapi may return inside a list."""
    return float(value[0] if isinstance(value, (list, tuple)) else value)


@dataclass
class Ladder:
    """Train, export and time one network after another; keep their records."""

    options: argparse.Namespace
    folder: Path
    budget: Budget
    train: Digits
    test: Digits
    records: list[Record]
    failed: list[str] = field(default_factory=list)

    def rung(
        self, name: str, network: paddle.nn.Layer, *, epochs: int, rate: float, callbacks: Sequence[Any] = ()
    ) -> paddle.nn.Layer:
        """Train ``network`` with hapi and callbacks; write weights, log and exports.

        If nothing can be exported, the rung is added to ``failed``, and its weights are kept.
        """
        print(f"\n=== {name}: {epochs} epochs ===", flush=True)
        model = paddle.Model(network)
        steps = epochs * -(-len(self.train) // BATCH)
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(rate, steps)
        schedule = paddle.optimizer.lr.LinearWarmup(schedule, max(1, steps // 20), 0.0, rate)
        optimizer = paddle.optimizer.AdamW(schedule, parameters=network.parameters(), weight_decay=1e-3)
        model.prepare(optimizer, paddle.nn.CrossEntropyLoss(), paddle.metric.Accuracy())
        export = ExportBenchCallback(
            self.folder, name=name, engines=self.options.engines, budget=self.budget,
            benchmark=BenchOptions(
                warmup=self.options.warmup, repeats=self.options.repeats, peak_memory=False, roofline=False
            ),
        )  # fmt: skip
        log = TrainingLog(self.folder / "logs" / f"{name}.jsonl")
        try:
            model.fit(
                self.train, self.test, batch_size=BATCH, epochs=epochs, verbose=1, log_freq=10,
                callbacks=[*callbacks, export, log],
            )  # fmt: skip
        except ExportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            self.failed.append(name)
        model.save(str(self.folder / "weights" / name), training=True)
        self.records.append(export.record)
        return network


def run(options: argparse.Namespace) -> tuple[Path, list[str]]:
    """Run the ladder; return its folder, and the rungs without exported files."""
    paddle.seed(options.seed)
    np.random.seed(options.seed)
    folder = new_folder(Path(options.out))
    limit = 128 if options.quick else None
    train, test = Digits(train=True, limit=limit), Digits(train=False, limit=limit)
    print(f"{len(train)} training and {len(test)} test images; results go to {folder}", flush=True)
    limits = {"size_mb": options.size_mb, "latency_ms": options.latency_ms}
    ladder = Ladder(options, folder, Budget(**limits), train, test, [])

    teacher = getattr(paddle.vision.models, options.teacher)(num_classes=CLASSES)
    ladder.rung(options.teacher, teacher, epochs=options.teacher_epochs, rate=options.teacher_rate)
    baseline = ladder.records[0].metrics["acc"]
    ladder.budget = Budget(**limits, metric="acc", baseline=baseline, metric_drop=options.metric_drop)

    begun = BackboneSwap(options.student)(teacher)
    whole = {"epochs": options.epochs, "rate": options.rate}
    finer = {"epochs": options.pact_epochs, "rate": options.rate}
    pact = PACTQuantCallback(lr_scale=options.pact_lr_scale, advanced=AdvancedPACTOptions(fp32_epochs=options.epochs))
    distil = DistillCallback(teacher, loss=options.loss, temperature=options.temperature, weight=options.weight)
    light = ladder.rung("light", copy.deepcopy(begun), **whole)
    distilled = ladder.rung("light+distil", copy.deepcopy(begun), **whole, callbacks=[distil])
    ladder.rung("light+pact", light, **finer, callbacks=[pact])
    ladder.rung("light+distil+pact", distilled, **finer, callbacks=[distil, pact])

    print("\nTiming all exported files in turn ...", flush=True)
    bench = BenchOptions(engines=options.engines, warmup=options.warmup, repeats=options.repeats)
    records = timed_together(ladder.records, [test.images[:1]], bench)
    title = f"Handwritten digits: {options.teacher} to {options.student}"
    print("\n" + write_ladder(folder, records, metric="acc", budget=ladder.budget, title=title))
    print(f"Written: {folder}/ladder.md, ladder.jsonl, ladder.png, the exported files, weights/ and logs/")
    return folder, ladder.failed


def new_folder(base: Path) -> Path:
    """Create ``base/001``, ``base/002``, ...; earlier results are kept."""
    base.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name) for path in base.iterdir() if path.name.isdigit()), default=0)
    folder = base / f"{number:03d}"
    for part in ("weights", "logs"):
        (folder / part).mkdir(parents=True)
    return folder


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], formatter_class=show)
    add = parser.add_argument
    add("--out", default="runs/digits", metavar="DIR", help="a numbered folder per run is created here")
    add("--quick", action="store_true", help="smoke test: 128 images, one epoch each, low accuracy")
    add("--seed", type=int, default=0, help="seed of weights, order of images and dropout")
    add("--teacher", default="resnet18", metavar="NAME", help="large classifier, from paddle.vision.models")
    add("--teacher-epochs", type=int, default=4, metavar="N", help="epochs of the teacher")
    add("--teacher-rate", type=float, default=1e-3, metavar="R", help="the teacher's largest learning rate")
    add("--student", default="MobileNetV3_small_x1_0", metavar="NAME", help="light classifier, from paddleclas")
    add("--epochs", type=int, default=9, metavar="N", help="epochs of the light networks")
    add("--rate", type=float, default=2e-3, metavar="R", help="the light networks' largest learning rate")
    add("--loss", default="kl", choices=["kl", "jsdiv"], help="distillation loss on the class scores")
    add("--temperature", type=float, default=4.0, metavar="T", help="temperature of the distillation loss")
    add("--weight", type=float, default=1.0, metavar="W", help="weight of the distillation loss; the task loss has 1")
    add("--pact-epochs", type=int, default=2, metavar="N", help="quantisation-aware epochs, from the trained network")
    add("--pact-lr-scale", type=float, default=0.3, metavar="K", help="their learning rate, relative to --rate")
    add("--size-mb", type=float, default=20.0, metavar="MB", help="gate: size of parameters and program")
    add("--latency-ms", type=float, default=100.0, metavar="MS", help="gate: median latency of the fastest engine")
    add("--metric-drop", type=float, default=0.05, metavar="D", help="gate: accuracy loss relative to the teacher")
    add("--engines", nargs="+", metavar="E", help="paddle, paddle-onednn, onnxruntime, openvino; all if not given")
    add("--warmup", type=int, default=10, metavar="N", help="warm-up calls")
    add("--repeats", type=int, default=100, metavar="N", help="timed calls")
    options = parser.parse_args(arguments)
    if options.quick:
        options.teacher_epochs = options.epochs = options.pact_epochs = 1
        options.warmup, options.repeats = 2, 5
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return 1 if a rung could not be exported, else 0."""
    _, failed = run(parsed(arguments))
    for name in failed:
        print(f"Nothing was exported of {name}: see the report.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
