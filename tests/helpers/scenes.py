"""What the processes of `crashing` do: train, store a teacher's outputs, export, report."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib
import pkgutil
from pathlib import Path

import numpy as np
import paddle
from crashing import die_from_now_on, die_in_training
from toy import Images, TinyNet, fit, hapi_model, weights_of

import paddlelite_callbacks
from paddlelite_callbacks import (
    DistillCallback,
    EMATeacher,
    ExportBenchCallback,
    MutualPeer,
    PACTConfig,
    PACTQuantCallback,
    cache_teacher,
    prepare_pact_,
)
from paddlelite_callbacks.distill.schedules import linear, warm_up
from paddlelite_callbacks.export.legacy_program import write_legacy_program
from paddlelite_callbacks.report.record import append_record, read_records
from paddlelite_callbacks.report.write import write_report

PACT = {"method": "lsq", "quantize_outputs": True}


def teacher():
    paddle.seed(7)  # the same trained network in each process
    return TinyNet(width=8)


def features(**resume):
    return [DistillCallback(teacher(), loss="kl", features={"conv*": "conv*"}, **resume)]


def average(**resume):
    return [DistillCallback(EMATeacher(0.9), weight=0.5, **resume)]


def mutual(**resume):
    peer = TinyNet()
    rate = paddle.optimizer.lr.StepDecay(0.02, step_size=3, gamma=0.5)
    optimizer = paddle.optimizer.Adam(rate, parameters=peer.parameters())
    return [DistillCallback(MutualPeer(peer, optimizer, keep="student"), **resume)]


def pact(**resume):
    return [PACTQuantCallback()]


def lsq(**resume):
    return [PACTQuantCallback(**PACT)]


def schedule(done=0, **resume):
    """PACT's schedule counts from each ``fit``; distillation's goes on by itself."""
    pact = PACTQuantCallback(start_epoch=max(1 - done, 0), freeze_bn_after=3 - done, freeze_scales_after=3 - done)
    weight = warm_up(1, linear(1.0, 0.0, epochs=4))
    return [pact, DistillCallback(teacher(), weight=weight, **resume)]


def both(**resume):
    return [*lsq(), *features(**resume)]


def average_and_pact(**resume):
    return [*pact(), *average(**resume)]


def mutual_and_pact(**resume):
    return [*mutual(**resume), *pact()]


CALLBACKS = {
    f.__name__: f for f in (features, average, mutual, pact, lsq, schedule, both, average_and_pact, mutual_and_pact)
}
CONVERTED = {"pact": {}, "schedule": {}, "lsq": PACT, "both": PACT, "average_and_pact": {}, "mutual_and_pact": {}}


def shuffled(done):
    """Other batches in every epoch, and after resuming those that come then."""
    sampler = paddle.io.DistributedBatchSampler(Images(), batch_size=8, shuffle=True)
    sampler.set_epoch(done)
    return paddle.io.DataLoader(Images(), batch_sampler=sampler)


class ArmAt(paddle.callbacks.Callback):
    """Arms the death at an epoch's end, or at the end of training: just before hapi's checkpoint."""

    def __init__(self, folder, epoch):
        super().__init__()
        self.folder, self.epoch = folder, epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            die_from_now_on(self.folder)

    def on_train_end(self, logs=None):
        if self.epoch == "end":
            die_from_now_on(self.folder)


def warm():
    """Do what a process does once for its first export and its first report: every scene's process is a fork."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    from paddle.jit.dy2static import convert_call_func

    convert_call_func.is_unsupported(warm)
    for info in pkgutil.walk_packages(paddlelite_callbacks.__path__, "paddlelite_callbacks."):
        if info.name.startswith(("paddlelite_callbacks.export.", "paddlelite_callbacks.report.")):
            importlib.import_module(info.name)


def train(folder, *, what, epochs, done=0, save_dir=None, resume=None, arm=None, seed=0, out=None):
    """One process of a user's: build, load where it resumes, fit."""
    paddle.seed(seed)
    network = TinyNet()
    if resume and what in CONVERTED:
        prepare_pact_(network, PACTConfig(**CONVERTED[what]))
    model = hapi_model(network, optimizer="Adam")
    options = {"done": done} if what == "schedule" else {}
    callbacks = CALLBACKS[what](**options, **({"resume": resume} if resume else {}))
    if resume:
        model.load(resume)
        paddle.seed(99)  # nothing may hang on the random stream
    die_in_training(model)
    arms = [] if arm is None else [ArmAt(folder, arm)]
    if arm == "start":
        die_from_now_on(folder)
    if epochs:
        data = shuffled(done) if what == "average" else Images()
        fit(model, [*arms, *callbacks], data=data, epochs=epochs, evaluate=False, save_dir=save_dir)
    if out:
        np.savez(out, **weights_of(network))


def cache(folder, *, weights, overwrite=False):
    """Store what a teacher says."""
    paddle.seed(weights)
    network = TinyNet(width=8)
    die_from_now_on(folder)
    cache_teacher(network, Images(24), Path(folder) / "cache", batch_size=8, overwrite=overwrite, verbose=0)


class ArmAtTheFinish(ExportBenchCallback):
    """Arms the death when the export begins."""

    def finish(self):
        die_from_now_on(str(self.folder))
        super().finish()


def export(folder, *, width=4, engines=("paddle",), **options):
    """Train, export, report."""
    quick = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False}
    callback = ArmAtTheFinish(folder, name="n", engines=list(engines), **quick, **options)
    fit(hapi_model(TinyNet(width=width)), [*pact(), callback])


def report(folder):
    """Draw the report anew."""
    import matplotlib.figure  # noqa: F401

    die_from_now_on(folder)
    write_report(Path(folder))


def record(folder):
    """Add a line to the record."""
    (line, *_) = read_records(Path(folder) / "runs.jsonl")
    die_from_now_on(folder)
    append_record(Path(folder) / "runs.jsonl", line)


def legacy(folder, *, source):
    """Write a program in the format of Paddle 2."""
    die_from_now_on(folder)
    write_legacy_program(Path(source) / "model.json", Path(folder) / "phone")
