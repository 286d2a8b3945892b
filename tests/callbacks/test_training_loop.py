"""`training_loop`: a loop of one's own gives the weights of ``fit``, and everything is undone however it is left."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import pytest
from byhand import CE, hinton
from paddle import nn
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import (
    BenchOptions,
    DistillCallback,
    EMATeacher,
    ExportBenchCallback,
    ExportOptions,
    FeatureTerm,
    MutualPeer,
    NonFiniteLossError,
    PACTQuantCallback,
    cache_teacher,
    training_loop,
)
from paddlelite_callbacks.distill.schedules import linear, warm_up

EPOCHS = 2


def network(seed=3, **options):
    paddle.seed(seed)
    return TinyNet(**options)


def loader(data=None):
    return paddle.io.DataLoader(data or Images(), batch_size=8, shuffle=False)


def momentum(net, rate=0.05):
    return paddle.optimizer.Momentum(rate, parameters=net.parameters())


def own_loop(net, callbacks, *, optimizer=None, data=None, accumulate=1, epochs=EPOCHS, **options):
    """A plain dygraph loop with the one line that is added to it."""
    optimizer, batches = optimizer or momentum(net), loader(data)
    log = []
    with training_loop(net, optimizer, callbacks, epochs=epochs, steps=len(batches), **options) as loop:
        for epoch in range(epochs):
            loop.epoch(epoch)
            net.train()
            for number, batch in enumerate(batches):
                images, labels = loop.batch(batch)
                loss = loop.loss(CE(net(images), labels), labels)
                loss.backward()
                if (number + 1) % accumulate == 0:
                    optimizer.step()
                    optimizer.clear_grad()
                log.append(loop.metrics)
    return log


class Logs(paddle.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, step, logs=None):
        self.seen.append({key: logs[key] for key in logs if "distill" in key or "task" in key or "peer" in key})


def peer():
    net = network(9)
    return MutualPeer(net, momentum(net, 0.03))


KINDS = {
    "plain": lambda path: [],
    "kl": lambda path: [DistillCallback(network(7, width=8), loss="kl", weight=0.7)],
    "chosen by the loss": lambda path: [DistillCallback(network(7, width=8))],
    "features": lambda path: [DistillCallback(network(7, width=8), features=[FeatureTerm("conv1", "conv1")])],
    "schedules": lambda path: [
        DistillCallback(network(7), loss="kl", weight=warm_up(1, linear(1.0, 0.2)), task_weight=linear(1.0, 0.5))
    ],
    "labels": lambda path: [DistillCallback(network(7), loss="dkd")],
    "pact": lambda path: [PACTQuantCallback()],
    "pact later": lambda path: [PACTQuantCallback(start_epoch=1)],
    "pact and kl": lambda path: [DistillCallback(network(7), loss="kl"), PACTQuantCallback()],
    "average": lambda path: [DistillCallback(EMATeacher(0.9), loss="mse")],
    "mutual": lambda path: [DistillCallback(peer(), loss="kl")],
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_fit(kind, accumulate, tmp_path):
    model, logs = hapi_model(network(), metrics=False), Logs()
    fitted = KINDS[kind](tmp_path)
    fit(model, [*fitted, logs], epochs=EPOCHS, evaluate=False, accumulate_grad_batches=accumulate)
    net = network()
    own = KINDS[kind](tmp_path)
    seen = own_loop(net, own, accumulate=accumulate, loss=CE)
    assert equal_weights(weights_of(model.network), weights_of(net))
    if kind != "plain" and "pact" not in kind:
        assert [{key: value for key, value in row.items() if key != "loss"} for row in seen] == logs.seen
        assert all(type(value) is float for row in seen for value in row.values())
    if kind == "mutual":
        assert equal_weights(weights_of(fitted[0].teacher), weights_of(own[0].teacher))


def test_a_stored_teacher_gives_the_weights_of_fit(tmp_path):
    cached = cache_teacher(network(7), Images(), tmp_path / "stored", verbose=0)
    model = hapi_model(network(), metrics=False)
    fit(model, [DistillCallback(cached, loss="kl")], data=cached, epochs=EPOCHS, evaluate=False)
    net = network()
    own_loop(net, [DistillCallback(cached, loss="kl")], data=cached)
    assert equal_weights(weights_of(model.network), weights_of(net))


# --- batches that are not finite ---


class Spoilt(Images):
    """NaN in one pixel of the batches ``bad``."""

    def __init__(self, *bad):
        super().__init__(32)
        for number in bad:
            self.images[8 * number + 3, 0, 0, 0] = np.nan


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", [(2,), (0,), (0, 1), (1, 3)])
@pytest.mark.parametrize("optimizer", ["Momentum", "Adam"])
def test_batches_left_out_give_the_weights_of_fit(bad, accumulate, optimizer):
    """Also where an accumulated step was due in a batch that is left out."""
    make = getattr(paddle.optimizer, optimizer)
    model = hapi_model(network(), metrics=False, optimizer=optimizer)
    options = {"loss": "kl", "on_nan": "skip"}
    fit(
        model,
        [DistillCallback(network(7), **options)],
        data=Spoilt(*bad),
        evaluate=False,
        accumulate_grad_batches=accumulate,
    )
    net = network()
    callback = DistillCallback(network(7), **options)
    updater = make(0.05, parameters=net.parameters())
    seen = own_loop(net, [callback], optimizer=updater, data=Spoilt(*bad), epochs=1, accumulate=accumulate)
    assert all(np.isfinite(value).all() for value in weights_of(net).values())
    assert equal_weights(weights_of(model.network), weights_of(net))
    assert seen[-1]["skipped_batches"] == len(bad)


def test_a_batch_left_out_is_a_zero_loss():
    net = network()
    optimizer, images = momentum(net), paddle.full([2, 3, 8, 8], np.nan)
    with training_loop(net, optimizer, [DistillCallback(network(7), loss="kl", on_nan="skip")]) as loop:
        before = weights_of(net)
        loss = loop.loss(net(images).mean())
        assert loop.skipped
        assert float(loss) == 0
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        assert equal_weights(before, weights_of(net))
        loop.loss(net(paddle.ones([2, 3, 8, 8])).mean())
        assert not loop.skipped


def test_a_batch_that_is_not_finite_stops_the_loop_with_the_weights_before_it():
    net = network()
    before = weights_of(net)
    with pytest.raises(NonFiniteLossError, match="epoch 0, batch 0") as caught:
        own_loop(net, [DistillCallback(network(7), loss="kl")], data=Spoilt(0))
    assert "input" in str(caught.value)
    assert equal_weights(before, weights_of(net))


def test_a_batch_that_is_not_finite_may_be_ignored():
    net = network()
    own_loop(net, [DistillCallback(network(7), loss="kl", on_nan="ignore")], data=Spoilt(0))
    assert not all(np.isfinite(value).all() for value in weights_of(net).values())


# --- undone on every way out ---


class Boom(Exception):
    pass


def state_of(net, optimizer, teacher):
    return (
        [(name, type(layer)) for name, layer in net.named_sublayers()],
        [len(layer._forward_pre_hooks) + len(layer._forward_post_hooks) for layer in net.sublayers(include_self=True)],
        [parameter.stop_gradient for parameter in (*net.parameters(), *teacher.parameters())],
        [layer.training for layer in teacher.sublayers(include_self=True)],
        sorted(teacher.state_dict()),
        [id(parameter) for parameter in optimizer._parameter_list],
        sorted(vars(optimizer)),
        optimizer.get_lr(),
    )


@pytest.mark.parametrize("way", ["end", "break", "exception", "Ctrl-C", "return"])
def test_everything_is_undone(way, tmp_path):
    net, teacher = network(), network(7, width=8)
    optimizer = momentum(net)
    found = state_of(net, optimizer, teacher)
    callback = DistillCallback(teacher, features={"conv1": "conv1"})

    def loop_once():
        with training_loop(net, optimizer, [callback]) as loop:
            for images, labels in loader():
                loop.loss(CE(net(images), labels)).backward()
                optimizer.step()
                optimizer.clear_grad()
                if way == "break":
                    break
                if way == "return":
                    return
                if way in ("exception", "Ctrl-C"):
                    raise Boom if way == "exception" else KeyboardInterrupt

    with contextlib.suppress(Boom, KeyboardInterrupt):
        loop_once()
    after = state_of(net, optimizer, teacher)
    assert [a for a, b in zip(found, after, strict=True) if a != b] == []
    way = "end"
    loop_once()  # and it can be used again


def test_pact_stays_and_a_loop_without_a_batch_leaves_no_layer(tmp_path):
    net = network()
    optimizer = momentum(net)
    found = state_of(net, optimizer, network(7))
    with training_loop(net, optimizer, [PACTQuantCallback()]):
        assert state_of(net, optimizer, network(7)) != found
    assert state_of(net, optimizer, network(7)) == found


def test_what_fails_at_the_beginning_changes_nothing():
    net, teacher = network(), network(7)
    optimizer = momentum(net)
    found = state_of(net, optimizer, teacher)
    callbacks = [PACTQuantCallback(), DistillCallback(teacher, features={"nowhere": "conv1"})]
    for _ in range(2):
        with pytest.raises(ValueError, match="nowhere"), training_loop(net, optimizer, callbacks):
            pass
        assert state_of(net, optimizer, teacher) == found


# --- resume, mixed precision, parameter groups, iterations ---


@pytest.mark.parametrize("kind", ["average", "mutual", "features", "schedules"])
def test_a_resumed_loop_goes_on_bit_for_bit(kind, tmp_path):
    @paddle.utils.unique_name.guard()  # as in a process of its own
    def trained(first, last, *, save=None, load=None):
        net = network()
        optimizer, callbacks = momentum(net), KINDS[kind](tmp_path)
        if load is not None:
            net.set_state_dict(paddle.load(f"{load}.pdparams"))
            optimizer.set_state_dict(paddle.load(f"{load}.pdopt"))
            callbacks[0].load(load)
        with training_loop(net, optimizer, callbacks, epochs=4, steps=2, loss=CE) as loop:
            for epoch in range(first, last):
                loop.epoch(epoch)
                for images, labels in loader():
                    loop.loss(CE(net(images), labels), labels).backward()
                    optimizer.step()
                    optimizer.clear_grad()
            if save is not None:
                paddle.save(net.state_dict(), f"{save}.pdparams")
                paddle.save(optimizer.state_dict(), f"{save}.pdopt")
                loop.save(save)
        return weights_of(net)

    whole = trained(0, 4)
    path = str(tmp_path / "at2")
    trained(0, 2, save=path)
    assert (tmp_path / "at2.pddistill").is_file()
    assert equal_weights(whole, trained(2, 4, load=path))


def test_mixed_precision_gives_the_weights_of_fit():
    options = {"init_loss_scaling": 1024.0, "use_dynamic_loss_scaling": True}
    model = paddle.Model(network())
    model.prepare(momentum(model.network), CE, amp_configs={"level": "O1", **options})
    fit(model, [DistillCallback(peer(), loss="kl")], evaluate=False)
    net = network()
    optimizer, scaler = momentum(net), paddle.amp.GradScaler(**options)
    with training_loop(net, optimizer, DistillCallback(peer(), loss="kl"), scaler=scaler, loss=CE) as loop:
        for images, labels in loader():
            with paddle.amp.auto_cast(level="O1"):
                outputs = net(images)
            loss = loop.loss(CE(outputs, labels), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()
    assert equal_weights(weights_of(model.network), weights_of(net))


def test_quantisation_refuses_mixed_precision():
    net = network()
    with (
        pytest.raises(ValueError, match="fp32"),
        training_loop(net, momentum(net), PACTQuantCallback(), scaler=paddle.amp.GradScaler()),
    ):
        pass


@pytest.mark.parametrize("kind", ["features", "pact"])
@pytest.mark.parametrize("optimizer", ["Momentum", "AdamW"])
def test_parameter_groups_train_projections_and_scales(kind, optimizer, tmp_path):
    """One group with everything gives the weights that no group gives, and the groups are as found afterwards."""
    make = getattr(paddle.optimizer, optimizer)
    results = []
    for grouped in (False, True):
        paddle.seed(2)
        net = network()
        given = [{"params": net.parameters()}] if grouped else net.parameters()
        updater = make(0.01, parameters=given)
        callbacks = KINDS[kind](tmp_path)
        found = [len(group["params"]) for group in updater._param_groups] if grouped else None
        own_loop(net, callbacks, optimizer=updater)
        results.append(weights_of(net))
        if grouped and kind == "features":
            assert [len(group["params"]) for group in updater._param_groups] == found
            assert len(updater._parameter_list) == 1
    assert equal_weights(*results)


def test_a_loop_over_iterations_is_one_epoch():
    weights = []

    def weight(epoch, epochs):
        weights.append((epoch, epochs))
        return 1.0

    net = network()
    optimizer = momentum(net)
    with training_loop(net, optimizer, DistillCallback(network(7), loss="kl", weight=weight), steps=4) as loop:
        for _ in range(2):
            for images, labels in loader():
                loop.loss(CE(net(images), labels)).backward()
                optimizer.step()
                optimizer.clear_grad()
    assert weights == [(0.0, 1), (0.25, 1), (0.5, 1), (0.75, 1)]


def test_a_network_in_data_parallel_is_taken_out():
    net, alone = network(), network()
    optimizer = momentum(net)
    parallel = paddle.DataParallel(net)
    with training_loop(parallel, optimizer, DistillCallback(network(7), loss="kl")) as loop:
        for images, labels in loader():
            loop.loss(CE(parallel(images), labels)).backward()
            optimizer.step()
            optimizer.clear_grad()
    own_loop(alone, DistillCallback(network(7), loss="kl"), epochs=1)
    assert equal_weights(weights_of(net), weights_of(alone))


# --- the end of training ---


def test_the_export_is_of_the_best_evaluation(tmp_path):
    net, kept = network(), {}
    optimizer = momentum(net)
    export = ExportBenchCallback(
        tmp_path,
        name="run",
        which="best",
        engines=["paddle"],
        export=ExportOptions(monitor="f1", report=False),
        benchmark=BenchOptions(repeats=2, warmup=1, peak_memory=False, roofline=False),
        verbose=0,
    )
    with training_loop(net, optimizer, export, epochs=3, data=loader()) as loop:
        for epoch, figure in enumerate([0.2, 0.9, 0.4]):
            loop.epoch(epoch)
            for images, labels in loader():
                loop.loss(CE(net(images), labels)).backward()
                optimizer.step()
                optimizer.clear_grad()
            loop.evaluated({"f1": figure})
            kept[epoch] = weights_of(net)
    best = paddle.load(str(tmp_path / "run" / "model.pdparams"))
    assert equal_weights({key: value.numpy() for key, value in best.items()}, kept[1])
    last = paddle.load(str(tmp_path / "run" / "last.pdparams"))
    assert equal_weights({key: value.numpy() for key, value in last.items()}, kept[2])
    assert equal_weights(weights_of(net), kept[2])
    assert export.record.metrics == {"f1": 0.9}
    assert (tmp_path / "run" / "train_log.jsonl").read_text().count("eval_f1") == 3
    loaded = paddle.jit.load(str(tmp_path / "run" / "model"))
    images = paddle.to_tensor(Images().images)
    net.eval()
    net.set_state_dict({key: paddle.to_tensor(value) for key, value in kept[1].items()})
    np.testing.assert_allclose(loaded(images).numpy(), net(images).numpy(), atol=1e-5)


def test_an_exception_exports_nothing(tmp_path):
    net = network()
    export = ExportBenchCallback(tmp_path / "out", engines=["paddle"], export=ExportOptions(preflight=False), verbose=0)
    with contextlib.suppress(Boom), training_loop(net, momentum(net), export) as loop:
        loop.loss(net(paddle.ones([2, 3, 8, 8])).mean())
        raise Boom
    assert not (tmp_path / "out").exists()


# --- losses inside the network, several heads ---


class Detector(nn.Layer):
    """In training a dictionary with the loss, as PaddleDetection's networks give it; scores else."""

    def __init__(self, width=4):
        super().__init__()
        self.body = TinyNet(width=width)

    def forward(self, inputs):
        scores = self.body(inputs["image"])
        if not self.training:
            return scores
        loss = CE(scores, inputs["label"])
        return {"loss": 2 * loss, "loss_cls": loss, "scores": scores}


