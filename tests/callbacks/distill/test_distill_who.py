"""Every kind of teacher against hand-written loops."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from byhand import CE, assert_same, hinton, taught, train_by_hand, twin
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, copied_weights, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback, EMATeacher, FeatureTerm, OutputTerm, prepare_pact_
from paddlelite_callbacks.distill.losses.logits import jsdiv


def test_the_weighted_mean_of_several_teachers():
    student, teachers = TinyNet(), [TinyNet(width=8), TinyNet(width=6)]
    by_hand, data = twin(student, TinyNet), Images(24)

    def loss(step, images, labels):
        mean = 0.75 * taught(teachers[0], images) + 0.25 * taught(teachers[1], images)
        output = by_hand(images)
        return CE(output, labels) + hinton(output, mean)

    train_by_hand(by_hand, loss, steps=3, data=data)
    fit(hapi_model(student), [DistillCallback(teachers, teacher_weights=[3, 1])], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_each_of_several_teachers_by_itself():
    student, teachers = TinyNet(), [TinyNet(width=8), hapi_model(TinyNet(width=6))]
    by_hand, data = twin(student, TinyNet), Images(24)

    def loss(step, images, labels):
        output = by_hand(images)
        first, second = (hinton(output, taught(t, images)) for t in (teachers[0], teachers[1].network))
        return CE(output, labels) + 0.5 * first + 0.5 * second

    train_by_hand(by_hand, loss, steps=3, data=data)
    fit(hapi_model(student), [DistillCallback(teachers, combine="each")], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_a_loss_for_each_teacher():
    student, teachers = TinyNet(), [TinyNet(width=8), TinyNet(width=4)]
    by_hand, data = twin(student, TinyNet), Images(24)

    def loss(step, images, labels):
        output = by_hand(images)
        first, second = (taught(t, images) for t in teachers)
        return CE(output, labels) + hinton(output, first, 2.0) + 0.1 * F.mse_loss(output, second)

    train_by_hand(by_hand, loss, steps=3, data=data)
    terms = [OutputTerm("kl", temperature=2.0, teacher=0), OutputTerm("mse", 0.1, teacher=1)]
    fit(hapi_model(student), [DistillCallback(teachers, loss=terms)], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_features_of_the_second_teacher():
    callback = DistillCallback(
        [TinyNet(width=8), TinyNet(width=6)], loss="kl", features=FeatureTerm("conv2", "conv2", of=1)
    )
    fit(hapi_model(), [callback])
    assert [p.shape for p in callback.bridges.parameters()] == [[6, 4, 1, 1]]


@pytest.fixture
def kinds(tmp_path):
    """One trained teacher in every form."""
    network = TinyNet(width=8)
    fit(hapi_model(network), evaluate=False)
    paddle.save(network.state_dict(), str(tmp_path / "teacher.pdparams"))
    network.eval()
    paddle.jit.save(network, str(tmp_path / "program"), input_spec=[InputSpec([None, 3, 8, 8], "float32", "x")])
    same = TinyNet()
    paddle.save(same.state_dict(), str(tmp_path / "same.pdparams"))
    path = str(tmp_path / "teacher.pdparams")
    return {
        "layer": (network, network),
        "model": (hapi_model(network), network),
        "checkpoint and layer": ((path, TinyNet(width=8)), network),
        "checkpoint and builder": ((path.removesuffix(".pdparams"), lambda: TinyNet(width=8)), network),
        "checkpoint of the student's kind": (tmp_path / "same.pdparams", same),
        "program": (str(tmp_path / "program"), network),
        "program file": (tmp_path / "program.json", network),
    }


def test_every_form_of_a_teacher(kinds):
    start, data = TinyNet(), Images(24)
    for kind, (teacher, network) in kinds.items():
        by_hand, student = twin(start, TinyNet), twin(start, TinyNet)

        def loss(step, images, labels, network=network, by_hand=by_hand):
            output = by_hand(images)
            return CE(output, labels) + hinton(output, taught(network, images))

        train_by_hand(by_hand, loss, steps=3, data=data)
        fit(hapi_model(student), [DistillCallback(teacher)], data=data, evaluate=False)
        assert_same(student, by_hand), kind


def test_teachers_that_cannot_be(tmp_path):
    paddle.save(TinyNet(width=8).state_dict(), str(tmp_path / "wide.pdparams"))
    wide = tmp_path / "wide.pdparams"
    with pytest.raises(ValueError, match=r"does not fit TinyNet: .*other shapes \(file, network\) .*\[8, 3, 3, 3\]"):
        DistillCallback((wide, TinyNet()))
    with pytest.raises(ValueError, match=r"Give the architecture that it was saved from: teacher=\(path, network\)"):
        fit(hapi_model(), [DistillCallback(wide)])
    with pytest.raises(TypeError, match=r"teacher=\(checkpoint, network\) must be a Layer or a function"):
        DistillCallback((wide, 3))
    with pytest.raises(TypeError, match=r"must return a paddle.nn.Layer, got int"):
        DistillCallback((wide, lambda: 3))
    with pytest.raises(ValueError, match="teacher is an empty list"):
        DistillCallback([])
    with pytest.raises(ValueError, match="teacher_weights must be 2 numbers of at least 0"):
        DistillCallback([TinyNet(), TinyNet()], teacher_weights=[1.0])
    with pytest.raises(ValueError, match="combine must be 'mean' or 'each', got 'sum'"):
        DistillCallback([TinyNet(), TinyNet()], combine="sum")
    with pytest.raises(ValueError, match=r"outputs \[\[8, 4\], \[8, 5\]\] cannot be averaged"):
        fit(hapi_model(), [DistillCallback([TinyNet(), TinyNet(outputs=5)])])
    with pytest.raises(ValueError, match=r"OutputTerm\(teacher=1\) must be below 1"):
        fit(hapi_model(), [DistillCallback(TinyNet(), loss=OutputTerm("kl", teacher=1))])


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_of_the_student(ramp, accumulate):
    student = TinyNet()
    by_hand, average, data = twin(student, TinyNet), twin(student, TinyNet), Images(32)
    steps = [0]

    def loss(step, images, labels):
        output = by_hand(images)
        return CE(output, labels) + 2.0 * hinton(output, taught(average, images), 1.0)

    def after():
        decay = min(0.9, (1 + steps[0]) / (10 + steps[0])) if ramp else 0.9
        steps[0] += 1
        own, mean = by_hand.state_dict(), average.state_dict()
        for key, value in mean.items():
            new = own[key] if key in ("bn1._mean", "bn1._variance") else decay * value + (1 - decay) * own[key]
            value.set_value(new)

    train_by_hand(by_hand, loss, steps=4, data=data, accumulate=accumulate, after=after)
    teacher = EMATeacher(0.9, ramp=ramp)
    model = hapi_model(student)
    found = fingerprint(model)
    callback = DistillCallback(teacher, temperature=1.0, weight=2.0)
    fit(model, [callback], data=data, evaluate=False, accumulate_grad_batches=accumulate)
    assert_same(student, by_hand)
    assert_same(teacher.network, average)
    assert teacher.steps == 4 // accumulate
    assert fingerprint(model) == found


def test_the_average_goes_on_in_a_second_fit_of_the_same_student():
    once, twice = TinyNet(), TinyNet()
    copied_weights(once, twice)
    teachers = EMATeacher(0.9), EMATeacher(0.9)
    fit(hapi_model(once), [DistillCallback(teachers[0])], epochs=2)
    model = hapi_model(twice)
    for _ in range(2):
        fit(model, [DistillCallback(teachers[1])])
    assert_same(once, twice, atol=0)
    assert_same(teachers[0].network, teachers[1].network, atol=0)
    other = TinyNet()
    fit(hapi_model(other), [DistillCallback(teachers[1])])
    assert teachers[1].steps == 2


def test_a_decay_out_of_range():
    with pytest.raises(ValueError, match="decay must be at least 0 and less than 1, got 1"):
        EMATeacher(1)


class Answers(nn.Layer):
    """Gives its scores and features as a tuple, a list or a dictionary."""

    def __init__(self, kind, width=4, order=1):
        super().__init__()
        self.body, self.kind, self.order = TinyNet(width=width), kind, order

    def forward(self, x):
        maps = self.body.conv1(x)
        items = [("logits", self.body(x)), ("map", maps.mean(axis=1))][:: self.order]
        return dict(items) if self.kind is dict else self.kind(value for _, value in items)


class DictLoss(nn.Layer):
    def forward(self, outputs, labels):
        return CE(outputs["logits"], labels)


def first(outputs, maps, labels):
    return CE(outputs, labels)


@pytest.mark.parametrize("kind", [tuple, list, dict])
@pytest.mark.parametrize("all_outputs", [False, True])
def test_networks_that_return_several_outputs(kind, all_outputs):
    student = Answers(kind)
    teacher = Answers(kind, width=8, order=-1 if kind is dict else 1)
    by_hand, data = twin(student, lambda: Answers(kind)), Images(24)

    def pairs(answer):
        return list(answer) if kind is not dict else [answer["logits"], answer["map"]]

    def loss(step, images, labels):
        ours, theirs = pairs(by_hand(images)), pairs(taught(teacher, images))
        losses = [F.mse_loss(a, b) for a, b in zip(ours, theirs, strict=True)]
        return CE(ours[0], labels) + (sum(losses) if all_outputs else losses[0])

    train_by_hand(by_hand, loss, steps=3, data=data)
    output = None if all_outputs else "logits" if kind is dict else 0
    model = hapi_model(student, loss=DictLoss() if kind is dict else first, metrics=False)
    fit(model, [DistillCallback(teacher, loss=OutputTerm("mse", output=output))], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_a_tensor_learns_from_an_entry_of_a_dictionary():
    student, teacher = TinyNet(), Answers(dict, width=8)
    by_hand, data = twin(student, TinyNet), Images(24)

    def loss(step, images, labels):
        output = by_hand(images)
        return CE(output, labels) + jsdiv(output, taught(teacher, images)["logits"])

    train_by_hand(by_hand, loss, steps=3, data=data)
    callback = DistillCallback(teacher, loss=OutputTerm("jsdiv", output=(None, "logits")))
    fit(hapi_model(student), [callback], data=data, evaluate=False)
    assert_same(student, by_hand)
    with pytest.raises(ValueError, match=r"The teacher's output has no tensor 'logit'; near names: .*'logits'"):
        fit(hapi_model(), [DistillCallback(teacher, loss=OutputTerm("kl", output=(None, "logit")))])
    with pytest.raises(ValueError, match=r"returns 1 outputs \[8, 4\], the teacher 2 \{'logits': \[8, 4\], 'map'"):
        fit(hapi_model(), [DistillCallback(teacher, loss="kl")])


def test_labels_reach_the_losses_that_need_them():
    from paddlelite_callbacks.distill.losses.logits import dkd

    student, teacher = TinyNet(), TinyNet(width=8)
    by_hand, data = twin(student, TinyNet), Images(24)

    def loss(step, images, labels):
        output = by_hand(images)
        return CE(output, labels) + dkd(output, taught(teacher, images), labels, temperature=2.0)

    train_by_hand(by_hand, loss, steps=3, data=data)
    fit(hapi_model(student), [DistillCallback(teacher, loss="dkd", temperature=2.0)], data=data, evaluate=False)
    assert_same(student, by_hand)
    with pytest.raises(ValueError, match="label 1 of each batch, which has 1"):
        fit(hapi_model(), [DistillCallback(teacher, loss=OutputTerm("dkd", label=1))])


class TwoInputs(nn.Layer):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = TinyNet(width=width), TinyNet(width=width)

    def forward(self, x, y):
        return self.a(x) + self.b(y)


class PairedImages(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, image[:, ::-1].copy(), label


def test_several_inputs():
    student, teacher, data = TwoInputs(), TwoInputs(8), PairedImages(16)
    by_hand = twin(student, TwoInputs)
    updater = paddle.optimizer.Momentum(0.05, parameters=by_hand.parameters())
    for start in (0, 8):
        rows = [data[i] for i in range(start, start + 8)]
        x, y, labels = (paddle.to_tensor(np.stack(column)) for column in zip(*rows, strict=True))
        output = by_hand(x, y)
        (CE(output, labels) + hinton(output, taught(teacher, x, y))).backward()
        updater.step()
        updater.clear_grad()
    fit(hapi_model(student), [DistillCallback(teacher)], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_a_frozen_teacher_list_stays_bit_identical():
    teachers = [TinyNet(dropout=0.5), TinyNet(width=8)]
    before = [weights_of(t) for t in teachers]
    fit(hapi_model(), [DistillCallback(teachers, features={"conv1": "conv1"}, loss="kl")], epochs=2)
    assert all(equal_weights(a, weights_of(t)) for a, t in zip(before, teachers, strict=True))
    assert all(t.training for t in teachers)


class Maps(nn.Layer):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Conv2D(3, width, 3, padding=1)
        self.head = nn.Conv2D(width, 2, 1)

    def forward(self, x):
        return self.head(F.relu(self.body(x)))


class Keypoints(Images):
    """Heat maps of two joints and which of them are labelled."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, image[:2] * 0.1, np.array([label % 2, 1], "float32")


