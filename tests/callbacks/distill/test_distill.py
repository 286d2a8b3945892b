"""DistillCallback against hand-written dygraph loops."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from toy import CLASSES, Images, TinyNet, copied_weights, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback


def twin(network, **options):
    other = TinyNet(**options)
    copied_weights(network, other)
    return other


def hand_written(student, teacher, *, steps, distil, task, weight=1.0, data):
    optimizer = paddle.optimizer.Momentum(0.05, parameters=student.parameters())
    teacher.eval()
    for step in range(steps):
        student.train()
        batch = [data[(8 * step + i) % len(data)] for i in range(8)]
        images, targets = (paddle.to_tensor(np.stack(column)) for column in zip(*batch, strict=True))
        with paddle.no_grad():
            taught = teacher(images)
        output = student(images)
        loss = task(output, targets) + weight * distil(output, taught)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()


def hinton(s, t, temperature=4.0):
    return F.kl_div(F.log_softmax(s / temperature), F.softmax(t / temperature), reduction="batchmean") * temperature**2


def test_three_steps_equal_a_hand_written_loop():
    student, teacher = TinyNet(), TinyNet(width=8)
    by_hand, data = twin(student), Images(24)
    hand_written(by_hand, teacher, steps=3, distil=hinton, task=nn.CrossEntropyLoss(), data=data)
    fit(hapi_model(student), [DistillCallback(teacher)], data=data, evaluate=False)
    for key, value in weights_of(by_hand).items():
        np.testing.assert_allclose(weights_of(student)[key], value, atol=1e-6, err_msg=key)


def test_regression_distils_with_mse():
    student, teacher = TinyNet(outputs=3), TinyNet(outputs=3, width=8)
    by_hand, data = twin(student, outputs=3), Images(24, target="mean")
    hand_written(by_hand, teacher, steps=3, distil=F.mse_loss, task=nn.MSELoss(), weight=0.5, data=data)
    model = hapi_model(student, loss=nn.MSELoss(), metrics=False)
    fit(model, [DistillCallback(teacher, weight=0.5)], data=data, evaluate=False)
    for key, value in weights_of(by_hand).items():
        np.testing.assert_allclose(weights_of(student)[key], value, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Adam"])
def test_weight_zero_is_bit_identical_to_no_callback(optimizer):
    plain = TinyNet(dropout=0.3)
    distilled, teacher = twin(plain, dropout=0.3), TinyNet(dropout=0.5)
    paddle.seed(7)
    fit(hapi_model(plain, optimizer=optimizer), epochs=2)
    paddle.seed(7)
    fit(hapi_model(distilled, optimizer=optimizer), [DistillCallback(teacher, weight=0.0)], epochs=2)
    assert equal_weights(weights_of(plain), weights_of(distilled))


def test_the_teacher_stays_bit_identical_and_runs_once_a_batch():
    teacher = TinyNet(dropout=0.5)
    before, calls, flags = weights_of(teacher), [], [p.stop_gradient for p in teacher.parameters()]
    teacher.register_forward_post_hook(lambda layer, x, y: calls.append(layer.training))
    fit(hapi_model(), [DistillCallback(teacher)], epochs=2)
    assert equal_weights(before, weights_of(teacher))  # batch-norm statistics are among them
    assert calls == [False] * 4
    assert teacher.training
    assert [p.stop_gradient for p in teacher.parameters()] == flags


def test_the_teacher_is_in_no_checkpoint(tmp_path):
    model, plain = hapi_model(), hapi_model()
    fit(model, [DistillCallback(TinyNet(width=8))], save_dir=str(tmp_path / "a"), epochs=2)
    fit(plain, save_dir=str(tmp_path / "b"), epochs=2)
    for file in ("0", "final"):
        keys = paddle.load(str(tmp_path / "a" / f"{file}.pdparams")).keys()
        assert keys == paddle.load(str(tmp_path / "b" / f"{file}.pdparams")).keys()
        state = paddle.load(str(tmp_path / "a" / f"{file}.pdopt"))
        assert len(state) == len(paddle.load(str(tmp_path / "b" / f"{file}.pdopt")))


def test_the_losses_are_on_the_progress_bar_and_in_logs(capsys):
    class Keep(paddle.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_train_batch_end(self, step, logs=None):
            self.seen.append(dict(logs))

    keep, model, teacher = Keep(), hapi_model(), TinyNet()
    model.fit(
        Images(), Images(), batch_size=8, verbose=2, log_freq=1, callbacks=[keep, DistillCallback(teacher, weight=0.5)]
    )
    out = capsys.readouterr().out
    assert "task_loss: " in out
    assert "distill_loss: " in out
    for logs in keep.seen:
        assert logs["loss"][0] == pytest.approx(logs["task_loss"] + 0.5 * logs["distill_loss"], rel=1e-5)
    result = model.evaluate(Images(), batch_size=8, verbose=0)
    assert set(result) == {"loss", "acc"}


def test_evaluate_is_untouched():
    model, teacher = hapi_model(), TinyNet()
    fit(model, [DistillCallback(teacher)])
    by_hand = nn.CrossEntropyLoss()(model.network(paddle.to_tensor(Images().images)), paddle.to_tensor(Images().labels))
    assert model.evaluate(Images(), batch_size=16, verbose=0)["loss"][0] == pytest.approx(float(by_hand), rel=1e-5)


def test_teacher_given_as_hapi_model_and_own_loss():
    fit(hapi_model(), [DistillCallback(hapi_model(TinyNet()), loss=lambda s, t: (s - t).abs().max())])


def test_gradient_accumulation_equals_a_hand_written_loop():
    student, teacher = TinyNet(), TinyNet(width=8)
    by_hand = twin(student)
    optimizer = paddle.optimizer.Momentum(0.05, parameters=by_hand.parameters())
    data = Images(32)
    teacher.eval()
    for step in range(4):
        by_hand.train()
        images = paddle.to_tensor(data.images[8 * step : 8 * step + 8])
        output = by_hand(images)
        loss = nn.CrossEntropyLoss()(output, paddle.to_tensor(data.labels[8 * step : 8 * step + 8]))
        (loss + hinton(output, teacher(images).detach())).backward()
        if step % 2:
            optimizer.step()
            optimizer.clear_grad()
    teacher.train()
    fit(hapi_model(student), [DistillCallback(teacher)], data=data, evaluate=False, accumulate_grad_batches=2)
    for key, value in weights_of(by_hand).items():
        np.testing.assert_allclose(weights_of(student)[key], value, atol=1e-6, err_msg=key)


class Pair(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b = TinyNet(), TinyNet(outputs=2)

    def forward(self, x):
        return self.a(x), self.b(x)


def test_several_outputs_are_distilled_pairwise():
    model = hapi_model(Pair(), loss=lambda a, b, label: F.cross_entropy(a, label), metrics=False)
    teacher, seen = Pair(), []

    def record(s, t):
        seen.append((list(s.shape), list(t.shape)))
        return F.mse_loss(s, t)

    fit(model, [DistillCallback(teacher, loss=record)], evaluate=False)
    assert seen[:2] == [([8, CLASSES], [8, CLASSES]), ([8, 2], [8, 2])]


def test_wrong_teachers():
    with pytest.raises(TypeError, match=r"paddle\.nn\.Layer or a paddle\.Model, got int"):
        DistillCallback(3)
    with pytest.raises(FileNotFoundError, match=r"neither a checkpoint teacher\.pdparams"):
        DistillCallback("teacher.pdparams")
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0, got -1"):
        DistillCallback(TinyNet(), weight=-1)
    with pytest.raises(ValueError, match="temperature needs a named loss"):
        DistillCallback(TinyNet(), loss=F.mse_loss, temperature=2.0)
    model = hapi_model()
    with pytest.raises(ValueError, match="shares 9 parameters with the student"):
        fit(model, [DistillCallback(model.network)])
    with pytest.raises(ValueError, match=r"student's output \[8, 4\] and the teacher's \[8, 5\]"):
        fit(model, [DistillCallback(TinyNet(outputs=5))])
    with pytest.raises(ValueError, match="Cannot tell from the task loss"):
        fit(hapi_model(loss=lambda o, y: F.cross_entropy(o, y)), [DistillCallback(TinyNet())])
