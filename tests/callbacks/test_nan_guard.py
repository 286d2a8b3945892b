"""A loss that is not finite stops the training, or is left out, before it touches anything; and it is named."""

from __future__ import annotations

import logging

import numpy as np
import paddle
import pytest
from byhand import CE, Log, batches, hinton, taught, train_by_hand, twin
from exporting import grouped
from paddle import nn
from toy import Images, TinyNet, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import (
    DistillCallback,
    ExportBenchCallback,
    FeatureTerm,
    MutualPeer,
    NonFiniteLossError,
    PACTQuantCallback,
    cache_teacher,
)
from paddlelite_callbacks.callbacks.batch_state import BatchState
from paddlelite_callbacks.quant.prepare import trained_scales

NAN, INF = float("nan"), float("inf")
BAD = 2  # of the batches, counted from 0; Images(32) has four of eight


class SpoiltImages(Images):
    """``value`` in one pixel of one sample of batch `BAD`."""

    def __init__(self, value=NAN, count: int = 32):
        super().__init__(count)
        self.images[8 * BAD + 3, 0, 0, 0] = value


class SpoiltLoss(nn.CrossEntropyLoss):
    """Adds ``value`` in its call number ``at``; of training alone, where nobody evaluates."""

    def __init__(self, value=NAN, at: int = BAD):
        super().__init__()
        self.value, self.left = value, at

    def forward(self, *given):
        loss, self.left = super().forward(*given), self.left - 1
        return loss + self.value if self.left == -1 else loss


class Spoilt:
    """Forward post-hook that puts ``value`` into the output of its call number ``at``."""

    def __init__(self, layer, value=NAN, at: int = BAD):
        self.value, self.left = value, at
        layer.register_forward_post_hook(self)

    def __call__(self, layer, inputs, output):
        self.left -= 1
        return output + self.value if self.left == -1 else output


class Plain(TinyNet):
    """Without a batch norm."""

    def forward(self, x):
        return self.fc(self.conv2(self.relu(self.conv1(x))).mean(axis=[2, 3]))


def break_(weight) -> None:
    value = weight.numpy()
    value.flat[0] = NAN
    weight.set_value(value)


def spoilt_loss_of(value=NAN, at: int = BAD):
    calls = []

    def spoilt(student, teacher):
        calls.append(1)
        loss = ((student - teacher) ** 2).mean()
        return loss + value if len(calls) == at + 1 else loss

    return spoilt


def stopped(model, callbacks, data=None, **options) -> NonFiniteLossError:
    with pytest.raises(NonFiniteLossError) as caught:
        fit(model, callbacks, data=data or Images(32), evaluate=False, **options)
    return caught.value


def clean_hand_run(student, teacher, *, data, left_out=(), steps=4, optimizer="Momentum", accumulate=1):
    """The hand-written loop, without the batches ``left_out``."""
    stream = batches(data)
    parameters = student.parameters()
    updater = getattr(paddle.optimizer, optimizer)(0.05, parameters=parameters)
    fresh = 0
    for step in range(steps):
        student.train()
        images, labels = next(stream)
        if step not in left_out:
            logits = student(images)
            loss = CE(logits, labels)
            (loss if teacher is None else loss + hinton(logits, taught(teacher, images))).backward()
            fresh += 1
        if (step + 1) % accumulate == 0 and fresh:
            updater.step()
            updater.clear_grad()
            fresh = 0


# --- what is named, for each term ---


def test_the_task_loss(caplog):
    error = stopped(hapi_model(loss=SpoiltLoss()), [DistillCallback(TinyNet())])
    assert (error.epoch, error.batch, error.terms) == (0, BAD, ("task_loss",))
    assert "epoch 0, batch 2 (both counted from 0): task_loss is nan" in str(error)
    assert "on_nan='skip'" in str(error)
    assert isinstance(error, FloatingPointError)


def test_a_later_epoch_and_an_infinite_loss():
    error = stopped(hapi_model(loss=SpoiltLoss(INF, at=4 + BAD)), [DistillCallback(TinyNet())], epochs=2)
    assert (error.epoch, error.batch, error.terms) == (1, BAD, ("task_loss",))
    assert "task_loss is inf" in str(error)


