"""Teachers in train mode, on inputs of their own, with maps of other sizes: against hand-written loops."""

from __future__ import annotations

import copy
import functools
import json
from contextlib import ExitStack

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from byhand import CE, assert_same, hinton, taught, train_by_hand, twin
from paddle import nn
from paddle.nn.functional import dropout as imported_dropout
from paddle.static import InputSpec
from toy import CLASSES, Images, TinyNet, copied_weights, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import (
    BenchOptions,
    DistillCallback,
    EMATeacher,
    ExportBenchCallback,
    ExportOptions,
    FeatureTerm,
    MutualPeer,
    OutputTerm,
    cache_teacher,
    prepare_pact_,
)
from paddlelite_callbacks.distill.forward import FrozenForward
from paddlelite_callbacks.distill.identity import function_digest
from paddlelite_callbacks.distill.resize import resized_like


class DB(nn.Layer):
    """As PP-OCR's DB detector: one map in evaluation, three in training, the third from the other two."""

    def __init__(self, width=4):
        super().__init__()
        self.body, self.norm = nn.Conv2D(3, width, 3, padding=1), nn.BatchNorm2D(width)
        self.drop = nn.Dropout(0.5)
        self.shrink, self.threshold = nn.Conv2D(width, 1, 1), nn.Conv2D(width, 1, 1)

    def forward(self, x):
        x = self.drop(F.relu(self.norm(self.body(x))))
        shrink = F.sigmoid(self.shrink(x))
        if not self.training:
            return {"maps": shrink}
        threshold = F.sigmoid(self.threshold(x))
        return {"maps": paddle.concat([shrink, threshold, F.sigmoid(50 * (shrink - threshold))], axis=1)}

    def three_maps(self, x):
        """The branch of training with the stored statistics and without dropout, spelled out."""
        norm = self.norm
        x = self.body(x)
        mean, variance = (v.reshape([1, -1, 1, 1]) for v in (norm._mean, norm._variance))
        scale, shift = (v.reshape([1, -1, 1, 1]) for v in (norm.weight, norm.bias))
        x = F.relu((x - mean) / (variance + norm._epsilon).sqrt() * scale + shift)
        shrink, threshold = F.sigmoid(self.shrink(x)), F.sigmoid(self.threshold(x))
        return paddle.concat([shrink, threshold, F.sigmoid(50 * (shrink - threshold))], axis=1)


class Texts(Images):
    """The bright quadrant is the text."""

    def __getitem__(self, index):
        image, _ = super().__getitem__(index)
        return image, (image.mean(axis=0, keepdims=True) > 1).astype("float32")


class DBLoss(nn.Layer):
    def forward(self, outputs, target):
        maps = outputs["maps"]
        return F.binary_cross_entropy(maps[:, :1], target) + (maps[:, 1:] - target).abs().mean() * 0.1


class NoDrop(DB):
    """Without the student's own noise, so that a hand-written loop can be held against it."""

    def __init__(self, width=4):
        super().__init__(width)
        self.drop = nn.Identity()


def trained_db():
    """A teacher whose statistics are not those of one batch."""
    teacher = DB(8)
    with paddle.no_grad():
        for _ in range(5):
            teacher(paddle.randn([8, 3, 8, 8]) * 2 + 1)
    return teacher


def test_db_learns_from_the_teachers_three_maps():
    student, teacher, data = NoDrop(), trained_db(), Texts(24)
    by_hand, task = twin(student, NoDrop), DBLoss()
    before, flags = weights_of(teacher), [layer.training for layer in teacher.sublayers(include_self=True)]

    def loss(step, images, target):
        output = by_hand(images)
        with paddle.no_grad():
            theirs = teacher.three_maps(images)
        return task(output, target) + 2.0 * F.mse_loss(output["maps"], theirs)

    train_by_hand(by_hand, loss, steps=3, data=data)
    model = hapi_model(student, loss=task, metrics=False)
    found = fingerprint(model, teacher)
    callback = DistillCallback(teacher, loss="mse", weight=2.0, teacher_mode="train")
    fit(model, [callback], data=data, evaluate=False)
    assert_same(student, by_hand)
    assert equal_weights(before, weights_of(teacher))
    assert fingerprint(model, teacher) == found
    assert [layer.training for layer in teacher.sublayers(include_self=True)] == flags


def test_without_train_mode_the_refusal_names_it_before_a_batch():
    model = hapi_model(NoDrop(), loss=DBLoss(), metrics=False)
    with pytest.raises(ValueError, match=r"\[8, 3, 8, 8\] and the teacher's \[8, 1, 8, 8\].*teacher_mode='train'"):
        fit(model, [DistillCallback(trained_db(), loss="mse")], data=Texts())


def first_map(outputs):
    return outputs["maps"][:, :1]


