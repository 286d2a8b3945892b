"""The trained attention between layers against its formula in NumPy, and in ``fit``."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from toy import TinyNet, fingerprint, fit, hapi_model

from paddlelite_callbacks import DistillCallback, FeatureTerm
from paddlelite_callbacks.distill.losses.afd import AttentionFeatureLoss


def attention(x):
    q = (x**2).mean(axis=1).reshape(len(x), -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def formula(loss, student, teacher):
    weights = {name: value.numpy() for name, value in loss.state_dict().items()}
    total = 0.0
    for n in range(len(student[0])):
        for j, t in enumerate(teacher):
            q = np.maximum(t[n].mean(axis=(1, 2)) @ weights[f"queries.{j}.weight"], 0)
            scores = []
            for i, s in enumerate(student):
                k = np.maximum(s[n].mean(axis=(1, 2)) @ weights[f"keys.{i}.weight"], 0)
                place = weights["places_t"][j] @ weights["places_s"][i]
                scores.append((q @ (k @ weights["bilinear.weight"]) + place) / np.sqrt(loss.width))
            alpha = np.exp(scores) / np.exp(scores).sum()
            for a, s in zip(alpha, student, strict=True):
                if s.shape[2:] != t.shape[2:]:  # 4x4 to 2x2
                    s = s.reshape(*s.shape[:2], 2, 2, 2, 2).mean(axis=(3, 5))
                total += a * ((attention(t)[n] - attention(s)[n]) ** 2).mean()
    return total / len(student[0])


@pytest.fixture
def features():
    random = np.random.RandomState(0)
    shapes = [(3, 2, 4, 4), (3, 5, 2, 2)], [(3, 4, 4, 4), (3, 6, 2, 2), (3, 3, 2, 2)]
    student, teacher = ([random.randn(*shape).astype("float32") for shape in side] for side in shapes)
    student[1] = student[1][:, :, :, :]
    return student, teacher


def test_equals_the_formula_and_gives_the_teacher_no_gradient(features):
    student, teacher = features
    teacher = [t if t.shape[2:] == (2, 2) else t.reshape(3, 4, 2, 2, 2, 2).mean(axis=(3, 5)) for t in teacher]
    loss = AttentionFeatureLoss(width=8)
    loss.prepare_for([list(x.shape) for x in student], [list(x.shape) for x in teacher])
    ours, theirs = ([paddle.to_tensor(x, stop_gradient=False) for x in side] for side in (student, teacher))
    got = loss(ours, theirs)
    assert float(got) == pytest.approx(formula(loss, student, teacher), rel=1e-4)
    got.backward()
    assert all(x.grad is not None for x in ours)
    assert all(x.grad is None for x in theirs)
    assert all(p.grad is not None for p in loss.parameters())
    np.testing.assert_allclose(loss.weights(ours, theirs).sum(axis=-1).numpy(), 1, rtol=1e-5)


def test_gradient_by_finite_differences(features):
    student, teacher = ([x[:, :, :2, :2].astype("float64") for x in side] for side in features)
    loss = AttentionFeatureLoss(width=4)
    loss.prepare_for([list(x.shape) for x in student], [list(x.shape) for x in teacher])
    loss.to(dtype="float64")
    tensors = [paddle.to_tensor(x, stop_gradient=False) for x in student]
    loss(tensors, [paddle.to_tensor(x) for x in teacher]).backward()
    moved = [[x.copy() for x in student] for _ in range(2)]
    moved[0][0][1, 1, 0, 1] += 1e-5
    moved[1][0][1, 1, 0, 1] -= 1e-5
    slope = (formula(loss, moved[0], teacher) - formula(loss, moved[1], teacher)) / 2e-5
    assert float(tensors[0].grad[1, 1, 0, 1]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_in_fit_it_is_trained_and_leaves_no_trace():
    model, teacher, loss = hapi_model(), TinyNet(width=8), AttentionFeatureLoss(width=8)
    found = fingerprint(model, teacher)
    term = FeatureTerm(("conv1", "conv2"), ("conv1", "conv2", "bn1"), loss=loss)
    callback = DistillCallback(teacher, features=term)
    fit(model, [callback])
    before = {name: value.numpy().copy() for name, value in loss.state_dict().items()}
    fit(model, [callback])
    assert fingerprint(model, teacher) == found
    assert len(loss.parameters()) == 8
    assert any(not np.array_equal(before[name], value.numpy()) for name, value in loss.state_dict().items())


def test_misuse():
    with pytest.raises(ValueError, match=r"maps \[N, C, H, W\], got shapes \[\[8, 4\]\]"):
        fit(hapi_model(), [DistillCallback(TinyNet(), features=FeatureTerm(("fc",), ("bn1",), AttentionFeatureLoss()))])
    with pytest.raises(ValueError, match="no sublayer 'conv9'"):
        fit(hapi_model(), [DistillCallback(TinyNet(), features=FeatureTerm(("conv9",), ("bn1",), lambda s, t: 0))])
    with pytest.raises(TypeError, match=r"student and teacher must .*tuple, got \('conv1',\) and"):
        FeatureTerm(("conv1",), "conv1")
    with pytest.raises(ValueError, match=r"Tuples of layers .*got loss="):
        FeatureTerm(("conv1",), ("conv1",))
