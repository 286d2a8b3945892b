"""The hand-written dygraph loop that distillation is held against, and small helpers for its tests."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from toy import Images, copied_weights, weights_of


def hinton(s, t, temperature=4.0):
    return F.kl_div(F.log_softmax(s / temperature), F.softmax(t / temperature), reduction="batchmean") * temperature**2


def twin(network, make):
    other = make()
    copied_weights(network, other)
    return other


def batches(data: Images, size: int = 8):
    while True:
        for start in range(0, len(data), size):
            rows = [data[i] for i in range(start, min(start + size, len(data)))]
            yield [paddle.to_tensor(np.stack(column)) for column in zip(*rows, strict=True)]


class Tapped:
    """Run a network and return ``(output, {layer's name: its output})``, with hooks of this test's own."""

    def __init__(self, network, *names):
        self.network, self.names = network, names

    def __call__(self, *inputs):
        kept, layers = {}, dict(self.network.named_sublayers())
        with contextlib.ExitStack() as stack:
            for name in self.names:

                def keep(layer, x, y, name=name):
                    kept[name] = y

                stack.callback(layers[name].register_forward_post_hook(keep).remove)
            return self.network(*inputs), kept


def train_by_hand(student, loss_of, *, steps, data, optimizer="Momentum", extra=(), accumulate=1, after=None):
    """Plain dygraph: ``loss_of(step, images, labels)`` runs the networks and returns the loss."""
    parameters = [*student.parameters(), *extra]
    updater = getattr(paddle.optimizer, optimizer)(0.05, parameters=parameters)
    stream = batches(data)
    for step in range(steps):
        student.train()
        images, labels = next(stream)
        loss_of(step, images, labels).backward()
        if (step + 1) % accumulate == 0:
            updater.step()
            updater.clear_grad()
            if after is not None:
                after()
    return updater


def assert_same(network, other, atol=1e-6):
    ours, theirs = weights_of(network), weights_of(other)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, atol=atol, err_msg=key)


def taught(teacher, *inputs):
    teacher.eval()
    with paddle.no_grad():
        return teacher(*inputs)


class Log(paddle.callbacks.Callback):
    """Keep ``logs`` of every batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, step, logs=None):
        self.seen.append(dict(logs))


CE = nn.CrossEntropyLoss()
