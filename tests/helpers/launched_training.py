"""Run by test_launch.py, alone and on each of two processes: trains in many ways and writes what came out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle
from exporting import grouped
from paddle import nn
from toy import Images, TinyNet, hapi_model

from paddlelite_callbacks import (
    AdvancedPACTOptions,
    BackboneSwap,
    Budget,
    DistillCallback,
    EMATeacher,
    ExportBenchCallback,
    MutualPeer,
    PACTQuantCallback,
    cache_teacher,
)
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.prepare import prepare_pact_

SGD = {"optimizer": "SGD", "learning_rate": 0.05}


class NoNorm(TinyNet):
    """Without batch norm two halves of a batch are the whole batch."""

    def forward(self, x):
        return self.fc(self.conv2(self.relu(self.conv1(x))).mean(axis=[2, 3]))


class Carrier(nn.Layer):
    """A network with a backbone."""

    def __init__(self):
        super().__init__()
        self.backbone = backbone(6)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.backbone(x).mean(axis=[2, 3]))


def backbone(width):
    return nn.Sequential(nn.Conv2D(3, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2D(width, 4, 1))


def teacher():
    paddle.seed(1)
    return NoNorm(width=8)


def mutual(**options):
    peer = NoNorm()
    return MutualPeer(peer, paddle.optimizer.SGD(0.05, parameters=peer.parameters()), **options)


def swapped():
    swap = BackboneSwap(backbone(2), at="backbone")
    return swap(Carrier(), input_spec=[paddle.static.InputSpec([None, 3, 8, 8])])


class Case:
    """One ``fit``: callbacks, network, data, evaluation, options of `hapi_model`."""

    def __init__(self, *callbacks, network=NoNorm, data=None, evaluation=None, **options):
        self.callbacks, self.network, self.options = list(callbacks), network, {**SGD, **options}
        self.data, self.evaluation = data or Images(32), evaluation

    def networks(self, model):
        """All that is trained or counted in the fit, by name."""
        yield "network", model.network
        for callback in self.callbacks:
            if isinstance(callback, DistillCallback):
                yield "bridges", callback.bridges
                if hasattr(callback._source, "peer"):
                    yield "peer", callback._source.peer.network


def cases(folder, rank):
    """By name; what only the first process may write goes to a folder of each process's own."""
    own = folder / f"rank-{rank}"
    cached = cache_teacher(teacher(), Images(32), folder / "cache", verbose=0)  # before paddle.Model(...)
    quick = {"warmup": 0, "repeats": 1, "peak_memory": False, "roofline": False, "verbose": 0, "engines": ["paddle"]}
    small = Budget(size_mb=1e-9)
    kept = DistillCallback(mutual(monitor="loss"), loss="dml")
    features = {"loss": "kl", "features": {"conv*": "conv*"}}
    spoilt = Images(32)
    spoilt.images[16 + 8 + 1, 0, 0, 0] = float("nan")  # on one of two processes: both leave the batch out
    return {
        "plain": Case(DistillCallback(teacher())),
        "features": Case(DistillCallback(teacher(), **features)),
        "average": Case(DistillCallback(EMATeacher(0.9))),
        "mutual": Case(DistillCallback(mutual(), loss="dml"), evaluation=Images(24)),
        # the student hardly learns: its peer's weights must end up in the model, on all processes
        "kept": Case(kept, evaluation=Images(24), learning_rate=1e-6),
        "cached": Case(DistillCallback(cached), data=cached),
        "skipped": Case(DistillCallback(teacher(), on_nan="skip"), data=spoilt),
        "pact": Case(PACTQuantCallback(advanced=AdvancedPACTOptions(calibration_batches=2))),
        "lsq": Case(PACTQuantCallback(method="lsq", quantize_outputs=True)),
        "normed": Case(DistillCallback(teacher(), **features), PACTQuantCallback(), network=TinyNet),
        "together": Case(
            ExportBenchCallback(own, **grouped(name="together", budget=Budget(size_mb=9), **quick)),
            PACTQuantCallback(eval_data=Images(24), metric_drop=0),
            DistillCallback(teacher(), loss="kl", features={"backbone.2": "conv2"}),
            network=swapped,
            evaluation=Images(24),
            metrics=False,  # the loss differs by process, and decides what the diagnosis does
        ),
        "gate": Case(ExportBenchCallback(own, **grouped(name="gate", **quick, gate="fail", budget=small))),
    }  # fmt: skip


