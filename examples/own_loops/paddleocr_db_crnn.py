"""Distil and quantise OCR networks in the training loop of PaddleOCR.

A detector (DB) and recognisers (CRNN, SVTR-like) learn from larger ones. The package paddleocr 2.10 (and 3) lacks
``ppocr.modeling``: the networks here have the architecture of PaddleOCR's (PP-LCNet with the DB head; PP-LCNet with an
LSTM or with attention, and CTC), and the loop is that of ``tools/program.py``. In a clone of PaddleOCR use
``build_model(config["Architecture"])`` instead.
Data: generated bars and digits.

Run: python paddleocr_db_crnn.py --quick
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddleclas import PPLCNet_x0_5

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

SIGNS, LENGTH = 10, 4
STRIDES = [2, [2, 1], [2, 1], [2, 1], [2, 1]]  # of text lines
QUICK = BenchOptions(warmup=1, repeats=3, peak_memory=False, roofline=False)


class Maps(nn.Layer):
    """PP-LCNet without classifier; returns the maps of some stages."""

    def __init__(self, stages: list[str], **options: Any) -> None:
        super().__init__()
        self.body, self.stages = PPLCNet_x0_5(**options), stages

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps."""
        maps, x = {}, self.body.conv1(x)
        for name in ("blocks2", "blocks3", "blocks4", "blocks5", "blocks6"):
            x = maps[name] = getattr(self.body, name)(x)
        return [maps[name] for name in self.stages]


class DB(nn.Layer):
    """Detector DB.

    In eval mode it returns the probability map, in training also threshold and binary map.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Maps(["blocks3", "blocks4", "blocks5", "blocks6"])
        self.lateral = nn.LayerList([nn.Conv2D(count, 24, 1) for count in (32, 64, 128, 256)])
        self.neck = nn.Sequential(nn.Conv2D(24, 24, 3, padding=1), nn.BatchNorm2D(24), nn.ReLU())
        self.binarize, self.thresh = self._head(), self._head()

    @staticmethod
    def _head() -> nn.Layer:
        return nn.Sequential(
            nn.Conv2DTranspose(24, 12, 2, 2), nn.BatchNorm2D(12), nn.ReLU(), nn.Conv2DTranspose(12, 1, 2, 2)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps, as PaddleOCR's DBHead does."""
        maps = self.backbone(x)
        maps = [layer(maps[i]) for i, layer in enumerate(self.lateral)]
        total = maps[-1]
        for one in maps[-2::-1]:
            total = one + F.interpolate(total, size=one.shape[2:], mode="nearest")
        shared = self.neck(total)
        probability = F.sigmoid(self.binarize(shared))
        if not self.training:
            return {"maps": probability}
        threshold = F.sigmoid(self.thresh(shared))
        binary = 1 / (1 + paddle.exp(-50 * (probability - threshold)))
        return {"maps": paddle.concat([probability, threshold, binary], axis=1)}