class Heads(nn.Layer):
    """Two heads in training and one else, as PaddleSeg's networks."""

    def __init__(self, width=4):
        super().__init__()
        self.body, self.aux = TinyNet(width=width), nn.Linear(3, 4)

    def forward(self, x):
        scores = self.body(x)
        return [scores, self.aux(x.mean(axis=[2, 3]))] if self.training else [scores]


def seeded(make, seed, **options):
    paddle.seed(seed)
    return make(**options)


def by_hand(net, teacher, add, batch_of, loss_of):
    """The loop that a reader would write: ``add`` is the distillation of outputs and features of both."""
    optimizer, teacher_features, features = momentum(net), {}, {}
    teacher.eval()
    for network_, kept in ((net, features), (teacher, teacher_features)):
        dict(network_.named_sublayers())["body.conv1"].register_forward_post_hook(
            lambda layer, x, y, kept=kept: kept.update(y=y)
        )
    for images, labels in loader():
        with paddle.no_grad():
            taught = teacher(batch_of(images, labels))
        outputs = net(batch_of(images, labels))
        (loss_of(outputs, labels) + add(outputs, taught, features.get("y"), teacher_features["y"])).backward()
        optimizer.step()
        optimizer.clear_grad()


def in_loop(net, callback, batch_of, loss_of):
    optimizer = momentum(net)
    with training_loop(net, optimizer, callback) as loop:
        for images, labels in loader():
            loss = loop.loss(loss_of(net(batch_of(images, labels)), labels))
            (loss["loss"] if isinstance(loss, dict) else loss).backward()
            optimizer.step()
            optimizer.clear_grad()