@pytest.mark.parametrize("output", [(first_map, "maps"), {first_map: first_map}])
def test_or_one_map_is_picked_by_a_function(output):
    student, teacher, data = NoDrop(), trained_db(), Texts(24)
    by_hand, task = twin(student, NoDrop), DBLoss()

    def loss(step, images, target):
        output = by_hand(images)
        return task(output, target) + F.mse_loss(output["maps"][:, :1], taught(teacher, images)["maps"])

    train_by_hand(by_hand, loss, steps=3, data=data)
    model = hapi_model(student, loss=task, metrics=False)
    fit(model, [DistillCallback(teacher, loss=OutputTerm("mse", output=output))], data=data, evaluate=False)
    assert_same(student, by_hand)


class DropPath(nn.Layer):
    """Stochastic depth (Huang 2016), as every zoo writes it for itself."""

    def forward(self, x):
        return x * (paddle.rand([x.shape[0], *[1] * (x.ndim - 1)]) > 0.5).astype(x.dtype) if self.training else x


class OwnNorm(nn.BatchNorm2D):
    pass


class FunctionalNorm(nn.Layer):
    """Statistics of its own, moved by ``F.batch_norm``."""

    def __init__(self, inner=None):
        super().__init__()
        self.register_buffer("_mean", paddle.rand([4]))
        self.register_buffer("_variance", paddle.rand([4]) + 0.5)
        self.inner = inner

    def forward(self, x):
        return F.batch_norm(x, self._mean, self._variance, training=self.training)


class Function(nn.Layer):
    """Calls ``function`` with its own mode; has sublayers, so that it counts as a branching layer."""

    def __init__(self, function):
        super().__init__()
        self.function, self.inner = function, nn.Identity()

    def forward(self, x):
        return self.function(self.inner(x), training=self.training)


class Recurrent(nn.Layer):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 8, num_layers=2, dropout=0.5)

    def forward(self, x):
        return self.rnn(x.flatten(2).transpose([0, 2, 1])[:, :, :1].tile([1, 1, 8]))[0]


class Attention(nn.Layer):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiHeadAttention(4, 2, dropout=0.5)

    def forward(self, x):
        return self.attention(x.flatten(2).transpose([0, 2, 1]))


class OwnAttention(nn.Layer):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        q = self.inner(x.flatten(2).transpose([0, 2, 1]).unsqueeze(2))
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5, training=self.training)


NOISES = {
    "batch norm": lambda: nn.BatchNorm2D(4),
    "own norm": lambda: OwnNorm(4),
    "instance norm": lambda: nn.InstanceNorm2D(4),
    "functional norm": FunctionalNorm,
    "functional norm of a branching layer": lambda: FunctionalNorm(nn.Identity()),
    "dropout": lambda: nn.Dropout(0.5),
    "dropout 2d": lambda: nn.Dropout2D(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "rrelu": nn.RReLU,
    "drop path": DropPath,
    "F.dropout": lambda: Function(lambda x, training: F.dropout(x, 0.5, training=training)),
    "F.dropout by position": lambda: Function(lambda x, training: F.dropout(x, 0.5, None, training)),
    "F.dropout of an axis": lambda: Function(lambda x, training: F.dropout(x, 0.5, axis=1, training=training)),
    "F.dropout2d": lambda: Function(lambda x, training: F.dropout2d(x, 0.5, training=training)),
    "F.alpha_dropout": lambda: Function(lambda x, training: F.alpha_dropout(x, 0.5, training=training)),
    "F.rrelu": lambda: Function(lambda x, training: F.rrelu(x, training=training)),
    "imported dropout": lambda: Function(lambda x, training: imported_dropout(x, 0.5, training=training)),
    "lstm": Recurrent,
    "attention": Attention,
    "own attention": OwnAttention,
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2D(4, 4, 1)),
}


class Branching(nn.Layer):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, x):
        y = self.noise(x)
        return (y, 2 * y) if self.training else y