def test_one_of_several_distillation_losses():
    callback = DistillCallback(TinyNet(), loss=["kl", spoilt_loss_of()])
    error = stopped(hapi_model(), [callback])
    assert (error.batch, error.terms) == (BAD, ("distill_spoilt",))
    assert "distill_spoilt is nan (outputs)" in str(error)


@pytest.mark.parametrize("loss", [spoilt_loss_of(), spoilt_loss_of(-INF)])
def test_a_pair_of_layers(loss):
    terms = [FeatureTerm("conv1", "conv1", name="low"), FeatureTerm("conv2", "bn1", loss=loss, project=True)]
    error = stopped(hapi_model(), [DistillCallback(TinyNet(width=8), features=terms)])
    assert (error.batch, error.terms) == (BAD, ("distill_spoilt:conv2",))
    assert "features 'conv2' -> 'bn1'" in str(error)


def test_the_teacher():
    teacher = TinyNet()
    Spoilt(teacher.fc)
    error = stopped(hapi_model(), [DistillCallback(teacher)])
    assert (error.batch, error.terms) == (BAD, ("distill_kl",))
    assert "the teacher's output with 32 NaN of 32 values" in str(error)
    assert "Check the teacher's weights" in str(error)


def test_one_of_two_teachers_by_its_number():
    teachers = [TinyNet(), TinyNet()]
    Spoilt(teachers[1].fc, INF)
    error = stopped(hapi_model(), [DistillCallback(teachers, combine="each")])
    assert error.terms == ("distill_kl@1",)
    assert "the teacher 1 of 2's output with 32 infinite" in str(error)


def test_a_teacher_with_broken_weights():
    teacher = TinyNet()
    break_(teacher.fc.weight)
    with pytest.raises(ValueError, match=r"before the training has begun: fc\.weight of the teacher with 1 NaN of 16"):
        fit(hapi_model(), [DistillCallback(teacher)])
    model = hapi_model()
    break_(model.network.conv1.weight)
    with pytest.raises(ValueError, match=r"conv1\.weight of the network with 1 NaN of 108 values"):
        fit(model, [PACTQuantCallback()])


def test_a_teachers_layer():
    teacher = TinyNet()
    Spoilt(teacher.conv2)
    error = stopped(hapi_model(), [DistillCallback(teacher, features={"conv2": "conv2"})])
    assert error.terms == ("distill_fitnet:conv2",)
    assert "the teacher's layer conv2 with" in str(error)


def test_the_data():
    error = stopped(hapi_model(), [DistillCallback(TinyNet())], data=SpoiltImages())
    assert error.batch == BAD
    assert error.terms == ()  # the ReLU behind the first batch norm gave zeros; the gradients would have been NaN
    assert "the loss hides it, since a ReLU turns NaN into 0" in str(error)
    assert "It comes from input 0 with 1 NaN of 1536 values" in str(error)
    assert "Clean this batch of the data" in str(error)


def test_arrays_of_a_loader_of_ones_own():
    class Arrays:
        def __len__(self):
            return 4

        def __iter__(self):
            data = SpoiltImages()
            for i in range(0, 32, 8):
                yield data.images[i : i + 8], data.labels[i : i + 8]

    model = hapi_model()
    with pytest.raises(NonFiniteLossError, match="input 0 with 1 NaN of 1536 values") as caught:
        model.fit(Arrays(), verbose=0, callbacks=[DistillCallback(TinyNet())])
    assert caught.value.batch == BAD


def test_stored_outputs(tmp_path):
    teacher, data = TinyNet(), Images(32)
    Spoilt(teacher.fc)
    cached = cache_teacher(teacher, data, tmp_path / "stored", batch_size=8, verbose=0)
    error = stopped(hapi_model(), [DistillCallback(cached, loss="mse")], data=cached)
    assert error.terms == ("distill_mse",)
    assert "the stored teacher's output" in str(error)


def test_the_peer_of_mutual_learning():
    peer = TinyNet()
    Spoilt(peer.fc)
    mutual = MutualPeer(peer, paddle.optimizer.Momentum(0.05, parameters=peer.parameters()))
    error = stopped(hapi_model(), [DistillCallback(mutual)])
    assert set(error.terms) == {"distill_kl", "peer_loss"}
    assert "the peer's output" in str(error)


