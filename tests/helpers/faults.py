"""A crash or Ctrl-C at a chosen place of ``fit``, and what must be as found afterwards."""

from __future__ import annotations

import os
import signal

import paddle
import pytest
from exporting import grouped
from toy import Images, TinyNet

from paddlelite_callbacks import DistillCallback, EMATeacher, ExportBenchCallback, MutualPeer, PACTQuantCallback
from paddlelite_callbacks.distill.schedules import linear


class Boom(Exception):
    pass


def partly_still():
    """A teacher with a layer in eval mode and a frozen parameter, both of which must stay so."""
    network = TinyNet(width=8)
    network.bn1.eval()
    network.fc.bias.stop_gradient = True
    return network


class Crash(paddle.callbacks.Callback):
    """Raises, or sends this process Ctrl-C, at the given call of the given hook."""

    def __init__(self, hook: str, at: int = 0, *, interrupt: bool = False):
        super().__init__()
        self.left, self.interrupt = at, interrupt
        setattr(self, hook, self.crash)

    def crash(self, *_):
        if self.left:
            self.left -= 1
        elif self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise Boom


class CrashingLoader:
    """The data loader fails at its second batch (an error inside a ``Dataset`` hangs Paddle's own loader)."""

    def __len__(self):
        return 2

    def __iter__(self):
        data = Images(8)
        yield paddle.to_tensor(data.images), paddle.to_tensor(data.labels)
        raise Boom


def distill(folder, teacher):
    return [DistillCallback(teacher)]


def pact(folder, teacher):
    return [PACTQuantCallback()]


def export(folder, teacher):
    quick = {"warmup": 1, "repeats": 2, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}
    return [ExportBenchCallback(folder, **grouped(engines=["paddle"], **quick))]


def together(folder, teacher):
    return [*export(folder, teacher), *distill(folder, teacher), *pact(folder, teacher)]


def features(folder, teacher):
    return [DistillCallback(teacher, loss="kl", features={"conv*": "conv*"}, weight=linear(1.0, 0.0))]


def average(folder, teacher):
    return [DistillCallback(EMATeacher(0.9))]


def mutual(folder, teacher):
    return [DistillCallback(MutualPeer(teacher, paddle.optimizer.Adam(1e-3, parameters=teacher.parameters())))]


def scheduled(folder, teacher):
    return [PACTQuantCallback(start_epoch=1, freeze_bn_after=1, freeze_scales_after=1)]


CALLBACKS = [distill, pact, export, together]
KEEPS_LAYERS = (pact, together)


def kept_by_pact(found: dict, now: dict) -> None:
    """PACT keeps converted layers, their keys, and the alphas in the optimizer; nothing else may differ."""
    assert now["loss"] == found["loss"]
    assert now["model attributes"] == found["model attributes"]
    assert now["modes of others"] == found["modes of others"]
    assert now["optimizer"][: len(found["optimizer"])] == found["optimizer"]
    assert len(now["optimizer"]) == len(found["optimizer"]) + 3
    new = [key for key in now["state keys"][0] if key not in found["state keys"][0]]
    layers = {key.rpartition("_quanter.")[0].rpartition(".")[0] for key in new}
    assert len(layers) == 3
    grids = ("activation_quanter.alpha", "activation_quanter.grid", "weight_quanter.grid")
    assert sorted(new) == sorted(f"{layer}.{grid}" for layer in layers for grid in grids)
    assert [key for key in now["state keys"][0] if key not in new] == found["state keys"][0]
    assert all(hooks == (0, 0) for hooks in now["hooks"][0])
    assert now["hooks"][1] == found["hooks"][1]
    assert now["stop_gradient"][1] == found["stop_gradient"][1]


def check_as_found(make, found: dict, now: dict, *, trained: bool) -> None:
    if make in KEEPS_LAYERS and trained:
        kept_by_pact(found, now)
    else:
        assert now == found


def optimizer_is_whole(model) -> None:
    """The rate is the user's, there is no state of parameters that are not trained, and it can go on."""
    optimizer = model._optimizer
    assert optimizer.get_lr() == pytest.approx(0.05)
    names = {parameter.name for parameter in optimizer._parameter_list}
    assert all(set(held) <= names for held in optimizer._accumulators.values())
    data = Images(8)
    model.train_batch([paddle.to_tensor(data.images)], [paddle.to_tensor(data.labels)])