@pytest.mark.parametrize("kind", NOISES)
def test_norms_and_dropout_of_every_kind_stand_still(kind):
    paddle.seed(3)
    network, x = Branching(NOISES[kind]()), paddle.randn([4, 4, 2, 2])
    with paddle.no_grad():
        network(x * 3 + 1)  # statistics that are not those of x
    network.eval()
    expected = network(x).numpy()
    network.train()
    before = {name: buffer.numpy().copy() for name, buffer in [*network.named_buffers(), *network.named_parameters()]}
    paddle.seed(9)
    after = float(paddle.rand([1]))
    paddle.seed(9)
    forward = FrozenForward(network, mode="train")
    with ExitStack() as scope:
        forward.attach(scope)
        first, second = forward([x])
    np.testing.assert_allclose(first.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(second.numpy(), 2 * expected, atol=1e-6)
    now = {name: buffer.numpy() for name, buffer in [*network.named_buffers(), *network.named_parameters()]}
    assert all(np.array_equal(before[name], now[name]) for name in before)
    assert float(paddle.rand([1])) == after
    assert all(layer.training for layer in network.sublayers(include_self=True))
    assert F.dropout is imported_dropout


class Queue(nn.Layer):
    """Counts, refills and replaces buffers in the branch of training."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2D(3, 2, 3)
        self.register_buffer("count", paddle.zeros([1], "int64"))
        self.register_buffer("queue", paddle.zeros([2, 3]))

    def forward(self, x):
        if self.training:
            self.count.set_value(self.count + 1)
            self.queue[0] = 1.0
            self.queue = paddle.concat([self.queue[1:], x.mean(axis=[0, 2, 3]).unsqueeze(0)])
            return self.head(x), self.queue.sum() + self.count.astype("float32").sum()
        return self.head(x)


def test_buffers_of_the_branch_are_put_back_each_time():
    network, x = Queue(), paddle.rand([2, 3, 8, 8])
    by_hand = copy.deepcopy(network)
    count, queue = network.count, network.queue
    forward = FrozenForward(network, mode="train")
    with ExitStack() as scope:
        forward.attach(scope)
        sums = [float(forward([x])[1]) for _ in range(3)]
    assert sums == [float(by_hand(x)[1])] * 3
    assert network.count is count
    assert network.queue is queue
    assert int(count) == 0
    assert float(queue.sum()) == 0


class Sampling(nn.Layer):
    """Draws in training what the frozen norms and dropout do not cover."""

    def __init__(self):
        super().__init__()
        self.body = TinyNet(width=8)

    def forward(self, x):
        return self.body(x) + (paddle.rand([1]) + float(np.random.rand()) if self.training else 0)


def test_the_students_random_numbers_do_not_notice_a_teacher_that_draws():
    plain, teacher = TinyNet(dropout=0.3), Sampling()
    distilled = twin(plain, lambda: TinyNet(dropout=0.3))
    paddle.seed(7)
    fit(hapi_model(plain), epochs=2)
    paddle.seed(7)
    fit(hapi_model(distilled), [DistillCallback(teacher, weight=0.0, teacher_mode="train")], epochs=2)
    assert equal_weights(weights_of(plain), weights_of(distilled))
    forward, x = FrozenForward(teacher, mode="train"), paddle.rand([2, 3, 8, 8])
    with ExitStack() as scope:
        forward.attach(scope)
        assert float(forward([x]).sum()) != float(forward([x]).sum())  # its own numbers go on


class Aux(nn.Layer):
    """Auxiliary heads in training, as GoogLeNet's and PSPNet's."""

    def __init__(self, width=4):
        super().__init__()
        self.body, self.aux = TinyNet(width=width), nn.Linear(3, CLASSES)

    def forward(self, x):
        scores = self.body(x)
        return [scores, self.aux(x.mean(axis=[2, 3]))] if self.training else scores


def both(scores, aux, labels):
    return CE(scores, labels) + 0.4 * CE(aux, labels)


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ({"teacher_mode": "train"}, [(0, 0), (1, 1)]),
        ({"output": (0, None)}, [(0, 0)]),
        ({"teacher_mode": "train", "output": {0: 0}}, [(0, 0)]),
        ({"teacher_mode": "train", "output": {0: 0, 1: 0}}, [(0, 0), (1, 0)]),
    ],
)
def test_auxiliary_heads_learn_from_the_teachers_or_are_left_out(options, pairs):
    student, teacher, data = Aux(), Aux(8), Images(24)
    by_hand = twin(student, Aux)

    def loss(step, images, labels):
        output = by_hand(images)
        with paddle.no_grad():
            theirs = [taught(teacher.body, images), teacher.aux(images.mean([2, 3]))]
        return both(*output, labels) + sum(hinton(output[mine], theirs[other]) for mine, other in pairs)

    train_by_hand(by_hand, loss, steps=3, data=data)
    model = hapi_model(student, loss=both, metrics=False)
    fit(model, [DistillCallback(teacher, loss="kl", **options)], data=data, evaluate=False)
    assert_same(student, by_hand)


class Detector(nn.Layer):
    """Losses inside ``forward``, beside the outputs, as detectors have them; needs the label in training."""

    def __init__(self, width=4):
        super().__init__()
        self.body = TinyNet(width=width)

    def forward(self, x, label):
        scores = self.body(x)
        if not self.training:
            return {"scores": scores}
        loss = CE(scores, label)
        return {"loss_cls": loss, "loss": loss.reshape([1]), "scores": scores}


class Twofold(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label


class OwnLoss(nn.Layer):
    def forward(self, outputs):
        return outputs["loss"].sum() if "loss" in outputs else outputs["scores"].sum() * 0


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_losses_inside_forward_are_not_compared(mode):
    student, teacher, data = Detector(), Detector(8), Images(24)
    by_hand = twin(student, Detector)

    def loss(step, images, labels):
        output = by_hand(images, labels)
        return output["loss"].sum() + hinton(output["scores"], taught(teacher.body, images))

    train_by_hand(by_hand, loss, steps=3, data=data)
    specs = [InputSpec([None, 3, 8, 8], "float32", "x"), InputSpec([None], "int64", "label")]
    model = paddle.Model(student, specs)
    model.prepare(paddle.optimizer.Momentum(0.05, parameters=student.parameters()), OwnLoss())
    fit(model, [DistillCallback(teacher, loss="kl", teacher_mode=mode)], data=data, evaluate=False)
    assert_same(student, by_hand)


class LossesOnly(TinyNet):
    def forward(self, x):
        return {"loss": super().forward(x).mean()}


def test_a_network_that_gives_losses_only_is_told_to_compare_layers():
    class Own(nn.Layer):
        def forward(self, outputs, label):
            return outputs["loss"]

    model = hapi_model(LossesOnly(), loss=Own(), metrics=False)
    match = r"The student returns no output to compare, but \{'loss': \[\]\}.*features="
    with pytest.raises(ValueError, match=match):
        fit(model, [DistillCallback(LossesOnly(), loss="mse")], evaluate=False)
    callback = DistillCallback(LossesOnly(), features={"conv2": "conv2"}, teacher_mode="train")
    fit(model, [callback], evaluate=False)


def normalised(x):
    return (x - 0.5) * 2.0


def larger(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("function", [normalised, larger, functools.partial(paddle.scale, scale=3.0)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teacher_sees_inputs_of_its_own(function, accumulate):
    student, teacher, data = TinyNet(), TinyNet(width=8), Images(32)
    by_hand = twin(student, TinyNet)

    def loss(step, images, labels):
        output = by_hand(images)
        return CE(output, labels) + hinton(output, taught(teacher, function(images)))

    train_by_hand(by_hand, loss, steps=4, data=data, accumulate=accumulate)
    callback = DistillCallback(teacher, teacher_inputs=function)
    fit(hapi_model(student), [callback], data=data, evaluate=False, accumulate_grad_batches=accumulate)
    assert_same(student, by_hand)


class Small(Images):
    """A small image for the student; the large one and its label come along."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image[:, ::2, ::2].copy(), image, label


class TwoLabels(nn.CrossEntropyLoss):
    def forward(self, output, large, label):
        return super().forward(output, label)


def test_the_large_image_of_the_batch():
    student, teacher, data = TinyNet(), TinyNet(width=8), Small(24)
    by_hand = twin(student, TinyNet)
    updater = paddle.optimizer.Momentum(0.05, parameters=by_hand.parameters())
    for start in (0, 8, 16):
        rows = [data[i] for i in range(start, start + 8)]
        small, large, labels = (paddle.to_tensor(np.stack(column)) for column in zip(*rows, strict=True))
        output = by_hand(small)
        (CE(output, labels) + hinton(output, taught(teacher, large))).backward()
        updater.step()
        updater.clear_grad()
    model = hapi_model(student, loss=TwoLabels(), metrics=False)
    callback = DistillCallback(teacher, loss="kl", teacher_inputs=lambda x, labels: labels[0])
    fit(model, [callback], data=data, evaluate=False)
    assert_same(student, by_hand)


class TakesDict(TinyNet):
    def forward(self, inputs, scale=None):
        return super().forward(inputs["image"] if scale is None else inputs * scale)


def test_teachers_that_take_dictionaries_and_several_inputs_each_their_own_way():
    student, teachers, data = TinyNet(), [TakesDict(width=8), TakesDict(width=6), TinyNet(width=6)], Images(24)
    by_hand = twin(student, TinyNet)

    def loss(step, images, labels):
        output = by_hand(images)
        first, second = taught(teachers[0], {"image": images}), taught(teachers[1], images, 2.0)
        return CE(output, labels) + hinton(output, (first + second + taught(teachers[2], images)) / 3)

    train_by_hand(by_hand, loss, steps=3, data=data)
    functions = [lambda x: {"image": x}, lambda x: (x, 2.0), None]
    fit(hapi_model(student), [DistillCallback(teachers, teacher_inputs=functions)], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_each_of_several_teachers_in_its_own_mode():
    student, teachers, data = Aux(), [Aux(8), Aux(6)], Images(24)
    by_hand = twin(student, Aux)

    def loss(step, images, labels):
        output = by_hand(images)
        with paddle.no_grad():
            theirs = [
                taught(teachers[0].body, images),
                teachers[0].aux(images.mean([2, 3])),
                taught(teachers[1], images),
            ]
        first = hinton(output[0], theirs[0]) + hinton(output[1], theirs[1])
        return both(*output, labels) + first + hinton(output[0], theirs[2])

    train_by_hand(by_hand, loss, steps=3, data=data)
    terms = [OutputTerm("kl", teacher=0), OutputTerm("kl", teacher=1, output=(0, None))]
    callback = DistillCallback(teachers, loss=terms, teacher_mode=["train", "eval"])
    fit(hapi_model(student, loss=both, metrics=False), [callback], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_the_average_of_the_student_in_train_mode_on_other_inputs():
    student, data = Aux(), Images(24)
    by_hand, average = twin(student, Aux), twin(student, Aux)
    steps = [0]

    def loss(step, images, labels):
        output = by_hand(images)
        with paddle.no_grad():
            given = normalised(images)
            theirs = [taught(average.body, given), average.aux(given.mean([2, 3]))]
        return both(*output, labels) + hinton(output[0], theirs[0]) + hinton(output[1], theirs[1])

    def after():
        decay = min(0.9, (1 + steps[0]) / (10 + steps[0]))
        steps[0] += 1
        own = by_hand.state_dict()
        for key, value in average.state_dict().items():
            moving = key.endswith(("_mean", "_variance"))
            value.set_value(own[key] if moving else decay * value + (1 - decay) * own[key])

    train_by_hand(by_hand, loss, steps=3, data=data, after=after)
    teacher = EMATeacher(0.9)
    callback = DistillCallback(teacher, loss="kl", teacher_mode="train", teacher_inputs=normalised)
    fit(hapi_model(student, loss=both, metrics=False), [callback], data=data, evaluate=False)
    assert_same(student, by_hand)
    assert_same(teacher.network, average)


def test_features_of_a_teacher_in_train_mode_on_larger_images():
    student, teacher, data = NoDrop(), trained_db(), Texts(24)
    by_hand, task = twin(student, NoDrop), DBLoss()

    def loss(step, images, target):
        kept = []
        hook = by_hand.shrink.register_forward_post_hook(lambda layer, x, y: kept.append(y))
        output = by_hand(images)
        hook.remove()
        with paddle.no_grad():
            teacher.eval()
            body = F.relu(teacher.norm(teacher.body(larger(images))))
            small = F.interpolate(teacher.shrink(body), size=[8, 8], mode="bilinear", align_corners=False)
        return task(output, target) + ((kept[0] - small) ** 2).mean()

    train_by_hand(by_hand, loss, steps=3, data=data)
    term = FeatureTerm("shrink", "shrink", loss="mse", resize="bilinear")
    callback = DistillCallback(teacher, features=[term], teacher_mode="train", teacher_inputs=larger)
    fit(hapi_model(student, loss=task, metrics=False), [callback], data=data, evaluate=False)
    assert_same(student, by_hand)
    assert not callback.bridges.parameters()


def numpy_bilinear(x, size):
    """Bilinear interpolation of ``[..., H, W]`` with half-pixel centres, point by point."""
    (h, w), out = x.shape[-2:], np.zeros([*x.shape[:-2], *size])
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
            z = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
            top, left = int(y), int(z)
            down, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = y - top, z - left
            out[..., i, j] = (1 - a) * ((1 - b) * x[..., top, left] + b * x[..., top, right]) + a * (
                (1 - b) * x[..., down, left] + b * x[..., down, right]
            )
    return out


@pytest.mark.parametrize(
    ("teacher", "student"), [([2, 3, 8, 6], [4, 3]), ([2, 3, 4, 4], [6, 5]), ([2, 3, 5, 4], [5, 7])]
)
def test_maps_are_resized_as_by_hand(teacher, student):
    x = np.random.RandomState(0).randn(*teacher)
    got = resized_like(paddle.to_tensor(x), [2, 3, *student], "bilinear").numpy()
    np.testing.assert_allclose(got, numpy_bilinear(x, student), atol=1e-6)
    last = resized_like(paddle.to_tensor(x.transpose(0, 2, 3, 1)), [2, *student, 3], "bilinear", channels=-1).numpy()
    np.testing.assert_allclose(last, numpy_bilinear(x, student).transpose(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("length", [3, 5, 9])
def test_sequences_are_resized_along_their_length(length):
    x = np.random.RandomState(0).randn(2, 5, 4)
    got = resized_like(paddle.to_tensor(x), [2, length, 4], "bilinear").numpy()
    rows = numpy_bilinear(x.transpose(0, 2, 1)[:, :, None], [1, length])[:, :, 0].transpose(0, 2, 1)
    np.testing.assert_allclose(got, rows, atol=1e-6)
    first = resized_like(paddle.to_tensor(x.transpose(0, 2, 1)), [2, 4, length], "bilinear", channels=1).numpy()
    np.testing.assert_allclose(first, rows.transpose(0, 2, 1), atol=1e-6)


def test_nearest_takes_pixels_as_they_are():
    x = paddle.arange(16, dtype="float32").reshape([1, 1, 4, 4])
    assert resized_like(x, [1, 1, 2, 2], "nearest").numpy().tolist() == [[[[0, 2], [8, 10]]]]


class Fine(NoDrop):
    """Its maps are twice as large."""

    def forward(self, x):
        return super().forward(larger(x))


@pytest.mark.parametrize("several", [False, True])
def test_maps_of_other_sizes_are_brought_to_the_students_on_request(several):
    student, data = NoDrop(), Texts(24)
    teachers = [Fine(8), NoDrop(6)] if several else [Fine(8)]
    by_hand, task = twin(student, NoDrop), DBLoss()

    def loss(step, images, target):
        output, theirs = by_hand(images), []
        for teacher in teachers:
            teacher.eval()
            given = larger(images) if isinstance(teacher, Fine) else images
            with paddle.no_grad():
                theirs.append(F.interpolate(NoDrop.three_maps(teacher, given), size=[8, 8], mode="bilinear"))
        mean = sum(theirs) / len(theirs)
        return task(output, target) + F.mse_loss(output["maps"], mean)

    train_by_hand(by_hand, loss, steps=3, data=data)
    model = hapi_model(student, loss=task, metrics=False)
    term, options = OutputTerm("mse", resize="bilinear"), {"teacher_mode": "train"}
    fit(model, [DistillCallback(teachers, loss=term, **options)], data=data, evaluate=False)
    assert_same(student, by_hand)
    refused = r"cannot be averaged" if several else r"\[8, 3, 16, 16\] must have .*: use resize='bilinear'"
    with pytest.raises(ValueError, match=refused):
        fit(model, [DistillCallback(teachers, loss="mse", **options)], data=data, evaluate=False)


def test_a_recogniser_learns_from_one_that_sees_wider_lines():
    class Reader(nn.Layer):
        def __init__(self, width=4):
            super().__init__()
            self.body, self.head = nn.Conv2D(3, width, 3, padding=1), nn.Linear(width, CLASSES)

        def forward(self, x):
            return self.head(self.body(x).mean(axis=2).transpose([0, 2, 1]))

    class Steps(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, np.full([8], label, "int64")

    student, teacher, data = Reader(), Reader(8), Steps(24)
    by_hand = twin(student, Reader)

    def wide(x):
        return F.interpolate(x, size=[8, 16], mode="bilinear")

    def loss(step, images, labels):
        output, theirs = by_hand(images), taught(teacher, wide(images)).transpose([0, 2, 1])
        theirs = F.interpolate(theirs, size=[8], mode="linear", data_format="NCW").transpose([0, 2, 1])
        p, q = F.log_softmax(output / 4), F.softmax(theirs / 4)
        return CE(output, labels) + 16 * (q * (q.log() - p)).sum(-1).mean()

    train_by_hand(by_hand, loss, steps=3, data=data)
    callback = DistillCallback(teacher, loss=OutputTerm(resize="bilinear"), teacher_inputs=wide)
    fit(hapi_model(student, metrics=False), [callback], data=data, evaluate=False)
    assert_same(student, by_hand)


def refused(error, match, *, model=None, data=None, **options):
    teacher = options.pop("teacher", None) or TinyNet(width=8)
    seen = []

    class Begun(paddle.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

    with pytest.raises(error, match=match):
        fit(model or hapi_model(), [DistillCallback(teacher, **options), Begun()], data=data, evaluate=False)
    assert seen == []


def test_options_that_cannot_be_are_refused_before_a_batch(tmp_path):
    mode = r"teacher_mode must be 'eval', 'train' or a list of 1 .*, got "
    for wrong in ("test", None, True, ["train", "eval"], []):
        refused(ValueError, mode, teacher_mode=wrong)
    refused(TypeError, r"teacher_inputs must be a function of the student's inputs, .* got int", teacher_inputs=3)
    refused(ValueError, r"holds 2 functions for 1 teachers", teacher_inputs=[normalised, None])
    refused(TypeError, r"takes \(a, b\), but is called with 1 input\(s\) of the student", teacher_inputs=lambda a, b: a)
    refused(TypeError, r"must return a tensor, a dictionary, .* got NoneType", teacher_inputs=lambda x: None)
    refused(TypeError, r"must return a tensor, a dictionary, .* got list", teacher_inputs=lambda x: [])
    with pytest.raises(ValueError, match=r"resize must be one of \['bilinear', 'nearest'\], .*, got 'cubic'"):
        OutputTerm("mse", resize="cubic")
    with pytest.raises(ValueError, match="resize must be one of"):
        FeatureTerm("conv1", "conv1", resize="cubic")
    with pytest.raises(TypeError, match="positional"):
        OutputTerm("mse", 1.0, None, None, None, None, None, "bilinear")
    with pytest.raises(TypeError, match=r"output must be an index, .*, got 1.5"):
        DistillCallback(TinyNet(), loss=OutputTerm("mse", output=1.5))
    with pytest.raises(ValueError, match=r"must be a pair \(student's, teacher's\), got \(0, 1, 2\)"):
        OutputTerm("mse", output=(0, 1, 2))
    with pytest.raises(ValueError, match="names no output"):
        OutputTerm("mse", output={})
    network = TinyNet(width=8)
    network.eval()
    paddle.jit.save(network, str(tmp_path / "program"), input_spec=[InputSpec([None, 3, 8, 8])])
    refused(
        ValueError,
        r"teacher_mode='train' needs the network, a program",
        teacher=str(tmp_path / "program"),
        teacher_mode="train",
    )
    peer = TinyNet(width=8)
    mutual = MutualPeer(peer, paddle.optimizer.SGD(0.1, parameters=peer.parameters()))
    refused(ValueError, "teacher_mode: a MutualPeer trains on", teacher=mutual, teacher_mode="train")
    refused(ValueError, "teacher_inputs: a MutualPeer trains on", teacher=mutual, teacher_inputs=normalised)


def test_a_function_that_fails_is_named_with_the_batch():
    def broken(x):
        return x["image"]

    model = hapi_model()
    before = weights_of(model.network)
    with pytest.raises(ValueError, match=r"teacher_inputs failed on a batch with inputs \[\[8, 3, 8, 8\]\]"):
        fit(model, [DistillCallback(TinyNet(), teacher_inputs=broken)], evaluate=False)
    assert equal_weights(before, weights_of(model.network))

    def wrong(outputs):
        return outputs["map"]

    with pytest.raises(
        ValueError, match=r"The student's output \[.*\] cannot be picked from by wrong \(.*give output= .* a function"
    ):
        fit(model, [DistillCallback(TinyNet(), loss=OutputTerm("mse", output=wrong))], evaluate=False)
    with pytest.raises(ValueError, match=r"the function str in output= .* got str"):
        fit(model, [DistillCallback(TinyNet(), loss=OutputTerm("mse", output=str))], evaluate=False)


def test_a_quantised_teacher_in_train_mode_keeps_its_grid():
    teacher = Aux(8)
    prepare_pact_(teacher)
    fit(hapi_model(teacher, loss=both, metrics=False), evaluate=False)
    before = weights_of(teacher)
    x = paddle.to_tensor(Images(8).images)
    expected = taught(teacher, x).numpy()
    forward = FrozenForward(teacher, mode="train")
    with ExitStack() as scope:
        forward.attach(scope)
        assert np.array_equal(forward([x])[0].numpy(), expected)
    assert equal_weights(before, weights_of(teacher))


def test_stored_outputs_of_train_mode_and_other_inputs(tmp_path):
    student, teacher, data = NoDrop(), trained_db(), Texts(24)
    running = twin(student, NoDrop)
    options = {"teacher_mode": "train", "teacher_inputs": normalised}
    cached = cache_teacher(teacher, data, tmp_path / "c", batch_size=8, verbose=0, **options)
    for network, who, given in ((student, cached, cached), (running, teacher, data)):
        extra = {} if who is cached else options
        model = hapi_model(network, loss=DBLoss(), metrics=False)
        fit(model, [DistillCallback(who, loss="mse", **extra)], data=given, evaluate=False)
    assert_same(student, running)
    assert equal_weights(weights_of(teacher), weights_of(twin(teacher, lambda: DB(8))))
    DistillCallback(cached, loss="mse", **options)
    with pytest.raises(ValueError, match=r"were made with another teacher_inputs, got .*larger"):
        DistillCallback(cached, loss="mse", teacher_inputs=larger)
    with pytest.raises(ValueError, match=r"teacher_mode eval instead of train|teacher_mode train instead of eval"):
        cache_teacher(teacher, data, tmp_path / "c", verbose=0)
    with pytest.raises(ValueError, match=r"teacher_inputs .* instead of"):
        cache_teacher(teacher, data, tmp_path / "c", verbose=0, teacher_mode="train", teacher_inputs=larger)
    plain = cache_teacher(teacher, data, tmp_path / "plain", verbose=0)
    with pytest.raises(ValueError, match="were made with teacher_mode='eval', got 'train'"):
        DistillCallback(plain, teacher_mode="train")
    with pytest.raises(ValueError, match="were made with no teacher_inputs"):
        DistillCallback(plain, teacher_inputs=normalised)
    with pytest.raises(ValueError, match="teacher_mode must be"):
        cache_teacher(teacher, data, tmp_path / "d", teacher_mode="test")
    with pytest.raises(TypeError, match="called with 1 input"):
        cache_teacher(teacher, data, tmp_path / "d", teacher_inputs=lambda a, b: a)


def test_a_folder_from_before_these_options_is_one_of_eval_mode(tmp_path):
    teacher, data = TinyNet(), Images(16)
    cache_teacher(teacher, data, tmp_path / "c", verbose=0)
    file = tmp_path / "c" / "meta.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in meta.items() if not key.startswith("teacher_")}))
    stamp = (tmp_path / "c" / "output_0.npy").stat().st_mtime_ns
    cached = cache_teacher(teacher, data, tmp_path / "c", verbose=0)
    assert cached.meta["teacher_mode"] == "eval"
    assert (tmp_path / "c" / "output_0.npy").stat().st_mtime_ns == stamp


def test_losses_are_not_stored_and_outputs_without_samples_are_refused(tmp_path):
    class Labelled(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label, label

    teacher = Detector()
    options = {"inputs": 2, "verbose": 0, "batch_size": 4, "teacher_mode": "train"}
    cached = cache_teacher(teacher, Labelled(), tmp_path / "c", **options)
    assert cached.meta["outputs"] == ["scores"]

    class Mean(TinyNet):
        def forward(self, x):
            return super().forward(x).mean(axis=0)

    with pytest.raises(ValueError, match=r"\{'': \[4\]\} do not have one row for each of the 8 samples"):
        cache_teacher(Mean(), Images(), tmp_path / "d", batch_size=8, verbose=0)
    assert not (tmp_path / "d").exists()


SHIFT = 0.5


def test_functions_are_told_apart_by_what_they_compute(monkeypatch):
    def made(scale):
        return lambda x: x * scale

    class Scale:
        def __init__(self, value):
            self.value = value

        def __call__(self, x):
            return x * self.value

    def shifted(x):
        return normalised(x) - SHIFT

    same = [(made(2), made(2)), (Scale(1), Scale(1)), (functools.partial(max, 1), functools.partial(max, 1))]
    assert all(function_digest(a) == function_digest(b) for a, b in same)
    first = function_digest(shifted)
    others = [made(2), made(3), Scale(1), Scale(2), normalised, larger, functools.partial(max, 2), TinyNet(), shifted]
    assert len({function_digest(one) for one in others}) == len(others)
    monkeypatch.setitem(globals(), "SHIFT", 0.25)
    assert function_digest(shifted) != first
    monkeypatch.setitem(globals(), "SHIFT", 0.5)
    assert function_digest(shifted) == first
    monkeypatch.setitem(globals(), "normalised", larger)
    assert function_digest(shifted) != first
    assert function_digest(made(np.arange(3))) == function_digest(made(np.arange(3)))
    assert function_digest(made(np.arange(3))) != function_digest(made(np.arange(4)))


def test_a_resumed_training_needs_the_same_options(tmp_path):
    options = {"loss": "kl", "features": {"conv2": "conv2"}, "teacher_inputs": normalised}
    teacher = TinyNet(width=8)
    model = hapi_model()
    fit(model, [DistillCallback(teacher, **options)], save_dir=str(tmp_path))
    again = DistillCallback(teacher, resume=tmp_path / "final", **options)
    fit(model, [again])
    for other, match in (
        ({"teacher_inputs": larger}, r"teacher_inputs='.*normalised', got '.*larger'"),
        ({"teacher_inputs": None}, r"teacher_inputs='.*normalised', got None"),
        ({"teacher_mode": "train"}, r"teacher_mode='eval', got 'train'"),
        ({"loss": OutputTerm("kl", resize="nearest")}, r"resize=None, got 'nearest'"),
    ):
        callback = DistillCallback(teacher, resume=tmp_path / "final", **{**options, **other})
        with pytest.raises(ValueError, match=f"was written with {match}"):
            fit(model, [callback])


def test_the_options_stand_in_the_repr_and_in_the_record(tmp_path):
    assert repr(DistillCallback(TinyNet())) == "DistillCallback(TinyNet)"
    term = OutputTerm("mse", output={"maps": "maps"}, resize="bilinear")
    callback = DistillCallback(trained_db(), loss=[term], teacher_mode="train", teacher_inputs=normalised, weight=2.0)
    shown = repr(callback)
    assert shown.startswith("DistillCallback(DB, loss=[OutputTerm('mse', output=")
    for part in ("resize='bilinear'", "weight=2.0", "teacher_mode='train'", "normalised"):
        assert part in shown
    assert "temperature=None, output=None" not in shown
    assert repr(DistillCallback(EMATeacher(0.9))) == "DistillCallback(EMATeacher(0.9))"
    export = ExportBenchCallback(
        tmp_path,
        name="n",
        engines=["paddle"],
        verbose=0,
        export=ExportOptions(report=False),
        benchmark=BenchOptions(warmup=0, repeats=2, peak_memory=False, roofline=False),
    )
    fit(hapi_model(NoDrop(), loss=DBLoss(), metrics=False), [callback, export], data=Texts(), evaluate=False)
    (held, _) = export.record.config["callbacks"]
    assert held["class"] == "DistillCallback"
    assert held["teacher_mode"] == "train"
    assert held["teacher_inputs"].endswith("normalised")
    assert held["loss"][0]["resize"] == "bilinear"
    assert held["loss"][0]["output"] == {"maps": "maps"}
    json.dumps(export.record.config)


def test_the_look_ahead_leaves_a_teacher_in_train_mode_as_it_was():
    teacher, model = trained_db(), hapi_model(NoDrop(), loss=DBLoss(), metrics=False)
    before, found = weights_of(teacher), fingerprint(model, teacher)
    wrong = DistillCallback(teacher, loss=OutputTerm("mse", output=(first_map, "maps")), teacher_mode="train")
    paddle.seed(1)
    expected = float(paddle.rand([1]))
    paddle.seed(1)
    with pytest.raises(ValueError, match=r"\[8, 1, 8, 8\] and the teacher's \[8, 3, 8, 8\]"):
        fit(model, [wrong], data=Texts())
    assert float(paddle.rand([1])) == expected
    assert equal_weights(before, weights_of(teacher))
    assert fingerprint(model, teacher) == found
    assert F.dropout is imported_dropout


def test_an_error_in_a_batch_leaves_everything_as_it_was():
    class Fails(DB):
        left = 2

        def forward(self, x):
            Fails.left -= 1
            if Fails.left < 0:
                raise RuntimeError("out of memory")
            return super().forward(x)

    teacher, model = Fails(8), hapi_model(NoDrop(), loss=DBLoss(), metrics=False)
    found, modes = fingerprint(model, teacher), [layer.training for layer in teacher.sublayers(include_self=True)]
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(model, [DistillCallback(teacher, loss="mse", teacher_mode="train")], data=Texts(24), evaluate=False)
    assert fingerprint(model, teacher) == found
    assert [layer.training for layer in teacher.sublayers(include_self=True)] == modes
    assert F.dropout is imported_dropout
    copied_weights(teacher, Fails(8))
