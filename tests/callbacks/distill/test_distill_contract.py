"""However ``fit`` ends, every kind of distillation leaves model, teacher, peer and optimizer as found."""

from __future__ import annotations

import os
import signal

import paddle
import pytest
from toy import Images, TinyNet, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback, EMATeacher, MutualPeer, cache_teacher
from paddlelite_callbacks.distill.schedules import warm_up


class Boom(Exception):
    pass


class Crash(paddle.callbacks.Callback):
    def __init__(self, hook, *, interrupt):
        super().__init__()
        self.interrupt = interrupt
        setattr(self, hook, self.crash)

    def crash(self, *_):
        if self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise Boom


def features(other, folder):
    return DistillCallback(other, loss="kl", features={"conv*": "conv*"}, weight=warm_up(1)), Images()


def several(other, folder):
    return DistillCallback([other, TinyNet(width=6)], combine="each", loss={"kl": 1.0, "dist": 0.5}), Images()


def average(other, folder):
    return DistillCallback(EMATeacher(0.9)), Images()


def mutual(other, folder):
    optimizer = paddle.optimizer.Adam(0.01, parameters=other.parameters())
    return DistillCallback(MutualPeer(other, optimizer), loss="dml"), Images()


def cached(other, folder):
    data = cache_teacher(other, Images(), folder / "cache", verbose=0)
    return DistillCallback(data), data


@pytest.fixture
def other():
    network = TinyNet(width=8)
    network.bn1.eval()
    return network


def train(model, callback, data, crash=()):
    model.fit(data, Images(), batch_size=8, verbose=0, epochs=2, callbacks=[callback, *crash])


HOOKS = [
    "on_train_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_epoch_end",
    "on_eval_batch_begin",
    "on_eval_end",
    "on_train_end",
]


@pytest.mark.parametrize("interrupt", [False, True], ids=["exception", "ctrl-c"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("make", [features, several, average, mutual, cached])
def test_a_crash_leaves_all_as_found(make, hook, interrupt, other, tmp_path):
    model = hapi_model()
    callback, data = make(other, tmp_path)
    found, before = fingerprint(model, other), weights_of(other)
    with pytest.raises(KeyboardInterrupt if interrupt else Boom):
        train(model, callback, data, [Crash(hook, interrupt=interrupt)])
    assert fingerprint(model, other) == found
    train(model, callback, data)
    assert fingerprint(model, other) == found
    assert make is mutual or equal_weights(before, weights_of(other))
    assert len(model._optimizer.state_dict()) == len(fitted_alone()._optimizer.state_dict())


def fitted_alone():
    model = hapi_model()
    fit(model, evaluate=False)
    return model


@pytest.mark.parametrize("make", [features, several, average, mutual, cached])
def test_the_figures_leak_into_no_other_model(make, other, tmp_path):
    callback, data = make(other, tmp_path)
    train(hapi_model(), callback, data)
    result = hapi_model().evaluate(Images(), batch_size=8, verbose=0)
    assert set(result) == {"loss", "acc"}


@pytest.mark.parametrize("make", [features, several, average, mutual, cached])
def test_a_loop_of_ones_own_may_call_the_hooks(make, other, tmp_path):
    model = hapi_model()
    callback, data = make(other, tmp_path)
    found, logs = fingerprint(model, other), {}
    callback.set_model(model)
    callback.set_params({"metrics": ["loss"]})
    callback.on_train_begin()
    for step in range(2):
        rows = [data[i] for i in range(8 * step, 8 * step + 8)]
        fields = [paddle.to_tensor(list(column)) for column in zip(*rows, strict=True)]
        callback.on_train_batch_begin(step, logs)
        model.train_batch(fields[:1], fields[1:])
        assert logs["distill_loss"] >= 0
    callback.on_train_end()
    assert fingerprint(model, other) == found


@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("make", [features, several, average, mutual, cached])
def test_mixed_precision_trains(make, level, other, tmp_path):
    """hapi asks for float16, which Paddle ignores on the CPU: this runs its whole path of scaler and steps."""
    network = TinyNet()
    model = paddle.Model(network)
    options = {"level": level, "init_loss_scaling": 128.0}
    model.prepare(
        paddle.optimizer.Momentum(0.05, parameters=network.parameters()),
        paddle.nn.CrossEntropyLoss(),
        amp_configs=options,
    )
    callback, data = make(other, tmp_path)
    before = weights_of(network)
    model.fit(data, batch_size=8, verbose=0, epochs=1, callbacks=[callback])
    after = weights_of(network)
    assert not equal_weights(before, after)
    assert all(abs(value).max() < 1e3 for value in after.values())


class Half(TinyNet):
    """Its maps and scores are in bfloat16, as under ``auto_cast`` on a device that has it (this CPU may not)."""

    def __init__(self, width=4):
        super().__init__(width)
        self.narrow = Narrow()

    def forward(self, x):
        maps = self.narrow(self.conv1(x))
        return self.fc(maps.astype("float32").mean(axis=[2, 3])).astype("bfloat16")


class Narrow(paddle.nn.Layer):
    def forward(self, x):
        return x.astype("bfloat16")


def test_losses_of_half_precision_outputs_are_reckoned_in_full():
    seen = []

    def loss(student, teacher):
        seen.append((student.dtype, teacher.dtype))
        return (student - teacher).abs().mean()

    def task(output, labels):
        return paddle.nn.functional.cross_entropy(output.astype("float32"), labels)

    network = Half()
    model = hapi_model(network, loss=task, metrics=False)
    callback = DistillCallback(Half(8), loss=loss, features={"narrow": "narrow"})
    before = weights_of(network)
    fit(model, [callback], evaluate=False)
    assert seen == [(paddle.float32, paddle.float32)] * 2
    assert callback.bridges.parameters()[0].dtype == paddle.float32
    assert not equal_weights(before, weights_of(network))
