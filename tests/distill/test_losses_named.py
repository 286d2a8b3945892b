"""The losses beyond the elementary ones against their papers' formulas in plain NumPy loops."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import paddle
import pytest
from loss_formulas import divergence, huber, numpy_dist, numpy_dkd, numpy_dml, softmax

from paddlelite_callbacks.distill.losses.features import rkd
from paddlelite_callbacks.distill.losses.logits import dist, dkd, kl
from paddlelite_callbacks.distill.losses.registry import LOSSES, spec_of

RANDOM = np.random.RandomState(3)
LABEL = np.array([0, 3, 2, 6, 3])
SCORES = RANDOM.randn(5, 7), RANDOM.randn(5, 7) * 2
MAPS = RANDOM.randn(3, 4, 2, 3), RANDOM.randn(3, 4, 2, 3) * 2
TARGET_WEIGHT = np.array([[1, 0, 1, 1], [0, 0, 1, 0.5], [1, 1, 1, 1]])


def numpy_cwd(s, t, temperature=4.0):
    total, (n, c) = 0.0, s.shape[:2]
    for i, j in itertools.product(range(n), range(c)):
        total += divergence(softmax(t[i, j].ravel() / temperature), softmax(s[i, j].ravel() / temperature))
    return temperature**2 * total / (n * c)


def numpy_attention(s, t):
    maps = []
    for x in (s, t):
        q = np.array([sum(channel**2 for channel in image).ravel() for image in x])
        maps.append(np.array([row / np.linalg.norm(row) for row in q]))
    return np.mean((maps[0] - maps[1]) ** 2)


def numpy_rkd(s, t, distance=25.0, angle=50.0):
    n = len(s)
    s, t = s.reshape(n, -1), t.reshape(n, -1)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    distances = []
    for x in (s, t):
        d = {pair: np.linalg.norm(x[pair[0]] - x[pair[1]]) for pair in pairs}
        mean = np.mean(list(d.values()))
        distances.append({pair: value / mean for pair, value in d.items()})
    by_distance = sum(huber(distances[0][pair] - distances[1][pair]) for pair in pairs) / n**2

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    triplets = [(i, j, k) for i, j, k in itertools.product(range(n), repeat=3) if i != j and k != j]
    by_angle = sum(huber(cosine(s, *ijk) - cosine(t, *ijk)) for ijk in triplets) / n**3
    return distance * by_distance + angle * by_angle


def numpy_heatmap(s, t, weight):
    w = weight.reshape(3, 4, 1, 1)
    return 0.5 * np.mean((w * s - w * t) ** 2)


def numpy_bce(s, t, temperature=1.0):
    p, q = (1 / (1 + np.exp(-x / temperature)) for x in (s, t))
    return (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean() * temperature**2


CASES = {
    "bce": (numpy_bce, SCORES, ()),
    "dml": (numpy_dml, SCORES, ()),
    "dkd": (numpy_dkd, SCORES, (LABEL,)),
    "dist": (numpy_dist, SCORES, ()),
    "cwd": (numpy_cwd, MAPS, ()),
    "attention": (numpy_attention, MAPS, ()),
    "rkd": (numpy_rkd, MAPS, ()),
    "heatmap_mse": (numpy_heatmap, MAPS, (TARGET_WEIGHT,)),
    "fitnet": (lambda s, t: 0.5 * np.mean((s - t) ** 2), MAPS, ()),
}
OLD = {"kl", "jsdiv", "mse", "l2", "l1", "smooth_l1"}  # see test_losses.py


def call(name, s, t, labels, **options):
    tensors = [paddle.to_tensor(x) for x in (s, t, *labels)]
    return float(spec_of(name, **options).function(*tensors))


def test_every_named_loss_is_tested():
    assert set(CASES) | OLD == set(LOSSES)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_papers_formula(name):
    formula, (s, t), labels = CASES[name]
    assert call(name, s, t, labels) == pytest.approx(formula(s, t, *labels), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("name", ["bce", "dkd", "dist", "cwd"])
def test_temperature_equals_the_formula(name, temperature):
    formula, (s, t), labels = CASES[name]
    expected = formula(s, t, *labels, temperature=temperature)
    assert call(name, s, t, labels, temperature=temperature) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradient_by_finite_differences_and_none_to_the_teacher(name):
    formula, (s, t), labels = CASES[name]
    student, teacher = paddle.to_tensor(s, stop_gradient=False), paddle.to_tensor(t, stop_gradient=False)
    spec_of(name).function(student, teacher, *map(paddle.to_tensor, labels)).backward()
    assert teacher.grad is None
    gradient = student.grad.numpy()
    for flat in (0, 10, s.size - 1):
        index = np.unravel_index(flat, s.shape)
        ahead, behind = s.copy(), s.copy()
        ahead[index] += 1e-5
        behind[index] -= 1e-5
        slope = (formula(ahead, t, *labels) - formula(behind, t, *labels)) / 2e-5
        assert gradient[index] == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_zero_without_a_gradient_when_equal_and_positive_otherwise(name):
    _, (s, t), labels = CASES[name]
    student = paddle.to_tensor(s, stop_gradient=False)
    loss = spec_of(name).function(student, paddle.to_tensor(s), *map(paddle.to_tensor, labels))
    assert float(loss) == pytest.approx(0.0, abs=1e-10)
    loss.backward()
    assert np.isfinite(student.grad.numpy()).all()
    np.testing.assert_allclose(student.grad.numpy(), 0, atol=1e-9)
    assert call(name, s, t, labels) > 0


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_float64(name):
    _, (s, t), labels = CASES[name]
    narrow = call(name, s.astype("float32"), t.astype("float32"), labels)
    assert narrow == pytest.approx(call(name, s, t, labels), rel=1e-4)


def test_dkd_is_kl_where_beta_is_the_teachers_share_of_the_other_classes():
    """KL = TCKD + (1 - q_true) NCKD for each row (the paper's eq. 5)."""
    for s, t, label in zip(*SCORES, LABEL, strict=True):
        row = [paddle.to_tensor(x[None]) for x in (s, t, label)]
        share = 1 - softmax(t / 2.0)[label]
        whole = float(kl(row[0], row[1], temperature=2.0))
        assert float(dkd(*row, beta=share, temperature=2.0)) == pytest.approx(whole, rel=1e-9)


def test_dkd_holds_where_the_teacher_is_certain():
    s, t = np.zeros((1, 3), "float32"), np.array([[80.0, 0, 0]], "float32")
    got = dkd(*map(paddle.to_tensor, (s, t, np.array([[0]]))), temperature=1.0)
    assert float(got) == pytest.approx(np.log(3), rel=1e-4)


def test_dist_ignores_shift_and_scale_of_the_probabilities():
    """A perfectly correlated, flatter teacher costs nothing between classes."""
    p = paddle.to_tensor([[0.1, 0.2, 0.7]], dtype="float64").log()
    q = ((paddle.to_tensor([[0.1, 0.2, 0.7]], dtype="float64") - 1 / 3) * 0.2 + 1 / 3).log()
    assert float(dist(p, q, gamma=0.0)) == pytest.approx(0, abs=1e-9)


def test_rkd_ignores_the_scale_and_the_width():
    s, t = SCORES
    assert float(rkd(paddle.to_tensor(3 * s), paddle.to_tensor(s))) == pytest.approx(0, abs=1e-12)
    wider = np.concatenate([t, t], axis=1)
    got = float(rkd(paddle.to_tensor(s), paddle.to_tensor(wider), angle=0.0))
    assert got == pytest.approx(float(rkd(paddle.to_tensor(s), paddle.to_tensor(t), angle=0.0)), rel=1e-9)


def test_rkd_has_a_finite_gradient_where_two_samples_are_the_same():
    twins = paddle.to_tensor(np.ones((3, 2)), stop_gradient=False)
    rkd(twins, paddle.to_tensor(RANDOM.randn(3, 4))).backward()
    assert np.isfinite(twins.grad.numpy()).all()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"rkd", "attention"}))
