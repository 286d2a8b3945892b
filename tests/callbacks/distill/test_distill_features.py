"""Features by layer name: equal to hand-written loops, bridges trained and gone, mistakes refused in time."""

from __future__ import annotations

import random
from typing import ClassVar

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from byhand import CE, Log, Tapped, assert_same, hinton, taught, train_by_hand, twin
from paddle import nn
from paddle.static import InputSpec
from toy import CLASSES, Images, TinyNet, copied_weights, equal_weights, fingerprint, fit, hapi_model, weights_of

from paddlelite_callbacks import (
    BenchOptions,
    DistillCallback,
    ExportBenchCallback,
    FeatureTerm,
    PACTConfig,
    PACTQuantCallback,
    prepare_pact_,
)
from paddlelite_callbacks.distill.losses.features import Projection
from paddlelite_callbacks.distill.resolve import expanded


class Pooling(TinyNet):
    """Its ``conv2`` map is half as large as TinyNet's."""

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(F.avg_pool2d(x, 2))))
        return self.fc(self.conv2(x).mean(axis=[2, 3]))


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Adam"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_feature_with_its_projection_equals_a_hand_written_loop(optimizer, accumulate):
    student, teacher = TinyNet(), TinyNet(width=8)
    by_hand, data = twin(student, TinyNet), Images(32)
    paddle.seed(7)
    projection = Projection([8, 4, 8, 8], [8, 8, 8, 8])

    def loss(step, images, labels):
        with paddle.no_grad():
            teacher.eval()
            _, theirs = Tapped(teacher, "conv2")(images)
        output, ours = Tapped(by_hand, "conv2")(images)
        hint = 0.5 * ((projection.layer(ours["conv2"]) - theirs["conv2"]) ** 2).mean()
        return CE(output, labels) + 3.0 * hint

    train_by_hand(
        by_hand, loss, steps=4, data=data, optimizer=optimizer, extra=projection.parameters(), accumulate=accumulate
    )
    paddle.seed(7)
    callback = DistillCallback(teacher, features={"conv2": "conv2"}, weight=3.0)
    model = hapi_model(student, optimizer=optimizer)
    fit(model, [callback], data=data, evaluate=False, accumulate_grad_batches=accumulate)
    assert_same(student, by_hand, atol=2e-5 if optimizer == "Adam" else 1e-6)
    trained = callback.bridges.parameters()
    np.testing.assert_allclose(trained[0].numpy(), projection.layer.weight.numpy(), atol=2e-5)


def test_outputs_and_three_features_together():
    student, teacher = TinyNet(), TinyNet(width=8)
    by_hand, data = twin(student, TinyNet), Images(24)
    paddle.seed(3)
    first, second = Projection([8, 4, 8, 8], [8, 8, 8, 8]), Projection([8, 4, 8, 8], [8, 8, 8, 8])

    def loss(step, images, labels):
        with paddle.no_grad():
            teacher.eval()
            out, theirs = Tapped(teacher, "conv1", "conv2", "fc")(images)
        output, ours = Tapped(by_hand, "conv1", "conv2", "fc")(images)
        terms = [
            hinton(output, out, 2.0),
            0.5 * ((first.layer(ours["conv1"]) - theirs["conv1"]) ** 2).mean(),
            0.1 * (second.layer(ours["conv2"]) - theirs["conv2"]).abs().mean(),
            ((ours["fc"] - theirs["fc"]) ** 2).mean(),
        ]
        return 0.5 * CE(output, labels) + 2.0 * sum(terms)

    train_by_hand(by_hand, loss, steps=3, data=data, extra=[*first.parameters(), *second.parameters()])
    features = [
        FeatureTerm("conv1", "conv1"),
        FeatureTerm("conv2", "conv2", loss="l1", weight=0.1),
        FeatureTerm("fc", "fc", loss="mse"),
    ]
    paddle.seed(3)
    callback = DistillCallback(teacher, loss="kl", temperature=2.0, features=features, weight=2.0, task_weight=0.5)
    fit(hapi_model(student), [callback], data=data, evaluate=False)
    assert_same(student, by_hand)
    assert len(callback.bridges) == 2  # fc is 4 wide in both


@pytest.mark.parametrize("loss", ["attention", "rkd"])
def test_relations_need_no_projection(loss):
    callback = DistillCallback(TinyNet(width=8), features=FeatureTerm("conv2", "conv2", loss=loss))
    fit(hapi_model(), [callback])
    assert not callback.bridges.parameters()


