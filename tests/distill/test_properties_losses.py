"""Properties of the distillation losses over random shapes, sizes and temperatures, and NumPy's own formulas."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from paddlelite_callbacks.distill import losses
from paddlelite_callbacks.distill.losses import features as feature_losses
from paddlelite_callbacks.distill.losses.registry import LOSSES
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.distill.schedules import cosine, linear, stop_at, value_at, warm_up
from paddlelite_callbacks.distill.terms import OutputTerm
from paddlelite_callbacks.nn.nested import Seen

TEMPERATURES = st.floats(0.25, 16.0)
SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.sampled_from([0.01, 1.0, 30.0])


@st.composite
def pairs(draw, least=2, dims=(1, 2)):
    """Two arrays of one shape ``[N, (positions...,) C]`` and of possibly different sizes of values."""
    shape = [draw(st.integers(1, 5)) for _ in range(draw(st.sampled_from(dims)))] + [draw(st.integers(least, 9))]
    random = np.random.RandomState(draw(SEEDS))
    return tuple((draw(SCALES) * random.randn(*shape)).astype("float64") for _ in range(2))


def tamed(pair, temperature):
    """Logits that lie at most 60 temperatures apart: Paddle's kernels on the CPU end at ``exp(-64)``."""
    return tuple(x / max(1.0, np.ptp(x, axis=-1).max() / (60 * temperature)) for x in pair)


def tensor(x, *, grad=False):
    return paddle.to_tensor(x, stop_gradient=not grad)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl_by_numpy(s, t, temperature):
    log_p, log_q = log_softmax(s / temperature), log_softmax(t / temperature)
    return (np.exp(log_q) * (log_q - log_p)).sum(-1).mean() * temperature**2


def close(a, b, scale=1.0):
    np.testing.assert_allclose(float(a), float(b), rtol=1e-9, atol=1e-9 * max(scale, 1.0))


@given(pairs(), TEMPERATURES)
def test_kl_is_the_formula_and_never_negative(pair, temperature):
    s, t = tamed(pair, temperature)
    value = losses.kl(tensor(s), tensor(t), temperature=temperature)
    close(value, kl_by_numpy(s, t, temperature), temperature**2)
    assert float(value) >= -1e-12 * temperature**2


@given(pairs(), TEMPERATURES)
def test_jsdiv_is_symmetric_and_the_mean_of_both_divergences(pair, temperature):
    s, t = tamed(pair, temperature)
    there, back = (losses.jsdiv(tensor(a), tensor(b), temperature=temperature) for a, b in ((s, t), (t, s)))
    close(there, back, temperature**2)
    close(there, (kl_by_numpy(s, t, temperature) + kl_by_numpy(t, s, temperature)) / 2, temperature**2)
    assert float(there) >= 0


@given(pairs(), TEMPERATURES, st.floats(-50, 50))
def test_divergences_do_not_see_a_shift_of_the_logits(pair, temperature, shift):
    s, t = tamed(pair, temperature)
    for loss in (losses.kl, losses.jsdiv, losses.dist if s.ndim == 2 else losses.kl):
        plain = loss(tensor(s), tensor(t), temperature=temperature)
        rows = shift * np.arange(1, len(s) + 1).reshape([-1, *[1] * (s.ndim - 1)])
        moved = loss(tensor(s + rows), tensor(t - shift), temperature=temperature)
        np.testing.assert_allclose(float(moved), float(plain), rtol=1e-6, atol=1e-8 * temperature**2)


@given(pairs(dims=(1,)), TEMPERATURES, st.sampled_from(["kl", "jsdiv", "mse", "l1", "smooth_l1", "dml", "dkd"]))
def test_equal_outputs_give_zero_and_no_gradient(pair, temperature, name):
    logits, spec = pair[0], LOSSES[name]
    student = tensor(logits, grad=True)
    extra = [tensor(np.arange(len(logits)) % logits.shape[1])] if spec.label is not None else []
    options = {"temperature": temperature} if spec.tempered else {}
    value = spec.function(student, tensor(logits), *extra, **options)
    value.backward()
    assert abs(float(value)) < 1e-9
    if name != "l1":  # |0| has no slope
        assert float(student.grad.abs().max()) < 1e-9


