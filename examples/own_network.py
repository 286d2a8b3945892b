"""Your own network and your own folder of pictures: ResNet50 in, a light network with its gate and report out.

The folder has one sub-folder a class, with pictures of any size, grey or with transparency too; broken ones are named
and left out. The teacher is trained here, or its weights are loaded. The light network learns from it, then with
quantizers; all three are exported, checked, timed and held against a budget.

    python examples/own_network.py --images pictures/ --teacher-weights resnet50.pdparams
    python examples/own_network.py --quick      # two minutes on pictures that it draws: shows that everything runs
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddlelite_callbacks.utils.cpu import mkl_environment

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(mkl_environment())
warnings.filterwarnings("ignore", message=".*(ccache|track global mean|To copy construct).*")

print("Loading Paddle ...", flush=True)
import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddle.vision import transforms  # noqa: E402
from PIL import Image, ImageDraw, ImageOps  # noqa: E402

from paddlelite_callbacks import (  # noqa: E402
    BackboneSwap,
    BenchOptions,
    Budget,
    DistillCallback,
    ExportBenchCallback,
    ExportOptions,
    PACTQuantCallback,
)
from paddlelite_callbacks.errors import ExportError  # noqa: E402
from paddlelite_callbacks.utils.safe_load import read_saved  # noqa: E402

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ImageNet's, for pixels of 0-255
BACKGROUND = (255, 255, 255)  # behind transparent pixels


def load(path: str) -> Image.Image:
    """Return the picture in RGB, whatever it was."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)  # a telephone may note that it was held sideways
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            ground = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
            return Image.alpha_composite(ground, picture).convert("RGB")
        return picture.convert("RGB")


def readable(samples: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the samples that can be read whole; print the names of the others.

    Do so before ``fit``, which ends at the first sample that raises.
    """
    good, broken = [], []
    for path, label in samples:
        try:
            load(path)
            good.append((path, label))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"  {path}: {error}")
    if broken:
        print(f"{len(broken)} of {len(samples)} pictures cannot be read and are left out:", *broken, sep="\n")
    return good


class Pictures(paddle.io.Dataset):
    """Samples ``(picture [3, size, size], class)``.

    Args:
        samples: paths and class numbers.
        size: pixels a side.
        train: whether to crop and mirror at random.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], size: int, *, train: bool) -> None:
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
        return self.transform(load(path)).astype("float32"), np.int64(label)


