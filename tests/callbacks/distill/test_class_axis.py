"""Classes lie along axis 1 of maps; several labels an image have a loss of their own."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn
from toy import Images, weights_of

from paddlelite_callbacks import DistillCallback
from paddlelite_callbacks.distill.losses.logits import bce, dml, jsdiv, kl

MAPS = [np.random.RandomState(seed).randn(3, 4, 5, 6) for seed in (0, 1)]


@pytest.mark.parametrize("loss", [kl, jsdiv, dml])
def test_maps_are_compared_pixel_by_pixel(loss):
    student, teacher = (paddle.to_tensor(x) for x in MAPS)
    pixels = [paddle.to_tensor(x.transpose(0, 2, 3, 1).reshape(-1, 4)) for x in MAPS]
    assert float(loss(student, teacher)) == pytest.approx(float(loss(*pixels)), rel=1e-9)
    last = [x.transpose([0, 2, 3, 1]) for x in (student, teacher)]
    assert float(loss(*last, axis=-1)) == pytest.approx(float(loss(*pixels)), rel=1e-9)


class Pixels(nn.Layer):
    """Class scores of every pixel, classes first or last."""

    def __init__(self, last):
        super().__init__()
        self.conv, self.last = nn.Conv2D(3, 4, 3, padding=1), last

    def forward(self, x):
        y = self.conv(x)
        return y.transpose([0, 2, 3, 1]) if self.last else y


class Labelled(Images):
    """A class for every pixel."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, np.full(image.shape[1:], label)


@pytest.mark.parametrize("loss", [None, "kl", {"kl": 1.0}])
@pytest.mark.parametrize("last", [False, True])
def test_the_axis_is_that_of_the_task_loss(last, loss):
    student, teacher, by_hand = Pixels(last), Pixels(last), Pixels(last)
    by_hand.set_state_dict(student.state_dict())
    model = paddle.Model(student)
    task = nn.CrossEntropyLoss(axis=-1 if last else 1)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=student.parameters()), task)
    callbacks = [DistillCallback(teacher, loss=loss)]
    model.fit(Labelled(), batch_size=16, shuffle=False, verbose=0, callbacks=callbacks)
    data = [paddle.to_tensor(np.stack(part)) for part in zip(*(Labelled()[i] for i in range(16)), strict=True)]
    output, taught = by_hand(data[0]), teacher(data[0]).detach()
    flat = [(x if last else x.transpose([0, 2, 3, 1])).reshape([-1, 4]) for x in (output, taught)]
    (task(output, data[1]) + kl(*flat)).backward()
    for parameter, (name, value) in zip(by_hand.parameters(), weights_of(student).items(), strict=True):
        np.testing.assert_allclose((parameter - 0.1 * parameter.grad).numpy(), value, atol=1e-5, err_msg=name)


def test_scores_far_from_zero_keep_finite_gradients():
    far = paddle.to_tensor([[100.0, -100.0]], stop_gradient=False)
    loss = bce(far, -far)
    loss.backward()
    assert np.isfinite(float(loss))
    assert np.isfinite(far.grad.numpy()).all()


def test_a_multi_label_task_chooses_bce():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.SGD(0.1, parameters=network.parameters()), nn.BCEWithLogitsLoss())
    callback = DistillCallback(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    data = paddle.io.TensorDataset([paddle.rand([8, 3, 8, 8]), paddle.ones([8, 3])])
    model.fit(data, batch_size=8, verbose=0, callbacks=[callback])
    assert list(callback.objective.specs) == ["bce"]