def close(a, b):
    for key, value in weights_of(a).items():
        np.testing.assert_allclose(value, b.state_dict()[key].numpy(), atol=1e-6, err_msg=key)


@pytest.mark.parametrize("what", ["features", "scores"])
def test_a_network_that_returns_a_dictionary_with_its_loss(what):
    def batch_of(images, labels):
        return {"image": images, "label": labels}

    def add(outputs, taught, feature, target):
        if what == "features":
            return 0.5 * nn.functional.mse_loss(feature, target)
        return hinton(outputs["scores"], taught)

    ours, theirs = seeded(Detector, 3), seeded(Detector, 3)
    options = {"features": {"body.conv1": "body.conv1"}} if what == "features" else {
        "loss": "kl", "output": ("scores", None)
    }  # fmt: skip
    in_loop(ours, DistillCallback(seeded(Detector, 7), **options), batch_of, lambda outputs, labels: outputs)
    by_hand(theirs, seeded(Detector, 7), add, batch_of, lambda outputs, labels: outputs["loss"])
    close(ours, theirs)


def test_nan_in_a_dictionary_of_inputs_is_found():
    net = seeded(Detector, 3)
    inputs = {"image": paddle.full([2, 3, 8, 8], np.nan), "label": paddle.zeros([2], dtype="int64")}
    callback = DistillCallback(seeded(Detector, 7), features={"body.conv1": "body.conv1"})
    with (
        pytest.raises(NonFiniteLossError, match="input 0 with 384 NaN"),
        training_loop(net, momentum(net), callback) as loop,
    ):
        loop.loss(net(inputs))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("what", ["features", "main", "all"])