def split(samples: Sequence[tuple[str, int]], classes: Sequence[str], seed: int) -> tuple[list[Any], list[Any]]:
    """Return training and test samples, a fifth of each class for the test; refuse classes that are too small."""
    stream, train, test = np.random.RandomState(seed), [], []
    for number, name in enumerate(classes):
        own = [sample for sample in samples if sample[1] == number]
        if len(own) < 2:
            raise SystemExit(
                f"Class {name!r} has {len(own)} readable pictures; at least 2 are needed, one for the test."
            )
        order, count = stream.permutation(len(own)), max(1, len(own) // 5)
        test += [own[i] for i in order[:count]]
        train += [own[i] for i in order[count:]]
    return train, test


def class_weights(train: Sequence[tuple[str, int]], classes: Sequence[str]) -> paddle.Tensor:
    """Return the weights of the loss, of mean 1 over the pictures, by which rare classes count as much as others."""
    counts = np.bincount([label for _, label in train], minlength=len(classes))
    print("Training pictures: " + ", ".join(f"{name} {n}" for name, n in zip(classes, counts, strict=True)))
    return paddle.to_tensor((counts.sum() / (len(classes) * counts)).astype("float32"))


def load_teacher_weights_(network: paddle.nn.Layer, path: str) -> None:
    """Load what fits, for instance ImageNet's weights but for the last layer; say what was left out."""
    state, own = read_saved(path), network.state_dict()
    fits = {key: value for key, value in state.items() if key in own and list(value.shape) == list(own[key].shape)}
    if not fits:
        raise SystemExit(f"{path} holds no weight of this network: its keys are {list(state)[:3]} ...")
    network.set_state_dict(fits)
    left = sorted(own.keys() - fits.keys())
    print(f"{path}: {len(fits)} of {len(own)} weights loaded" + (f"; others or other shapes: {left}" if left else ""))


def draw_pictures(folder: Path, count: int, seed: int) -> Path:
    """Draw discs, squares and crosses, with what folders of pictures really hold; returns ``folder``."""
    stream = np.random.RandomState(seed)
    for name, share in (("cross", 0.5), ("disc", 1.0), ("square", 1.0)):  # crosses are rare
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(int(count * share)):
            side = int(stream.randint(64, 97))
            mode = ("RGB", "RGB", "L", "RGBA")[i % 4]
            picture = Image.fromarray(stream.randint(0, 90, [side, side + i % 9, 3], dtype="uint8"))
            draw_shape(ImageDraw.Draw(picture), name, side, stream)
            picture.convert(mode).save(folder / name / f"{i:03d}.{'png' if mode == 'RGBA' else 'jpg'}")
    (folder / "disc" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return folder


def draw_shape(pen: ImageDraw.ImageDraw, name: str, side: int, stream: np.random.RandomState) -> None:
    """Draw one bright shape somewhere."""
    radius = int(stream.randint(side // 5, side // 3))
    x, y = (int(value) for value in stream.randint(radius, side - radius, 2))
    colour = tuple(int(value) for value in stream.randint(150, 256, 3))
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "disc":
        pen.ellipse(box, fill=colour)
    elif name == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line((x - radius, y, x + radius, y), fill=colour, width=radius // 2)
        pen.line((x, y - radius, x, y + radius), fill=colour, width=radius // 2)


def run(options: argparse.Namespace) -> list[str]:
    """Make the light network, and its report; returns the names of those that could not be exported."""
    paddle.seed(options.seed)
    random.seed(options.seed)  # of Paddle's transforms
    np.random.seed(options.seed)
    swap, out = BackboneSwap(options.light), Path(options.out)  # an unknown name is refused before anything is trained
    images = options.images or draw_pictures(out / "pictures", 24 if options.quick else 120, options.seed)
    folder = paddle.vision.datasets.DatasetFolder(str(images))  # classes are the sub-folders, in the order of names
    train, test = split(readable(folder.samples), folder.classes, options.seed)
    loss = paddle.nn.CrossEntropyLoss(weight=class_weights(train, folder.classes))
    data = [Pictures(train, options.size, train=True), Pictures(test, options.size, train=False)]
    sidecar = {"labels": folder.classes, "preprocess": {"size": options.size, "mean": MEAN, "std": STD}}
    limits = {"size_mb": options.size_mb, "latency_ms": options.latency_ms}

    failed: list[str] = []

    def fit(name: str, network: Any, epochs: int, callbacks: Sequence[Any], budget: Budget) -> ExportBenchCallback:
        print(f"\n=== {name}: {epochs} epochs ===", flush=True)
        model = paddle.Model(network)
        steps = max(1, epochs * -(-len(train) // options.batch_size))
        rate = paddle.optimizer.lr.CosineAnnealingDecay(options.rate, steps)
        optimizer = paddle.optimizer.AdamW(rate, parameters=network.parameters(), weight_decay=1e-4)
        model.prepare(optimizer, loss, paddle.metric.Accuracy())
        quick = BenchOptions(warmup=2, repeats=5, peak_memory=False, roofline=False)
        export = ExportBenchCallback(
            out, name=name, budget=budget, export=ExportOptions(sidecar=sidecar),
            benchmark=quick if options.quick else None,
        )  # fmt: skip
        try:
            model.fit(
                *data, batch_size=options.batch_size, epochs=epochs, num_workers=options.workers, verbose=1,
                log_freq=50, callbacks=[*callbacks, export],
            )  # fmt: skip
        except ExportError as error:  # the network is trained, its weights are written: go on with it
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
        model.save(str(out / "weights" / name))
        return export

    teacher = paddle.vision.models.resnet50(num_classes=len(folder.classes))
    if options.teacher_weights:
        load_teacher_weights_(teacher, options.teacher_weights)
    if options.teacher_epochs:
        accuracy = fit("teacher", teacher, options.teacher_epochs, [], Budget(**limits)).record.metrics["acc"]
    else:
        model = paddle.Model(teacher)
        model.prepare(None, loss, paddle.metric.Accuracy())
        accuracy = model.evaluate(data[1], batch_size=options.batch_size, verbose=0)["acc"]
        print(f"The teacher's accuracy on the test pictures: {accuracy:.4f}")
    judged = {"metric": "acc", "baseline": accuracy, "metric_drop": options.metric_drop}
    budget = Budget(**limits, **(judged if accuracy else {}))  # of an accuracy of 0 nothing can be lost

    light = swap(teacher)  # as many classes as the teacher
    distil = DistillCallback(teacher)
    fit("light", light, options.epochs, [distil], budget)
    last = fit("light-int8", light, options.int8_epochs, [distil, PACTQuantCallback()], budget)
    print(f"\n{last.verdict.table()}\n\nlight-int8: {last.verdict}\nReport: {out}/report.html, {out}/report.md")
    return failed


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], formatter_class=show)
    add = parser.add_argument
    add("--images", metavar="DIR", help="one sub-folder a class; not given: pictures of three shapes are drawn")
    add("--teacher-weights", metavar="FILE", help=".pdparams of a paddle.vision resnet50; what fits is loaded")
    add("--out", default="runs/own_network", metavar="DIR", help="gets the exports, weights, runs.jsonl and the report")
    add("--quick", action="store_true", help="few drawn pictures, one epoch each: shows that everything runs")
    add("--light", default="PPLCNet_x1_0", metavar="NAME", help="python -m paddlelite_callbacks backbones lists them")
    add("--size", type=int, default=96, metavar="PX", help="side of the network's square input, 224 for photographs")
    add("--batch-size", type=int, default=16, metavar="N", help="pictures a training step")
    add("--workers", type=int, default=0, metavar="N", help="processes that read pictures")
    add("--teacher-epochs", type=int, default=8, metavar="N", help="0 if the weights are trained on these pictures")
    add("--epochs", type=int, default=12, metavar="N", help="of the light network, with distillation")
    add("--int8-epochs", type=int, default=4, metavar="N", help="with quantizers, from the trained light network")
    add("--rate", type=float, default=1e-3, metavar="R", help="largest learning rate")
    add("--size-mb", type=float, default=20.0, metavar="MB", help="gate: parameters and program together")
    add("--latency-ms", type=float, default=100.0, metavar="MS", help="gate: median on the CPU, fastest engine")
    add("--metric-drop", type=float, default=0.05, metavar="D", help="gate: lost accuracy, a share of the teacher's")
    add("--seed", type=int, default=0, metavar="N", help="of the weights, the split and the drawn pictures")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size = min(options.size, 64)
        options.epochs = options.int8_epochs = 1
        options.teacher_epochs = min(options.teacher_epochs, 1)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; the gate's verdict is printed, ``python -m paddlelite_callbacks gate`` makes it an exit code."""
    failed = run(parsed(arguments))
    for name in failed:
        print(f"Nothing was exported of {name}: see the report.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
