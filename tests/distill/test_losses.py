"""Each loss against its formula in NumPy, its gradient against finite differences, and its invariants."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlelite_callbacks.distill.losses.logits import jsdiv, kl, loss_for_task, smooth_l1
from paddlelite_callbacks.distill.losses.registry import spec_of

LOSSES = ("kl", "jsdiv", "mse", "l2", "l1", "smooth_l1")
RANDOM = np.random.RandomState(0)
STUDENT, TEACHER = RANDOM.randn(5, 7), RANDOM.randn(5, 7) * 2


def named_loss(name, **options):
    return spec_of(name, **options).function


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numpy_kl(a, b):
    return (a * (np.log(a) - np.log(b))).sum(axis=-1).mean()


def numpy_loss(name, s, t, temperature=None):
    if name == "kl":
        temperature = temperature or 4.0
        return temperature**2 * numpy_kl(softmax(t / temperature), softmax(s / temperature))
    if name == "jsdiv":
        temperature = temperature or 1.0
        p, q = softmax(s / temperature), softmax(t / temperature)
        return temperature**2 * (numpy_kl(p, q) + numpy_kl(q, p)) / 2
    d = np.abs(s - t)
    if name in ("mse", "l2"):
        return (d**2).mean()
    if name == "l1":
        return d.mean()
    return np.where(d < 1, d**2 / 2, d - 0.5).mean()


@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_formula(name):
    got = named_loss(name)(paddle.to_tensor(STUDENT), paddle.to_tensor(TEACHER))
    assert float(got) == pytest.approx(numpy_loss(name, STUDENT, TEACHER), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("name", ["kl", "jsdiv"])
def test_temperature_equals_the_formula(name, temperature):
    got = named_loss(name, temperature=temperature)(paddle.to_tensor(STUDENT), paddle.to_tensor(TEACHER))
    assert float(got) == pytest.approx(numpy_loss(name, STUDENT, TEACHER, temperature), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_finite_differences_and_none_to_the_teacher(name):
    student = paddle.to_tensor(STUDENT, stop_gradient=False)
    teacher = paddle.to_tensor(TEACHER, stop_gradient=False)
    named_loss(name)(student, teacher).backward()
    assert teacher.grad is None
    for index in [(0, 0), (2, 3), (4, 6)]:
        moved = [STUDENT.copy(), STUDENT.copy()]
        moved[0][index] += 1e-5
        moved[1][index] -= 1e-5
        slope = (numpy_loss(name, moved[0], TEACHER) - numpy_loss(name, moved[1], TEACHER)) / 2e-5
        assert float(student.grad[index]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_when_equal_and_positive_otherwise(name):
    same = paddle.to_tensor(STUDENT)
    assert float(named_loss(name)(same, same)) == pytest.approx(0.0, abs=1e-12)
    assert float(named_loss(name)(same, paddle.to_tensor(TEACHER))) > 0


def test_dense_outputs_average_over_all_but_the_class_axis():
    s, t = RANDOM.randn(2, 3, 5), RANDOM.randn(2, 3, 5)
    flat = float(kl(paddle.to_tensor(s.reshape(6, 5)), paddle.to_tensor(t.reshape(6, 5))))
    assert float(kl(paddle.to_tensor(s), paddle.to_tensor(t))) == pytest.approx(flat, rel=1e-12)


def test_jsdiv_is_symmetric():
    s, t = paddle.to_tensor(STUDENT), paddle.to_tensor(TEACHER)
    assert float(jsdiv(s, t)) == pytest.approx(float(jsdiv(t, s)), rel=1e-12)


def test_gradient_of_kl_hardly_depends_on_a_high_temperature():
    """For large T the gradient tends to that of matching centred logits: (s - t) / C / N (Hinton 2015, eq. 4)."""
    student = paddle.to_tensor(STUDENT - STUDENT.mean(1, keepdims=True), stop_gradient=False)
    teacher = TEACHER - TEACHER.mean(1, keepdims=True)
    kl(student, paddle.to_tensor(teacher), temperature=1e4).backward()
    np.testing.assert_allclose(student.grad.numpy(), (student.numpy() - teacher) / 7 / 5, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_must_agree(name):
    with pytest.raises(ValueError, match=r"\[5, 7\] and the teacher's \[5, 3\]"):
        named_loss(name)(paddle.to_tensor(STUDENT), paddle.to_tensor(TEACHER[:, :3].copy()))


def test_names():
    assert named_loss("JSDIV") is jsdiv
    with pytest.raises(ValueError, match=r"near names: .*'kl'"):
        named_loss("kll")
    with pytest.raises(ValueError, match="has no temperature"):
        named_loss("mse", temperature=2.0)
    with pytest.raises(ValueError, match=r"temperature .*positive.*, got 0"):
        named_loss("kl", temperature=0)
    with pytest.raises(ValueError, match="delta must be positive"):
        smooth_l1(paddle.ones([1]), paddle.ones([1]), delta=0)


def test_choice_by_task_loss():
    assert loss_for_task(paddle.nn.CrossEntropyLoss()) == "kl"
    assert loss_for_task(paddle.nn.MSELoss()) == "mse"
    with pytest.raises(ValueError, match="pass loss='kl'"):
        loss_for_task(lambda *_: None)