def test_a_network_with_auxiliary_heads(what, mode):
    if (what, mode) == ("all", "eval"):
        return  # the teacher has one head there

    def loss_of(outputs, labels):
        return CE(outputs[0], labels) + 0.4 * CE(outputs[1], labels)

    def add(outputs, taught, feature, target):
        if what == "features":
            return 0.5 * nn.functional.mse_loss(feature, target)
        heads = zip(outputs, taught, strict=True) if what == "all" else [(outputs[0], taught[0])]
        return sum(hinton(a, b) for a, b in heads)

    ours, theirs, teacher = seeded(Heads, 3), seeded(Heads, 3), seeded(Heads, 7)
    options = {"features": {"features": {"body.conv1": "body.conv1"}}, "main": {"loss": "kl", "output": 0}}
    callback = DistillCallback(seeded(Heads, 7), teacher_mode=mode, **options.get(what, {"loss": "kl"}))
    in_loop(ours, callback, lambda images, labels: images, loss_of)
    if mode == "train":  # norms frozen all the same
        forward = teacher.forward
        teacher.forward = lambda x: [*forward(x), teacher.aux(x.mean(axis=[2, 3]))]
    by_hand(theirs, teacher, add, lambda images, labels: images, loss_of)
    close(ours, theirs)


def test_a_dictionary_with_its_loss_inside_fit():
    """hapi gives a loss function the dictionary as it is."""

    class Taking(Detector):
        def forward(self, image):
            return super().forward({"image": image, "label": paddle.to_tensor([0, 1, 2, 3, 0, 1, 2, 3])})

    student, teacher = seeded(Taking, 3), seeded(Taking, 7)
    model = paddle.Model(student)
    model.prepare(momentum(student), lambda outputs, labels: outputs["loss"])
    fit(model, [DistillCallback(teacher, loss="kl", output=("scores", None))], evaluate=False)
    net = seeded(Detector, 3)
    in_loop(
        net,
        DistillCallback(seeded(Detector, 7), loss="kl", output=("scores", None)),
        lambda images, labels: {"image": images, "label": labels},
        lambda outputs, labels: outputs,
    )
    assert equal_weights(weights_of(student), weights_of(net))


