"""One contract for every callback: however ``fit`` ends, the model is as found, save what is listed as kept."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from faults import CALLBACKS, Boom, Crash, CrashingLoader, check_as_found, partly_still
from toy import Images, TinyNet, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback

HOOKS = [
    "on_train_begin",
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_epoch_end",
    "on_eval_begin",
    "on_eval_batch_begin",
    "on_eval_end",
    "on_train_end",
]


def begin_by_hand(model, callbacks) -> None:
    for callback in callbacks:
        callback.set_model(model)
        callback.set_params({"metrics": ["loss"]})
        callback.on_train_begin()


@pytest.fixture
def teacher():
    return partly_still()


@pytest.mark.parametrize("make", CALLBACKS)
def test_fits_twice_and_leaves_the_model_as_found(make, tmp_path, teacher):
    model = hapi_model()
    found = fingerprint(model, teacher)
    for _ in range(2):
        fit(model, make(tmp_path, teacher))
        check_as_found(make, found, fingerprint(model, teacher), trained=True)
    same = make(tmp_path, teacher)
    for _ in range(2):  # one callback object in two fits
        fit(model, same)
        check_as_found(make, found, fingerprint(model, teacher), trained=True)


@pytest.mark.parametrize("interrupt", [False, True], ids=["exception", "ctrl-c"])
@pytest.mark.parametrize("first", [False, True], ids=["crash last", "crash first"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("make", CALLBACKS)
def test_a_crash_in_any_hook_undoes_the_edits(make, hook, first, interrupt, tmp_path, teacher):
    model = hapi_model()
    found = fingerprint(model, teacher)
    callbacks, crash = make(tmp_path, teacher), Crash(hook, interrupt=interrupt)
    with pytest.raises(KeyboardInterrupt if interrupt else Boom):
        fit(model, [crash, *callbacks] if first else [*callbacks, crash])
    trained = hook not in ("on_train_begin", "on_epoch_begin", "on_train_batch_begin")
    check_as_found(make, found, fingerprint(model, teacher), trained=trained)
    assert not list(tmp_path.iterdir())  # no export of a training that did not end
    fit(model, make(tmp_path, teacher))
    check_as_found(make, found, fingerprint(model, teacher), trained=True)


@pytest.mark.parametrize("make", CALLBACKS)
def test_a_crash_in_a_later_batch(make, tmp_path, teacher):
    model = hapi_model()
    found = fingerprint(model, teacher)
    with pytest.raises(Boom):
        fit(model, [*make(tmp_path, teacher), Crash("on_train_batch_begin", at=3)], epochs=3)
    check_as_found(make, found, fingerprint(model, teacher), trained=True)


@pytest.mark.parametrize("make", CALLBACKS)
def test_a_crash_in_the_forward_the_loss_and_the_data(make, tmp_path, teacher):
    class Failing(TinyNet):
        fail = False

        def forward(self, x):
            if self.fail and self.training:  # else the trial export at train begin meets it
                raise Boom
            return super().forward(x)

    model = hapi_model(Failing())
    found = fingerprint(model, teacher)
    model.network.fail = True
    with pytest.raises(Boom):
        fit(model, make(tmp_path, teacher))
    check_as_found(make, found, fingerprint(model, teacher), trained=False)
    model.network.fail = False
    with pytest.raises(Boom):
        fit(model, make(tmp_path, teacher), data=CrashingLoader(), evaluate=False)
    check_as_found(make, found, fingerprint(model, teacher), trained=True)


@pytest.mark.parametrize("make", CALLBACKS)
def test_the_order_of_the_callbacks_does_not_matter(make, tmp_path):
    results = []
    for turn in range(2):
        paddle.seed(5)
        model, teacher = hapi_model(), TinyNet(width=8)
        callbacks = make(tmp_path / str(turn), teacher)
        fit(model, callbacks[::-1] if turn else callbacks, epochs=2)
        results.append(weights_of(model.network))
    assert equal_weights(*results)


@pytest.mark.parametrize("make", CALLBACKS)
def test_in_evaluate_the_callbacks_do_nothing(make, tmp_path, teacher):
    model = hapi_model()
    fit(model)
    found = fingerprint(model, teacher)
    plain = model.evaluate(Images(), batch_size=8, verbose=0)
    assert model.evaluate(Images(), batch_size=8, verbose=0, callbacks=make(tmp_path, teacher)) == plain
    assert fingerprint(model, teacher) == found


@pytest.mark.parametrize("make", CALLBACKS)
def test_parameter_groups_are_refused_in_one_line(make, tmp_path, teacher):
    network = TinyNet()
    model = paddle.Model(network)
    groups = [{"params": network.conv1.parameters()}, {"params": network.fc.parameters(), "learning_rate": 0.1}]
    model.prepare(paddle.optimizer.SGD(0.1, parameters=groups), paddle.nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"made with 2 parameter groups, which paddle\.Model\.fit cannot use") as error:
        fit(model, make(tmp_path, teacher))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", CALLBACKS)
def test_an_unprepared_model_is_refused(make, tmp_path, teacher):
    model = paddle.Model(TinyNet())
    with pytest.raises(RuntimeError, match=r"call model\.prepare\(optimizer, loss\) before fit"):
        begin_by_hand(model, make(tmp_path, teacher))


@pytest.mark.parametrize("make", CALLBACKS)
def test_a_loop_of_ones_own_may_call_the_hooks(make, tmp_path, teacher):
    model = hapi_model()
    found = fingerprint(model, teacher)
    callbacks = make(tmp_path, teacher)
    begin_by_hand(model, callbacks)
    data, logs = Images(8), {}
    for callback in callbacks:
        callback.on_train_batch_begin(0, logs)
    model.train_batch([paddle.to_tensor(data.images)], [paddle.to_tensor(data.labels)])
    for callback in reversed(callbacks):
        callback.on_train_end()
    check_as_found(make, found, fingerprint(model, teacher), trained=True)


def test_the_figures_do_not_leak_into_the_logs_of_other_models(teacher):
    class Keep(paddle.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.keys = []

        def on_train_batch_end(self, step, logs=None):
            self.keys.append(set(logs))

    fit(hapi_model(), [DistillCallback(teacher)])
    keep = Keep()
    fit(hapi_model(), [keep])
    assert keep.keys
    assert not any("distill_loss" in keys for keys in keep.keys)


def test_two_fits_in_a_row_go_on_from_each_other(teacher):
    """Two fits of one epoch equal one of two: nothing is lost or set back in between."""
    paddle.seed(1)
    once, twice = TinyNet(), TinyNet()
    twice.set_state_dict({key: value.clone() for key, value in once.state_dict().items()})
    fit(hapi_model(once), [DistillCallback(teacher)], epochs=2)
    model = hapi_model(twice)
    for _ in range(2):
        fit(model, [DistillCallback(teacher)])
    for key, value in weights_of(once).items():
        np.testing.assert_array_equal(weights_of(twice)[key], value, err_msg=key)