@given(pairs(), st.sampled_from(["kl", "jsdiv", "mse", "l1", "smooth_l1"]))
def test_the_teacher_gets_no_gradient_and_the_student_a_finite_one(pair, name):
    student, teacher = tensor(pair[0], grad=True), tensor(pair[1], grad=True)
    LOSSES[name].function(student, teacher).backward()
    assert teacher.grad is None
    assert np.isfinite(student.grad.numpy()).all()


@given(pairs(), st.floats(0.125, 5.0, width=32))
def test_regressions_are_the_formulas(pair, delta):
    s, t = pair
    apart = np.abs(s - t)
    close(losses.mse(tensor(s), tensor(t)), (apart**2).mean(), (apart**2).mean())
    close(losses.l1(tensor(s), tensor(t)), apart.mean(), apart.mean())
    huber = np.where(apart < delta, apart**2 / 2, delta * apart - delta**2 / 2).mean()
    close(losses.smooth_l1(tensor(s), tensor(t), delta=delta), huber, huber)


@given(pairs(dims=(1,)), TEMPERATURES, SEEDS)
def test_dkd_with_the_papers_weights_is_kl(pair, temperature, seed):
    """``KL = TCKD + (1 - p_t) NCKD`` for one sample (eq. 6 of the paper)."""
    s, t = (np.clip(x[:1], -20, 20) for x in tamed(pair, temperature))
    label = int(seed % s.shape[1])
    beta = 1 - np.exp(log_softmax(t / temperature))[0, label]
    value = losses.dkd(
        tensor(s), tensor(t), tensor(np.array([label])), alpha=1.0, beta=float(beta), temperature=temperature
    )
    np.testing.assert_allclose(float(value), kl_by_numpy(s, t, temperature), rtol=1e-5, atol=1e-7 * temperature**2)


@given(pairs(least=3, dims=(1,)), st.floats(0.1, 10.0))
def test_dist_keeps_within_its_bounds(pair, temperature):
    value = losses.dist(tensor(pair[0]), tensor(pair[1]), temperature=temperature)
    assert -1e-9 <= float(value) <= 4 * temperature**2 + 1e-9


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), SEEDS, st.floats(0.01, 100.0))
def test_attention_and_rkd_do_not_see_the_scale(batch, channels, others, seed, scale):
    random = np.random.RandomState(seed)
    s, t = random.randn(batch, channels, 3, 2), random.randn(batch, others, 3, 2)
    for loss in (feature_losses.attention, feature_losses.rkd):
        plain = float(loss(tensor(s), tensor(t)))
        np.testing.assert_allclose(float(loss(tensor(s * scale), tensor(t))), plain, rtol=1e-4, atol=1e-9)
        assert abs(float(loss(tensor(t * scale), tensor(t)))) < 1e-9
        assert plain >= 0


@given(st.lists(st.floats(0.0, 4.0), min_size=1, max_size=4), SEEDS)
def test_an_objective_is_the_weighted_sum_of_its_terms(weights, seed):
    random = np.random.RandomState(seed)
    s, t = random.randn(3, 4), random.randn(3, 4)
    names = ["kl", "mse", "l1", "jsdiv"][: len(weights)]
    objective = Objective([OutputTerm(n, w) for n, w in zip(names, weights, strict=True)], [1.0])
    result = objective(Seen(tensor(s)), [Seen(tensor(t))], [], epoch=0, epochs=1)
    parts = [float(LOSSES[n].function(tensor(s), tensor(t))) for n in names]
    close(result.total, np.dot(weights, parts), np.abs(parts).max())
    assert [float(value) for value in result.terms.values()] == parts


@given(st.floats(0, 10), st.floats(0, 10), st.integers(1, 50), st.floats(0, 60))
def test_schedules_stay_between_their_ends(start, end, epochs, epoch):
    low, high = min(start, end), max(start, end)
    for make in (linear, cosine):
        value = value_at(make(start, end), epoch, epochs)
        assert low - 1e-9 <= value <= high + 1e-9
        assert abs(value_at(make(start, end), 0, epochs) - start) < 1e-9
        assert abs(value_at(make(start, end), epochs, epochs) - end) < 1e-9
    assert value_at(stop_at(epoch, start), epoch, epochs) == 0
    assert value_at(warm_up(epochs, start), epochs, epochs) == start
