"""The exported files against ``model.network`` itself: hooks that compute stay, those that look go, nothing is copied
that cannot be."""

from __future__ import annotations

import threading

import numpy as np
import paddle
import pytest
from exporting import grouped
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, fingerprint, fit, hapi_model

from paddlelite_callbacks import DistillCallback, ExportBenchCallback, PACTQuantCallback, ptq_int8
from paddlelite_callbacks.distill.load_teacher import copied
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.eval_copy import eval_copy, eval_outputs
from paddlelite_callbacks.export.hooks import forward_hooks
from paddlelite_callbacks.nn.cost import count_macs
from paddlelite_callbacks.nn.surgery import copy_network

QUICK = {"engines": ["paddle"], "warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False}
QUICK |= {"report": False, "eval_data": False}
X = np.random.RandomState(3).randn(4, 3, 8, 8).astype("float32")


def network_itself(network, x=X) -> np.ndarray:
    """By hand: eval mode, the network as it is, its hooks as they are."""
    modes = [(layer, layer.training) for layer in network.sublayers(include_self=True)]
    network.eval()
    with paddle.no_grad():
        output = network(paddle.to_tensor(x)).numpy()
    for layer, training in modes:
        layer.training = training
    return output


def file_itself(folder, x=X) -> np.ndarray:
    with paddle.no_grad():
        program = paddle.jit.load(str(folder / "n" / "model"))
        program.eval()
        return program(paddle.to_tensor(x)).numpy()


def standardised(layer, given):
    """Weight standardisation (Qiao et al. 2019) as users write it: nothing is returned, the weight is set."""
    weight = layer.weight_raw
    mean = weight.mean(axis=[1, 2, 3], keepdim=True)
    layer.weight = (weight - mean) / (weight.std(axis=[1, 2, 3], keepdim=True) + 1e-5)


def standardise(net):
    layer = net.conv1
    layer.weight_raw = layer._parameters.pop("weight")
    standardised(layer, ())
    layer.register_forward_pre_hook(standardised)


class Scale:
    """A hook that holds a layer of the network."""

    def __init__(self, net):
        self.source = net.fc
        net.conv2.register_forward_post_hook(self.act)

    def act(self, layer, given, output):
        return output * self.source.weight.mean() * 10


def doubled_in_place(layer, given, output):
    paddle.assign(output * 2, output)


CHANGES = {
    "none": lambda net: None,
    "weight norm": lambda net: nn.utils.weight_norm(net.conv1),
    "weight norm of a linear layer": lambda net: nn.utils.weight_norm(net.fc, dim=1),
    "weight norm as a whole": lambda net: nn.utils.weight_norm(net.conv2, dim=None),
    "spectral norm": lambda net: (nn.utils.spectral_norm(net.fc), nn.utils.spectral_norm(net.conv1)),
    "negated": lambda net: net.fc.register_forward_post_hook(lambda layer, given, output: -output),
    "input scaled": lambda net: net.conv2.register_forward_pre_hook(lambda layer, given: (given[0] * 3,)),
    "input scaled, no tuple": lambda net: net.conv2.register_forward_pre_hook(lambda layer, given: given[0] * 3),
    "of the network itself": lambda net: net.register_forward_post_hook(lambda layer, given, output: output + 5),
    "its input": lambda net: net.register_forward_pre_hook(lambda layer, given: (given[0] * 0.1,)),
    "sets the weight": standardise,
    "holds a layer": Scale,
}


class Best(paddle.callbacks.Callback):
    """Keeps the weights of the best epoch, by hand."""

    def __init__(self):
        super().__init__()
        self.loss, self.state = np.inf, None

    def on_eval_end(self, logs=None):
        if logs["loss"][0] < self.loss:
            self.loss = logs["loss"][0]
            self.state = {key: value.numpy().copy() for key, value in self.model.network.state_dict().items()}


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_file_is_the_network_itself(change, which, tmp_path):
    network = TinyNet()
    CHANGES[change](network)
    model = hapi_model(network, learning_rate=0.3)
    callback, best = ExportBenchCallback(tmp_path, **grouped(name="n", which=which, monitor="loss", **QUICK)), Best()
    found = fingerprint(model)
    fit(model, [callback, best], epochs=3)
    assert fingerprint(model) == found
    last = {key: value.numpy().copy() for key, value in network.state_dict().items()}
    if which == "best":
        network.set_state_dict(best.state)
    expected = network_itself(network)
    np.testing.assert_allclose(file_itself(tmp_path), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert [check.passed for check in callback.record.checks] == [True]
    network.set_state_dict(last)


def test_the_last_weights_stay_where_the_best_are_exported(tmp_path):
    network = TinyNet()
    nn.utils.weight_norm(network.conv1)
    seen = []

    class AtTheEnd(paddle.callbacks.Callback):
        def on_train_end(self, logs=None):
            seen.append({key: value.numpy().copy() for key, value in network.state_dict().items()})

    fit(
        hapi_model(network, learning_rate=5.0),
        [ExportBenchCallback(tmp_path, **grouped(name="n", which="best", monitor="loss", **QUICK)), AtTheEnd()],
        epochs=3,
    )
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), seen[0][key], err_msg=key)