def arrays(case, model, prefix):
    """What came out, by name."""
    for who, layer in case.networks(model):
        for key, value in layer.state_dict().items():
            yield f"{prefix}/{who}/{key}", value.numpy()


def train(case, epochs, batch_size, rank, **options):
    paddle.seed(3)  # the same start on all processes and on one
    model = hapi_model(case.network(), **case.options)
    for parameter in model.network.parameters() if rank else []:
        parameter.set_value(parameter.numpy())  # as DataParallel has sent it
    paddle.seed(3 + rank)  # another stream on each: what is made in training must still be equal
    model.fit(
        case.data, case.evaluation, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0,
        callbacks=case.callbacks, **options,
    )  # fmt: skip
    return model


def resumed(out, folder, batch_size, rank):
    """Two epochs at once, and one epoch, a new model, its checkpoint, one epoch more."""

    def case():
        distill = DistillCallback(teacher(), loss="kl", features={"conv1": "conv1"})
        return Case(distill, PACTQuantCallback(lr_scale=1.0), optimizer="Momentum", evaluation=Images(24))

    with paddle.utils.unique_name.guard():
        whole = case()
        out.update(arrays(whole, train(whole, 2, batch_size, rank), "whole"))
    with paddle.utils.unique_name.guard():
        train(case(), 1, batch_size, rank, save_dir=str(folder / f"rank-{rank}" / "resume"))
    with paddle.utils.unique_name.guard():
        rest = case()
        paddle.seed(77 + rank)
        model = hapi_model(NoNorm(), **rest.options)
        prepare_pact_(model.network, PACTConfig())
        model.load(str(folder / "rank-0" / "resume" / "0"))
        rest.callbacks[0].load(folder / "rank-0" / "resume" / "0")
        model.fit(
            rest.data, rest.evaluation, batch_size=batch_size, epochs=1, shuffle=False, verbose=0,
            callbacks=rest.callbacks,
        )  # fmt: skip
        out.update(arrays(rest, model, "resumed"))


def main(folder: Path, batch_size: int) -> None:
    rank, out = paddle.distributed.get_rank(), {}
    paddle.seed(9 + rank)  # the first process's peer is the one that counts
    for name, case in cases(folder, rank).items():
        options = {"save_dir": str(folder / f"rank-{rank}" / name)} if name == "features" else {}
        try:
            model = train(case, 2, batch_size, rank, **options)
        except SystemExit as error:
            out[f"{name}/code"] = np.array(error.code)
            continue
        out.update(arrays(case, model, name))
        for callback in case.callbacks:
            if isinstance(callback, PACTQuantCallback) and callback.diagnosis is not None:
                found = callback.diagnosis
                out[f"{name}/diagnosis"] = np.array([found.fp32, found.fake_quant, *found.gains.values()])
        if name == "kept":
            peer = case.callbacks[0]._source.peer
            assert peer.better == "peer", peer.figures
            for who, figures in peer.figures.items():
                out[f"kept/{who}"] = np.array([figures["loss"], figures["acc"]])
    resumed(out, folder, batch_size, rank)
    np.savez(folder / f"result-{rank}.npz", **out)


def fail(where: str) -> None:
    """One process raises, in training or in what the first does alone; the other must not wait for ever."""

    class Failing(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            if step == 2 and paddle.distributed.get_rank() == 1:
                raise ValueError("raised on purpose in a batch")

    class Data(Images):
        def __getitem__(self, index):
            raise ValueError("raised on purpose in the cache")

    if where == "cache":
        cache_teacher(teacher(), Data(), "cache", verbose=0, allow_random=True)
    model = hapi_model(NoNorm())
    model.fit(Images(64), batch_size=4, verbose=0, callbacks=[DistillCallback(teacher()), Failing()])


if __name__ == "__main__":
    fail(sys.argv[2]) if sys.argv[1] == "fail" else main(Path(sys.argv[1]), int(sys.argv[2]))
