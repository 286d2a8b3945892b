"""Deep mutual learning against a hand-written loop of two networks."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from byhand import CE, Log, assert_same, batches, twin
from paddle import nn
from toy import Images, TinyNet, copied_weights, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback, MutualPeer
from paddlelite_callbacks.distill.losses.logits import dml
from paddlelite_callbacks.distill.schedules import stop_at


def adam(network, rate=0.01):
    return paddle.optimizer.Adam(rate, parameters=network.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_both_networks_equal_a_hand_written_loop(accumulate):
    student, peer = TinyNet(), TinyNet(width=6)
    one, two = twin(student, TinyNet), twin(peer, lambda: TinyNet(width=6))
    data, stream = Images(32), batches(Images(32))
    updaters = [paddle.optimizer.Momentum(0.05, parameters=one.parameters()), adam(two)]
    for step in range(4):
        images, labels = next(stream)
        one.train(), two.train()
        a, b = one(images), two(images)
        (0.5 * CE(a, labels) + 2.0 * dml(a, b)).backward()
        (0.5 * CE(b, labels) + 2.0 * dml(b, a)).backward()
        if (step + 1) % accumulate == 0:
            for updater in updaters:
                updater.step()
                updater.clear_grad()
    model = hapi_model(student)
    found = fingerprint(model, peer)
    callback = DistillCallback(MutualPeer(peer, adam(peer)), loss="dml", task_weight=0.5, weight=2.0)
    fit(model, [callback], data=data, evaluate=False, accumulate_grad_batches=accumulate)
    assert_same(student, one)
    assert_same(peer, two, atol=5e-6)
    assert fingerprint(model, peer) == found
    assert all(p.grad is None or not p.grad.abs().sum() for p in peer.parameters())


def test_both_improve_and_the_figures_tell_which_is_better():
    model, peer, log = hapi_model(), TinyNet(width=6), Log()
    mutual = MutualPeer(peer, adam(peer, 0.02))
    callback = DistillCallback(mutual, loss="dml")
    before = [
        float(CE(n(paddle.to_tensor(Images().images)), paddle.to_tensor(Images().labels)))
        for n in (model.network, peer)
    ]
    fit(model, [log, callback], epochs=10)
    images, labels = paddle.to_tensor(Images().images), paddle.to_tensor(Images().labels)
    for network, name, start in zip((model.network, peer), ("student", "peer"), before, strict=True):
        network.eval()
        loss = float(CE(network(images), labels))
        assert loss < start
        assert mutual.figures[name]["loss"] == pytest.approx(loss, rel=1e-4)
        accuracy = float((network(images).argmax(axis=-1) == labels).astype("float32").mean())
        assert mutual.figures[name]["acc"] == pytest.approx(accuracy)
    assert all("peer_loss" in logs for logs in log.seen)
    assert mutual.better in ("student", "peer")


class Fixed(paddle.callbacks.Callback):
    """Keep what the figures and weights were when training ended."""

    def on_eval_end(self, logs=None):
        self.logs = dict(logs)

    def on_train_end(self, logs=None):
        self.weights = weights_of(self.model.network)


@pytest.mark.parametrize("keep", ["better", "student"])
@pytest.mark.parametrize("monitor", [None, "loss", "acc"])
def test_the_better_one_is_kept_in_the_last_checkpoint_too(tmp_path, keep, monitor):
    """The student hardly learns, its peer does."""
    network, peer = TinyNet(), TinyNet()
    model = hapi_model(network, learning_rate=1e-6)
    mutual = MutualPeer(peer, adam(peer, 0.02), keep=keep, monitor=monitor)
    at_end = Fixed()
    fit(model, [at_end, DistillCallback(mutual, loss="dml")], epochs=12, save_dir=str(tmp_path), save_freq=100)
    assert mutual.better == "peer"
    assert at_end.logs["peer_acc"] > at_end.logs["acc"]
    result = model.evaluate(Images(), batch_size=16, verbose=0)
    which = "peer" if keep == "better" else "student"
    assert result["acc"] == pytest.approx(mutual.figures[which]["acc"])
    final = paddle.load(str(tmp_path / "final.pdparams"))
    for key, value in weights_of(network).items():
        np.testing.assert_array_equal(final[key].numpy(), value)
    assert equal_weights(at_end.weights, weights_of(peer if keep == "better" else network))
    assert set(result) == {"loss", "acc"}


def test_a_better_peer_of_another_architecture_stays_where_it_is(caplog):
    model, peer = hapi_model(learning_rate=1e-6), TinyNet(width=8)
    mutual = MutualPeer(peer, adam(peer, 0.02))
    fit(model, [DistillCallback(mutual, loss="dml")], epochs=12)
    assert mutual.better == "peer"
    assert "stay in the peer's network" in caplog.text


def test_without_an_evaluation_nothing_is_exchanged():
    model, peer = hapi_model(learning_rate=1e-6), TinyNet()
    mutual = MutualPeer(peer, adam(peer, 0.02))
    before = weights_of(model.network)["fc.weight"]
    fit(model, [DistillCallback(mutual, loss="dml")], epochs=6, evaluate=False)
    assert mutual.better is None
    np.testing.assert_allclose(weights_of(model.network)["fc.weight"], before, atol=1e-3)


def test_the_peers_scheduler_is_stepped_once_a_batch_and_the_students_not_twice():
    model, peer = hapi_model(), TinyNet()
    own = paddle.optimizer.lr.StepDecay(0.1, step_size=2, gamma=0.5)
    fit(model, [DistillCallback(MutualPeer(peer, adam(peer, own)), loss="dml")], epochs=2)
    assert own() == pytest.approx(0.025)
    shared = paddle.optimizer.lr.StepDecay(0.1, step_size=2, gamma=0.5)
    network = TinyNet()
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.SGD(shared, parameters=network.parameters()), CE)
    peer = TinyNet()
    fit(model, [DistillCallback(MutualPeer(peer, adam(peer, shared)), loss="dml")], epochs=2)
    assert shared() == pytest.approx(0.025)


def test_evaluate_outside_fit_does_not_run_the_peer():
    model, peer = hapi_model(), TinyNet()
    fit(model, [DistillCallback(MutualPeer(peer, adam(peer)), loss="dml")])
    calls = []
    peer.register_forward_post_hook(lambda *_: calls.append(1))
    model.evaluate(Images(), batch_size=8, verbose=0)
    model.predict(Images(), batch_size=8, verbose=0)
    assert not calls


def test_predict_inside_fit_does_not_run_the_peer():
    class Predicts(paddle.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.predict_batch([paddle.to_tensor(Images().images)])
            self.calls = len(calls)

    model, peer, calls = hapi_model(), TinyNet(), []
    peer.register_forward_post_hook(lambda *_: calls.append(1))
    predicts = Predicts()
    fit(model, [predicts, DistillCallback(MutualPeer(peer, adam(peer)), loss="dml")], evaluate=False)
    assert predicts.calls == 2  # the two training batches


def test_peers_that_cannot_be():
    model, peer = hapi_model(), TinyNet()
    with pytest.raises(ValueError, match="peer shares 9 parameters with the student"):
        fit(model, [DistillCallback(MutualPeer(model.network, adam(model.network)))])
    with pytest.raises(ValueError, match="needs an optimizer of its own"):
        fit(model, [DistillCallback(MutualPeer(peer, model._optimizer))])
    with pytest.raises(ValueError, match=r"monitor must be one of \['loss', 'acc'\], got 'f1'"):
        fit(model, [DistillCallback(MutualPeer(peer, adam(peer), monitor="f1"))])
    with pytest.raises(ValueError, match="features need a frozen teacher, a Mutual has only outputs"):
        fit(model, [DistillCallback(MutualPeer(peer, adam(peer)), features={"conv1": "conv1"})])
    with pytest.raises(TypeError, match=r"network must be a paddle\.nn\.Layer, got int"):
        MutualPeer(3, adam(peer))
    with pytest.raises(TypeError, match=r"optimizer must be a paddle\.optimizer\.Optimizer, got float"):
        MutualPeer(peer, 0.1)
    with pytest.raises(ValueError, match="keep must be 'better' or 'student', got 'peer'"):
        MutualPeer(peer, adam(peer), keep="peer")
    five = TinyNet(outputs=5)
    with pytest.raises(ValueError, match=r"student's output \[8, 4\] and the teacher's \[8, 5\]"):
        fit(hapi_model(), [DistillCallback(MutualPeer(five, adam(five)))])


def test_a_student_with_several_outputs_and_a_peer():
    class Pair(nn.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.b = TinyNet(), TinyNet(outputs=2)

        def forward(self, x):
            return self.a(x), self.b(x)

    def loss(a, b, labels):
        return [CE(a, labels), b.square().mean()]

    student, peer = Pair(), Pair()
    copied_weights(student, peer)
    model = hapi_model(student, loss=loss, metrics=False)
    mutual = MutualPeer(peer, paddle.optimizer.Momentum(0.05, parameters=peer.parameters()))
    fit(model, [DistillCallback(mutual, loss="mse")], epochs=2)
    assert_same(student, peer)  # twins on the same data stay twins


def test_where_mimicry_stops_both_go_on_alone():
    student, peer = TinyNet(), TinyNet(width=6)
    one, two = twin(student, TinyNet), twin(peer, lambda: TinyNet(width=6))
    updaters = [paddle.optimizer.Momentum(0.05, parameters=one.parameters()), adam(two)]
    stream = batches(Images(16))
    for step in range(4):
        images, labels = next(stream)
        a, b = one(images), two(images)
        mimicry = 1.0 if step < 2 else 0.0
        (CE(a, labels) + mimicry * dml(a, b)).backward()
        (CE(b, labels) + mimicry * dml(b, a)).backward()
        for updater in updaters:
            updater.step()
            updater.clear_grad()
    callback = DistillCallback(MutualPeer(peer, adam(peer)), loss="dml", weight=stop_at(1))
    fit(hapi_model(student), [callback], epochs=2, evaluate=False)
    assert_same(student, one)
    assert_same(peer, two, atol=5e-6)