def test_other_shapes_are_refused_with_both_named(name):
    s, t = (MAPS[0], MAPS[1][:, :, :1]) if name in ("cwd", "heatmap_mse", "fitnet") else (SCORES[0], SCORES[1][:, :3])
    labels = CASES.get(name, (None, None, ()))[2]
    with pytest.raises(ValueError, match=r"student's output \[.*\] and the teacher's \["):
        call(name, s, np.ascontiguousarray(t), labels)


def test_names_labels_and_temperatures():
    assert spec_of("DKD").label == 0
    assert spec_of("heatmap_mse").label == -1
    assert spec_of("dkd", label=1).label == 1
    assert spec_of(functools.partial(dkd, beta=2.0), label=0).label == 0
    with pytest.raises(ValueError, match=r"near names: .*'dkd'"):
        spec_of("dkdd")
    with pytest.raises(ValueError, match=r"takes no label; only \['dkd', 'heatmap_mse'\] do"):
        spec_of("kl", label=0)
    with pytest.raises(ValueError, match="has no temperature; only"):
        spec_of("rkd", temperature=2.0)
    with pytest.raises(ValueError, match=r"temperature .*positive.*, got 0"):
        spec_of("cwd", temperature=0)
    with pytest.raises(TypeError, match="a name or a callable"):
        spec_of(3)
    with pytest.raises(ValueError, match=r"one class index per row, got logits \[5, 7\] and labels \[2\]"):
        call("dkd", *SCORES, (LABEL[:2],))
    with pytest.raises(ValueError, match=r"target weights \[N, K\]"):
        call("heatmap_mse", *MAPS, (TARGET_WEIGHT[:2],))
