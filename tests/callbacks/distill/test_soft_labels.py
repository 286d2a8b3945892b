"""Soft and dense labels, sequences and one-dimensional outputs, against NumPy loops and hand-written training."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from byhand import assert_same, taught, train_by_hand, twin
from loss_formulas import numpy_dkd, softmax
from paddle import nn
from toy import CLASSES, Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import DistillCallback, OutputTerm
from paddlelite_callbacks.distill.losses.logits import dkd, kl, loss_for_task
from paddlelite_callbacks.distill.losses.registry import LOSSES, spec_of

RANDOM = np.random.RandomState(5)
S, T = RANDOM.randn(6, 5), RANDOM.randn(6, 5) * 2
HARD = np.array([0, 4, 2, 2, 1, 3])
ONE_HOT = np.eye(5)[HARD]


def tensors(*arrays):
    return [paddle.to_tensor(array) for array in arrays]


def smoothed(one_hot, epsilon=0.1):
    return one_hot * (1 - epsilon) + epsilon / one_hot.shape[-1]


def mixed(one_hot, share=0.7):
    return share * one_hot + (1 - share) * one_hot[::-1]


def largest(row):
    """The class of a soft label, spelled out."""
    best = 0
    for index, value in enumerate(row):
        if value > row[best]:
            best = index
    return best


SOFT = {
    "one-hot": ONE_HOT,
    "integers": ONE_HOT.astype("int64"),
    "smoothed": smoothed(ONE_HOT),
    "mixup": mixed(ONE_HOT),
    "mixup and smoothing": smoothed(mixed(ONE_HOT)),
    "float32": mixed(ONE_HOT, 0.6).astype("float32"),
    "halves": mixed(ONE_HOT, 0.5),
}


@pytest.mark.parametrize("kind", SOFT)
def test_dkd_takes_the_largest_class_of_a_soft_label(kind):
    label = SOFT[kind]
    expected = numpy_dkd(S, T, [largest(row) for row in label])
    assert float(dkd(*tensors(S, T, label))) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["one-hot", "smoothed"])
def test_dkd_with_one_hot_and_smoothed_labels_is_dkd_with_hard_ones(kind):
    student = [paddle.to_tensor(S, stop_gradient=False) for _ in range(2)]
    losses = [dkd(x, *tensors(T, label)) for x, label in zip(student, (HARD, SOFT[kind]), strict=True)]
    paddle.add_n(losses).backward()
    assert float(losses[0]) == float(losses[1])
    assert np.array_equal(student[0].grad.numpy(), student[1].grad.numpy())


def numpy_dense(s, t, label, axis, ignored=None):
    """DKD at each position by itself, and their mean."""
    s, t = np.moveaxis(s, axis, -1), np.moveaxis(t, axis, -1)
    values = [
        numpy_dkd(s[place][None], t[place][None], [label[place]])
        for place in itertools.product(*map(range, label.shape))
        if label[place] != ignored
    ]
    return np.mean(values)


@pytest.mark.parametrize(
    ("shape", "axis", "given"),
    [([2, 3, 4], -1, None), ([2, 4, 3, 2], 1, None), ([2, 4, 3], 1, 1), ([2, 3, 2, 4], 3, -1)],
)
@pytest.mark.parametrize("soft", [False, True])
def test_dkd_of_sequences_and_maps(shape, axis, given, soft):
    s, t = RANDOM.randn(*shape), RANDOM.randn(*shape)
    positions = [size for i, size in enumerate(shape) if i != axis % len(shape)]
    label = RANDOM.randint(0, 4, positions)
    passed = np.moveaxis(smoothed(np.eye(4)[label]), -1, axis) if soft else label
    got = float(dkd(*tensors(s, t, passed), axis=given))
    assert got == pytest.approx(numpy_dense(s, t, label, axis), rel=1e-9)


@pytest.mark.parametrize("ignored", [-100, 255])
def test_what_is_not_labelled_teaches_nothing(ignored):
    s, t = RANDOM.randn(2, 4, 3, 3), RANDOM.randn(2, 4, 3, 3)
    label = RANDOM.randint(0, 4, [2, 3, 3])
    label[0, 1], label[1, :, 2] = ignored, ignored
    student = paddle.to_tensor(s, stop_gradient=False)
    loss = dkd(student, *tensors(t, label), ignore_index=ignored)
    assert float(loss) == pytest.approx(numpy_dense(s, t, label, 1, ignored), rel=1e-9)
    loss.backward()
    assert np.array_equal(np.abs(student.grad.numpy()).sum(axis=1) == 0, label == ignored)
    nothing = dkd(*tensors(s, t, np.full([2, 3, 3], ignored)), ignore_index=ignored)
    assert float(nothing) == 0


def test_labels_that_do_not_fit_are_refused_with_both_forms():
    for label in (HARD[:3], ONE_HOT[:, :4], ONE_HOT[:3]):
        with pytest.raises(ValueError, match=r"give indices \[6\] or soft labels \[6, 5\], or choose another label"):
            dkd(*tensors(S, T, label))


class SoftImages(Images):
    """Labels as MixUp and label smoothing leave them."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        partner, other = super().__getitem__((index * 5 + 3) % len(self))
        one_hot = np.eye(CLASSES)
        soft = smoothed(0.8 * one_hot[label] + 0.2 * one_hot[other]).astype("float32")
        return (0.8 * image + 0.2 * partner).astype("float32"), soft


