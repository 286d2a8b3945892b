"""What a callback of the user's own may do in the middle of ``fit``: the training is the same as without it."""

from __future__ import annotations

import threading

import paddle
import pytest
from exporting import grouped
from faults import (
    KEEPS_LAYERS,
    Boom,
    average,
    check_as_found,
    distill,
    export,
    features,
    mutual,
    optimizer_is_whole,
    pact,
    scheduled,
    together,
)
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import ExportBenchCallback, PACTQuantCallback

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}


class Acts(paddle.callbacks.Callback):
    """Calls ``act(model)`` behind every batch and epoch, or at the hooks that are named."""

    def __init__(self, act, hooks=("on_train_batch_end", "on_epoch_end")):
        super().__init__()
        for hook in hooks:
            setattr(self, hook, lambda *_: act(self.model))


def trained(make, folder, act, *, first=False, hooks=("on_train_batch_end", "on_epoch_end")):
    """Train two epochs with ``make``'s callbacks and a callback that acts; return the weights."""
    paddle.seed(3)
    teacher = TinyNet(width=8)
    network = TinyNet()
    model = paddle.Model(network, InputSpec([None, 3, 8, 8], "float32", "x"))
    model.prepare(
        paddle.optimizer.Momentum(0.05, parameters=network.parameters()),
        nn.CrossEntropyLoss(),
        paddle.metric.Accuracy(),
    )
    found = fingerprint(model, teacher)
    callbacks = make(folder, teacher)
    acting = Acts(act, hooks)
    fit(model, [acting, *callbacks] if first else [*callbacks, acting], epochs=2, evaluate=False)
    check_as_found(pact if make in KEEPS_LAYERS else make, found, fingerprint(model, teacher), trained=True)
    return weights_of(network)


def looks(model, folder):
    model.evaluate(Images(), batch_size=4, verbose=0)
    model.predict(Images(), batch_size=4, verbose=0)
    model.save(str(folder / "checkpoint"))
    model.load(str(folder / "checkpoint"))


@pytest.mark.parametrize("make", [together, features, average, mutual])
def test_evaluate_predict_save_and_load_change_nothing(make, tmp_path):
    with_looks = trained(make, tmp_path / "a", lambda model: looks(model, tmp_path))
    assert equal_weights(with_looks, trained(make, tmp_path / "b", lambda model: None))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("make", [distill, features, average, mutual, export])
def test_an_export_of_the_users_own_changes_nothing(make, first, tmp_path):
    """paddle.jit traces the network with our hooks on it, before the first batch too."""
    hooks = ("on_epoch_begin", "on_train_batch_end", "on_epoch_end")

    def save(model):
        model.save(str(tmp_path / "inference"), training=False)

    exported = trained(make, tmp_path / "a", save, first=first, hooks=hooks)
    assert equal_weights(exported, trained(make, tmp_path / "b", lambda model: None))
    program = paddle.jit.load(str(tmp_path / "inference"))
    program.eval()
    assert program(paddle.to_tensor(Images(2).images)).shape == [2, 4]


def test_a_fake_quantised_network_says_how_it_is_exported(tmp_path):
    model = paddle.Model(TinyNet(), InputSpec([None, 3, 8, 8], "float32", "x"))
    model.prepare(paddle.optimizer.SGD(0.01, parameters=model.network.parameters()), nn.CrossEntropyLoss())
    fit(model, [PACTQuantCallback()], evaluate=False)
    with pytest.raises(Exception, match=r"fake-quantised layer cannot be traced .*export_forms"):
        model.save(str(tmp_path / "inference"), training=False)


@pytest.mark.parametrize("make", [distill, pact, export, together, features, average, mutual, scheduled])
def test_an_error_before_our_own_on_train_end(make, tmp_path):
    """Ours then never hear that the training ended; the next calls find all in order."""
    teacher, model = TinyNet(width=8), hapi_model()
    found = fingerprint(model, teacher)

    def act(_):
        raise Boom

    with pytest.raises(Boom):
        fit(model, [Acts(act, ["on_train_end"]), *make(tmp_path, teacher)], epochs=2)
    keeps = make in (*KEEPS_LAYERS, scheduled)
    check_as_found(pact if keeps else make, found, fingerprint(model, teacher), trained=True)
    optimizer_is_whole(model)
    assert not list(tmp_path.iterdir())
    model.evaluate(Images(), batch_size=8, verbose=0)
    model.save(str(tmp_path / "checkpoint"))
    fit(model, make(tmp_path, teacher), epochs=2)


@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), MemoryError("no memory"), StopIteration(), RecursionError()], ids=repr
)
@pytest.mark.parametrize("where", ["loss", "teacher"])
def test_exceptions_of_every_kind_in_the_loss_and_in_the_teacher(error, where, tmp_path):
    calls = []

    def act(*_):
        calls.append(1)
        if len(calls) == 2:
            raise error

    class Loss(nn.CrossEntropyLoss):
        def forward(self, *given):
            if where == "loss":
                act()
            return super().forward(*given)

    teacher, model = TinyNet(width=8), hapi_model(loss=Loss())
    if where == "teacher":
        teacher.fc.register_forward_pre_hook(act)
    found = fingerprint(model, teacher)
    with pytest.raises(type(error)):
        fit(model, together(tmp_path, teacher), epochs=2, evaluate=False)
    check_as_found(pact, found, fingerprint(model, teacher), trained=where == "loss" or len(calls) > 1)
    optimizer_is_whole(model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [distill, pact, average, mutual])
def test_a_callback_that_is_given_twice_counts_once(make, tmp_path):
    weights = []
    for times in (1, 2):
        paddle.seed(5)
        model = hapi_model()
        fit(model, make(tmp_path, TinyNet(width=8)) * times, epochs=2)
        weights.append(weights_of(model.network))
    assert equal_weights(*weights)


@pytest.mark.parametrize("same_model", [True, False])
def test_a_fit_inside_a_fit(same_model, tmp_path):
    teacher, model, done = TinyNet(width=8), hapi_model(), []
    inner = model if same_model else hapi_model()
    found = [fingerprint(model, teacher), fingerprint(inner)]

    def act(_):
        if not done:
            done.append(1)
            fit(inner, [features(None, TinyNet(width=8))[0]], evaluate=False)

    fit(model, [*features(None, teacher), Acts(act, ["on_epoch_end"])], epochs=2)
    assert [fingerprint(model, teacher), fingerprint(inner)] == found


def test_two_fits_in_two_threads_are_two_fits(tmp_path):
    """Both come to their export at the same time, and Paddle traces one network at a time."""
    weights, errors = [], []
    for threads in (False, True):
        barrier, models = threading.Barrier(2 if threads else 1), []
        for i in range(2):
            paddle.seed(i)
            exporting = ExportBenchCallback(tmp_path, **grouped(name=f"{threads}{i}", engines=["paddle"], **QUICK))
            meeting = Acts(lambda _, barrier=barrier: barrier.wait(60), ["on_train_end"])
            models.append((hapi_model(), [*together(tmp_path, TinyNet(width=8))[1:], exporting, meeting]))

        def run(model, callbacks):
            try:
                fit(model, callbacks)
            except BaseException as error:
                errors.append(error)

        if threads:
            workers = [threading.Thread(target=run, args=one) for one in models]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        else:
            for one in models:
                run(*one)
        assert not errors
        weights.append([weights_of(model.network) for model, _ in models])
    assert all(equal_weights(*pair) for pair in zip(*weights, strict=True))
