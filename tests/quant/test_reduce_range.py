"""Half the range of 8-bit weights: trained, stored and shipped; a checkpoint tells it, and no average moves it."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from exporting import grouped
from installed import needs
from onnx_weights import int8_weights
from paddle import nn
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import (
    ExportBenchCallback,
    PACTConfig,
    PACTQuantCallback,
    load_pact_,
    prepare_pact_,
    ptq_int8,
)
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.quant.functional import grid_levels, highest_weight, lsq_fake_quantize
from paddlelite_callbacks.quant.prepare import activation_quantizers, quantization_of, quantized_layers
from paddlelite_callbacks.quant.sensitivity import layer_sqnr
from paddlelite_callbacks.report.record import read_records

X = paddle.to_tensor(Images(16).images)
QUICK = {
    "repeats": 1,
    "warmup": 0,
    "verbose": 0,
    "engines": ["paddle", "onnxruntime"],
    "peak_memory": False,
    "roofline": False,
}
GRIDS = [(8, True, 64), (8, False, 127), (7, True, 63), (7, False, 63), (4, True, 7), (2, False, 1)]


def answers(network):
    network.eval()
    with paddle.no_grad():
        return network(X).numpy()


def calibrated(**options):
    network = TinyNet()
    prepare_pact_(network, PACTConfig(**options))
    network.train()
    network(X)
    return network


@pytest.mark.parametrize(("bits", "reduce_range", "high"), GRIDS)
@pytest.mark.parametrize("method", ["pact", "lsq"])
def test_the_grid_that_is_trained_is_the_grid_that_ships(bits, reduce_range, high, method):
    assert highest_weight(bits, reduce_range=reduce_range) == high
    network = TinyNet()
    prepare_pact_(network, PACTConfig(weight_bits=bits, reduce_range=reduce_range, method=method))
    for layer in quantized_layers(network).values():
        layer.weight.set_value(paddle.randn(layer.weight.shape) * 99)  # for LSQ beyond the ends
        quantizer = layer.weight_quanter
        simulated, steps = quantizer(layer.weight).numpy(), quantizer.steps(layer.weight).numpy()
        on_grid = simulated / steps
        np.testing.assert_allclose(on_grid, np.round(on_grid), atol=1e-3)
        assert round(np.abs(on_grid).max()) == high == np.abs(quantizer.integers(layer.weight).numpy()).max()
        np.testing.assert_allclose(quantizer.integers(layer.weight).numpy() * steps, simulated, rtol=1e-6)


def test_lsqs_gradient_on_half_the_range_is_the_papers():
    random = np.random.RandomState(0)
    x, alpha = random.randn(6, 50).astype("float32"), random.uniform(0.5, 2, [6, 1]).astype("float32")
    a = paddle.to_tensor(alpha, stop_gradient=False)
    lsq_fake_quantize(paddle.to_tensor(x), a, bits=8, symmetric=True).sum().backward()
    v = x / (alpha / 64)
    inner = np.where(v <= -64, -64, np.where(v >= 64, 64, np.round(v) - v)).sum(1, keepdims=True)
    np.testing.assert_allclose(a.grad.numpy(), inner / 64 / np.sqrt(50 * 64), rtol=1e-3, atol=1e-4)


def test_of_activations_the_range_stays_whole():
    quantizers = activation_quantizers(calibrated(reduce_range=True))
    assert {high - low for low, high in (quantizer.levels() for quantizer in quantizers.values())} == {255}
    x = paddle.linspace(-2, 2, 1001)
    y = lsq_fake_quantize(x, paddle.to_tensor([1.0]), bits=8, signed=True).numpy()
    assert len(np.unique(y)) == 256


def test_after_training_and_without_any():
    network = TinyNet()
    model = hapi_model(network)
    fit(model, [PACTQuantCallback()])
    assert quantization_of(network) == {
        "method": "pact",
        "weight_bits": 8,
        "reduce_range": True,
        "activation_bits": 8,
        "activation_symmetric": False,
    }
    assert quantization_of(TinyNet()) is None
    for options, high in (({}, 64), ({"reduce_range": False}, 127)):
        copy = ptq_int8(TinyNet(), [X], **options)
        largest = [
            np.abs(la.weight_quanter.integers(la.weight).numpy()).max() for la in quantized_layers(copy).values()
        ]
        assert largest == [high] * 3
    noise = {half: layer_sqnr(ptq_int8(network_of_seed(), [X], reduce_range=half), [[X]]) for half in (True, False)}
    assert all(noise[True][name] < noise[False][name] for name in noise[True])  # it sees the coarser grid


def network_of_seed():
    paddle.seed(3)
    return TinyNet()


def test_wrong_values_and_the_guides_dictionary():
    with pytest.raises(ValueError, match="reduce_range must be True or False, got 'yes': leave it out"):
        PACTConfig(reduce_range="yes")
    guide = {"activation_preprocess_type": "PACT", "weight_bits": 8}
    assert PACTQuantCallback.from_config(guide).config.reduce_range is True
    assert PACTQuantCallback.from_config(guide, reduce_range=False).config.reduce_range is False
    network = TinyNet()
    prepare_pact_(network)
    with pytest.raises(ValueError, match="already quantised with reduce_range=True; got False"):
        prepare_pact_(network, PACTConfig(reduce_range=False))
    prepare_pact_(calibrated(weight_bits=4), PACTConfig(weight_bits=4, reduce_range=False))  # no difference there


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "reduce_range", "high"), GRIDS)
@pytest.mark.parametrize("method", ["pact", "lsq"])
def test_a_checkpoint_tells_bits_and_range(bits, reduce_range, high, method):
    network = calibrated(weight_bits=bits, reduce_range=reduce_range, method=method)
    fresh = TinyNet()
    config = load_pact_(fresh, network.state_dict())
    assert (config.weight_bits, config.method) == (bits, method)
    assert highest_weight(config.weight_bits, reduce_range=config.reduce_range) == high
    np.testing.assert_array_equal(answers(fresh), answers(network))
    prepare_pact_(fresh, config)  # the very setting: nothing to convert, nothing refused


@pytest.mark.parametrize("saved", [(8, True), (8, False), (7, True), (4, True)])
@pytest.mark.parametrize("asked", [2, 4, 7, 8])
def test_other_bits_than_were_trained_are_refused(saved, asked):
    state, fresh = calibrated(weight_bits=saved[0], reduce_range=saved[1]).state_dict(), TinyNet()
    if asked == saved[0]:
        assert load_pact_(fresh, state, weight_bits=asked).reduce_range is saved[1]
        return
    before = weights_of(fresh)
    with pytest.raises(ValueError, match=f"weight_bits={saved[0]}, got weight_bits={asked}: leave it out"):
        load_pact_(fresh, state, weight_bits=asked)
    assert not quantized_layers(fresh)
    assert equal_weights(weights_of(fresh), before)


SETTINGS = [{}, {"reduce_range": False}, {"weight_bits": 7}, {"weight_bits": 4}]


@pytest.mark.parametrize("trained", SETTINGS, ids=str)
@pytest.mark.parametrize("prepared", SETTINGS, ids=str)
def test_a_checkpoint_of_another_setting_is_refused_where_it_is_used(trained, prepared, tmp_path):
    """As ``model.load`` and ``set_state_dict`` bring it: in evaluation, at the start of ``fit``, and at the export."""
    hapi_model(calibrated(**trained)).save(str(tmp_path / "saved"))

    def loaded():
        network = TinyNet()
        prepare_pact_(network, PACTConfig(**prepared))
        model = hapi_model(network)
        model.load(str(tmp_path / "saved"), reset_optimizer=True)
        return model

    if trained == prepared:
        loaded().evaluate(Images(), batch_size=8, verbose=0)
        fit(loaded(), [PACTQuantCallback(PACTConfig(**prepared))])
        return
    uses = [
        lambda model: model.evaluate(Images(), batch_size=8, verbose=0),
        lambda model: fit(model, [PACTQuantCallback(PACTConfig(**prepared))]),
        lambda model: model.network.conv1.weight_quanter.integers(model.network.conv1.weight),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"Weights trained with weight_bits=\d.* were loaded.*call load_pact_"):
            use(loaded())


def test_activations_of_other_bits_are_refused_too():
    state, network = calibrated(activation_bits=4).state_dict(), TinyNet()
    prepare_pact_(network)
    network.set_state_dict(state)
    with pytest.raises(ValueError, match="activation_bits=4; this network was prepared with activation_bits=8"):
        answers(network)
    assert load_pact_(TinyNet(), state).activation_bits == 4


@pytest.mark.parametrize(
    ("bits", "options"), [(8, {"reduce_range": False}), (7, {"weight_bits": 7}), (4, {"weight_bits": 4})]
)
@pytest.mark.parametrize("method", ["pact", "lsq"])
def test_a_checkpoint_of_before_is_of_the_full_range(bits, options, method, caplog):
    network = calibrated(method=method, **options)
    old = {key: value for key, value in network.state_dict().items() if not key.endswith("weight_quanter.grid")}
    fresh = TinyNet()
    config = load_pact_(fresh, old, weight_bits=None if bits == 8 else bits)
    assert (config.weight_bits, config.reduce_range) == (bits, bits != 8)
    assert ("8 bits on the full range" in caplog.text) == (bits == 8)
    np.testing.assert_array_equal(answers(fresh), answers(network))
    assert set(fresh.state_dict()) == set(network.state_dict())  # saved again it tells


def test_grids_of_several_trainings_are_refused():
    state = dict(calibrated().state_dict())
    state["fc.weight_quanter.grid"] = paddle.to_tensor([-63.0, 63.0])
    with pytest.raises(ValueError, match="weight grids of different settings"):
        load_pact_(TinyNet(), state)
    state["fc.weight_quanter.grid"] = paddle.to_tensor([-50.0, 50.0])
    with pytest.raises(ValueError, match="weight grids of different settings"):
        load_pact_(TinyNet(), state)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("as_array", [False, True])
def test_a_checkpoint_saved_in_another_type(kind, as_array):
    if as_array and kind == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    network = calibrated(reduce_range=False)
    state = {key: value.astype(kind) for key, value in network.state_dict().items()}
    if as_array:
        state = {key: value.numpy() for key, value in state.items()}
    fresh = TinyNet()
    assert load_pact_(fresh, state).reduce_range is False
    assert {value.dtype for value in fresh.state_dict().values()} == {paddle.float32}
    levels = [quantizer.levels() for quantizer in activation_quantizers(network).values()]
    assert [quantizer.levels() for quantizer in activation_quantizers(fresh).values()] == levels
    expected = answers(network)
    assert np.abs(answers(fresh) - expected).max() <= {"bfloat16": 0.05}.get(kind, 0.02) * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_network_that_was_cast_and_cast_back(kind):
    network = calibrated(quantize_outputs=True)
    levels = [quantizer.levels() for quantizer in activation_quantizers(network).values()]
    network.to(dtype=kind)
    assert [quantizer.levels() for quantizer in activation_quantizers(network).values()] == levels
    network.to(dtype="float32")
    assert [quantizer.levels() for quantizer in activation_quantizers(network).values()] == levels
    answers(network)
    assert load_pact_(TinyNet(), network.state_dict()).reduce_range is True


# --- averages ---------------------------------------------------------------------------------------------------------


class Average(paddle.callbacks.Callback):
    """An EMA of the ``state_dict``, as users write it; ``start`` says from which moment on."""

    def __init__(self, start="first batch", decay=0.9):
        super().__init__()
        self.start, self.decay, self.mean = start, decay, None

    def on_train_begin(self, logs=None):
        if self.start == "train begin":
            self.mean = {k: v.clone() for k, v in self.model.network.state_dict().items()}

    def on_train_batch_end(self, step, logs=None):
        now = self.model.network.state_dict()
        if self.mean is None:
            zero = self.start == "zeros"
            self.mean = {k: paddle.zeros_like(v) if zero else v.clone() for k, v in now.items()}
        for key, value in now.items():
            self.mean[key] = self.mean[key] * self.decay + value * (1 - self.decay)

    def on_train_end(self, logs=None):
        self.model.network.set_state_dict(self.mean)


@needs("paddle2onnx")
@pytest.mark.parametrize("options", [{"weight_bits": 7}, {}, {"reduce_range": False, "method": "lsq"}], ids=str)
def test_an_average_of_the_state_is_exported(tmp_path, options):
    """The callback comes first, so its weights are what is exported: constants are those of training, files agree."""
    paddle.seed(0)
    model = hapi_model(TinyNet(width=8), optimizer="Adam", learning_rate=1e-3)
    callbacks = [
        Average(),
        PACTQuantCallback(**options),
        ExportBenchCallback(tmp_path, **grouped(**QUICK)),
    ]
    fit(model, callbacks, data=Images(64), epochs=3, evaluate=False)
    quantizers = activation_quantizers(model.network)
    assert [quantizer.levels() for quantizer in quantizers.values()] == [(-128, 127), (0, 255), (-128, 127)]
    for name, quantizer in quantizers.items():
        assert tuple(quantizer.grid.numpy()) == quantizer.levels(), name  # saved again they are exact
    high = highest_weight(options.get("weight_bits", 8), reduce_range=options.get("reduce_range", True))
    fresh = TinyNet(width=8)  # from what was kept beside the files
    config = load_pact_(fresh, tmp_path / "TinyNet" / "model.pdparams")
    assert highest_weight(config.weight_bits, reduce_range=config.reduce_range) == high
    np.testing.assert_array_equal(answers(fresh), answers(model.network))
    for layer in quantized_layers(model.network).values():  # evaluation puts them back
        assert layer.weight_quanter.grid.numpy().tolist() == [-high, high]
    (record,) = read_records(tmp_path / "runs.jsonl")
    assert {(check.engine, check.precision) for check in record.checks if check.passed} >= {
        ("paddle", "int8"),
        ("onnxruntime", "int8"),
    }
    model.network.eval()
    x = Images(64).images
    file = next(a for a in record.artefacts if (a.kind, a.precision) == ("onnx", "int8"))
    got = ENGINES["onnxruntime"].load(file.artefact(), threads=1)([x])[0]
    assert np.median(np.abs(got - model.network(paddle.to_tensor(x)).numpy()).max(axis=1)) < 1e-3


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_an_average_from_before_the_first_batch(decay):
    """The zeros of an uncalibrated quantizer are no values: what is left is the mean of the trained alphas."""
    alphas, grids, model = [], {}, hapi_model()

    class Watch(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            alphas.append({n: float(q.alpha) for n, q in activation_quantizers(model.network).items()})
            grids.update({n: tuple(q.grid.numpy()) for n, q in activation_quantizers(model.network).items()})

    average = Average("train begin", decay)
    fit(model, [PACTQuantCallback(), average, Watch()], data=Images(32), epochs=2, evaluate=False)
    model.network.eval()
    model.network(X)
    weights = decay ** np.arange(len(alphas))[::-1]
    for name, quantizer in activation_quantizers(model.network).items():
        mean = np.average([step[name] for step in alphas], weights=weights)
        assert float(quantizer.alpha) == pytest.approx(mean, rel=1e-4)
        assert quantizer.levels() == grids[name]
        assert tuple(quantizer.grid.numpy()) == quantizer.levels()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_averaged_grids_of_all_bits_keep_their_levels(bits, signed):
    network = nn.Sequential(nn.Linear(4, 4))
    prepare_pact_(network, PACTConfig(weight_bits=bits, activation_bits=bits))
    x = paddle.randn([64, 4]) if signed else paddle.rand([64, 4])
    network.train()
    network(x)
    quantizer, weight = network[0].activation_quanter, network[0].weight_quanter
    expected = tuple(int(level) for level in grid_levels(bits, signed))
    assert quantizer.levels() == expected
    mean = {key: value.clone() for key, value in network.state_dict().items()}
    for _ in range(300):  # 127 becomes 126.99998
        mean = {k: mean[k] * 0.9 + v * 0.1 for k, v in network.state_dict().items()}
    integers = weight.integers(network[0].weight).numpy()
    network.set_state_dict(mean)
    network.eval()
    network(x)
    assert quantizer.levels() == expected
    np.testing.assert_array_equal(weight.integers(network[0].weight).numpy(), integers)
    assert weight.grid.numpy()[1] == highest_weight(bits)


def test_a_mean_of_two_checkpoints_is_a_network_of_their_setting():
    """As in stochastic weight averaging of saved files."""
    first, second = calibrated(), calibrated()
    mean = {k: (v + second.state_dict()[k]) * 0.5 for k, v in first.state_dict().items()}
    fresh = TinyNet()
    assert load_pact_(fresh, mean) == load_pact_(TinyNet(), first.state_dict())
    grids = [[q.levels() for q in activation_quantizers(network).values()] for network in (first, second, fresh)]
    for one, other, mean in zip(*grids, strict=True):  # the mean of two zero points is one
        assert mean[1] - mean[0] == 255
        assert abs(mean[0] - (one[0] + other[0]) / 2) <= 0.5


# --- what the files say -----------------------------------------------------------------------------------------------


@needs("paddle2onnx")
@pytest.mark.parametrize("reduce_range", [True, False])
def test_record_and_deploy_json_name_the_range_and_what_can_saturate(tmp_path, reduce_range):
    onnx = pytest.importorskip("onnx")
    model = hapi_model(TinyNet(width=8))
    export = ExportBenchCallback(tmp_path, **grouped(**QUICK))
    fit(model, [PACTQuantCallback(reduce_range=reduce_range), export], data=Images(32))
    (record,) = read_records(tmp_path / "runs.jsonl")
    pact = next(item for item in record.config["callbacks"] if item["class"] == "PACTQuantCallback")
    assert pact["config"]["reduce_range"] is reduce_range
    figures = next(a for a in record.artefacts if (a.kind, a.precision) == ("onnx", "int8"))
    rows = [
        w.T if w.ndim == 2 else w.reshape(len(w), -1)
        for w in int8_weights(onnx.load(figures.path)).values()
        if w.shape not in ((8,), (4,))
    ]
    channels = [row.astype("int64") for weight in rows for row in weight]
    expected = sum(any(np.sort(sign * row)[-2:].clip(min=0).sum() > 128 for sign in (1, -1)) for row in channels)
    assert (expected > 0) != reduce_range
    assert figures.saturation["channels"] == expected
    assert figures.saturation["total"] == len(channels) == 8 + 8 + 4
    assert any("can saturate" in note for note in record.notes) != reduce_range
    content = json.loads((tmp_path / record.name / "deploy.json").read_text(encoding="utf-8"))
    assert content["quantization"]["reduce_range"] is reduce_range
    (file,) = [item for item in content["files"] if (item["kind"], item["precision"]) == ("onnx", "int8")]
    assert file["saturation"] == figures.saturation