class Recogniser(nn.Layer):
    """CRNN, scores ``[N, T, signs + blank]``; SVTR-like with ``attention``."""

    def __init__(self, *, attention: bool, channels: int = 256) -> None:
        super().__init__()
        self.backbone = Maps(["blocks6"], stride_list=STRIDES)
        if attention:
            self.neck: nn.Layer = nn.TransformerEncoderLayer(channels, 4, 2 * channels, dropout=0.0)
        else:
            self.neck = nn.LSTM(channels, channels // 2, direction="bidirectional")
        self.attention, self.head = attention, nn.Linear(channels, SIGNS + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits in training, else probabilities, as PaddleOCR's CTCHead does."""
        sequence = self.backbone(x)[0].mean(axis=2).transpose([0, 2, 1])
        sequence = self.neck(sequence) if self.attention else self.neck(sequence)[0]
        scores = self.head(sequence)
        return scores if self.training else F.softmax(scores, axis=2)


def db_loss(preds: dict[str, Tensor], batch: list[Tensor]) -> dict[str, Tensor]:
    """Return PaddleOCR's losses of the three maps, with their sum as ``loss``."""
    probability, threshold, binary = (preds["maps"][:, i] for i in range(3))
    shrink, dice = F.binary_cross_entropy(probability, batch[1]), 2 * (binary * batch[1]).sum()
    parts = {"loss_shrink_maps": 5 * shrink, "loss_threshold_maps": 10 * F.l1_loss(threshold, 0.3 + 0.4 * batch[1])}
    parts["loss_binary_maps"] = 1 - dice / (binary.sum() + batch[1].sum() + 1e-6)
    return {"loss": sum(parts.values()), **parts}


def ctc_loss(preds: Tensor, batch: list[Tensor]) -> dict[str, Tensor]:
    """Return the CTC loss with blank 0, as PaddleOCR does."""
    scores = preds.transpose([1, 0, 2])
    lengths = paddle.full([scores.shape[1]], scores.shape[0], "int64")
    found = F.ctc_loss(scores, batch[1], lengths, paddle.full([scores.shape[1]], LENGTH, "int64"), reduction="mean")
    return {"loss": found}


def bars(count: int) -> list[list[Tensor]]:
    """Return batches of images with bars, and their masks."""
    random, found = np.random.RandomState(1), []
    for _ in range(count):
        masks = np.zeros([4, 96, 96], "float32")
        for mask in masks:
            top, left = random.randint(8, 70), random.randint(8, 40)
            mask[top : top + 14, left : left + 44] = 1
        images = (0.3 * random.randn(4, 3, 96, 96) + masks[:, None]).astype("float32")
        found.append([paddle.to_tensor(images), paddle.to_tensor(masks)])
    return found


def lines(count: int) -> list[list[Tensor]]:
    """Return batches of text lines; each sign is a column of stripes."""
    random, found = np.random.RandomState(2), []
    for _ in range(count):
        signs = random.randint(1, SIGNS + 1, [8, LENGTH]).astype("int32")
        images = 0.3 * random.randn(8, 3, 32, 64)
        for image, text in zip(images, signs, strict=True):
            for place, sign in enumerate(text):
                image[:, 2 + 2 * sign : 6 + 2 * sign, 16 * place + 2 : 16 * place + 14] += 2
        found.append([paddle.to_tensor(images.astype("float32")), paddle.to_tensor(signs)])
    return found


Loss = Callable[[Any, list[Tensor]], dict[str, Tensor]]


def train(
    model: nn.Layer, optimizer: paddle.optimizer.Optimizer, loss_class: Loss, data: Iterable[list[Tensor]]
) -> None:
    """Train with the lines of PaddleOCR's ``tools/program.py``."""
    model.train()
    for batch in data:
        images = batch[0]
        preds = model(images)
        loss = loss_class(preds, batch)
        avg_loss = loss["loss"]
        avg_loss.backward()
        optimizer.step()
        optimizer.clear_grad()


def compress(
    name: str, teacher: nn.Layer, student: nn.Layer, loss_class: Loss, data: list[Any], out: str, **how: Any
) -> None:
    """Distil ``teacher`` into an int8 ``student`` and write the files."""
    train(teacher, paddle.optimizer.Adam(2e-3, parameters=teacher.parameters()), loss_class, data)
    # what is added to PaddleOCR: the callbacks, and the loss that goes through the loop
    optimizer = paddle.optimizer.Adam(2e-3, parameters=student.parameters())
    export = ExportBenchCallback(out, name=name, benchmark=QUICK if len(data) < 10 else None)
    callbacks = [DistillCallback(teacher, **how), PACTQuantCallback(), export]
    with training_loop(student, optimizer, callbacks, steps=len(data)) as loop:
        train(student, optimizer, lambda preds, batch: loop.loss(loss_class(preds, batch)), data)
        print(name, loop.metrics)


def main() -> None:
    """Compress the three networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test: few batches")
    parser.add_argument("--out", default="out", help="folder for the files and reports (default: out)")
    parser.add_argument("--only", choices=["db", "crnn", "svtr"], help="one of the three networks; default: all")
    args = parser.parse_args()
    count = 3 if args.quick else 300
    paddle.seed(1)
    if args.only in (None, "db"):
        swap = BackboneSwap("PPLCNet_x0_25", at="backbone")
        student = swap(DB(), input_spec=[paddle.static.InputSpec([None, 3, 96, 96])])
        how = {"loss": OutputTerm("mse", output="maps", weight=2.0), "features": [FeatureTerm("neck", "neck")]}
        compress("db", DB(), student, db_loss, bars(count), args.out, teacher_mode="train", **how)
    for name in [name for name in ("crnn", "svtr") if args.only in (None, name)]:
        swap = BackboneSwap("PPLCNet_x0_25", at="backbone", options={"stride_list": STRIDES})
        teacher, student = (Recogniser(attention=name == "svtr") for _ in range(2))
        student = swap(student, input_spec=[paddle.static.InputSpec([None, 3, 32, 64])])
        compress(name, teacher, student, ctc_loss, lines(count), args.out, loss="kl", teacher_mode="train")


if __name__ == "__main__":
    main()
