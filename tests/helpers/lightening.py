"""A small `lighten` as a script: ``python lightening.py FOLDER``; the same weights come out wherever it was killed."""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import paddle
from toy import CLASSES, Images

from paddlelite_callbacks import Budget, lighten
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.callbacks.export.options import ExportOptions

QUICK = BenchOptions(engines=["paddle"], warmup=0, repeats=2, peak_memory=False, roofline=False)
NAME = "PPLCNet_x0_25"
EPOCHS = {"teacher_epochs": 2, "epochs": 3, "int8_epochs": 2}


def small(folder, **changes):
    """Return what a quick `lighten` of a small ResNet comes to."""
    paddle.seed(3)
    network = paddle.vision.models.ResNet(paddle.vision.models.resnet.BasicBlock, 18, num_classes=CLASSES)
    given = {
        "folder": folder,
        "candidates": [NAME],
        "metric_drop": None,
        "batch_size": 8,
        "benchmark": QUICK,
        "export": ExportOptions(preflight=False),
        "eval_data": Images(8, 32),
        "budget": Budget(size_mb=5, latency_ms=1000),
        "verbose": 0,
        **EPOCHS,
    }
    return lighten(network, Images(20, 32), **{**given, **changes})


if __name__ == "__main__":
    made = small(sys.argv[1])
    sys.stdout.write(f"best: {made.best.name}\n")
