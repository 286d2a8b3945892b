"""GPTQ's rounding against its formula and a search over all roundings, and through `ptq_int8`."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlelite_callbacks import ptq_int8
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.rounding import gptq_round


def problem(rows=6, inputs=5, seed=0, high=7):
    random = np.random.RandomState(seed)
    x = random.randn(200, inputs) @ random.randn(inputs, inputs)
    weight = random.randn(rows, inputs)
    steps = np.abs(weight).max(1) / high
    return weight, x.T @ x, steps, high


def loss(weight, integers, steps, moments):
    """``|| (W - Q) X ||^2`` of each row."""
    error = weight - integers * steps[:, None]
    return np.einsum("ri,ij,rj->r", error, moments, error)


def by_obs(weight, moments, steps, high):
    """Optimal brain surgeon, one weight after another, with the inverse Hessian of those that are left (eq. 2)."""
    hessian = moments + 0.01 * np.diag(moments).mean() * np.eye(len(moments))
    order = list(np.argsort(-np.diag(moments), kind="stable"))
    result = np.zeros(weight.shape)
    for row in range(len(weight)):
        w, left = weight[row].astype("float64").copy(), list(order)
        top = np.abs(weight[row]).argmax()
        while left:
            inverse = np.linalg.inv(hessian[np.ix_(left, left)])
            one = left[0]
            q = np.clip(np.rint(w[one] / steps[row]), -high, high)
            result[row, one] = q = high * np.sign(weight[row, top]) if one == top else q
            w[left] -= (w[one] - q * steps[row]) / inverse[0, 0] * inverse[:, 0]
            left = left[1:]
    return result


@pytest.mark.parametrize("seed", range(4))
def test_the_cholesky_form_is_optimal_brain_surgery(seed):
    weight, moments, steps, high = problem(seed=seed)
    np.testing.assert_array_equal(gptq_round(weight, moments, steps, high), by_obs(weight, moments, steps, high))


def test_it_lies_between_the_best_of_all_roundings_and_the_nearest():
    found = {"gptq": 0.0, "nearest": 0.0, "best": 0.0}
    for seed in range(8):
        weight, moments, steps, high = problem(rows=3, inputs=4, seed=seed)
        nearest = np.rint(weight / steps[:, None])
        found["gptq"] += loss(weight, gptq_round(weight, moments, steps, high), steps, moments).sum()
        found["nearest"] += loss(weight, nearest, steps, moments).sum()
        floors = np.floor(weight / steps[:, None])
        choices = [np.clip(floors + np.array(up), -high, high) for up in itertools.product([0, 1], repeat=4)]
        found["best"] += np.min([loss(weight, one, steps, moments) for one in choices], axis=0).sum()
    assert found["best"] <= found["gptq"] < 0.85 * found["nearest"]


@pytest.mark.parametrize("seed", range(3))
def test_uncorrelated_inputs_are_rounded_to_the_nearest_and_rows_keep_their_largest_integer(seed):
    weight, _, steps, high = problem(seed=seed)
    np.testing.assert_array_equal(gptq_round(weight, np.eye(5), steps, high), np.rint(weight / steps[:, None]))
    weight, moments, steps, high = problem(seed=seed)
    assert (np.abs(gptq_round(weight, moments, steps, high)).max(1) == high).all()


class Kinds(nn.Layer):
    """Convolutions with strides, groups and uneven padding, a linear layer, and one with its weight elsewhere too."""

    def __init__(self):
        super().__init__()
        paddle.seed(0)
        self.conv = nn.Conv2D(3, 8, 3, stride=2, padding=[0, 1, 0, 1])
        self.depthwise = nn.Conv2D(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2D(8, 8, 1, groups=2, bias_attr=False)
        self.fc = nn.Linear(8, 6)
        self.tied, self.same = nn.Linear(6, 6), nn.Linear(6, 6)
        self.same.weight = self.tied.weight
        self.up = nn.Conv2DTranspose(8, 8, 2)
        self.eval()

    def forward(self, x):
        x = nn.functional.relu(self.conv(x))
        x = self.up(self.grouped(nn.functional.relu(self.depthwise(x)))).mean([2, 3])
        return self.same(self.tied(self.fc(x)))


def test_layers_of_a_network_lose_less_and_the_files_need_nothing_new():
    network = Kinds()
    x = paddle.to_tensor(np.float32(np.random.RandomState(0).randn(64, 3, 8, 8)).cumsum(3))
    options = {"weight_bits": 3, "bias_correction": False}
    plain = ptq_int8(network, [x], **options)
    made = ptq_int8(network, [x[:32], x[32:]], rounding="gptq", **options)
    assert made.state_dict().keys() == plain.state_dict().keys()
    changed = {
        name
        for name, layer in quantized_layers(made).items()
        if not np.array_equal(layer.weight.numpy(), getattr(network, name).weight.numpy())
    }
    assert changed == {"conv", "depthwise", "grouped", "fc"}
    for name in changed:
        layer, source = getattr(made, name), getattr(network, name)
        again = layer.weight_quanter(layer.weight).numpy()
        np.testing.assert_allclose(again, layer.weight.numpy(), rtol=1e-5, atol=1e-7)  # on the grid already
        steps = getattr(plain, name).weight_quanter.steps(source.weight).numpy()
        np.testing.assert_allclose(layer.weight_quanter.steps(layer.weight).numpy(), steps, rtol=1e-5)
    seen, errors = {}, {}
    hooks = [
        getattr(network, name).register_forward_post_hook(lambda _, i, y, name=name: seen.update({name: (i[0], y)}))
        for name in changed
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    for name, (inputs, output) in seen.items():
        for kind, item in (("plain", plain), ("made", made)):
            layer = getattr(item, name)
            layer.activation_quanter.enabled = False
            errors[name, kind] = float((layer(inputs) - output).square().sum())
    for name in changed:
        assert errors[name, "made"] < errors[name, "plain"], (name, errors)
    assert errors["conv", "made"] < 0.7 * errors["conv", "plain"]


def test_biases_are_corrected_towards_the_float_network():
    network = Kinds()
    x = paddle.to_tensor(np.float32(np.random.RandomState(1).randn(64, 3, 8, 8)).cumsum(3))
    made = ptq_int8(network, [x], weight_bits=3, rounding="gptq")
    error = (made(x) - network(x)).mean(0).abs().max()
    assert float(error) < 1e-3 * float(network(x).abs().max())
