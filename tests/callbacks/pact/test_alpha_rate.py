"""``alpha_lr_scale``: two steps of SGD against the same two steps in NumPy."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlelite_callbacks import AdvancedPACTOptions, PACTQuantCallback

ROWS, WIDTH, RATE = 8, 6, 0.1


class Batch(paddle.io.Dataset):
    """The same non-negative rows twice."""

    def __init__(self):
        self.x = np.random.RandomState(0).uniform(0, 3, [ROWS, WIDTH]).astype("float32")

    def __len__(self):
        return 2 * ROWS

    def __getitem__(self, index):
        return self.x[index % ROWS], np.zeros(1, "float32")


def by_hand(x, weight, scale):
    """Return the two alphas: loss = mean(y), y = q(x) q(w); d(alpha) sums the gradient where x >= alpha (the paper)."""
    alpha, found = np.percentile(x, 90.0), []
    for _ in range(2):
        step = np.abs(weight).max(axis=0, keepdims=True) / 64
        rounded = np.round(weight / step) * step
        grid = alpha / 255
        inputs = np.clip(np.round(np.clip(x, 0, alpha) / grid), 0, 255) * grid
        to_inputs = np.repeat(rounded.T / ROWS, ROWS, axis=0)
        to_alpha = to_inputs[x >= alpha].sum()
        weight = weight - RATE * inputs.sum(axis=0, keepdims=True).T / ROWS
        alpha = alpha - RATE * scale * to_alpha
        found.append(alpha)
    return found


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 3.0])
def test_two_steps_by_hand(scale):
    paddle.seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, 1, bias_attr=False))
    weight = network[0].weight.numpy().astype("float64")
    seen = []

    class Watch(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            seen.append(float(network[0].activation_quanter.alpha))

    model = paddle.Model(network)
    model.prepare(paddle.optimizer.SGD(RATE, parameters=network.parameters()), lambda y, _: y.mean())
    quantise = PACTQuantCallback(
        lr_scale=1.0, advanced=AdvancedPACTOptions(alpha_lr_scale=scale, alpha_percentile=90.0)
    )
    model.fit(Batch(), batch_size=ROWS, epochs=1, shuffle=False, verbose=0, callbacks=[quantise, Watch()])
    expected = by_hand(Batch().x.astype("float64"), weight, scale)
    np.testing.assert_allclose(seen, expected, rtol=1e-5)
    assert (seen[0] == seen[1]) == (scale == 0)
