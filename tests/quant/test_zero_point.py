"""Zero points of activations that lie above zero for the most part: trained, stored and shipped."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks import PACTConfig, load_pact_, prepare_pact_, ptq_int8
from paddlelite_callbacks.benchmark.engines import OnnxRuntime
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.quant.functional import grid_levels, lsq_fake_quantize, pact_fake_quantize, shifted_levels
from paddlelite_callbacks.quant.prepare import activation_quantizers, quantized_layers
from paddlelite_callbacks.quant.quantizers import PACTActivationQuantizer, activation_settings

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(64, 3, 8, 8).astype("float32")
METHODS = pytest.mark.parametrize("method", ["pact", "lsq"])
LOWEST_SWISH = -0.375  # hard-swish(-1.5)


class Swishes(nn.Layer):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2D(3, 8, 3), nn.Hardswish(), nn.Conv2D(8, 8, 3), nn.Hardswish())
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.first(x).mean([2, 3]))


def network():
    paddle.seed(0)
    made = Swishes()
    made.first[0].weight.set_value(made.first[0].weight * 8)
    made.first[2].weight.set_value(made.first[2].weight * 8)
    return made


def on_grid(x, alpha, low, high):
    """Value by value: round to a step of alpha / high, clip to the integers."""
    step = alpha / high
    return np.array([min(max(round(float(v) / step), low), high) * step for v in x.reshape(-1)]).reshape(x.shape)


@pytest.mark.parametrize(
    ("lowest", "highest", "bits", "expected"),
    [
        (-0.375, 6.0, 8, (-15, 240)),  # 0.375 / 6.375 of 255 is 15
        (0.0, 6.0, 8, (0, 255)),
        (-1e-9, 6.0, 8, (0, 255)),
        (-1.0, 1.0, 8, (-128, 127)),
        (-3.0, 1.0, 4, (-11, 4)),  # 11.25 of 15
        (-9.0, 1e-6, 4, (-14, 1)),  # the highest integer stays positive: the step is alpha / high
        (-1.0, 2.0, 2, (-1, 2)),
    ],
)
def test_the_zero_point_lies_where_the_values_are(lowest, highest, bits, expected):
    assert shifted_levels(lowest, highest, bits) == expected
    assert activation_settings(*expected) == [(bits, False)]


@METHODS
@pytest.mark.parametrize("calibration", ["min_max", "percentile", "mse", "kl"])
@pytest.mark.parametrize("bits", [4, 8])
def test_behind_hard_swish_the_whole_grid_is_in_use(bits, calibration, method):
    x = nn.functional.hardswish(paddle.to_tensor(3 * RANDOM.randn(4000).astype("float32")))
    quantizer = PACTActivationQuantizer(bits=bits, method=method, calibration=calibration)
    quantizer.train()
    y = quantizer(x).numpy()
    (low, high), alpha = quantizer.levels(), float(quantizer.alpha)
    assert high - low == 2**bits - 1
    assert low * alpha / high == pytest.approx(LOWEST_SWISH, abs=0.53 * alpha / high)
    np.testing.assert_allclose(y, on_grid(x.numpy(), alpha, low, high), atol=1e-5)
    signed = on_grid(x.numpy(), alpha, *map(int, grid_levels(bits, True)))
    inside = x.numpy() < alpha
    ours, before = (np.square(x.numpy() - one)[inside].mean() for one in (y, signed))
    assert ours < 0.5 * before  # a quarter, but for the share of the lowest step


@pytest.mark.parametrize("lowest", [-5.0, -2.0, -1.0, -0.9, 0.0])
def test_from_half_of_the_range_on_the_zero_point_is_in_the_middle(lowest):
    x = np.linspace(lowest, 2.0, 1001).astype("float32")
    quantizer = PACTActivationQuantizer(calibration="min_max")
    quantizer.train()
    quantizer(paddle.to_tensor(x))
    largest = max(2.0, -lowest)
    if lowest == 0:
        expected = (0, 255)
    elif -lowest >= largest / 2:
        expected = (-128, 127)
    else:
        expected = (-79, 176)  # 0.9 / 2.9 of 255 is 79.1
    assert quantizer.levels() == expected
    assert float(quantizer.alpha) == pytest.approx(largest)


def test_gradients_are_those_of_the_grid():
    low, high, alpha = -15.0, 240.0, 6.0
    x = np.array([-3.0, -0.4, -0.3, 0.1, 5.9, 6.5, 40.0], "float32")
    grad = RANDOM.randn(7).astype("float32")
    clipped = np.where(x >= alpha, 1.0, np.where(x <= alpha * low / high, low / high, 0.0))
    inside = clipped == 0
    step = alpha / high
    learned = np.where(inside, np.round(x / step) - x / step, np.where(x > 0, high, low)) / high
    for function, slope in ((pact_fake_quantize, clipped), (lsq_fake_quantize, learned / np.sqrt(7 * high))):
        given, top = paddle.to_tensor(x, stop_gradient=False), paddle.to_tensor([alpha], stop_gradient=False)
        (function(given, top, grid=(low, high)) * paddle.to_tensor(grad)).sum().backward()
        np.testing.assert_allclose(given.grad.numpy(), np.where(inside, grad, 0), atol=1e-6)
        np.testing.assert_allclose(top.grad.numpy(), [(grad * slope).sum()], rtol=1e-4, atol=1e-6)


def test_several_batches_take_the_lowest_value_of_all():
    quantizer = PACTActivationQuantizer(calibration="min_max", batches=3)
    quantizer.train()
    for lowest in (-0.1, -0.5, -0.2):
        quantizer(paddle.to_tensor(np.float32([lowest, 0.0, 4.5])))
    assert quantizer.levels() == shifted_levels(-0.5, 4.5, 8)
    quantizer(paddle.to_tensor(np.float32([-2.0, 9.0])))  # calibration is over
    assert quantizer.levels() == shifted_levels(-0.5, 4.5, 8)


@METHODS
def test_a_checkpoint_and_its_average_bring_the_grid_back(method):
    first = prepared(method=method)
    grids = {name: quantizer.levels() for name, quantizer in activation_quantizers(first).items()}
    assert any(-128 < low < 0 for low, _ in grids.values())
    state = {key: value.clone() for key, value in first.state_dict().items()}
    fresh = network()
    load_pact_(fresh, state)
    np.testing.assert_array_equal(answers(fresh), answers(first))
    share = 1 - 0.9**20  # an EMA from before calibration: zeros count for the rest
    mean = {k: v * share if k.endswith(("grid", "activation_quanter.alpha")) else v for k, v in state.items()}
    if method == "pact":
        loaded = prepared(method=method)
        loaded.set_state_dict(mean)
        assert {n: q.levels() for n, q in activation_quantizers(loaded).items()} == grids
        np.testing.assert_allclose(answers(loaded), answers(first), atol=2e-2)


def prepared(**options):
    made = network()
    prepare_pact_(made, PACTConfig(**options))
    made.train()
    made(paddle.to_tensor(X))
    return made


def answers(one):
    one.eval()
    return one(paddle.to_tensor(X)).numpy()


def weight_quantizers(one):
    return [layer.weight_quanter for layer in quantized_layers(one).values()]


def test_without_training_the_error_falls_to_what_all_integers_allow():
    exact = answers(network())
    ours = ptq_int8(network(), [paddle.to_tensor(X)], calibration="min_max", bias_correction=False)
    classic = ptq_int8(network(), [paddle.to_tensor(X)], calibration="min_max", bias_correction=False)
    moved = 0
    for quantizer in activation_quantizers(classic).values():
        if -128 < quantizer.levels()[0] < 0:
            alpha = float(quantizer.alpha)
            quantizer.set_range(alpha, lowest=-alpha)
            moved += 1
    assert moved
    for quantizer in weight_quantizers(ours) + weight_quantizers(classic):
        quantizer.enabled = False  # activations alone
    ours, classic = (np.square(answers(one) - exact).mean() for one in (ours, classic))
    assert ours < 0.9 * classic


@needs("paddle2onnx", "onnxruntime")
@pytest.mark.parametrize(("bits", "percentile"), [(8, 100.0), (8, 90.0), (5, 95.0)])
def test_files_have_the_zero_point(bits, percentile, tmp_path):
    onnx = pytest.importorskip("onnx")
    made = prepared(activation_bits=bits, alpha_percentile=percentile)
    forms = export_forms(made, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    (artefact,) = [one for one in forms.artefacts if (one.kind, one.precision) == ("onnx", "int8")]
    model = onnx.load(str(artefact.path))
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    points = {int(stored[node.input[2]]) for node in pairs}
    assert points == {-quantizer.levels()[0] for quantizer in activation_quantizers(made).values()}
    assert any(0 < point < 2 ** (bits - 1) for point in points)
    assert ("Clip" in {node.op_type for node in model.graph.node}) == (bits < 8)
    x = np.random.RandomState(5).uniform(-9, 9, [32, 3, 8, 8]).astype("float32")  # far beyond the ranges
    made.eval()
    expected = made(paddle.to_tensor(x)).numpy()
    got = OnnxRuntime(optimised=False).load(artefact, threads=1)([x])[0]
    off = np.abs(got - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(off) < 1e-5
    assert off.max() < 0.05
