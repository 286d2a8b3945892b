"""Ranges by min-max, MSE and KL against searches over the values themselves, and through calibration."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn
from toy import hapi_model

from paddlelite_callbacks import AdvancedPACTOptions, PACTConfig, PACTQuantCallback, prepare_pact_, ptq_int8
from paddlelite_callbacks.quant.config import ptq_defaults
from paddlelite_callbacks.quant.functional import grid_levels, pact_fake_quantize
from paddlelite_callbacks.quant.histogram import BINS, ValueHistogram
from paddlelite_callbacks.quant.ranges import kl_range, mse_range, quantization_error, range_of

SHAPES = {
    "normal": lambda random: random.randn(20000),
    "laplace": lambda random: random.laplace(size=20000),
    "student": lambda random: random.standard_t(3, size=20000),
    "relu6": lambda random: np.clip(4 * random.randn(20000), 0, 6),
    "outlier": lambda random: np.append(np.abs(random.randn(20000)), 60.0),
}


def values(shape, seed=0):
    return np.float32(SHAPES[shape](np.random.RandomState(seed)))


def histogram(*parts):
    result = ValueHistogram()
    for part in parts:
        result.add(part)
    return result


def error(x, alpha, bits, signed, symmetric):
    """The mean squared error of the quantizer that training runs."""
    y = pact_fake_quantize(
        paddle.to_tensor(x), paddle.to_tensor(np.float32([alpha])), bits=bits, signed=signed, symmetric=symmetric
    )
    return float(np.mean((y.numpy().astype("float64") - x) ** 2))


@pytest.mark.parametrize("bits", [8, 7, 4, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mse_range_errs_no_more_than_any_of_a_grid_over_the_values(shape, bits):
    x = values(shape)
    signed = bool(x.min() < 0)
    alpha = range_of(histogram(x), "mse", bits=bits, signed=signed)
    largest = np.abs(x).max()
    best = min(error(x, share * largest, bits, signed, False) for share in np.linspace(0.01, 1, 120))
    assert error(x, alpha, bits, signed, False) <= 1.02 * best


@pytest.mark.parametrize(("signed", "symmetric"), [(False, False), (True, False), (True, True), (False, True)])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_error_is_that_of_the_quantizer(bits, signed, symmetric):
    x = values("laplace") if signed else np.abs(values("laplace"))
    low, high = grid_levels(bits, signed, symmetric=symmetric)
    alphas = np.array([0.5, 2.0, 7.0])
    expected = [error(x, alpha, bits, signed, symmetric) for alpha in alphas]
    np.testing.assert_allclose(quantization_error(histogram(x), alphas, low=low, high=high), expected, rtol=0.02)


def kl_by_hand(counts, end, levels):
    """The divergence that TensorRT's calibration computes for the first ``end`` bins, by loops."""
    reference = [float(count) for count in counts[:end]]
    reference[-1] += sum(counts[end:])
    spread = [0.0] * end
    for level in range(levels):
        members = [i for i in range(-(-level * end // levels), -(-(level + 1) * end // levels)) if counts[i] > 0]
        for i in members:
            spread[i] = sum(counts[j] for j in members) / len(members)
    p, q = np.array(reference) / sum(reference), np.array(spread) / sum(spread)
    if np.any((p > 0) & (q == 0)):
        return np.inf
    return float(sum(p[i] * np.log(p[i] / q[i]) for i in range(end) if p[i] > 0))


@pytest.mark.parametrize("shape", ["laplace", "outlier", "relu6"])
@pytest.mark.parametrize("levels", [8, 128])
def test_no_range_of_a_coarse_search_diverges_less_than_that_of_kl(shape, levels):
    x = values(shape)[-3000:]
    largest = float(np.abs(x).max())
    counts, _ = np.histogram(np.abs(x[x != 0]), bins=BINS, range=(0, largest))
    alpha = kl_range(histogram(x), levels=levels)
    chosen = kl_by_hand(counts, round(alpha / largest * BINS), levels)
    assert chosen <= min(kl_by_hand(counts, end, levels) for end in [*range(levels, BINS, 256), BINS]) + 1e-9


def test_kl_and_mse_leave_an_outlier_out_and_min_max_does_not():
    found = histogram(values("outlier"))
    assert range_of(found, "min_max") == 60.0
    assert range_of(found, "kl") < 10
    assert range_of(found, "mse", bits=4) < 10


def test_one_range_for_values_that_are_all_equal_or_all_zero():
    equal = histogram(np.full(100, 3.0, "float32"))
    for calibration in ("min_max", "mse", "kl"):
        assert range_of(equal, calibration) == pytest.approx(3.0, rel=1e-6)
        assert range_of(histogram(np.zeros(5)), calibration) == 1.0


def test_a_histogram_grows_without_losing_values():
    parts = [values("normal", seed) * scale for seed, scale in enumerate((1e-3, 1.0, 0.1, 300.0))]
    grown, x = histogram(*parts), np.concatenate(parts).astype("float64")
    points, counts = grown.points()
    assert counts.sum() + grown.zeros == x.size
    assert counts @ points == pytest.approx(x.sum(), rel=1e-9)
    assert counts @ np.abs(points) == pytest.approx(np.abs(x).sum(), rel=1e-9)
    assert grown.largest == np.abs(x).max() <= grown.limit < 2 * grown.largest
    width = grown.limit / BINS
    for edge in (1.0, 30.0, 200.0):
        assert counts[np.abs(points) < edge].sum() == pytest.approx((np.abs(x) < edge).sum(), abs=1) or width > 0.1


def test_zeros_are_counted_apart_and_a_frequent_value_is_exact():
    x = np.concatenate([np.zeros(50), np.full(70, 6.0), np.linspace(0.1, 5.9, 30)])
    found = histogram(x)
    points, counts = found.points()
    assert found.zeros == 50
    assert counts[points == 6.0].sum() == 70
    assert mse_range(found, low=0, high=255) == pytest.approx(6.0, rel=1e-3)


class Rows(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize("calibration", ["min_max", "mse", "kl"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_post_training_quantisation_takes_the_range_of_all_batches(calibration, symmetric):
    paddle.seed(0)
    parts = [values("student", seed)[:1200].reshape(-1, 6) * scale for seed, scale in enumerate((1.0, 0.2, 2.0))]
    made = ptq_int8(
        Rows(),
        iter([paddle.to_tensor(part) for part in parts]),
        calibration=calibration,
        activation_bits=4,
        activation_symmetric=symmetric,
    )
    expected = range_of(histogram(*parts), calibration, bits=4, signed=True, symmetric=symmetric)
    assert float(made.fc.activation_quanter.alpha) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batches", [1, 2])
def test_training_starts_from_the_range_of_its_calibration_batches(batches):
    x = values("student")[: 6 * 24].reshape(-1, 6)
    network = Rows()
    model = hapi_model(network, metrics=False)
    options = AdvancedPACTOptions(calibration="mse", calibration_batches=batches, alpha_lr_scale=0.0)
    data = paddle.io.TensorDataset([paddle.to_tensor(x), paddle.to_tensor(np.arange(24) % 4)])
    quantise = PACTQuantCallback(activation_bits=4, advanced=options)
    model.fit(data, batch_size=8, shuffle=False, verbose=0, callbacks=[quantise])
    expected = range_of(histogram(*np.split(x, 3)[:batches]), "mse", bits=4, signed=True)
    assert float(network.fc.activation_quanter.alpha) == pytest.approx(expected, rel=1e-6)
    assert network.fc.activation_quanter._histogram is None  # not kept


def test_the_default_is_mse_without_training_for_few_bits_kl_and_a_percentile_asks_for_itself():
    for bits, ptq in ((8, "mse"), (5, "mse"), (4, "kl"), (2, "kl")):
        config = PACTConfig(activation_bits=bits)
        assert (config.resolved_calibration[0], ptq_defaults(config).resolved_calibration[0]) == ("mse", ptq)
    for given in ({"calibration": "min_max"}, {"alpha_percentile": 100}):
        config = PACTConfig(activation_bits=4, **given)
        assert ptq_defaults(config) is config
    assert PACTConfig(alpha_percentile=100).resolved_calibration == ("percentile", 100)
    assert PACTConfig(calibration="percentile").resolved_calibration == ("percentile", 99.9)
    with pytest.raises(ValueError, match="alpha_percentile=100 needs calibration='percentile', got 'kl'"):
        PACTConfig(calibration="kl", alpha_percentile=100)
    with pytest.raises(
        ValueError, match=r"calibration must be one of \['min_max', 'percentile', 'mse', 'kl'\], got 'x'"
    ):
        ptq_int8(Rows(), [], calibration="x")


def test_a_large_tensor_is_sampled_from_all_its_columns():
    x = np.zeros([64, 128, 64], "float32")
    x[:, :, 5] = np.linspace(1, 2, 64)[:, None]
    network = nn.Sequential(nn.Linear(64, 2))
    prepare_pact_(network)
    quantizer, found = network[0].activation_quanter, ValueHistogram()
    assert quantizer.collect(paddle.to_tensor(x), found) == 0
    assert found.counts.sum() / (found.counts.sum() + found.zeros) == pytest.approx(1 / 64, rel=0.1)


@pytest.mark.parametrize("calibration", ["min_max", "mse", "kl", "percentile"])
def test_values_that_are_not_finite_are_refused(calibration):
    x = values("normal")[:60].reshape(-1, 6)
    x[2, 3] = np.nan
    with pytest.raises(ValueError, match="activations that are not finite"):
        ptq_int8(Rows(), [paddle.to_tensor(x)], calibration=calibration)