ON_MAPS = {"cwd", "attention", "heatmap_mse"}  # and the label of heatmap_mse is no class


@pytest.mark.parametrize("loss", [*sorted(set(LOSSES) - ON_MAPS), "callable"])
def test_every_loss_trains_with_soft_labels_as_a_hand_written_loop(loss):
    student, teacher, data = TinyNet(), TinyNet(width=8), SoftImages(16)
    by_hand, task = twin(student, TinyNet), nn.CrossEntropyLoss(soft_label=True)

    def own(s, t, label):
        return F.cross_entropy(s, label, soft_label=True) + ((s - t) ** 2).mean()

    def compared(output, theirs, labels):
        if loss == "callable":
            return own(output, theirs, labels)
        if loss == "dkd":
            hard = [largest(row) for row in labels.numpy()]
            return dkd(output, theirs, paddle.to_tensor(hard))
        return spec_of(loss).function(output, theirs)

    def total(step, images, labels):
        output = by_hand(images)
        return task(output, labels) + compared(output, taught(teacher, images), labels)

    train_by_hand(by_hand, total, steps=2, data=data)
    term = OutputTerm(own, label=0) if loss == "callable" else loss
    model = hapi_model(student, loss=nn.CrossEntropyLoss(soft_label=True), metrics=False)
    fit(model, [DistillCallback(teacher, loss=term)], data=data, evaluate=False)
    assert_same(student, by_hand)


class Segments(nn.Layer):
    def __init__(self, width=4):
        super().__init__()
        self.body, self.head = nn.Conv2D(3, width, 3, padding=1), nn.Conv2D(width, CLASSES, 1)

    def forward(self, x):
        return self.head(F.relu(self.body(x)))