class Logger:
    """A bound method whose object holds an open file, as users log activations; no tracing survives it."""

    def __init__(self, layer, path):
        self.file, self.calls = path.open("w"), 0
        layer.register_forward_post_hook(self.note)

    def note(self, layer, given, output):
        self.calls += 1
        self.file.write(f"{float(output.mean())}\n")


@pytest.mark.parametrize("change", ["none", "negated", "sets the weight", "weight norm"])
def test_hooks_that_only_look_are_left_out(change, tmp_path):
    network = TinyNet()
    loggers = [Logger(layer, tmp_path / f"{i}.log") for i, layer in enumerate((network, network.conv1, network.fc))]
    CHANGES[change](network)
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", **QUICK))
    fit(hapi_model(network), [callback])
    np.testing.assert_allclose(file_itself(tmp_path), network_itself(network), rtol=1e-4, atol=1e-5)
    assert all(logger.calls >= 4 for logger in loggers)


def test_a_quantised_network_keeps_its_hooks_too(tmp_path):
    network = TinyNet()
    network.conv2.register_forward_post_hook(lambda layer, given, output: output * 1.5)
    Logger(network.conv1, tmp_path / "a.log")
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", **QUICK))
    fit(hapi_model(network), [callback, PACTQuantCallback()])
    expected = network_itself(network)
    np.testing.assert_allclose(file_itself(tmp_path), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def test_a_distiller_behind_the_exporter_in_a_loop_of_ones_own(tmp_path):
    """The teacher's hooks are still on the network when the export begins."""
    model = hapi_model()
    callbacks = [
        ExportBenchCallback(tmp_path, **grouped(name="n", **QUICK)),
        DistillCallback(TinyNet(), features={"conv2": "conv2"}),
    ]
    for callback in callbacks:
        callback.set_model(model)
        callback.set_params({"metrics": ["loss"]})
        callback.on_train_begin()
    data, logs = Images(8), {}
    for callback in callbacks:
        callback.on_train_batch_begin(0, logs)
    model.train_batch([paddle.to_tensor(data.images)], [paddle.to_tensor(data.labels)])
    for callback in callbacks:
        callback.on_train_end()
    np.testing.assert_allclose(file_itself(tmp_path), network_itself(model.network), rtol=1e-4, atol=1e-5)


class Holding(TinyNet):
    """Attributes that cannot be copied, some of them deep inside, beside ones that have to be."""

    def __init__(self, path):
        super().__init__()
        self.lock, self.file, self.module = threading.Lock(), path.open("w"), np
        self.parts = {"blocks": [self.conv1, threading.RLock()], "gain": [1.0]}
        self.conv1.generator = (number for number in range(3))

    def forward(self, x):
        with self.lock:
            self.last = super().forward(x) * self.parts["gain"][0]  # in the middle of a gradient graph
        return self.last


def test_locks_open_files_and_generators(tmp_path):
    network = Holding(tmp_path / "log.txt")
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", **QUICK))
    fit(hapi_model(network), [callback], evaluate=False)
    np.testing.assert_allclose(file_itself(tmp_path), network_itself(network), rtol=1e-4, atol=1e-5)
    assert callback.record.macs == count_macs(TinyNet(), [paddle.to_tensor(X[:1])])
    duplicate = copy_network(network)
    assert duplicate.lock is network.lock
    assert duplicate.parts["blocks"][0] is duplicate.conv1 is not network.conv1
    assert duplicate.parts["gain"] is not network.parts["gain"]
    assert duplicate.last is not network.last


def test_what_forward_keeps_of_its_last_call_is_no_part_of_the_file(tmp_path):
    """Paddle stores it as a buffer, from which a traced program would read."""

    class Keeping(TinyNet):
        def forward(self, x):
            self.features = self.conv1(x)
            self.fc.last = self.relu(self.bn1(self.features))
            return self.fc(self.conv2(self.fc.last).mean(axis=[2, 3]))

    network = Keeping()
    fit(hapi_model(network), [ExportBenchCallback(tmp_path, **grouped(name="n", **QUICK))])
    np.testing.assert_allclose(file_itself(tmp_path), network_itself(network), rtol=1e-4, atol=1e-5)
    assert network.features.shape == [4, 4, 8, 8]  # of the call above


def test_data_parallel_inside_the_model(tmp_path):
    network = TinyNet()
    model = paddle.Model(
        paddle.DataParallel(network), [InputSpec([None, 3, 8, 8], name="x")], [InputSpec([None], "int64", "y")]
    )
    optimizer = paddle.optimizer.Momentum(0.05, parameters=model.network.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss())
    callback = ExportBenchCallback(tmp_path, **grouped(**QUICK))
    fit(model, [callback])
    assert callback.record.name == "TinyNet"
    assert type(copy_network(model.network)) is TinyNet
    (tmp_path / "TinyNet").rename(tmp_path / "n")
    np.testing.assert_allclose(file_itself(tmp_path), network_itself(network), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_copied_at_all_is_named():
    class Stubborn(TinyNet):
        def __deepcopy__(self, memo):
            raise RuntimeError("not me")

    with pytest.raises(TypeError, match=r"Stubborn cannot be copied \(RuntimeError: not me\)"):
        copy_network(Stubborn())


def test_as_few_hooks_as_it_takes():
    network = TinyNet()
    network.conv1.register_forward_post_hook(lambda layer, given, output: None)
    network.conv2.register_forward_post_hook(lambda layer, given, output: output)
    kept = network.fc.register_forward_post_hook(doubled_in_place)
    network.bn1.register_forward_pre_hook(lambda layer, given: given)
    inputs = [paddle.to_tensor(X)]
    duplicate = eval_copy(network, inputs)
    assert list(forward_hooks(duplicate)) == [("fc", "_forward_post_hooks", kept._hook_id)]
    np.testing.assert_array_equal(eval_outputs(duplicate, inputs)[0], network_itself(network))
    assert len(forward_hooks(network)) == 4


def test_hooks_that_cannot_be_kept_are_named():
    """Each copy is asked for its own mark, which only the network itself has."""
    network = TinyNet()
    network.fc.register_forward_post_hook(lambda layer, given, output: output * (2 if layer is network.fc else 1))
    with pytest.raises(ExportError, match=r"forward hooks of TinyNet change .* \(hooks on \['fc'\]\)"):
        eval_copy(network, [paddle.to_tensor(X)])


def test_buffers_and_modes_stay():
    class Counting(TinyNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", paddle.zeros([1]))

        def forward(self, x):
            self.seen.add_(paddle.ones([1]))
            return super().forward(x)

    network = Counting()
    network.bn1.eval()
    before = {key: value.numpy().copy() for key, value in network.state_dict().items()}
    eval_outputs(network, [paddle.to_tensor(X)])
    assert [network.training, network.bn1.training, network.fc.training] == [True, False, True]
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])


def test_an_average_of_a_weight_normed_network_computes_with_its_own_weights():
    """By hand: the average of the values, put into a network of the same making."""
    network, steps = TinyNet(), []
    nn.utils.weight_norm(network.conv1)
    teacher = copied(network)
    for _ in range(2):
        steps.append({key: value.numpy() + 0.5 for key, value in network.state_dict().items()})
        teacher.set_state_dict(steps[-1])
    twin = TinyNet()
    nn.utils.weight_norm(twin.conv1)
    twin.set_state_dict(steps[-1])
    np.testing.assert_allclose(network_itself(teacher), network_itself(twin), rtol=1e-6)


def test_a_network_with_a_lock_and_a_log_is_calibrated(tmp_path):
    network = Holding(tmp_path / "log.txt")
    Logger(network.conv1, tmp_path / "a.log")
    quantised = ptq_int8(network, [paddle.to_tensor(X)])
    expected = network_itself(network)
    np.testing.assert_allclose(network_itself(quantised), expected, atol=0.1 * np.abs(expected).max())
