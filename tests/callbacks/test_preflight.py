"""What cannot be exported is said before the first batch, and the training is the same with and without that look."""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import time

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, equal_weights, fingerprint, hapi_model, weights_of

from paddlelite_callbacks import Budget, DistillCallback, ExportBenchCallback, ExportOptions, PACTQuantCallback, errors
from paddlelite_callbacks.benchmark import engines
from paddlelite_callbacks.callbacks.export import preflight
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.report.record import read_records

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}
QUICK |= {"eval_data": False, "name": "n"}
REMEDY = "Nothing was trained; preflight=False trains anyway."


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder of temporary files of the test's own, which has to be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(preflight, "_converted", set())
    yield folder
    assert [path for path in folder.iterdir() if not path.name.startswith("paddlelite_traces_")] == []


class Batches(paddle.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.begun = self.trained = 0

    def on_train_batch_begin(self, step, logs=None):
        self.begun += 1

    def on_train_batch_end(self, step, logs=None):
        self.trained += 1


class Stops(paddle.callbacks.Callback):
    """Ends the fit behind the preflight."""

    def on_train_batch_begin(self, step, logs=None):
        raise KeyboardInterrupt


def prepared(network, *, inputs=None, labels=None, loss=None):
    model = paddle.Model(network, inputs, labels)
    optimizer = paddle.optimizer.Momentum(0.05, parameters=network.parameters())
    model.prepare(optimizer, loss or nn.CrossEntropyLoss())
    return model


def train(model, callbacks, data=None, **options):
    model.fit(data or Images(), batch_size=8, verbose=0, shuffle=False, callbacks=callbacks, **options)


def refused(network, folder, *more, error=ExportError, data=None, model=None, options=None) -> str:
    """Return what is said before the first batch; nothing is trained, changed or left behind."""
    model, count = model or prepared(network), Batches()
    found, before = fingerprint(model), weights_of(network)
    callback = ExportBenchCallback(folder / "out", **grouped(**{**QUICK, **(options or {})}))
    with pytest.raises(error) as caught:
        train(model, [callback, *more, count], data)
    assert (count.begun, count.trained) == (0, 0)
    assert fingerprint(model) == found
    assert equal_weights(weights_of(network), before)
    assert not list((folder / "out").rglob("*"))
    assert str(caught.value).endswith(REMEDY)
    return str(caught.value)


class Ending(nn.Layer):
    """A network whose eval mode is made by ``end(network, output)``."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end, self.calls = TinyNet(), end, 0

    def forward(self, x):
        output = self.net(x)
        return output if self.training else self.end(self, output)


def eager_only(network, output):
    if not paddle.in_dynamic_mode():
        raise NotImplementedError("eager only")
    return output


def counted(network, output):
    network.calls += 1
    return output * (1 + network.calls % 2)


NOTHING = {
    "tracing": (eager_only, r"Ending cannot be exported with inputs \[\[-1, 3, 8, 8\]\]: .*eager only"),
    "no tensor": (lambda _, y: None, "output holds a NoneType: in eval mode forward"),
    "no output": (lambda _, y: [], "returns no output, so there is nothing to export: let forward"),
    "dice": (lambda _, y: F.dropout(y, 0.5), r"another output when it is called again .* dropout"),
    "state": (counted, r"another output when it is called again .* a state that forward"),
    "constant": (lambda _, y: paddle.to_tensor(y.numpy()), r"Ending cannot be exported .*numpy"),
}


@pytest.mark.parametrize("more", [(), (PACTQuantCallback,)], ids=["float", "pact"])
@pytest.mark.parametrize("kind", NOTHING)
def test_of_which_nothing_could_be_handed_out(kind, more, tmp_path):
    end, said = NOTHING[kind]
    message = refused(Ending(end), tmp_path, *[make() for make in more], options={"engines": ["paddle"]})
    assert re.search(said, message)


def on_the_network_alone(network):
    network.fc.register_forward_post_hook(lambda layer, given, output: output * (2 if layer is network.fc else 1))


def closed_over_a_parameter(network):
    network.fc.register_forward_post_hook(lambda layer, given, output: output * network.conv2.weight.mean())


def test_hooks_that_cannot_be_kept(tmp_path):
    network = TinyNet()
    on_the_network_alone(network)
    said = refused(network, tmp_path)
    assert "The forward hooks of TinyNet change what it computes and cannot be copied (hooks on ['fc'])" in said
    assert "move what they compute into forward()" in said


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_hook_closed_over_a_parameter_of_the_network(which, tmp_path):
    network = TinyNet()
    closed_over_a_parameter(network)
    assert "TinyNet cannot be exported" in refused(network, tmp_path, options={"which": which})


def test_a_network_that_cannot_be_copied(tmp_path):
    class Stubborn(TinyNet):
        def __deepcopy__(self, memo):
            raise RuntimeError("not me")

    said = refused(Stubborn(), tmp_path, error=TypeError)
    assert "Stubborn cannot be copied (RuntimeError: not me): remove what cannot be copied" in said


class Labelled(nn.Layer):
    def __init__(self):
        super().__init__()
        self.net = TinyNet()

    def forward(this, image, label):
        logits = this.net(image)
        return logits - 0.2 * F.one_hot(label.reshape([-1]), 4) if this.training or this.everywhere else logits

    everywhere = True


IMAGE, LABEL = InputSpec([None, 3, 8, 8], "float32", "image"), InputSpec([None], "int64", "label")


class Twice(Images):
    """Labels are inputs too."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label, label


def test_a_label_that_eval_mode_uses_and_the_specs_leave_out(tmp_path):
    network = Labelled()
    model = prepared(network, inputs=[IMAGE, LABEL], labels=[LABEL])
    said = refused(network, tmp_path, data=Twice(), model=model, options={"input_spec": [IMAGE]})
    assert "input_spec has 1 specs, and the network uses 2 inputs in eval mode" in said
    assert "give one spec for each of these" in said


def test_more_inputs_than_a_forward_without_self_can_have(tmp_path):
    class Many(TinyNet):
        def forward(this, a, b, c, d, e, f, g):
            return super().forward(a + b + c + d + e + f + g)

    class Seven(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return *[image] * 7, label

    network = Many()
    specs = [InputSpec([None, 3, 8, 8], "float32", name) for name in "abcdefg"]
    model = prepared(network, inputs=specs)
    assert "Many cannot be exported with inputs" in refused(network, tmp_path, data=Seven(), model=model)


class Upsampled(TinyNet):
    def forward(self, x):
        x = F.interpolate(x.transpose([0, 2, 3, 1]), scale_factor=2, data_format="NHWC")
        return super().forward(x.transpose([0, 3, 1, 2]))


class Rare(TinyNet):
    def forward(self, x):
        return paddle.lgamma(super().forward(x).abs() + 1)


PARTS = {"upsampling": (Upsampled, "Data format of NHWC is not supported"), "operator": (Rare, "unsupported operators")}


@needs("paddle2onnx")
@pytest.mark.parametrize(
    "options",
    [
        {"engines": ["paddle", "onnxruntime"]},
        {"budget": Budget(size_mb=9, engine="openvino")},
        {"strict": True},
        {"fp16": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("part", PARTS)
def test_what_was_asked_for_by_name_and_cannot_be_given(part, options, tmp_path):
    make, why = PARTS[part]
    said = refused(make(), tmp_path, options=options)
    assert why in said
    assert "The files that can be written are ['model.json']" in said
    named = next(iter(options))
    assert {"engines": "['onnxruntime']", "budget": "['openvino']"}.get(named, f"{named}=True") in said
    assert "name those engines" in said or f"leave {named} out" in said


@needs("paddle2onnx")
@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_lost_is_named_once_before_training(part, quantise, tmp_path, caplog):
    make, why = PARTS[part]
    seen = []

    class First(Stops):
        def on_train_batch_begin(self, step, logs=None):
            seen.append([r.message for r in caplog.records if r.levelname == "WARNING"])
            super().on_train_batch_begin(step, logs)

    callbacks = [ExportBenchCallback(tmp_path / "out", **grouped(**QUICK)), First()]
    if quantise:
        callbacks.append(PACTQuantCallback())
    with pytest.raises(KeyboardInterrupt):
        train(prepared(make()), callbacks)
    (said,) = [message for message in seen[0] if message.startswith("Preflight")]
    assert said.startswith(f"Preflight: of {make.__name__} there will be no ")
    assert why in said
    assert "no fp32 onnx file" in said
    assert ("no int8 onnx file" in said) == quantise
    assert "The files that can be written are ['model.json']" in said
    assert "preflight=False" in said


def without(*names):
    real = errors.importlib.util.find_spec
    return lambda name, *rest: None if name in names else real(name, *rest)


def test_a_converter_that_is_not_installed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(errors.importlib.util, "find_spec", without("paddle2onnx"))
    for options in ({"engines": ["onnxruntime"]}, {"strict": True}):
        said = refused(TinyNet(), tmp_path, options=options)
        assert "ONNX export needs paddle2onnx" in said
        assert "pip install 'paddlelite_callbacks[deploy]'" in said
    caplog.clear()
    with pytest.raises(KeyboardInterrupt):
        train(prepared(TinyNet()), [ExportBenchCallback(tmp_path / "out", **grouped(**QUICK)), Stops()])
    said = [record.message for record in caplog.records if record.message.startswith("Preflight")]
    assert len(said) == 1
    assert "pip install 'paddlelite_callbacks[deploy]'" in said[0]


def test_an_engine_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(engines.ENGINES["openvino"], "package", "no-such-package", raising=False)
    said = refused(TinyNet(), tmp_path, options={"engines": ["paddle", "openvino"]})
    assert (
        "The engine 'openvino' was requested but is not installed (no-such-package not installed: pip install" in said
    )
    assert "Installed: ['paddle', 'paddle-onednn'" in said
    with pytest.raises(KeyboardInterrupt):
        train(prepared(TinyNet()), [ExportBenchCallback(tmp_path / "out", **grouped(**QUICK)), Stops()])


@pytest.mark.parametrize("kind", ["tracing", "dice"])
def test_without_preflight_it_is_said_at_the_end(kind, tmp_path):
    end, said = NOTHING[kind]
    count = Batches()
    callback = ExportBenchCallback(tmp_path / "out", **grouped(**QUICK, preflight=False))
    with pytest.raises(ExportError, match=said):
        train(prepared(Ending(end)), [callback, count])
    assert count.trained == 2
    assert (tmp_path / "out" / "n" / "model.pdparams").is_file()
    assert read_records(tmp_path / "out" / "runs.jsonl")[-1].failure


class Stream(paddle.io.IterableDataset):
    def __init__(self):
        self.given = 0

    def __iter__(self):
        for image, label in (Images()[i] for i in range(16)):
            self.given += 1
            yield image, label


def test_sizes_that_only_the_first_batch_tells(tmp_path):
    """The stream is read as it would be; what is wrong is said in the first batch, before it is computed."""
    for end, data in ((eager_only, Stream()), (lambda _, y: y, Stream())):
        network, count = Ending(end), Batches()
        model, before = prepared(network), weights_of(network)
        loader = paddle.io.DataLoader(data, batch_size=8)
        callbacks = [
            ExportBenchCallback(tmp_path / "out", **grouped(**QUICK, engines=["paddle"])),
            PACTQuantCallback(),
            count,
        ]
        if end is eager_only:
            with pytest.raises(ExportError, match=r"Ending cannot be exported .*eager only.* preflight=False"):
                model.fit(loader, verbose=0, callbacks=callbacks)
            assert (count.begun, count.trained) == (1, 0)
            assert equal_weights(weights_of(network), before)
        else:
            model.fit(loader, verbose=0, callbacks=callbacks)
            assert data.given == 16


def test_a_network_that_eval_mode_cannot_call(tmp_path):
    """Noise would prove nothing, so the first images are awaited."""
    network, count = Ending(lambda _, y: y.reshape([3, 5, 7])), Batches()
    with pytest.raises(ExportError, match=r"Ending cannot be called in eval mode with inputs .*8, 3, 8, 8.*False"):
        train(prepared(network), [ExportBenchCallback(tmp_path / "out", **grouped(**QUICK)), count])
    assert count.trained == 0


def test_a_loop_of_ones_own(tmp_path):
    model = prepared(Ending(eager_only))
    before = weights_of(model.network)
    callback = ExportBenchCallback(tmp_path / "out", **grouped(**QUICK))
    callback.set_model(model)
    callback.set_params({"metrics": ["loss"]})
    callback.on_train_begin()
    images, labels = paddle.to_tensor(Images().images), paddle.to_tensor(Images().labels)
    with pytest.raises(ExportError, match="eager only"):
        model.train_batch([images], [labels])
    callback.close()
    assert equal_weights(weights_of(model.network), before)


class Own(Images):
    """Draws from a generator of its own, and keeps a handle that it opens when first asked."""

    def __init__(self, *, shared):
        super().__init__(24)
        self.shared = shared  # streams, of the process
        self.random, self.transforms = np.random.default_rng(5), [np.random.RandomState(1), random.Random(2)]
        self.opened = None

    def __getitem__(self, index):
        self.opened = self.opened or object()
        image, label = super().__getitem__(index)
        scale = self.random.uniform(0.5, 1.5) + self.transforms[0].rand() + self.transforms[1].random()
        drawn = np.random.rand() + random.random() if self.shared else 0
        return (image * scale + drawn).astype("float32"), label


def numbers() -> list:
    return [random.random(), np.random.rand(), float(paddle.rand([1]))]


KINDS = {
    "plain": lambda: [],
    "pact": lambda: [PACTQuantCallback()],
    "lsq late": lambda: [PACTQuantCallback(method="lsq", start_epoch=1, quantize_outputs=True)],
    "distil": lambda: [DistillCallback(TinyNet(width=8), features={"conv2": "conv2"})],
    "all": lambda: [DistillCallback(TinyNet(width=8)), PACTQuantCallback(freeze_bn_after=1)],
}


def outcome(kind, folder, look, *, workers=0, data=None, known=False):
    """Train two epochs, shuffled, with dropout; return weights and buffers, what was lost, and the next numbers."""
    for seed in (random.seed, np.random.seed, paddle.seed):
        seed(7)
    network, losses = TinyNet(dropout=0.5), []
    spec = InputSpec([None, 3, 8, 8], "float32", "x") if known else None
    model, more = paddle.Model(network, spec), KINDS[kind]()
    optimizer = paddle.optimizer.Momentum(0.05, parameters=network.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss())

    class Losses(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            losses.append(float(np.asarray(logs["loss"]).ravel()[0]))

    class Boom(paddle.callbacks.Callback):
        """Ends the fit before the export, which is not what this is about."""

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    callbacks = (
        [] if look is None else [ExportBenchCallback(folder, **grouped(**QUICK, engines=["paddle"], preflight=look))]
    )
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            Own(shared=not kind.startswith("distil")) if data is None else data,
            batch_size=8, epochs=2, shuffle=True, verbose=0, num_workers=workers,
            callbacks=[*callbacks, *more, Losses(), Boom()],
        )  # fmt: skip
    return weights_of(network), losses, numbers()


@pytest.mark.parametrize("known", [False, True], ids=["sample", "noise"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_training_is_the_same(kind, known, tmp_path):
    expected = outcome(kind, tmp_path, None, known=known)
    for look in (False, True):
        weights, losses, drawn = outcome(kind, tmp_path, look, known=known)
        assert equal_weights(weights, expected[0])
        assert (losses, drawn) == expected[1:]


@pytest.mark.parametrize("kind", ["plain", "pact"])
def test_the_training_is_the_same_with_workers(kind, tmp_path):
    expected = outcome(kind, tmp_path, None, workers=2, data=Images(24))
    weights, losses, drawn = outcome(kind, tmp_path, True, workers=2, data=Images(24))
    assert equal_weights(weights, expected[0])
    assert (losses, drawn) == expected[1:]


class Drawing(Stream):
    """Read ahead in a thread, which draws from the streams of the process."""

    def __iter__(self):
        for image, label in super().__iter__():
            time.sleep(0.02)
            yield (image + np.random.rand() + random.random()).astype("float32"), label


@pytest.mark.parametrize("kind", ["plain", "pact"])
def test_the_training_of_a_stream_is_the_same(kind, tmp_path):
    expected = outcome(kind, tmp_path, None, data=paddle.io.DataLoader(Drawing(), batch_size=8))
    weights, losses, drawn = outcome(kind, tmp_path, True, data=paddle.io.DataLoader(Drawing(), batch_size=8))
    assert equal_weights(weights, expected[0])
    assert (losses, drawn) == expected[1:]


def test_what_hooks_and_layers_count_is_as_if_nothing_had_been_tried(tmp_path):
    class Counting(TinyNet):
        calls = 0

        def forward(self, x):
            self.calls += 1
            self.last = super().forward(x)
            return self.last

    class Owner:
        def __init__(self):
            self.calls, self.seen = 0, {}

        def note(self, layer, given, output):
            self.calls += 1
            self.seen[self.calls] = layer.training

    network, shapes, owner, total = Counting(), [], Owner(), 0

    def note(layer, given, output):
        nonlocal total
        total += 1
        shapes.append(output.shape)

    network.conv1.register_forward_post_hook(note)
    network.conv2.register_forward_post_hook(owner.note)
    found = []

    class Begin(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            found.append((network.calls, total, owner.calls, len(shapes), len(owner.seen), "last" in network._buffers))

    with pytest.raises(KeyboardInterrupt):
        train(prepared(network), [ExportBenchCallback(tmp_path / "out", **grouped(**QUICK)), Begin(), Stops()])
    assert found[0] == (0, 0, 0, 0, 0, False)


def test_a_resumed_fit_and_the_best_weights(tmp_path):
    def fits(look, folder):
        paddle.seed(1)
        model = hapi_model(TinyNet(dropout=0.3))
        options = {**QUICK, "engines": ["paddle"], "which": "best", "monitor": "loss", "preflight": look}
        for _ in range(2):
            callback = ExportBenchCallback(folder, **grouped(**options))
            train(model, [callback, PACTQuantCallback()], eval_data=Images(), epochs=2)
        return weights_of(model.network), callback.record.metrics

    (weights, metrics), (same, also) = fits(False, tmp_path / "a"), fits(True, tmp_path / "b")
    assert equal_weights(weights, same)
    assert metrics == also


@pytest.mark.parametrize("when", ["copy", "trace"])
@pytest.mark.parametrize("more", [(), (PACTQuantCallback,)], ids=["float", "pact"])
def test_ctrl_c_in_the_middle_leaves_all_as_found(when, more, tmp_path):
    def end(network, output):
        if when == "copy" or not paddle.in_dynamic_mode():
            os.kill(os.getpid(), signal.SIGINT)
        return output

    network = Ending(end)
    model, count = prepared(network), Batches()
    found, before = fingerprint(model), weights_of(network)
    callbacks = [ExportBenchCallback(tmp_path / "out", **grouped(**QUICK)), *[make() for make in more], count]
    with pytest.raises(KeyboardInterrupt):
        train(model, callbacks)
    assert (count.begun, count.trained) == (0, 0)
    assert fingerprint(model) == found
    assert equal_weights(weights_of(network), before)
    assert not list((tmp_path / "out").rglob("*"))
    network.end = lambda _, y: y
    train(model, [ExportBenchCallback(tmp_path / "out", **grouped(**QUICK, engines=["paddle"]))])


@pytest.mark.parametrize("step", ["folder", "program"])
def test_a_temporary_folder_that_is_full_costs_no_training(step, tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((tempfile, "mkdtemp") if step == "folder" else (paddle.jit, "save")), full)
        with pytest.raises((OSError, ExportError), match="No space left"):  # the export's own, at the end
            train(prepared(TinyNet()), [ExportBenchCallback(tmp_path / "out", **grouped(**QUICK)), count := Batches()])
    assert count.trained == 2
    assert "Preflight of TinyNet was not completed: OSError: [Errno 28] No space left on device" in caplog.text


@needs("paddle2onnx")
def test_a_program_is_converted_once_a_process(tmp_path, monkeypatch):
    from paddlelite_callbacks.export import variants as forms

    calls, real = [], forms.export_onnx
    monkeypatch.setattr(forms, "export_onnx", lambda *given, **options: calls.append(1) or real(*given, **options))
    folder = tmp_path / "out"
    counts = []
    for network in (TinyNet(), TinyNet(), TinyNet(width=6), Rare(), Rare()):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            train(prepared(network), [ExportBenchCallback(folder, **grouped(**QUICK)), Stops()])
        counts.append(len(calls))
    assert counts == [1, 0, 1, 1, 1]  # what failed is tried again


@pytest.mark.parametrize("verbose", [0, 1])
def test_what_is_printed(verbose, tmp_path, capsys):
    options = {**QUICK, "engines": ["paddle"], "verbose": verbose}
    with pytest.raises(KeyboardInterrupt):
        train(prepared(TinyNet()), [ExportBenchCallback(tmp_path, **grouped(**options)), Stops()])
    said = capsys.readouterr().out
    assert ("Preflight: exporting a copy of TinyNet (preflight=False leaves this out)." in said) == bool(verbose)
    assert ("Preflight: model.json can be written (" in said) == bool(verbose)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_a_value_that_is_no_bool(value, tmp_path):
    with pytest.raises(TypeError, match=rf"preflight must be True or False, got {value!r}: leave it out for True"):
        ExportBenchCallback(tmp_path, export=ExportOptions(preflight=value))
