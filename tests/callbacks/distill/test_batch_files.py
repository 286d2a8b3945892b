"""How many of the package's files a training batch runs through: few enough to be read at one sitting."""

from __future__ import annotations

import sys
from pathlib import Path

import paddle
import pytest
from toy import TinyNet, fit, hapi_model

import paddlelite_callbacks
from paddlelite_callbacks import DistillCallback

PACKAGE = Path(paddlelite_callbacks.__file__).parent
FEATURES = {"conv1": "conv1", "conv2": "conv2"}


class FilesOfABatch(paddle.callbacks.Callback):
    """Note, in the second batch, every file of the package in which a function is called."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def on_train_batch_begin(self, step, logs=None):
        if step == 1:
            sys.setprofile(self.note)

    def on_train_batch_end(self, step, logs=None):
        sys.setprofile(None)

    def note(self, frame, event, argument):
        if event == "call" and (path := Path(frame.f_code.co_filename)).is_relative_to(PACKAGE):
            self.seen.add(path.relative_to(PACKAGE).as_posix())


@pytest.mark.parametrize(
    "options",
    [{}, {"features": FEATURES}, {"loss": "kl", "features": FEATURES}],
    ids=["kl", "features", "both"],
)
def test_a_batch_passes_fewer_than_ten_files(options):
    watch = FilesOfABatch()
    fit(hapi_model(), [watch, DistillCallback(TinyNet(width=8), **options)], evaluate=False)
    assert {"callbacks/session.py", "callbacks/distill/step.py"} <= watch.seen  # what is counted was seen
    assert len(watch.seen) < 10, sorted(watch.seen)