def test_weights_that_an_earlier_step_broke():
    class Breaker(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step == BAD - 1:
                break_(self.model.network.conv2.weight)

    for policy in ("raise", "skip"):  # to leave batches out would not mend it
        model = hapi_model()
        error = stopped(model, [DistillCallback(TinyNet(), on_nan=policy), Breaker()])
        assert error.batch == BAD
        assert "conv2.weight of the network with 1 NaN of 144 values" in str(error)
        assert "go back to a checkpoint" in str(error)


@pytest.mark.parametrize("make", [lambda: DistillCallback(Plain()), PACTQuantCallback], ids=["distill", "pact"])
def test_weights_that_break_unseen_are_not_saved(make, tmp_path):
    """Without batch norm the ReLU hides what the gradient did; the end of the epoch looks, before the checkpoint."""

    class Breaker(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step == 3:
                break_(self.model.network.conv1.weight)

    with pytest.raises(
        NonFiniteLossError, match=r"at the end of epoch 0.*conv1\.weight of the network with 1 NaN of 108"
    ):
        fit(hapi_model(Plain()), [make(), Breaker()], data=Images(32), evaluate=False, save_dir=str(tmp_path / "ck"))
    assert not (tmp_path / "ck").exists()


def test_pact_alone():
    error = stopped(hapi_model(loss=SpoiltLoss()), [PACTQuantCallback()])
    assert (error.batch, error.terms) == (BAD, ("task_loss",))


@pytest.mark.parametrize("method", ["pact", "lsq"])
def test_an_alpha_that_became_nan(method):
    class Breaker(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step == BAD - 1:
                break_(trained_scales(self.model.network)[0])

    for others in ([], [DistillCallback(TinyNet())]):
        model = hapi_model()
        error = stopped(model, [PACTQuantCallback(method=method), *others, Breaker()])
        assert error.batch == BAD
        assert ".alpha of the network with 1 NaN" in str(error)


def test_a_list_of_task_losses():
    def two(output, label):
        return [CE(output, label), CE(output, label) * (NAN if next(calls) == BAD else 1.0)]

    calls = iter(range(100))
    error = stopped(hapi_model(loss=two), [PACTQuantCallback()])
    assert error.terms == ("task_loss[1]",)


# --- what is left as it was ---


def test_at_the_raise_the_weights_are_those_before_the_batch():
    student, teacher = TinyNet(), TinyNet()
    by_hand = twin(student, TinyNet)
    model = hapi_model(student)
    found = fingerprint(model, teacher)
    stopped(model, [DistillCallback(teacher)], data=SpoiltImages())
    assert fingerprint(model, teacher) == found
    clean_hand_run(by_hand, teacher, data=Images(32), steps=BAD)
    for key, value in weights_of(by_hand).items():  # batch-norm statistics too, which the forward pass had spoilt
        np.testing.assert_allclose(weights_of(student)[key], value, atol=1e-6, err_msg=key)
    assert all(p.grad is None or not p.grad.abs().sum() for p in student.parameters())
    fit(model, [DistillCallback(teacher)])  # and training can go on


@pytest.mark.parametrize("optimizer", ["Momentum", "Adam"])
@pytest.mark.parametrize("make", [lambda t: DistillCallback(t, on_nan="skip"), None], ids=["distill", "pact"])
def test_skipping_equals_a_run_without_that_batch(make, optimizer):
    """Bit for bit: weights, statistics and the optimizer's state, for spoilt data and for a spoilt loss."""

    class Without(Images):
        def __getitem__(self, index):
            return super().__getitem__(index if index < 8 * BAD else index + 8)

        def __len__(self):
            return super().__len__() - 8

    for spoil in ("data", "loss"):
        results = []
        for data in ((SpoiltImages() if spoil == "data" else Images(32)), Without(32)):
            paddle.seed(3)
            student, teacher = TinyNet(), TinyNet()
            loss = SpoiltLoss() if spoil == "loss" and len(data) == 32 else CE
            model = hapi_model(student, optimizer=optimizer, loss=loss, learning_rate=0.01)
            callback = PACTQuantCallback(on_nan="skip") if make is None else make(teacher)
            fit(model, [callback], data=data, evaluate=False)
            state = model._optimizer.state_dict()
            results.append(
                [weights_of(student), *(v.numpy() for k, v in state.items() if isinstance(v, paddle.Tensor))]
            )
        assert equal_weights(results[0][0], results[1][0])
        assert len(results[0]) > 5
        for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bad", [(1,), (2,), (2, 3), (0, 1)])
def test_skipping_while_gradients_are_accumulated(bad):
    """A window's step is taken with the gradients of its good batches, and not at all where there is none."""
    data = Images(32)
    for batch in bad:
        data.images[8 * batch] = INF
    student = TinyNet()
    by_hand = twin(student, TinyNet)
    model, teacher = hapi_model(student), TinyNet()
    fit(model, [DistillCallback(teacher, on_nan="skip")], data=data, evaluate=False, accumulate_grad_batches=2)
    clean_hand_run(by_hand, teacher, data=Images(32), left_out=bad, accumulate=2)
    for key, value in weights_of(by_hand).items():
        np.testing.assert_allclose(weights_of(student)[key], value, atol=1e-6, err_msg=key)


def test_skipping_with_a_peer_and_with_projections():
    results = []
    for spoil in (False, True):
        paddle.seed(3)
        student, peer = TinyNet(), TinyNet()
        if spoil:
            Spoilt(peer.fc, at=3)  # a fourth batch that is left out: the third run equals three batches
        mutual = MutualPeer(peer, paddle.optimizer.Adam(0.01, parameters=peer.parameters()))
        model = hapi_model(student, optimizer="Adam", learning_rate=0.01)
        fit(model, [DistillCallback(mutual, on_nan="skip")], data=Images(32 if spoil else 24), evaluate=False)
        results += [weights_of(student), weights_of(peer)]
    assert equal_weights(results[0], results[2])
    assert equal_weights(results[1], results[3])
    results = []
    for spoil in (False, True):
        paddle.seed(3)
        teacher = TinyNet(width=8)
        if spoil:
            Spoilt(teacher.conv2, at=3)
        callback = DistillCallback(teacher, features={"conv2": "conv2"}, on_nan="skip")
        model = hapi_model()
        fit(model, [callback], data=Images(32 if spoil else 24), evaluate=False)
        results += [weights_of(model.network), weights_of(callback.bridges)]
    assert results[1]
    assert equal_weights(results[0], results[2])
    assert equal_weights(results[1], results[3])


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_with_amp_the_loss_scaling_does_not_hear_of_a_skipped_batch(level):
    """The scaler's own search for infinite gradients goes on; its count of good steps is that of the others."""
    scales = []
    for count, data in ((4, SpoiltImages()), (3, Images(24))):
        paddle.seed(3)
        network, teacher = TinyNet(), TinyNet()
        model = paddle.Model(network)
        optimizer = paddle.optimizer.Momentum(0.05, parameters=network.parameters())
        amp = {"level": level, "init_loss_scaling": 1024.0, "incr_every_n_steps": 2}
        model.prepare(optimizer, nn.CrossEntropyLoss(), amp_configs=amp)
        log = Log()
        fit(model, [DistillCallback(teacher, on_nan="skip"), log], data=data, evaluate=False)
        assert len(log.seen) == count
        scales.append(model._scaler.state_dict())
    assert {k: str(v) for k, v in scales[0].items()} == {k: str(v) for k, v in scales[1].items()}


def test_a_finite_loss_with_infinite_scaled_gradients_is_the_scalers_business():
    network, teacher = TinyNet(), TinyNet()
    model = paddle.Model(network)
    optimizer = paddle.optimizer.Momentum(0.05, parameters=network.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss(), amp_configs={"level": "O1", "init_loss_scaling": 2.0**127})
    fit(model, [DistillCallback(teacher)], evaluate=False)  # does not stop
    assert all(np.isfinite(value).all() for value in weights_of(network).values())


def test_calibration_waits_for_a_finite_batch():
    data = Images(32)
    data.images[0] = NAN
    model = hapi_model()
    fit(model, [PACTQuantCallback(on_nan="skip")], data=data, evaluate=False)
    assert all(0 < float(alpha) < 100 for alpha in trained_scales(model.network))
    assert all(np.isfinite(value).all() for value in weights_of(model.network).values())


# --- how it is counted, agreed and switched off ---


def test_skipped_batches_are_counted_and_logged(caplog):
    log, data = Log(), Images(48)
    for batch in (1, 2, 3, 5):
        data.images[8 * batch] = NAN
    with caplog.at_level(logging.WARNING):
        fit(hapi_model(), [log, DistillCallback(TinyNet(), on_nan="skip")], data=data, evaluate=False)
    assert [logs["skipped_batches"] for logs in log.seen] == [0, 1, 2, 3, 3, 4]
    said = [record.message for record in caplog.records if record.message.startswith("Left out")]
    assert len(said) == 3
    assert said[-1].endswith("Further ones are counted only.")


def test_the_record_says_how_many(tmp_path):
    quick = {"warmup": 1, "repeats": 2, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}
    export = ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], **quick))
    fit(hapi_model(), [export, PACTQuantCallback(on_nan="skip")], data=SpoiltImages(), evaluate=False)
    assert any("1 batch was left out" in note and "epoch 0, batch 2" in note for note in export.record.notes)
    assert export.record.history[-1]["skipped_batches"] == 1


