"""PACT against its paper on hand cases, and through a whole fit."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest
from installed import needs
from paddle.nn.quant.qat import QuantedConv2D, QuantedLinear
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import AdvancedPACTOptions, DistillCallback, PACTConfig, PACTQuantCallback, prepare_pact_
from paddlelite_callbacks.quant.convert import Int8Conv2D, Int8Linear, convert_for_export_
from paddlelite_callbacks.quant.functional import lsq_fake_quantize, pact_fake_quantize, weight_steps
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.quantizers import ChannelWeightQuantizer, PACTActivationQuantizer


def quantize(values, alpha, *, bits, signed):
    x = paddle.to_tensor(np.float32(values), stop_gradient=False)
    a = paddle.to_tensor(np.float32([alpha]), stop_gradient=False)
    y = pact_fake_quantize(x, a, bits=bits, signed=signed)
    y.sum().backward()
    return y.numpy(), x.grad.numpy(), a.grad.numpy()


def test_hand_case_of_the_paper():
    """y = 0.5 (|x| - |x - a| + a), a = 1.5, 2 bits: steps of 0.5; dy/da is 1 where x >= a (eq. 1 and 3)."""
    y, dx, da = quantize([-1.0, 0.2, 0.3, 0.8, 1.4, 1.5, 2.0, 9.0], 1.5, bits=2, signed=False)
    np.testing.assert_allclose(y, [0, 0, 0.5, 1.0, 1.5, 1.5, 1.5, 1.5], atol=1e-6)
    np.testing.assert_array_equal(dx, [0, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(da, [3.0])


def test_signed_hand_case():
    """Grid [-4, 3] with step 1 for a = 3: below, the clip is at -4 = -a * 4/3, so dy/da is -4/3 there."""
    y, dx, da = quantize([-9.0, -4.0, -1.2, 0.4, 2.6, 3.0, 7.0], 3.0, bits=3, signed=True)
    np.testing.assert_allclose(y, [-4, -4, -1, 0, 3, 3, 3], atol=1e-6)
    np.testing.assert_array_equal(dx, [0, 0, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(da, [2 - 2 * 4 / 3], rtol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_gradients_equal_those_of_the_clip_by_finite_differences(bits, signed):
    """Rounding passes gradients straight through, so they must equal those of clip(x, alpha * low / high, alpha)."""
    x = np.random.RandomState(bits).randn(200) * 2
    low = -(2 ** (bits - 1)) / (2 ** (bits - 1) - 1) if signed else 0.0

    def clipped(a):
        return np.clip(x, a * low, a).sum()

    _, dx, da = quantize(x, 1.3, bits=bits, signed=signed)
    assert da[0] == pytest.approx((clipped(1.3 + 1e-4) - clipped(1.3 - 1e-4)) / 2e-4, rel=1e-3, abs=1e-3)
    np.testing.assert_array_equal(dx, (x < 1.3) & (x > 1.3 * low))


@pytest.mark.parametrize("bits", range(2, 9))
def test_at_most_two_to_the_bits_values_and_error_within_half_a_step(bits):
    x = np.random.RandomState(0).rand(5000) * 3
    y, _, _ = quantize(x, 3.0, bits=bits, signed=False)
    assert len(np.unique(y)) <= 2**bits
    assert np.abs(y - x).max() <= 3.0 / (2**bits - 1) / 2 + 1e-6


@pytest.mark.parametrize(("reduce_range", "high"), [(True, 64), (False, 127)])
def test_weights_are_quantised_per_output_channel(reduce_range, high):
    weight = np.float32(np.random.RandomState(0).randn(4, 3, 2, 2))
    weight[2] = 0
    got = ChannelWeightQuantizer(bits=8, axis=0, reduce_range=reduce_range)(paddle.to_tensor(weight)).numpy()
    for channel in range(4):
        step = max(np.abs(weight[channel]).max(), 1e-30) / high
        np.testing.assert_allclose(got[channel], np.round(weight[channel] / step) * step, atol=1e-7)
    linear = paddle.to_tensor(np.float32([[1, 10], [-2, 5]]))
    steps = weight_steps(linear, bits=8, axis=1, reduce_range=reduce_range).numpy()
    np.testing.assert_allclose(steps, [[2 / high, 10 / high]], rtol=1e-6)


@needs("paddleslim")
def test_parity_with_paddleslims_pactquanter():
    """Same scale, same numbers, where the grids agree: in training theirs ends at -127, ours at -128 steps."""
    from paddle.quantization.quanters import FakeQuanterWithAbsMaxObserver
    from paddleslim.quant.quanters import PACTQuanter

    theirs = PACTQuanter(quanter=FakeQuanterWithAbsMaxObserver(), init_value=2.0)._instance(paddle.nn.ReLU())
    x = paddle.to_tensor(np.float32(np.random.RandomState(0).randn(64) * 2))
    expected = theirs(x).numpy()
    scale = theirs.scales()
    ours = pact_fake_quantize(x.clip(min=-float(scale)), scale, bits=8, signed=True).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_conversion_and_training():
    network = TinyNet()
    model, before = hapi_model(network), weights_of(network)
    parameters = {id(p) for p in model._optimizer._parameter_list}
    fit(model, [PACTQuantCallback()], epochs=1)
    layers = quantized_layers(network)
    assert {name: type(layer) for name, layer in layers.items()} == {
        "conv1": QuantedConv2D,
        "conv2": QuantedConv2D,
        "fc": QuantedLinear,
    }
    alphas = {name: float(layer.activation_quanter.alpha) for name, layer in layers.items()}
    added = [p for p in model._optimizer._parameter_list if id(p) not in parameters]
    assert {id(p) for p in added} == {id(layer.activation_quanter.alpha) for layer in layers.values()}
    assert layers["conv1"].activation_quanter.levels() == (-128, 127)  # the image has negative values
    assert layers["conv2"].activation_quanter.levels() == (0, 255)  # behind a ReLU
    assert set(weights_of(network)) - set(before) == {
        f"{name}.{key}"
        for name in layers
        for key in ("activation_quanter.alpha", "activation_quanter.grid", "weight_quanter.grid")
    }
    fit(model, [PACTQuantCallback()], epochs=3)
    again = quantized_layers(network)
    assert list(again) == list(layers)
    assert all(again[name] is layers[name] for name in layers)
    moved = {name: float(layer.activation_quanter.alpha) for name, layer in again.items()}
    assert all(moved[name] != alphas[name] for name in layers), (alphas, moved)
    assert len(model._optimizer._parameter_list) == len(parameters) + 3


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Adam", "AdamW"])
def test_alphas_move_by_the_users_own_optimizer_also_after_steps(optimizer):
    model = hapi_model(optimizer=optimizer)
    fit(model)
    fit(model, [PACTQuantCallback(advanced=AdvancedPACTOptions(alpha_percentile=80))])
    alpha = model.network.conv2.activation_quanter.alpha
    before = float(alpha)
    fit(model, [PACTQuantCallback()])
    assert float(alpha) != before
    assert float(alpha) > 0


def test_alpha_takes_the_sgd_step_of_its_gradient():
    network = TinyNet()
    model = hapi_model(network, optimizer="SGD", learning_rate=0.1)
    fit(model, [PACTQuantCallback(advanced=AdvancedPACTOptions(alpha_percentile=80))])
    alpha, seen = network.fc.activation_quanter.alpha, []
    hook = alpha.register_hook(lambda grad: seen.append(float(grad)))
    before = float(alpha)
    fit(model, [PACTQuantCallback(lr_scale=0.5)], data=Images(8))
    hook.remove()
    assert len(seen) == 1
    assert seen[0] != 0
    assert float(alpha) == pytest.approx(before - 0.5 * 0.1 * seen[0], rel=1e-6)


def test_skip_include_and_layer_types():
    network = TinyNet()
    prepare_pact_(network, PACTConfig(skip=["conv1"]))
    assert list(quantized_layers(network)) == ["conv2", "fc"]
    network = TinyNet()
    prepare_pact_(network, PACTConfig(layer_types=["Conv2D"], include=["*2"]))
    assert list(quantized_layers(network)) == ["conv2"]
    with pytest.raises(ValueError, match=r"No sublayer of TinyNet matches 'head\*'"):
        prepare_pact_(TinyNet(), PACTConfig(skip=["head*"]))
    with pytest.raises(ValueError, match="has no Conv2D or Conv2DTranspose or Linear to quantise"):
        prepare_pact_(paddle.nn.Sequential(paddle.nn.ReLU()))


def test_prepare_can_be_undone():
    network = TinyNet()
    before = dict(network.named_sublayers())
    prepare_pact_(network).close()
    after = dict(network.named_sublayers())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_hooks_on_converted_layers_go_on_firing():
    network, calls = TinyNet(), []
    handle = network.conv2.register_forward_post_hook(lambda *_: calls.append(1))
    fit(hapi_model(network), [PACTQuantCallback()], evaluate=False)
    assert len(calls) == 2
    handle.remove()
    network(paddle.zeros([1, 3, 8, 8]))
    assert len(calls) == 2


def test_an_uncalibrated_network_computes_as_before_in_evaluation():
    network = TinyNet()
    network.eval()
    x = paddle.randn([2, 3, 8, 8])
    expected = network(x).numpy()
    prepare_pact_(network, PACTConfig(weight_bits=8, reduce_range=False))
    np.testing.assert_allclose(network(x).numpy(), expected, atol=0.02)  # weights are on their grid, inputs as given


def test_checkpoint_of_a_quantised_network_loads_into_a_prepared_one(tmp_path):
    model = hapi_model()
    fit(model, [PACTQuantCallback()], save_dir=str(tmp_path))
    fresh = TinyNet()
    prepare_pact_(fresh)
    other = hapi_model(fresh)
    other.load(str(tmp_path / "final"), reset_optimizer=True)  # its state is keyed by automatic names
    assert equal_weights(weights_of(model.network), weights_of(fresh))
    assert other.evaluate(Images(), batch_size=8, verbose=0) == model.evaluate(Images(), batch_size=8, verbose=0)
    fit(other, [PACTQuantCallback()])  # goes on from the loaded alphas
    assert float(fresh.fc.activation_quanter.alpha) == pytest.approx(
        float(model.network.fc.activation_quanter.alpha), rel=0.2
    )


def test_int8_layers_equal_the_fake_quantised_network():
    model = hapi_model()
    fit(model, [PACTQuantCallback()], epochs=2)
    network = model.network
    network.eval()
    x = paddle.to_tensor(Images().images)
    shipped = copy.deepcopy(network)
    assert convert_for_export_(shipped) == ["conv1", "conv2", "fc"]
    assert isinstance(shipped.conv1, Int8Conv2D)
    assert isinstance(shipped.fc, Int8Linear)
    assert shipped.conv2.weight_int8.dtype == paddle.int8
    simulated = network.conv2.weight_quanter(network.conv2.weight).numpy()
    np.testing.assert_array_equal(shipped.conv2.weight().numpy(), simulated)
    np.testing.assert_allclose(shipped(x).numpy(), network(x).numpy(), atol=1e-6)


def test_padding_modes_are_kept():
    net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 2, 3, padding=1, padding_mode="reflect"))
    prepare_pact_(net)
    x = paddle.randn([1, 3, 6, 6])
    net(x)
    net.eval()
    expected = net(x).numpy()
    convert_for_export_(net)
    np.testing.assert_allclose(net(x).numpy(), expected, atol=1e-6)


def test_export_before_any_batch_is_refused():
    network = TinyNet()
    prepare_pact_(network)
    with pytest.raises(ValueError, match="has seen a training batch"):
        convert_for_export_(network)


def test_layers_that_do_not_run_are_named(caplog):
    class Idle(TinyNet):
        def __init__(self):
            super().__init__()
            self.aside = paddle.nn.Linear(2, 2)

    fit(hapi_model(Idle()), [PACTQuantCallback()])
    assert "not run in the first batch" in caplog.text
    assert "aside" in caplog.text


@needs("paddleslim", "paddle2onnx")
def test_paddleslims_quanter_is_selectable_and_ships():
    model = hapi_model()
    fit(model, [PACTQuantCallback(advanced=AdvancedPACTOptions(activation="paddleslim"))], epochs=2)
    network = model.network
    assert type(network.conv1.activation_quanter).__module__.startswith("paddleslim.")
    network.eval()
    x = paddle.to_tensor(Images().images)
    expected, shipped = network(x).numpy(), copy.deepcopy(network)
    convert_for_export_(shipped)
    np.testing.assert_allclose(shipped(x).numpy(), expected, atol=1e-5)


def test_with_distillation_in_the_same_fit_in_any_order():
    results = []
    for reverse in (False, True):
        paddle.seed(3)
        student, teacher = TinyNet(), TinyNet(width=8)
        callbacks = [PACTQuantCallback(), DistillCallback(teacher)]
        fit(hapi_model(student), callbacks[::-1] if reverse else callbacks, epochs=2)
        results.append(weights_of(student))
    assert equal_weights(*results)


def test_mixed_precision_is_refused():
    network = TinyNet()
    model = paddle.Model(network)
    model.prepare(
        paddle.optimizer.SGD(0.1, parameters=network.parameters()), paddle.nn.CrossEntropyLoss(), amp_configs="O1"
    )
    with pytest.raises(ValueError, match="amp level O1"):
        fit(model, [PACTQuantCallback()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 9}, r"weight_bits must be a whole number in \[2, 8\], got 9"),
        ({"activation_bits": 1}, "activation_bits"),
        ({"layer_types": ["Conv3D"]}, r"layer_types must be some of \['Conv2D', 'Conv2DTranspose', 'Linear'\]"),
        ({"layer_types": []}, "layer_types"),
        ({"skip": "fc"}, "skip must be a list of strings"),
        ({"alpha_percentile": 0}, "alpha_percentile"),
        ({"alpha_lr_scale": -1}, "alpha_lr_scale"),
        ({"activation": "lsq"}, r"activation must be one of \['pact', 'paddleslim'\]"),
        ({"activation": "paddleslim", "activation_bits": 4}, "needs activation_bits=8, got activation_bits=4"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        PACTConfig(**options)


def test_config_and_options_exclude_each_other():
    with pytest.raises(TypeError, match="either config or options"):
        PACTQuantCallback(PACTConfig(), weight_bits=4)
    with pytest.raises(TypeError, match="from_config"):
        PACTQuantCallback({"weight_bits": 4})


GUIDE = {
    "name": "QAT",
    "weight_preprocess_type": None,
    "activation_preprocess_type": "PACT",
    "weight_quantize_type": "channel_wise_abs_max",
    "activation_quantize_type": "moving_average_abs_max",
    "weight_bits": 8,
    "activation_bits": 8,
    "dtype": "int8",
    "window_size": 10000,
    "moving_rate": 0.9,
    "quantizable_layer_type": ["Conv2D", "Linear"],
}


def test_the_guides_dictionary_is_taken_as_it_stands():
    assert PACTQuantCallback.from_config(GUIDE).config == PACTConfig(layer_types=["Conv2D", "Linear"])
    assert PACTQuantCallback.from_config({"quantizer": {**GUIDE, "weight_bits": 4}}).config.weight_bits == 4
    with pytest.raises(ValueError, match=r"Unknown keys .*quantization"):
        PACTConfig.from_guide({"weight_bit": 8})
    with pytest.raises(ValueError, match="weight_quantize_type must be one of"):
        PACTConfig.from_guide({"weight_quantize_type": "abs_max"})


def test_calibration_keeps_to_a_percentile_and_survives_all_zero_inputs():
    quantizer = PACTActivationQuantizer(percentile=99.0)
    x = np.abs(np.random.RandomState(0).randn(10000)).astype("float32")
    quantizer(paddle.to_tensor(x))
    assert float(quantizer.alpha) == pytest.approx(np.percentile(x, 99), rel=1e-3)
    zero = PACTActivationQuantizer()
    assert float(zero(paddle.zeros([4])).abs().max()) == 0
    assert zero.calibrated


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("function", [pact_fake_quantize, lsq_fake_quantize])
def test_an_infinite_alpha_shows_in_the_loss(function, signed):
    """Where the guard names it, instead of an error of Paddle's ``clip``."""
    y = function(paddle.randn([3, 4]), paddle.to_tensor([float("inf")]), signed=signed)
    assert np.isnan(y.numpy()).any()


@pytest.mark.parametrize("largest", [1e-45, 1e-42, 1e-38, 1e-36])
def test_a_channel_that_weight_decay_took_to_nearly_nothing(largest):
    weight = paddle.to_tensor(np.float32([[largest, -largest / 2], [0.5, 0.25]]))
    quantizer = ChannelWeightQuantizer(axis=0)
    np.testing.assert_allclose(quantizer(weight).numpy(), weight.numpy(), atol=0.5 / 64 / 2 + 1e-35)
    assert np.isfinite(quantizer.steps(weight).numpy()).all()
    assert (quantizer.integers(weight).numpy()[1] == [64, 32]).all()