# --- bad input ---


class Lonely(paddle.callbacks.Callback):
    pass


def kl():
    return DistillCallback(network(7), loss="kl")


def enter(net=None, optimizer=None, callbacks=None, **options):
    net = network() if net is None else net
    with training_loop(net, optimizer or momentum(net), kl() if callbacks is None else callbacks, **options) as loop:
        return loop, net


def inside(act, callbacks=None, **options):
    net = network()
    with training_loop(net, momentum(net), kl() if callbacks is None else callbacks, **options) as loop:
        act(loop, net)


def step(loop, net):
    loop.loss(net(paddle.ones([2, 3, 8, 8])).mean()).backward()


def nested():
    net = network()
    with training_loop(net, momentum(net), kl()):
        enter(net)


def twice(loop, net):
    step(loop, net)
    loop.loss(net.fc.weight.mean())


def back(loop, net):
    loop.epoch(1)
    step(loop, net)
    loop.epoch(1)


def in_eval(loop, net):
    net.eval()
    step(loop, net)


def reused():
    loop, _ = enter()
    with loop:
        pass


def in_two():
    callback = kl()
    with training_loop(one := network(), momentum(one), callback):
        enter(callbacks=callback)


BAD_INPUT = {
    "a model": (lambda: enter(paddle.Model(network()), momentum(network())), TypeError, "network must be a", "Model"),
    "no optimizer": (lambda: enter(network(), "Adam"), TypeError, "optimizer must be a", "str"),
    "another network's optimizer": (lambda: enter(network(), momentum(network())), ValueError, "holds none of", "7"),
    "another callback": (lambda: enter(callbacks=[Lonely()]), TypeError, "callbacks must be", "Lonely"),
    "no list": (lambda: enter(callbacks="kl"), TypeError, "callbacks must be a list", "str"),
    "epochs=0": (lambda: enter(epochs=0), ValueError, "epochs must be", "got 0"),
    "steps=1.5": (lambda: enter(steps=1.5), ValueError, "steps must be", "got 1.5"),
    "no scaler": (lambda: enter(scaler=True), TypeError, "scaler must be", "bool"),
    "nested": (nested, ValueError, "TinyNet is in a training_loop already", "give all callbacks to one"),
    "a callback in two": (in_two, ValueError, "is in a training already", "DistillCallback"),
    "entered again": (reused, RuntimeError, "entered before", "new one"),
    "loss outside": (lambda: enter()[0].loss(paddle.ones([1])), RuntimeError, "not active", "as loop"),
    "epoch outside": (lambda: enter()[0].epoch(0), RuntimeError, "not active", "as loop"),
    "save outside": (lambda: enter()[0].save("x"), RuntimeError, "not active", "as loop"),
    "loss twice": (lambda: inside(twice), RuntimeError, "called twice", "sum the losses"),
    "loss before forward": (
        lambda: inside(lambda loop, net: loop.loss(net.fc.weight.mean())),
        RuntimeError,
        "TinyNet has not run in train mode",
        "Call the network",
    ),
    "eval mode": (lambda: inside(in_eval), RuntimeError, "in eval mode", "call train()"),
    "loss of numbers": (lambda: inside(lambda loop, net: loop.loss([0.5])), TypeError, "float", "as 'loss'"),
    "loss of a dictionary": (lambda: inside(lambda loop, net: loop.loss({"a": 1})), TypeError, "['a']", "as 'loss'"),
    "loss of a batch": (
        lambda: inside(lambda loop, net: loop.loss(net(paddle.ones([2, 3, 8, 8])))),
        ValueError,
        "[2, 4]",
        "mean",
    ),
    "epoch twice": (lambda: inside(back, epochs=3), ValueError, "epoch(1)", "next epoch is 2"),
    "epoch too late": (lambda: inside(lambda loop, net: loop.epoch(3), epochs=3), ValueError, "epoch(3)", "epochs=3"),
    "epoch of a float": (lambda: inside(lambda loop, net: loop.epoch(0.5)), TypeError, "epoch()", "0.5"),
    "epochs for a schedule": (
        lambda: inside(
            lambda loop, net: loop.epoch(1),
            DistillCallback(network(7), loss="kl", weight=linear(1.0, 0.0)),
        ),
        ValueError,
        "schedules need the number of epochs",
        "epochs=",
    ),
    "no figures": (lambda: inside(lambda loop, net: loop.evaluated(0.5)), TypeError, "evaluated()", "float"),
    "figures of text": (lambda: inside(lambda loop, net: loop.evaluated({"a": "b"})), TypeError, "evaluated()", "'b'"),
    "a tensor as batch": (
        lambda: inside(lambda loop, net: loop.batch(paddle.ones([1]))),
        TypeError,
        "batch()",
        "[inputs, labels, ...]",
    ),
    "an unknown loss": (
        lambda: enter(callbacks=DistillCallback(network(7))),
        ValueError,
        "Cannot tell from the task loss",
        "loss='kl'",
    ),
    "a peer without the loss": (
        lambda: inside(step, DistillCallback(peer(), loss="kl")),
        RuntimeError,
        "training_loop does not know it",
        "loss=criterion",
    ),
    "a peer without labels": (
        lambda: inside(step, DistillCallback(peer(), loss="kl"), loss=CE),
        RuntimeError,
        "give the labels",
        "loop.loss(loss, labels)",
    ),
    "a loss with labels without them": (
        lambda: inside(step, DistillCallback(network(7), loss="dkd")),
        ValueError,
        "label 0",
        "loop.loss(loss, labels)",
    ),
    "eval_data without metrics": (
        lambda: enter(callbacks=PACTQuantCallback(eval_data=Images())),
        ValueError,
        "eval_data",
        "metrics=",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_said_in_one_line(case):
    act, kind, *parts = BAD_INPUT[case]
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_stored_teacher_without_batch_is_said(tmp_path):
    cached = cache_teacher(network(7), Images(), tmp_path / "stored", verbose=0)
    with pytest.raises(RuntimeError, match=r"loop\.batch"):
        inside(step, DistillCallback(cached, loss="kl"))


def test_a_network_called_with_a_dictionary_is_not_exported_by_the_loop(tmp_path):
    class Wrapped(TinyNet):
        def forward(self, inputs):
            return super().forward(inputs["image"])

    net = Wrapped()
    export = ExportBenchCallback(tmp_path, engines=["paddle"], verbose=0)
    with pytest.raises(TypeError, match="dict") as caught, training_loop(net, momentum(net), export):
        net({"image": paddle.ones([2, 3, 8, 8])})
    assert "export(" in str(caught.value)
