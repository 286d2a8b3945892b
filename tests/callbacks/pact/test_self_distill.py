"""`self_distill` against a `DistillCallback` by hand, and the choice between the weights before and after training."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from toy import Images, TinyNet, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback, PACTQuantCallback, prepare_pact_
from paddlelite_callbacks.callbacks.export.history import History
from paddlelite_callbacks.callbacks.pact.keep_better import better_of, state_of
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.prepare import quantized_layers


def start(**options):
    paddle.seed(3)
    return hapi_model(TinyNet(), **options)


class Relabelled(Images):
    """The same images with other labels."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, (label + 1) % 4


def test_it_is_distillation_from_a_copy_without_the_task_loss():
    mine, theirs = start(), start()
    fit(mine, [PACTQuantCallback(self_distill=True)], epochs=2)
    teacher = copy_network(theirs.network)
    fit(theirs, [DistillCallback(teacher, task_weight=0.0), PACTQuantCallback()], epochs=2)
    assert equal_weights(weights_of(mine.network), weights_of(theirs.network))


def test_labels_are_not_learned_and_the_loss_is_shown():
    seen = {}

    class Watch(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            seen.update(logs or {})

    one, other = start(), start()
    fit(one, [PACTQuantCallback(self_distill=True), Watch()], epochs=2)
    fit(other, [PACTQuantCallback(self_distill=True)], data=Relabelled(), epochs=2)
    assert equal_weights(weights_of(one.network), weights_of(other.network))
    assert {"task_loss", "distill_loss"} <= set(seen)


def test_only_pacts_own_edits_are_left_and_a_second_fit_keeps_the_first_teacher():
    model, plain = start(), start()
    callback = PACTQuantCallback(self_distill=True)
    fit(model, [callback])
    fit(plain, [PACTQuantCallback()])
    left, expected = fingerprint(model), fingerprint(plain)
    for key in ("model attributes", "hooks", "stop_gradient", "state keys"):
        assert left[key] == expected[key], key
    teacher = weights_of(callback._float_network)
    assert teacher.keys() == weights_of(TinyNet()).keys()
    fit(model, [callback])
    assert equal_weights(teacher, weights_of(callback._float_network))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_fit_that_is_left_early_is_undone(error):
    class Stop(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            raise error

    model = start()
    before = fingerprint(model)
    with pytest.raises(error):
        fit(model, [PACTQuantCallback(self_distill=True), Stop()])
    assert fingerprint(model) == before
    fit(model, [PACTQuantCallback(self_distill=True)])
    assert len(quantized_layers(model.network)) == 3


def test_resumed_with_the_float_network_as_teacher_bit_for_bit(tmp_path):
    def fresh():
        paddle.seed(3)
        network = TinyNet()
        teacher = copy_network(network)
        prepare_pact_(network)
        return hapi_model(network, optimizer="Adam", learning_rate=1e-3), teacher

    def run(epochs, load=None):
        with paddle.utils.unique_name.guard():  # as in a process of its own
            model, teacher = fresh()
            if load:
                model.load(load)
            fit(model, [PACTQuantCallback(self_distill=teacher, freeze_bn_after=0)], epochs=epochs)
            model.save(str(tmp_path / f"after{epochs}{bool(load)}"))
            return weights_of(model.network)

    whole = run(4)
    run(2)
    assert equal_weights(run(2, load=str(tmp_path / "after2False")), whole)


def test_what_cannot_be_is_refused():
    quantised = start()
    prepare_pact_(quantised.network)
    with pytest.raises(ValueError, match="quantised already: give the float network, self_distill=float_network"):
        fit(quantised, [PACTQuantCallback(self_distill=True)])
    model = start()
    with pytest.raises(ValueError, match="there is a DistillCallback too"):
        fit(model, [DistillCallback(TinyNet()), PACTQuantCallback(self_distill=True)])
    with pytest.raises(ValueError, match="keep_better must be True or False, got 'yes'"):
        PACTQuantCallback(keep_better="yes")


def test_few_batches_with_labels_are_warned_about(caplog):
    fit(start(), [PACTQuantCallback()], epochs=2)
    assert "4 batches are few to learn from labels with quantised layers (fewer than 100)" in caplog.text
    caplog.clear()
    fit(start(), [PACTQuantCallback(self_distill=True)], epochs=2)
    fit(start(), [PACTQuantCallback(), DistillCallback(TinyNet())], epochs=2)
    assert "few to learn" not in caplog.text


def untrained_quantised(model):
    """The network as it was, calibrated on the first batch, in eval mode."""
    network = copy_network(model.network)
    prepare_pact_(network)
    network.train()
    statistics = weights_of(network)
    with paddle.no_grad():
        network(paddle.to_tensor(Images().images[:8]))
    network.set_state_dict({key: value for key, value in statistics.items() if "quanter" not in key})
    network.eval()
    return network


@pytest.mark.parametrize(("rate", "kept"), [(30.0, "start"), (0.02, "end")])
def test_the_better_of_start_and_end_stays(rate, kept, caplog):
    model = start()
    fit(model, epochs=10)
    expected = untrained_quantised(model)
    model.prepare(
        paddle.optimizer.SGD(rate, parameters=model.network.parameters()),
        paddle.nn.CrossEntropyLoss(),
        paddle.metric.Accuracy() if kept == "start" else None,
    )
    callback = PACTQuantCallback(self_distill=False, eval_data=Images())
    fit(model, [callback], epochs=1)
    choice = callback.choice
    assert choice.kept == kept, choice
    assert choice.line() in callback.notes()
    assert (choice.line() in caplog.text) == (kept == "start")
    result = weights_of(model.network)
    same = {key: np.allclose(result[key], value, rtol=1e-6) for key, value in weights_of(expected).items()}
    assert all(same.values()) == (kept == "start"), same


def test_the_weights_from_before_compete_for_the_best_epoch():
    history = History(keep_best=True, monitor=None, mode="auto")
    network = TinyNet()
    history.trained(0, {"loss": 1.0}, ["acc"])
    history.evaluated(network, {"loss": 1.0, "acc": 0.5}, ["acc"])
    before = {key: value + 1 for key, value in weights_of(network).items()}
    history.consider({"acc": 0.4}, before)
    assert history.epoch == 1
    history.consider({"loss": 0.1}, before)  # another metric
    assert history.epoch == 1
    history.consider({"acc": 0.6}, before)
    assert history.epoch == 0
    assert equal_weights(history.state, before)


def test_an_interrupted_choice_leaves_the_trained_weights():
    network = TinyNet()
    trained = weights_of(network)
    other = {key: value + 1 for key, value in trained.items()}
    answers = iter([("acc", 0.5), KeyboardInterrupt])

    def evaluate():
        answer = next(answers)
        if answer is KeyboardInterrupt:
            raise KeyboardInterrupt
        return answer

    with pytest.raises(KeyboardInterrupt):
        better_of(network, other, evaluate, lambda a, b, _: a > b)
    assert equal_weights(state_of(network), trained)