@pytest.mark.parametrize(("student", "teacher"), [(TinyNet, Pooling), (Pooling, TinyNet)])
def test_maps_of_another_size_are_bridged(student, teacher):
    callback = DistillCallback(teacher(width=8), features={"conv2": "conv2"})
    attention = DistillCallback(teacher(width=8), features=FeatureTerm("conv2", "conv2", loss="attention"))
    fit(hapi_model(student()), [callback, attention])
    size = 8 if teacher is TinyNet else 4
    bridge = next(iter(callback.bridges.values()))
    assert bridge(paddle.rand([2, 4, 12 - size, 12 - size])).shape == [2, 8, size, size]


def test_bridges_leave_no_trace_in_model_optimizer_checkpoint_and_export(tmp_path):
    model, plain, teacher = hapi_model(optimizer="Adam"), hapi_model(optimizer="Adam"), TinyNet(width=8)
    found = fingerprint(model, teacher)
    export = ExportBenchCallback(
        tmp_path / "export",
        engines=["paddle"],
        verbose=0,
        benchmark=BenchOptions(warmup=1, repeats=2, peak_memory=False, roofline=False),
    )
    callback = DistillCallback(teacher, features={"conv*": "conv*"})
    fit(model, [export, callback], save_dir=str(tmp_path / "a"), epochs=2)
    other = ExportBenchCallback(
        tmp_path / "other",
        engines=["paddle"],
        verbose=0,
        benchmark=BenchOptions(warmup=1, repeats=2, peak_memory=False, roofline=False),
    )
    fit(plain, [other], save_dir=str(tmp_path / "b"), epochs=2)
    assert len(callback.bridges.parameters()) == 2
    assert fingerprint(model, teacher) == found
    assert (
        paddle.load(str(tmp_path / "a/final.pdparams")).keys() == paddle.load(str(tmp_path / "b/final.pdparams")).keys()
    )
    assert len(paddle.load(str(tmp_path / "a/final.pdopt"))) == len(paddle.load(str(tmp_path / "b/final.pdopt")))
    assert len(model._optimizer.state_dict()) == len(plain._optimizer.state_dict())
    shapes = [
        sorted(p.shape for p in paddle.jit.load(str(tmp_path / folder / "TinyNet/model")).parameters())
        for folder in ("export", "other")
    ]
    assert shapes[0] == shapes[1]


