"""Properties of the fake quantizers: on the grid, idempotent, monotone, bounded, exact as integers."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn

from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.convert import FixedActivation, Int8Conv2D, Int8Linear
from paddlelite_callbacks.quant.functional import (
    grid_levels,
    lsq_fake_quantize,
    pact_fake_quantize,
    round_weight,
    weight_steps,
)
from paddlelite_callbacks.quant.prepare import prepare_pact_, quantized_layers
from paddlelite_callbacks.quant.quantizers import ChannelWeightQuantizer, PACTActivationQuantizer

BITS, SIGNED, SEEDS = st.integers(2, 8), st.booleans(), st.integers(0, 2**31 - 1)
ALPHAS = st.floats(0.01, 100.0).map(lambda x: float(np.float32(x)))
FUNCTIONS = st.sampled_from([pact_fake_quantize, lsq_fake_quantize])


def values(seed, alpha, *, count=64):
    """Values around the range, its ends among them."""
    random = np.random.RandomState(seed)
    x = (random.randn(count) * alpha).astype("float32")
    return np.concatenate([x, np.float32([-alpha, 0.0, alpha, 2 * alpha, -2 * alpha])])


def quantised(function, x, alpha, bits, signed):
    return function(paddle.to_tensor(x), paddle.to_tensor([alpha]), bits=bits, signed=signed).numpy()


def by_numpy(x, alpha, bits, signed):
    low, high = grid_levels(bits, signed)
    step = np.float64(alpha) / high
    return np.clip(np.round(x.astype("float64") / step), low, high) * step


@given(FUNCTIONS, SEEDS, ALPHAS, BITS, SIGNED)
def test_values_lie_on_the_grid_within_the_range_near_where_they_were(function, seed, alpha, bits, signed):
    x = values(seed, alpha)
    y = quantised(function, x, alpha, bits, signed)
    low, high = grid_levels(bits, signed)
    step = alpha / high
    assert np.abs(y / step - np.round(y / step)).max() < 1e-3
    assert low * step - 1e-4 * alpha <= y.min()
    assert y.max() <= alpha * (1 + 1e-5)
    inside = (x >= low * step) & (x <= alpha)
    assert np.abs(y - x)[inside].max(initial=0.0) <= step / 2 + 1e-4 * alpha
    assert np.abs(y - by_numpy(x, alpha, bits, signed)).max() <= step * 1.001  # a tie may round either way
    assert len(np.unique(y)) <= 2**bits


@given(FUNCTIONS, SEEDS, ALPHAS, BITS, SIGNED)
def test_a_second_time_changes_nothing(function, seed, alpha, bits, signed):
    once = quantised(function, values(seed, alpha), alpha, bits, signed)
    np.testing.assert_allclose(quantised(function, once, alpha, bits, signed), once, atol=1e-5 * alpha)


@given(FUNCTIONS, SEEDS, ALPHAS, BITS, SIGNED)
def test_order_is_kept(function, seed, alpha, bits, signed):
    x = np.sort(values(seed, alpha))
    assert (np.diff(quantised(function, x, alpha, bits, signed)) >= -1e-6 * alpha).all()


@given(FUNCTIONS, SEEDS, ALPHAS, BITS, SIGNED, st.sampled_from([0.25, 2.0, 64.0]))
def test_scale_goes_through(function, seed, alpha, bits, signed, scale):
    """A power of two is exact in floating point: the same integers."""
    x = values(seed, alpha)
    plain, scaled = (quantised(function, x * c, alpha * c, bits, signed) for c in (1.0, scale))
    np.testing.assert_allclose(scaled, plain * scale, rtol=1e-6)


@given(SEEDS, ALPHAS, BITS, SIGNED)
def test_the_gradients_are_the_papers(seed, alpha, bits, signed):
    x, top = paddle.to_tensor(values(seed, alpha), stop_gradient=False), paddle.to_tensor([alpha], stop_gradient=False)
    weight = np.random.RandomState(seed ^ 1).randn(x.shape[0]).astype("float32")
    (pact_fake_quantize(x, top, bits=bits, signed=signed) * paddle.to_tensor(weight)).sum().backward()
    low, high = grid_levels(bits, signed)
    array, bottom = x.numpy(), alpha * (low / high)
    above, below = array >= np.float32(alpha), array <= np.float32(bottom)
    expected = (weight * above).sum() + (low / high) * (weight * below).sum()
    np.testing.assert_allclose(float(top.grad), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(x.grad.numpy(), np.where(above | below, 0.0, weight), atol=1e-6)


@given(SEEDS, ALPHAS, BITS, SIGNED)
def test_lsqs_gradient_is_the_papers(seed, alpha, bits, signed):
    array = values(seed, alpha)
    x, top = paddle.to_tensor(array, stop_gradient=False), paddle.to_tensor([alpha], stop_gradient=False)
    lsq_fake_quantize(x, top, bits=bits, signed=signed).sum().backward()
    low, high = grid_levels(bits, signed)
    ratio = array.astype("float64") / (alpha / high)
    inside = (ratio > low) & (ratio < high)
    per_value = np.where(inside, np.round(ratio) - ratio, np.clip(np.round(ratio), low, high))
    expected = per_value.sum() / high / np.sqrt(array.size * high)
    np.testing.assert_allclose(float(top.grad), expected, rtol=1e-2, atol=1e-2)


@given(SEEDS, BITS, st.booleans(), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0, 1]))
def test_weights_are_integers_times_a_step_per_channel(seed, bits, reduce_range, a, b, axis):
    random = np.random.RandomState(seed)
    weight = paddle.to_tensor((random.randn(a, b, 3, 3) * 10.0 ** random.randint(-3, 3)).astype("float32"))
    weight[0] = 0.0 if random.rand() < 0.3 else weight[0]
    quantizer = ChannelWeightQuantizer(bits=bits, axis=axis, reduce_range=reduce_range)
    integers, steps, simulated = quantizer.integers(weight), quantizer.steps(weight), quantizer(weight)
    high = 64 if bits == 8 and reduce_range else 2 ** (bits - 1) - 1
    assert int(integers.astype("int32").abs().max()) <= high
    np.testing.assert_array_equal((integers.astype("float32") * steps).numpy(), simulated.numpy())  # what is shipped
    assert float(((weight - simulated).abs() - steps / 2).max()) <= 1e-5 * float(weight.abs().max() + 1e-12)
    np.testing.assert_allclose(quantizer(simulated).numpy(), simulated.numpy(), rtol=1e-5, atol=1e-12)
    largest = weight.abs().max(axis=[i for i in range(4) if i != axis], keepdim=True).numpy()
    np.testing.assert_allclose(steps.numpy(), np.where(largest > 0, largest, 1.0) / high, rtol=1e-6)


@given(SEEDS, BITS)
def test_rounding_a_weight_passes_the_gradient_straight_through(seed, bits):
    random = np.random.RandomState(seed)
    weight = paddle.to_tensor(random.randn(4, 6).astype("float32"), stop_gradient=False)
    grad = random.randn(4, 6).astype("float32")
    (round_weight(weight, weight_steps(weight.detach(), bits=bits, axis=1)) * paddle.to_tensor(grad)).sum().backward()
    np.testing.assert_array_equal(weight.grad.numpy(), grad)


@given(SEEDS, BITS, BITS, SIGNED)
def test_the_exported_layer_computes_what_training_simulates(seed, weight_bits, activation_bits, signed):
    random = np.random.RandomState(seed)
    network = nn.Sequential(nn.Conv2D(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4, 2))
    for parameter in network.parameters():
        parameter.set_value((random.randn(*parameter.shape) * 2).astype("float32"))
    x = random.randn(2, 2, 4, 4).astype("float32")
    x = paddle.to_tensor(x if signed else np.abs(x))
    prepare_pact_(network, PACTConfig(weight_bits=weight_bits, activation_bits=activation_bits))
    network.train()
    network(x)
    network.eval()
    layers = quantized_layers(network)
    for layer, make, given_to in ((layers["0"], Int8Conv2D, x), (layers["2"], Int8Linear, network[1](network[0](x)))):
        shipped = make(layer)
        assert shipped.weight_int8.dtype == paddle.int8
        np.testing.assert_allclose(shipped(given_to).numpy(), layer(given_to).numpy(), rtol=1e-4, atol=1e-4)


@given(SEEDS, ALPHAS, BITS, SIGNED)
def test_a_fixed_activation_is_the_trained_one(seed, alpha, bits, signed):
    quantizer = PACTActivationQuantizer(bits=bits)
    quantizer.alpha.set_value(paddle.to_tensor([alpha]))
    quantizer.grid.set_value(paddle.to_tensor(list(grid_levels(bits, signed))))
    quantizer.eval()
    x = paddle.to_tensor(values(seed, alpha))
    apart = (FixedActivation.of(quantizer)(x) - quantizer(x)).abs()
    assert float(apart.max()) <= quantizer.step() * 1.001
    assert float((apart > 1e-4 * alpha).astype("float32").mean()) < 0.05  # ties alone


@given(SEEDS, st.floats(50.1, 100.0), st.sampled_from([1e-3, 1.0, 1e3]))
def test_calibration_takes_the_percentile(seed, percentile, scale):
    x = (np.random.RandomState(seed).randn(500) * scale).astype("float32")
    quantizer = PACTActivationQuantizer(percentile=percentile)
    quantizer.train()
    quantizer(paddle.to_tensor(x))
    np.testing.assert_allclose(float(quantizer.alpha), np.percentile(np.abs(x), percentile), rtol=1e-4)
    assert quantizer.levels() == (-128, 127)