def test_heat_maps_masked_by_the_labels_target_weights():
    student, teacher, data = Maps(), Maps(8), Keypoints(16)
    by_hand = twin(student, Maps)
    updater = paddle.optimizer.Momentum(0.05, parameters=by_hand.parameters())

    def task(maps, target, weight):
        w = weight.unsqueeze(-1).unsqueeze(-1)
        return 0.5 * ((w * (maps - target)) ** 2).mean()

    for start in (0, 8):
        rows = [data[i] for i in range(start, start + 8)]
        images, target, weight = (paddle.to_tensor(np.stack(column)) for column in zip(*rows, strict=True))
        maps = by_hand(images)
        (task(maps, target, weight) + 2.0 * task(maps, taught(teacher, images), weight)).backward()
        updater.step()
        updater.clear_grad()
    model = hapi_model(student, loss=task, metrics=False)
    fit(model, [DistillCallback(teacher, loss="heatmap_mse", weight=2.0)], data=data, evaluate=False)
    assert_same(student, by_hand)


def test_a_checkpoint_alone_also_fits_a_student_that_is_quantised_by_now(tmp_path):
    """As in a resumed run of PACT: the teacher is the float network that was trained before, or the quantised one."""
    plain = TinyNet()
    paddle.save(plain.state_dict(), str(tmp_path / "plain.pdparams"))
    student = TinyNet()
    prepare_pact_(student)
    fit(hapi_model(student), [DistillCallback(tmp_path / "plain.pdparams", loss="kl")])
    paddle.save(student.state_dict(), str(tmp_path / "quantised.pdparams"))
    teachers = []
    for name in ("plain", "quantised"):
        callback = DistillCallback(tmp_path / f"{name}.pdparams", loss="kl")
        fit(hapi_model(student), [callback])
        teachers.append(callback.teacher)
    assert "conv1.activation_quanter.alpha" not in teachers[0].state_dict()
    assert "conv1.activation_quanter.alpha" in teachers[1].state_dict()
    plain.eval()
    x = paddle.to_tensor(Images(4).images)
    teachers[0].eval()
    np.testing.assert_array_equal(teachers[0](x).numpy(), plain(x).numpy())