def test_a_second_fit_goes_on_with_the_same_bridges():
    """Two fits of one epoch with one callback equal one fit of two: bridges and their moments are kept in between."""
    once, twice, teacher = TinyNet(), TinyNet(), TinyNet(width=8)
    copied_weights(once, twice)
    for network, fits in ((once, 1), (twice, 2)):
        paddle.seed(2)
        model, callback = hapi_model(network, optimizer="Adam"), DistillCallback(teacher, features={"conv2": "conv2"})
        for _ in range(fits):
            fit(model, [callback], epochs=2 // fits)
    assert_same(once, twice, atol=0)


def test_weight_zero_with_features_is_bit_identical_to_no_callback():
    plain, teacher = TinyNet(dropout=0.3), TinyNet(width=8, dropout=0.5)
    distilled = twin(plain, lambda: TinyNet(dropout=0.3))
    paddle.seed(7)
    fit(hapi_model(plain), epochs=2)
    paddle.seed(7)
    callback = DistillCallback(teacher, loss="kl", features={"conv2": "conv2"}, weight=0.0)
    fit(hapi_model(distilled), [callback], epochs=2)
    assert equal_weights(weights_of(plain), weights_of(distilled))


def test_a_projection_and_a_loss_of_ones_own_are_trained():
    class Scaled(nn.Layer):
        def __init__(self):
            super().__init__()
            self.scale = self.create_parameter([1], default_initializer=nn.initializer.Constant(2.0))

        def forward(self, s, t):
            return ((self.scale * s - t) ** 2).mean()

    own, loss = nn.Conv2D(4, 8, 3, padding=1), Scaled()
    before = own.weight.numpy().copy()
    term = FeatureTerm("conv2", "conv2", loss=loss, project=own)
    callback = DistillCallback(TinyNet(width=8), features=term)
    model = hapi_model()
    fit(model, [callback])
    assert not np.array_equal(before, own.weight.numpy())
    assert float(loss.scale) != 2.0
    assert len(callback.bridges.parameters()) == 3
    assert len(model._optimizer._parameter_list) == len(TinyNet().parameters())


def test_features_with_pact_in_any_order():
    results = []
    for turn in range(2):
        paddle.seed(5)
        model, teacher = hapi_model(), TinyNet(width=8)
        callbacks = [DistillCallback(teacher, features={"conv1": "conv1", "fc": "fc"}), PACTQuantCallback()]
        fit(model, callbacks[::-1] if turn else callbacks, epochs=2)
        results.append(weights_of(model.network))
    assert equal_weights(*results)
    model = hapi_model()
    fit(model, [PACTQuantCallback()])
    fit(model, [PACTQuantCallback(), DistillCallback(TinyNet(width=8), features={"conv1": "conv1"})])


def test_figures_of_each_term():
    log = Log()
    callback = DistillCallback(
        TinyNet(width=8), loss={"kl": 1.0, "dist": 0.5}, features={"conv2": "conv2"}, weight=0.25, task_weight=2.0
    )
    fit(hapi_model(), [log, callback])
    for logs in log.seen:
        parts = logs["distill_kl"] + 0.5 * logs["distill_dist"] + logs["distill_fitnet:conv2"]
        assert logs["distill_loss"] == pytest.approx(parts, rel=1e-5)
        assert logs["loss"][0] == pytest.approx(2 * logs["task_loss"] + 0.25 * parts, rel=1e-5)


def test_globs_pair_layers_of_their_own_depth():
    def network(width):
        return nn.Sequential(("body", nn.Sequential(*(nn.Sequential(nn.Linear(width, width)) for _ in range(3)))))

    pairs = expanded(FeatureTerm("body.*", "body.*"), network(4), network(8))
    assert [(pair.student, pair.teacher) for pair in pairs] == [(f"body.{i}", f"body.{i}") for i in range(3)]
    with pytest.raises(ValueError, match=r"'body.0' matches 1 of the student .* 'body.\*' matches 3 of the teacher"):
        expanded(FeatureTerm("body.0", "body.*"), network(4), network(8))


class Twice(TinyNet):
    def forward(self, x):
        x = self.relu(self.conv1(x))
        return self.fc(self.relu(self.conv2(x)).mean(axis=[2, 3]))


def test_mistakes_in_names_are_refused_at_train_begin():
    model = hapi_model()
    before = weights_of(model.network)
    with pytest.raises(ValueError, match=r"No sublayer of TinyNet matches 'conv3'; near names: .*'conv1'"):
        fit(model, [DistillCallback(TinyNet(), features={"conv3": "conv1"})])
    with pytest.raises(ValueError, match=r"No sublayer of TinyNet matches 'blocks5'; near names: .*'conv1'"):
        fit(model, [DistillCallback(TinyNet(), features={"conv1": "blocks5"})])
    with pytest.raises(ValueError, match=r"FeatureTerm\(of=1\) must be below 1"):
        fit(model, [DistillCallback(TinyNet(), features=FeatureTerm("conv1", "conv1", of=1))])
    with pytest.raises(TypeError, match="features must be a mapping"):
        DistillCallback(TinyNet(), features=["conv1"])
    with pytest.raises(ValueError, match=r"loss 'fitnett'.*'fitnet'"):
        FeatureTerm("conv1", "conv1", loss="fitnett")
    with pytest.raises(TypeError, match="project must be True, False, None or a Layer, got str"):
        FeatureTerm("conv1", "conv1", project="yes")
    assert equal_weights(before, weights_of(model.network))


def test_a_layer_that_runs_twice_or_never_is_refused():
    with pytest.raises(ValueError, match=r"did not run exactly once .* \{'relu': 2\}"):
        fit(hapi_model(Twice()), [DistillCallback(TinyNet(), features={"relu": "relu"})])
    with pytest.raises(ValueError, match=r"\{'bn1': 0\}"):
        fit(hapi_model(), [DistillCallback(Twice(), features={"bn1": "bn1"})])


def hapi_model_with_spec(network):
    model = paddle.Model(network, InputSpec([None, 3, 8, 8], "float32", "x"), InputSpec([None], "int64", "label"))
    model.prepare(paddle.optimizer.Momentum(0.05, parameters=network.parameters()), CE, paddle.metric.Accuracy())
    return model


class Raises(paddle.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        raise AssertionError("an epoch began")


@pytest.mark.parametrize(
    ("options", "teacher", "match"),
    [
        ({}, lambda: TinyNet(outputs=5), r"student's output \[2, 4\] and the teacher's \[2, 5\]"),
        (
            {"features": {"conv1": "fc"}},
            TinyNet,
            r"\[2, 4, 8, 8\] and the teacher's \[2, 4\] cannot be bridged",
        ),
        ({"features": {"relu": "relu"}}, Twice, r"\{'relu': 2\}"),
    ],
)
def test_with_known_inputs_a_misfit_is_refused_at_train_begin(options, teacher, match):
    """Nothing is left of the look: batch-norm statistics, modes and random numbers too."""
    model = hapi_model_with_spec(TinyNet(dropout=0.5))
    before, found = weights_of(model.network), fingerprint(model)
    callback = DistillCallback(teacher(), **options)
    paddle.seed(1)
    expected = float(paddle.rand([1]))
    paddle.seed(1)
    with pytest.raises(ValueError, match=match):
        fit(model, [Raises(), callback])
    assert equal_weights(before, weights_of(model.network))
    assert fingerprint(model) == found
    assert float(paddle.rand([1])) == expected


def test_the_look_at_train_begin_changes_nothing_in_the_training():
    results = []
    for make in (hapi_model, hapi_model_with_spec):
        paddle.seed(4)
        network, teacher = TinyNet(dropout=0.3), TinyNet(width=8, dropout=0.3)
        model = make(network)
        fit(model, [DistillCallback(teacher, loss="kl", features={"conv2": "conv2"})], epochs=2)
        results.append(weights_of(network))
    assert equal_weights(*results)


class Counted(Images):
    """Counts its samples, and draws from every random stream there is."""

    drawn: ClassVar[list[int]] = []  # of the class: attributes of a data set are put back

    def __getitem__(self, index):
        self.drawn.append(index)
        image, label = super().__getitem__(index)
        return image + 0 * (random.random() + np.random.rand() + float(paddle.rand([1]))), label


def test_a_data_sets_first_sample_tells_the_shapes_at_train_begin():
    model, data = hapi_model(), Counted()
    data.drawn.clear()
    before, found = weights_of(model.network), fingerprint(model)
    with pytest.raises(ValueError, match=r"student's output \[8, 4\] and the teacher's \[8, 5\]"):
        fit(model, [Raises(), DistillCallback(TinyNet(outputs=5))], data=data)
    assert data.drawn == [0]
    assert equal_weights(before, weights_of(model.network))
    assert fingerprint(model) == found


def test_the_first_sample_is_looked_at_without_touching_the_random_streams():
    callback, streams = DistillCallback(TinyNet()), []

    class Draws(paddle.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            streams.append((random.random(), np.random.rand(), float(paddle.rand([1]))))

    for callbacks in ([Draws()], [Draws(), callback]):
        random.seed(1), np.random.seed(1), paddle.seed(1)
        fit(hapi_model(TinyNet()) if streams else hapi_model(), callbacks, data=Counted(), evaluate=False)
    random.seed(1), np.random.seed(1), paddle.seed(1)
    model = hapi_model()
    random.seed(2), np.random.seed(2), paddle.seed(2)
    fit(model, [Draws()], data=Counted(), evaluate=False)
    random.seed(2), np.random.seed(2), paddle.seed(2)
    fit(model, [Draws(), callback], data=Counted(), evaluate=False)
    assert streams[2] == streams[3]


def test_a_quantizer_that_waits_for_its_first_batch_does_not_take_the_look_for_it():
    results = []
    for look in (True, False):
        paddle.seed(3)
        network, teacher = TinyNet(), TinyNet()
        model = (hapi_model_with_spec if look else hapi_model)(network)
        prepare_pact_(network, PACTConfig())
        model._optimizer._parameter_list[:] = network.parameters()
        loader = [[paddle.to_tensor(Images(8).images), paddle.to_tensor(Images(8).labels)]]
        model.fit(loader, verbose=0, callbacks=[DistillCallback(teacher)])
        results.append(weights_of(network))
    assert equal_weights(*results)


def test_hooks_of_the_users_own_do_not_notice_the_look_but_count_where_it_matters():
    model, teacher, calls = hapi_model(), TinyNet(outputs=5), []
    model.network.register_forward_pre_hook(lambda layer, x: calls.append("student"))
    hook = teacher.register_forward_post_hook(lambda layer, x, y: y[:, :4])  # makes it fit
    fit(model, [DistillCallback(teacher)], evaluate=False)
    assert calls == ["student"] * 3  # the look is repeated with hooks before anything would be refused
    hook.remove()
    with pytest.raises(ValueError, match=r"and the teacher's \[\d, 5\]"):
        fit(model, [DistillCallback(teacher)], evaluate=False)


def test_with_unknown_inputs_the_first_batch_changes_no_weight():
    model = hapi_model()
    loader = [[paddle.to_tensor(Images(8).images), paddle.to_tensor(Images(8).labels)]]
    before = {name: value.numpy().copy() for name, value in model.network.named_parameters() if value.trainable}
    with pytest.raises(ValueError, match=r"student's output \[8, 4\] and the teacher's \[8, 5\]"):
        model.fit(loader, verbose=0, callbacks=[DistillCallback(TinyNet(outputs=CLASSES + 1))])
    for name, value in model.network.named_parameters():
        if name in before:
            np.testing.assert_array_equal(value.numpy(), before[name])


def test_user_hooks_and_evaluation_see_no_taps():
    model, teacher = hapi_model(), TinyNet(width=8)
    fit(model, [DistillCallback(teacher, features={"conv2": "conv2"})])
    images = paddle.to_tensor(Images().images)
    expected = float(CE(taught(model.network, images), paddle.to_tensor(Images().labels)))
    assert model.evaluate(Images(), batch_size=16, verbose=0)["loss"][0] == pytest.approx(expected, rel=1e-5)
