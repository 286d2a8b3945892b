"""Distil and quantise MobileSeg in the unchanged trainer of PaddleSeg.

Needs paddleseg 2.8.0: pip install --no-deps paddleseg==2.8.0. Data: generated discs and squares.

Run: python paddleseg_mobileseg.py --quick
"""

from __future__ import annotations

import argparse

import numpy as np
import paddle
from paddleseg.core import train
from paddleseg.core.train import loss_computation
from paddleseg.models import MobileSeg
from paddleseg.models.backbones import MobileNetV3_large_x1_0

from paddlelite_callbacks import (
    BackboneSwap,
    BenchOptions,
    DistillCallback,
    ExportBenchCallback,
    FeatureTerm,
    OutputTerm,
    PACTQuantCallback,
    training_loop,
)

CLASSES, SIZE = 3, 64
QUICK = BenchOptions(warmup=1, repeats=3, peak_memory=False, roofline=False)


class Shapes(paddle.io.Dataset):
    """Discs (1) and squares (2) on noise, as dictionaries of PaddleSeg."""

    num_classes, ignore_index = CLASSES, 255

    def __init__(self, count: int) -> None:
        random = np.random.RandomState(count)
        rows, columns = np.mgrid[:SIZE, :SIZE]
        self.samples = []
        for number in range(count):
            y, x, radius = random.randint(16, 48), random.randint(16, 48), random.randint(6, 14)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            square = np.maximum(abs(rows - y), abs(columns - x)) < radius
            label = np.where(square if number % 2 else disc, 1 + number % 2, 0).astype("int64")
            image = (0.3 * random.randn(3, SIZE, SIZE) + label).astype("float32")
            self.samples.append({"img": image, "label": label, "trans_info": []})

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return dict(self.samples[index])


def accuracy(network: paddle.nn.Layer, data: Shapes) -> float:
    """Return the pixel accuracy.

    PaddleSeg 2.8.0's ``evaluate`` fails on the 0-D tensors of Paddle 3.
    """
    network.eval()
    with paddle.no_grad():
        scores = network(paddle.to_tensor(np.stack([sample["img"] for sample in data.samples])))[0]
    network.train()
    return float((scores.argmax(1).numpy() == np.stack([sample["label"] for sample in data.samples])).mean())


def main() -> None:
    """Train teacher and student and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test: few iterations")
    parser.add_argument("--out", default="out", help="folder for the files and reports (default: out)")
    args = parser.parse_args()
    iters = 4 if args.quick else 400
    paddle.seed(1)
    student = MobileSeg(CLASSES, MobileNetV3_large_x1_0())
    student = BackboneSwap("MobileNetV3_small_x0_35", at="backbone")(
        student, input_spec=[paddle.static.InputSpec([None, 3, SIZE, SIZE])]
    )
    teacher = MobileSeg(CLASSES, MobileNetV3_large_x1_0())
    entropy = paddle.nn.CrossEntropyLoss(axis=1)  # PaddleSeg 2.8.0's own one multiplies types that Paddle 3 rejects
    losses = {"types": [entropy] * 3, "coef": [1, 0.5, 0.5]}
    data = {"train_dataset": Shapes(64), "batch_size": 8, "save_dir": args.out, "log_iters": iters + 1}
    for_teacher = paddle.optimizer.AdamW(2e-3, parameters=teacher.parameters())
    train(teacher, optimizer=for_teacher, iters=iters, losses=losses, **data)

    # what is added to PaddleSeg: the callbacks, and the loss that goes through the loop
    optimizer = paddle.optimizer.AdamW(2e-3, parameters=student.parameters())
    callbacks = [
        DistillCallback(
            teacher,
            loss=OutputTerm("cwd", output=0, weight=3.0),  # output 0 is the head used in inference
            features=[FeatureTerm("ppseg_head.arm_list.0", "ppseg_head.arm_list.0", weight=0.5)],
        ),
        PACTQuantCallback(),
        ExportBenchCallback(args.out, name="mobileseg", benchmark=QUICK if args.quick else None),
    ]
    with training_loop(student, optimizer, callbacks, steps=iters) as loop:
        student.loss_computation = lambda logits, losses, batch: [
            loop.loss(loss_computation(logits, batch["label"].astype("int64"), None, losses)).reshape([1])
        ]
        train(student, optimizer=optimizer, iters=iters, losses=losses, **data)
        loop.evaluated({"pixel_acc": accuracy(student, Shapes(16))})
    print(loop.metrics)


if __name__ == "__main__":
    main()
