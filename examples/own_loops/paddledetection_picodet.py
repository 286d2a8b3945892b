"""Distil and quantise PicoDet in the training loop of PaddleDetection.

A small PicoDet learns from a large one, with the lines of PaddleDetection's trainer. The network returns a dictionary
of its losses, therefore the features before the head are compared.
Needs ppdet 2.6.0: pip install --no-deps paddledet==2.6.0. Data: generated boxes.

Run: python paddledetection_picodet.py --quick
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from ppdet.modeling.architectures.picodet import PicoDet
from ppdet.modeling.assigners import ATSSAssigner, TaskAlignedAssigner
from ppdet.modeling.backbones.lcnet import LCNet
from ppdet.modeling.heads.pico_head import PicoFeat, PicoHeadV2
from ppdet.modeling.losses.gfocal_loss import DistributionFocalLoss
from ppdet.modeling.losses.iou_loss import GIoULoss
from ppdet.modeling.losses.varifocal_loss import VarifocalLoss
from ppdet.modeling.necks.lc_pan import LCPAN

from paddlelite_callbacks import (
    BackboneSwap,
    BenchOptions,
    DistillCallback,
    ExportBenchCallback,
    ExportOptions,
    FeatureTerm,
    PACTQuantCallback,
    training_loop,
)

CLASSES, SIZE, BATCH, WIDTH = 2, 96, 4, 32
QUICK = BenchOptions(warmup=1, repeats=3, peak_memory=False, roofline=False)


def picodet(scale: float) -> PicoDet:
    """Build a narrower network of PaddleDetection's ``picodet_s_320_lcnet.yml``."""
    backbone = LCNet(scale=scale, feature_maps=[3, 4, 5])
    channels, scales = [shape.channels for shape in backbone.out_shape], [1 / 8, 1 / 16, 1 / 32]
    neck = LCPAN(channels, WIDTH, num_features=4, spatial_scales=scales)  # the default list grows with each network
    head = PicoHeadV2(
        PicoFeat(WIDTH, WIDTH, num_fpn_stride=4, num_convs=2, share_cls_reg=True, use_se=True),
        num_classes=CLASSES,
        fpn_stride=[8, 16, 32, 64],
        feat_in_chan=WIDTH,
        reg_max=7,
        use_align_head=True,
        static_assigner=ATSSAssigner(topk=4, num_classes=CLASSES),
        assigner=TaskAlignedAssigner(topk=13, alpha=1.0, beta=6.0),
        loss_class=VarifocalLoss(use_sigmoid=False),
        loss_dfl=DistributionFocalLoss(loss_weight=0.5),
        loss_bbox=GIoULoss(loss_weight=2.5),
    )
    network = PicoDet(backbone, neck, head)
    network.export_post_process = False  # the files end before non-maximum suppression
    return network


def batches(count: int, epoch: int) -> list[dict]:
    """Return batches as PaddleDetection's loader does."""
    random, found = np.random.RandomState(epoch), []
    for _ in range(count):
        image, boxes = 0.3 * random.randn(BATCH, 3, SIZE, SIZE), random.randint(5, 45, [BATCH, 1, 4])
        boxes[..., 2:] += boxes[..., :2]
        for one, ((left, top, right, bottom),) in zip(image, boxes, strict=True):
            one[:, top:bottom, left:right] += 1
        arrays = {
            "image": image.astype("float32"),
            "gt_bbox": boxes.astype("float32"),
            "gt_class": random.randint(0, CLASSES, [BATCH, 1, 1]),  # int64: Paddle 3 does not mix it with int32
            "pad_gt_mask": np.ones([BATCH, 1, 1], "float32"),
            "im_id": np.arange(BATCH)[:, None],
        }
        found.append({name: paddle.to_tensor(array) for name, array in arrays.items()} | {"epoch_id": epoch})
    return found


class ToExport(paddle.nn.Layer):
    """Network for export, from an image tensor to scores and boxes."""

    def __init__(self, network: PicoDet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        """Return scores and boxes of each level."""
        return self.network({"image": image})["picodet"]


def train(
    model: PicoDet, optimizer: paddle.optimizer.Optimizer, epochs: int, count: int, begin: Callable[[int], Any] = id
) -> None:
    """Train with the lines of ``ppdet.engine.Trainer.train``."""
    for epoch in range(epochs):
        begin(epoch)
        model.train()
        for data in batches(count, epoch):
            outputs = model(data)
            loss = outputs["loss"]
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()


def main() -> None:
    """Train teacher and student and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test: few batches")
    parser.add_argument("--out", default="out", help="folder for the files and reports (default: out)")
    args = parser.parse_args()
    epochs, count = (2, 2) if args.quick else (10, 50)
    paddle.seed(1)
    teacher, student = picodet(0.75), picodet(0.75)
    spec = [{"image": paddle.static.InputSpec([None, 3, SIZE, SIZE])}]
    student = BackboneSwap("PPLCNet_x0_25", at="backbone")(student, input_spec=spec)
    train(teacher, paddle.optimizer.AdamW(2e-3, parameters=teacher.parameters()), epochs, count)

    # what is added to PaddleDetection: the callbacks, and a hook that sends the losses through the loop
    optimizer = paddle.optimizer.AdamW(2e-3, parameters=student.parameters())
    maps = [FeatureTerm("neck", "neck", loss="cwd", pick=level, name=f"level{level}") for level in range(3)]
    callbacks = [DistillCallback(teacher, features=maps), PACTQuantCallback()]
    with training_loop(student, optimizer, callbacks, epochs=epochs, steps=count) as loop:
        hook = student.register_forward_post_hook(lambda net, _, out: loop.loss(out) if net.training else out)
        train(student, optimizer, epochs, count, begin=loop.epoch)
        hook.remove()
        print(loop.metrics)
    export = ExportBenchCallback(
        args.out, name="picodet", export=ExportOptions(dynamic_batch=False), benchmark=QUICK if args.quick else None
    )
    export.export(ToExport(student), batches(1, 0)[0]["image"][:1])


if __name__ == "__main__":
    main()