def test_a_loop_of_ones_own():
    """Without hapi's hooks for epochs and batches the batches are counted."""
    model, data = hapi_model(), SpoiltImages()
    callback = DistillCallback(TinyNet())
    callback.set_model(model)
    callback.set_params({"metrics": ["loss"]})
    callback.on_train_begin()
    stream = batches(data)
    for _ in range(BAD):
        model.train_batch(*([x] for x in next(stream)))
    images, labels = next(stream)
    with pytest.raises(NonFiniteLossError) as caught:
        model.train_batch([images], [labels])
    assert caught.value.batch == BAD
    callback.close()


def test_the_metrics_see_no_skipped_batch():
    log = Log()
    fit(hapi_model(), [log, DistillCallback(TinyNet(), on_nan="skip")], data=SpoiltImages(), evaluate=False)
    assert log.seen[BAD]["acc"] == log.seen[BAD - 1]["acc"]


def test_callbacks_of_one_fit_agree():
    both = [DistillCallback(TinyNet(), on_nan="skip"), PACTQuantCallback()]
    fit(hapi_model(), both, data=SpoiltImages(), evaluate=False)
    with pytest.raises(ValueError, match=r"need the same on_nan=, got \{'DistillCallback': 'skip', 'PACTQ.*'raise'\}"):
        fit(hapi_model(), [both[0], PACTQuantCallback(on_nan="raise")])


