"""Symmetric activations (``activation_symmetric=True``): trained, stored, shipped; never taken for the other grid."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import PACTConfig, PACTQuantCallback, load_pact_, prepare_pact_, ptq_int8
from paddlelite_callbacks.benchmark.engines import OnnxRuntime
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.quant.functional import grid_levels, lsq_fake_quantize, pact_fake_quantize
from paddlelite_callbacks.quant.prepare import activation_quantizers, quantization_of
from paddlelite_callbacks.quant.quantizers import PACTActivationQuantizer, activation_settings

X = paddle.to_tensor(Images(16).images)
METHODS = pytest.mark.parametrize("method", ["pact", "lsq"])
BITS = pytest.mark.parametrize("bits", [2, 4, 8])


def answers(network):
    network.eval()
    with paddle.no_grad():
        return network(X).numpy()


def calibrated(batches=True, **options):
    network = TinyNet()
    prepare_pact_(network, PACTConfig(**options))
    network.train()
    if batches:
        network(X)
    return network


def by_hand(x, alpha, bits):
    """The grid of Paddle Lite, TensorRT and NPUs, value by value."""
    high = 2 ** (bits - 1) - 1
    step = alpha / high
    return np.array([min(max(round(v / step), -high), high) * step for v in x.reshape(-1)]).reshape(x.shape)


@BITS
@METHODS
@pytest.mark.parametrize("shift", [0.0, 5.0])  # 5: no value is negative
def test_values_lie_on_the_grid_of_signed_integers_with_zero_point_0(bits, method, shift):
    x = np.random.RandomState(0).uniform(-1, 1, [64]).astype("float32") + np.float32(shift)
    quantizer = PACTActivationQuantizer(bits=bits, method=method, symmetric=True, percentile=90.0)
    quantizer.train()
    y = quantizer(paddle.to_tensor(x)).numpy()
    high = 2 ** (bits - 1) - 1
    assert quantizer.levels() == (-high, high)
    np.testing.assert_allclose(y, by_hand(x.astype("float64"), float(quantizer.alpha), bits), rtol=1e-5, atol=1e-6)


@BITS
def test_pacts_gradient_at_both_ends(bits):
    x = np.linspace(-3, 3, 61).astype("float32") + np.float32(0.01)
    tensors = [paddle.to_tensor(v, stop_gradient=False) for v in (x, np.float32([1.7]))]
    y = pact_fake_quantize(*tensors, bits=bits, symmetric=True)
    weights = np.random.RandomState(0).randn(61).astype("float32")
    (y * paddle.to_tensor(weights)).sum().backward()
    inside = np.abs(x) < 1.7
    np.testing.assert_allclose(tensors[0].grad.numpy(), weights * inside, rtol=1e-6)
    np.testing.assert_allclose(tensors[1].grad.numpy(), [(weights * np.sign(x) * ~inside).sum()], rtol=1e-4)


@BITS
def test_lsqs_gradient_of_the_step(bits):
    x, high = np.random.RandomState(1).randn(50).astype("float32"), 2 ** (bits - 1) - 1
    a = paddle.to_tensor(np.float32([0.8]), stop_gradient=False)
    lsq_fake_quantize(paddle.to_tensor(x), a, bits=bits, symmetric=True, reduce_range=False).sum().backward()
    v = x / (0.8 / high)
    inner = np.where(v <= -high, -high, np.where(v >= high, high, np.round(v) - v)).sum()
    np.testing.assert_allclose(a.grad.numpy(), [inner / high / np.sqrt(50 * high)], rtol=1e-3, atol=1e-4)


@METHODS
def test_fit_trains_it_and_load_pact_finds_it(method, tmp_path):
    model = hapi_model(TinyNet())
    fit(model, [PACTQuantCallback(method=method, activation_symmetric=True, quantize_outputs=True)])
    assert quantization_of(model.network)["activation_symmetric"] is True
    assert {q.levels() for q in activation_quantizers(model.network).values()} == {(-127, 127)}
    model.save(str(tmp_path / "m"))
    fresh = TinyNet()
    config = load_pact_(fresh, tmp_path / "m")
    assert (config.activation_symmetric, config.method, config.activation_bits) == (True, method, 8)
    np.testing.assert_array_equal(answers(fresh), answers(model.network))


def test_ptq_takes_it():
    network = ptq_int8(TinyNet(), [X], activation_symmetric=True)
    assert {q.levels() for q in activation_quantizers(network).values()} == {(-127, 127)}
    assert {q.levels() for q in activation_quantizers(ptq_int8(TinyNet(), [X])).values()} != {(-127, 127)}


@BITS
@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_grid_is_taken_for_the_other(symmetric, batches, bits):
    """Also that of a network which has seen no batch."""
    given = calibrated(batches, activation_symmetric=symmetric, activation_bits=bits)
    other = calibrated(False, activation_symmetric=not symmetric, activation_bits=bits)
    other.set_state_dict(given.state_dict())
    with pytest.raises(ValueError, match=r"activation_symmetric=.*call load_pact_"):
        answers(other)
    if batches or symmetric:
        assert load_pact_(TinyNet(), given.state_dict()).activation_symmetric is symmetric


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9, 0.99, 0.993])
def test_an_average_over_the_first_batch_is_put_back(share):
    """An EMA of the ``state_dict`` that began before the first batch."""
    before, after = calibrated(False, activation_symmetric=True), calibrated(activation_symmetric=True)
    wanted = {name: (float(q.alpha), q.levels()) for name, q in activation_quantizers(after).items()}
    first, last = before.state_dict(), after.state_dict()
    mean = {
        key: first[key] * (1 - share) + last[key] * share
        if key.endswith(("activation_quanter.alpha", "activation_quanter.grid"))
        else last[key]
        for key in last
    }
    averaged = calibrated(False, activation_symmetric=True)
    averaged.set_state_dict(mean)
    averaged.eval()
    for name, quantizer in activation_quantizers(averaged).items():
        assert quantizer.levels() == wanted[name][1]
        assert float(quantizer.alpha) == pytest.approx(wanted[name][0], rel=1e-3)
    plain = calibrated(False)
    plain.set_state_dict(mean)
    with pytest.raises(ValueError, match="activation_symmetric=True"):
        answers(plain)


@pytest.mark.parametrize("kind", [(False,), (True,), (False, True)])  # signed, of averages over a change too
def test_averages_of_the_other_grid_are_put_back_as_before(kind):
    for share in np.linspace(0.05, 1.0, 96):
        grids = [np.array(grid_levels(8, signed)) for signed in kind]
        low, high = share * np.mean(grids, axis=0)
        assert not any(symmetric for _, symmetric in activation_settings(low, high)), (share, low, high)


def test_grids_of_all_settings_are_told_apart():
    found = {}
    for bits in range(2, 9):
        for signed, symmetric in ((False, False), (True, False), (True, True)):
            assert activation_settings(*grid_levels(bits, signed, symmetric=symmetric)) == [(bits, symmetric)]
            found[grid_levels(bits, signed, symmetric=symmetric)] = bits
    assert len(found) == 21


def test_layers_that_feed_relus_alone_keep_what_is_below_zero():
    """An unsigned grid may cut it off there; a symmetric one has no need to."""
    network = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Conv2D(4, 2, 3))
    prepare_pact_(network, PACTConfig(activation_symmetric=True, quantize_outputs=True), inputs=X)
    network.train()
    network(X)
    assert {q.levels() for q in activation_quantizers(network).values()} == {(-127, 127)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activation_symmetric": 1}, "must be True or False, got 1"),
        ({"activation_symmetric": True, "activation": "paddleslim"}, "activation_symmetric=False, got True"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        PACTConfig(**options)


def test_a_second_training_on_the_other_grid_is_refused():
    network = calibrated(activation_symmetric=True)
    with pytest.raises(ValueError, match="activation_symmetric=True; got False"):
        prepare_pact_(network, PACTConfig())


class Signs(nn.Layer):
    """A convolution of inputs of both signs, and one of a sum of two that are not negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2D(3, 4, 3, padding=1), nn.Conv2D(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = nn.functional.relu(self.first(x))
        y = nn.functional.sigmoid(self.second(nn.functional.max_pool2d(x, 3, 1, 1) + x))
        return self.fc(y.mean([2, 3]) - 0.5)


@needs("paddle2onnx")
@pytest.mark.parametrize(("bits", "opset"), [(8, 13), (5, 19)])
def test_int8_onnx_has_signed_activations_with_zero_point_0(bits, opset, tmp_path):
    onnx = pytest.importorskip("onnx")
    network = Signs()
    prepare_pact_(network, PACTConfig(activation_symmetric=True, activation_bits=bits, alpha_percentile=80.0))
    network.train()
    network(X)
    forms = export_forms(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")], onnx_opset=opset)
    (artefact,) = [one for one in forms.artefacts if (one.kind, one.precision) == ("onnx", "int8")]
    model = onnx.load(str(artefact.path))
    assert [item.version for item in model.opset_import if not item.domain] == [opset]
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    points = [constants[node.input[2]] for node in pairs]
    assert len(points) == 3 * 3
    assert {str(point.dtype) for point in points} == {"int8"}
    assert not any(point.any() for point in points)
    # 8 bits: only what can be negative is kept from the type's -128; its 127 ends the grid by itself.
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    assert len(clips) == (2 if bits == 8 else 3)
    x = np.random.RandomState(5).uniform(-9, 9, [16, 3, 8, 8]).astype("float32")  # far beyond alpha
    network.eval()
    expected = network(paddle.to_tensor(x)).numpy()
    got = OnnxRuntime(optimised=False).load(artefact, threads=1)([x])[0]
    off = np.abs(got - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(off) < 1e-5
    assert off.max() < 0.02


def test_an_opset_without_steps_per_channel_is_refused(tmp_path):
    network = calibrated(activation_symmetric=True)
    with pytest.raises(ValueError, match="onnx_opset must be a whole number in \\[13, 19\\]"):
        export_forms(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")], onnx_opset=12)