class Masks(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        mask = np.where(image[0] > 0, label, (label + 1) % CLASSES).astype("int64")
        mask[:2] = 255
        return image, mask


def test_dkd_on_segmentation_takes_axis_and_ignored_class_from_the_task_loss():
    student, teacher, data = Segments(), Segments(8), Masks(16)
    by_hand, task = twin(student, Segments), nn.CrossEntropyLoss(axis=1, ignore_index=255)

    def total(step, images, labels):
        output, theirs = by_hand(images), taught(teacher, images)
        kept = (labels != 255).flatten().nonzero().flatten()
        rows = [x.transpose([0, 2, 3, 1]).reshape([-1, CLASSES])[kept] for x in (output, theirs)]
        return task(output, labels) + dkd(*rows, labels.flatten()[kept])

    train_by_hand(by_hand, total, steps=2, data=data)
    model = hapi_model(student, loss=task, metrics=False)
    fit(model, [DistillCallback(teacher, loss="dkd")], data=data, evaluate=False)
    assert_same(student, by_hand)


class Reader(nn.Layer):
    """A CTC recogniser: ``[N, T, C]``, class 0 the blank."""

    def __init__(self, width=4):
        super().__init__()
        self.body, self.head = nn.Conv2D(3, width, 3, padding=1), nn.Linear(width, CLASSES + 1)

    def forward(self, x):
        return self.head(self.body(x).mean(axis=2).transpose([0, 2, 1]))


class Words(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, np.array([1 + label, 1 + (label + 1) % CLASSES], "int64"), np.array(2, "int64")


class CTC(nn.Layer):
    def forward(self, scores, words, lengths):
        times = paddle.full([scores.shape[0]], scores.shape[1], dtype="int64")
        return F.ctc_loss(scores.transpose([1, 0, 2]), words.astype("int32"), times, lengths, blank=0)


@pytest.mark.parametrize("loss", ["kl", "dml", "jsdiv"])
def test_a_ctc_recogniser_is_compared_class_by_class_at_every_step(loss):
    student, teacher, data = Reader(), Reader(8), Words(16)
    by_hand, task = twin(student, Reader), CTC()
    temperature = 4.0 if loss == "kl" else 1.0

    def total(step, images, words, lengths):
        output, theirs = by_hand(images) / temperature, taught(teacher, images) / temperature
        p, q = F.softmax(output, axis=-1), F.softmax(theirs, axis=-1)
        forth = (q * (q.log() - p.log())).sum(axis=-1).mean()
        back = (p * (p.log() - q.log())).sum(axis=-1).mean()
        compared = (forth + back) / 2 if loss == "jsdiv" else forth
        return task(output * temperature, words, lengths) + temperature**2 * compared

    updater = paddle.optimizer.Momentum(0.05, parameters=by_hand.parameters())
    for start in (0, 8):
        rows = [data[i] for i in range(start, start + 8)]
        total(0, *(paddle.to_tensor(np.stack(column)) for column in zip(*rows, strict=True))).backward()
        updater.step()
        updater.clear_grad()
    model = hapi_model(student, loss=task, metrics=False)
    fit(model, [DistillCallback(teacher, loss=loss)], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_kl_of_a_sequence_by_hand():
    s, t = RANDOM.randn(2, 3, 4), RANDOM.randn(2, 3, 4)
    rows = [(softmax(t[i, j]), softmax(s[i, j])) for i in range(2) for j in range(3)]
    expected = np.mean([(q * np.log(q / p)).sum() for q, p in rows])
    assert float(kl(*tensors(s, t), temperature=1.0)) == pytest.approx(expected, rel=1e-9)
    assert loss_for_task(nn.CTCLoss()) == "kl"


@pytest.mark.parametrize("shape", [[6], [6, 1], [2, 1, 4, 4]])
@pytest.mark.parametrize("name", ["kl", "jsdiv", "dml", "dkd", "dist"])
def test_outputs_without_classes_are_refused_by_losses_on_classes(name, shape):
    """A softmax over the batch or over one class would teach nothing, without a word."""
    x, labels = paddle.ones(shape), [paddle.zeros([shape[0]], "int64")] * LOSSES[name].classes
    extra = labels if LOSSES[name].label is not None else []
    with pytest.raises(ValueError, match=r"class axis .*got \[.*loss='bce' .* 'mse'"):
        LOSSES[name].function(x, x, *extra)


class Scalar(TinyNet):
    def forward(self, x):
        return super().forward(x)[:, 0]


@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "bce", "fitnet"])
def test_one_dimensional_outputs_are_compared_element_by_element(name):
    student, teacher, data = Scalar(), Scalar(width=8), Images(16, target="mean")

    def task(output, label):
        return F.mse_loss(output, label[:, 0])

    by_hand = twin(student, Scalar)

    def total(step, images, labels):
        output = by_hand(images)
        return task(output, labels) + spec_of(name).function(output, taught(teacher, images))

    train_by_hand(by_hand, total, steps=2, data=data)
    fit(hapi_model(student, loss=task, metrics=False), [DistillCallback(teacher, loss=name)], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_kl_on_one_dimensional_outputs_is_refused_before_a_batch_is_trained():
    seen = []

    class Batches(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            seen.append(step)

    model = hapi_model(Scalar(), loss=lambda x, y: F.mse_loss(x, y.astype("float32")), metrics=False)
    with pytest.raises(ValueError, match=r"class axis .*got \[8\]"):
        fit(model, [DistillCallback(Scalar(), loss="kl"), Batches()], evaluate=False)
    assert seen == []