def test_ignore_lets_it_through():
    model = hapi_model()
    fit(model, [DistillCallback(TinyNet(), on_nan="ignore")], data=SpoiltImages(), evaluate=False)
    assert any(np.isnan(value).any() for value in weights_of(model.network).values())


@pytest.mark.parametrize("make", [lambda on_nan: DistillCallback(TinyNet(), on_nan=on_nan), None])
def test_an_unknown_policy_is_refused(make):
    with pytest.raises(ValueError, match=r"on_nan must be one of \['raise', 'skip', 'ignore'\].*got 'stop'"):
        PACTQuantCallback(on_nan="stop") if make is None else make("stop")


@pytest.mark.parametrize("on_nan", ["raise", "skip", "ignore"])
def test_a_clean_training_is_the_same_bit_for_bit(on_nan):
    student, teacher = TinyNet(dropout=0.3), TinyNet()
    by_hand = twin(student, lambda: TinyNet(dropout=0.3))
    data = Images(32)
    paddle.seed(9)
    fit(hapi_model(student), [DistillCallback(teacher, on_nan=on_nan)], data=data, evaluate=False)
    paddle.seed(9)

    def loss(step, images, labels):
        soft = taught(teacher, images)
        logits = by_hand(images)
        return CE(logits, labels) + hinton(logits, soft)

    train_by_hand(by_hand, loss, steps=4, data=data)
    for key, value in weights_of(by_hand).items():
        np.testing.assert_allclose(weights_of(student)[key], value, atol=1e-6, err_msg=key)


def test_nothing_noted_outlives_its_batch():
    model = hapi_model()
    callback = DistillCallback(TinyNet())
    seen = []

    class Look(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            seen.append(callback.session.batch == BatchState())

    fit(model, [callback, Look()])
    assert seen == [True] * len(seen) != []


class Masked(TinyNet):
    """Holds a mask as those of attention are, and one of two axes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("mask", paddle.to_tensor([0.0, -INF, 0.0, 0.0]))
        self.register_buffer("square", paddle.to_tensor([[0.0, -INF], [0.0, 0.0]]))

    def forward(self, x):
        logits = super().forward(x)
        return logits + 0 * nn.functional.softmax(self.mask) + nn.functional.softmax(self.square).sum() - 2


@pytest.mark.parametrize("on_nan", ["raise", "skip"])
def test_infinite_masks_are_no_fault(on_nan):
    model, teacher = hapi_model(Masked()), Masked(width=8)
    fit(model, [DistillCallback(teacher, on_nan=on_nan), PACTQuantCallback(on_nan=on_nan)], evaluate=False, epochs=2)
    error = stopped(hapi_model(Masked(), loss=SpoiltLoss()), [DistillCallback(teacher)])
    assert (error.batch, error.terms) == (BAD, ("task_loss",))


def test_a_mask_that_became_nan_is_one():
    network = Masked()
    network.square.set_value(np.full([2, 2], NAN, "float32"))
    with pytest.raises(ValueError, match="square of the network with 4 NaN of 4 values"):
        fit(hapi_model(network), [DistillCallback(Masked(width=8))])


class Huge(Images):
    """Finite pixels whose sum over a batch overflows float32."""

    def __init__(self, dtype="float32"):
        super().__init__(32)
        self.images = (np.abs(self.images) * 1e37).astype(dtype)


class Shrunk(nn.Layer):
    def __init__(self):
        super().__init__()
        self.body = Plain()

    def forward(self, x):
        return self.body((x * 1e-37).astype("float32"))


@pytest.mark.parametrize("on_nan", ["raise", "skip"])
@pytest.mark.parametrize("make", [lambda: DistillCallback(Shrunk(), on_nan="raise"), PACTQuantCallback])
def test_finite_inputs_whose_sum_overflows_are_no_fault(make, on_nan):
    """The guard's own sum is infinite, nothing that the training computes is."""
    network, plain = Shrunk(), Shrunk()
    plain.set_state_dict({key: value.clone() for key, value in network.state_dict().items()})
    callback, silent = make(), make()
    callback.on_nan, silent.on_nan = on_nan, "ignore"
    if isinstance(callback, DistillCallback):
        silent.teacher.set_state_dict(callback.teacher.state_dict())
    fit(hapi_model(network), [callback], data=Huge(), evaluate=False)
    fit(hapi_model(plain), [silent], data=Huge(), evaluate=False)
    assert equal_weights(weights_of(network), weights_of(plain))


def test_a_float64_loss_beyond_float32_is_no_fault():
    class Large(nn.CrossEntropyLoss):
        def forward(self, *given):
            return super().forward(*given).astype("float64") + 1e60

    network, plain = Plain(), Plain()
    plain.set_state_dict({key: value.clone() for key, value in network.state_dict().items()})
    fit(hapi_model(network, loss=Large()), [DistillCallback(Plain(), weight=0.0)], evaluate=False)
    fit(hapi_model(plain), evaluate=False)
    assert equal_weights(weights_of(network), weights_of(plain))


def test_a_sum_of_finite_terms_that_overflows_blames_the_sum():
    huge = 2e38

    def distill(student, teacher):
        return (student - teacher).abs().mean() * 0 + huge

    class Task(nn.CrossEntropyLoss):
        def forward(self, *given):
            return super().forward(*given) * 0 + huge

    model = hapi_model(loss=Task())
    with pytest.raises(
        NonFiniteLossError, match=r"loss is inf, the weighted sum of the finite task_loss 2e\+38 and distill_"
    ) as raised:
        fit(model, [DistillCallback(Plain(), loss=distill)], evaluate=False)
    assert "Lower weight= and task_weight=" in str(raised.value)
    assert "process" not in str(raised.value)
    assert raised.value.terms == ("loss",)


class Counting(Plain):
    """A buffer that the forward pass of training batch `BAD` makes infinite; the outputs do not show it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", paddle.ones([2, 2]))
        self.left = BAD

    def forward(self, x):
        if self.training:
            self.left -= 1
            self.seen.set_value(self.seen * (INF if self.left == -1 else 1.0))
        return super().forward(x)


def test_a_buffer_that_only_this_batch_broke_is_named_in_a_run_of_one():
    model = hapi_model(Counting())
    with pytest.raises(
        NonFiniteLossError, match=r"seen of the network after this batch with 4 infinite of 4"
    ) as raised:
        fit(model, [DistillCallback(Plain())], data=Images(32), evaluate=False)
    assert "process" not in str(raised.value)
    assert np.array_equal(model.network.seen.numpy(), np.ones([2, 2]))
