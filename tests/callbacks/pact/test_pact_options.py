"""Schedules, methods and refusals of quantisation-aware training."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from places import HELPERS
from toy import Images, TinyNet, fit, hapi_model, weights_of

from paddlelite_callbacks import (
    AdvancedPACTOptions,
    BenchOptions,
    ExportBenchCallback,
    PACTConfig,
    PACTQuantCallback,
    prepare_pact_,
    ptq_int8,
)
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.convert import convert_for_export_
from paddlelite_callbacks.quant.functional import lsq_fake_quantize
from paddlelite_callbacks.quant.prepare import activation_quantizers, quantized_layers, trained_scales
from paddlelite_callbacks.quant.sensitivity import find_skips, layer_sqnr, leave_one_out
from paddlelite_callbacks.quant.switch import quantizers_off


class Watch(paddle.callbacks.Callback):
    """Calls a function at each epoch's end and keeps what it returns."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.look())


def test_lsq_gradients_equal_the_papers_formula():
    random = np.random.RandomState(0)
    x = random.randn(6, 50).astype("float32")
    alpha = random.uniform(0.5, 2, [6, 1]).astype("float32")
    a = paddle.to_tensor(alpha, stop_gradient=False)
    t = paddle.to_tensor(x, stop_gradient=False)
    lsq_fake_quantize(t, a, bits=4, symmetric=True).sum().backward()
    step = alpha / 7
    v = x / step
    inner = np.where(v <= -7, -7, np.where(v >= 7, 7, np.round(v) - v)).sum(1, keepdims=True)
    np.testing.assert_allclose(a.grad.numpy(), inner / 7 / np.sqrt(50 * 7), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(t.grad.numpy(), (np.abs(v) < 7).astype("float32"))


def test_lsq_trains_the_steps_of_weights_too():
    network = TinyNet()
    prepare_pact_(network, PACTConfig(method="lsq"))
    mean = np.abs(network.conv1.weight.numpy()).mean(axis=(1, 2, 3))
    alpha = network.conv1.weight_quanter.alpha
    np.testing.assert_allclose(alpha.numpy().ravel(), 2 * mean * np.sqrt(64), rtol=1e-5)
    before = alpha.numpy().copy()
    fit(hapi_model(network), [PACTQuantCallback(method="lsq")], epochs=2)
    assert (alpha.numpy() != before).any()
    assert len(trained_scales(network)) == 6


@pytest.mark.parametrize("scheduled", [False, True], ids=["rate", "scheduler"])
def test_the_learning_rate_is_scaled_for_this_fit_alone(scheduled):
    schedule = paddle.optimizer.lr.StepDecay(0.1, step_size=2, gamma=0.1) if scheduled else 0.1
    model = hapi_model(optimizer="Momentum", learning_rate=schedule)
    watch = Watch(lambda: model._optimizer.get_lr())
    fit(model, [PACTQuantCallback(lr_scale=0.2), watch], epochs=2, evaluate=False)
    assert watch.seen[0] == pytest.approx(0.2 * 0.1 * (0.1 if scheduled else 1))
    if scheduled:  # hapi steps it behind each of the four batches
        assert model._optimizer._learning_rate is schedule
        assert schedule.last_epoch == 4
        assert model._optimizer.get_lr() == pytest.approx(0.1 * 0.1**2)
    else:
        assert model._optimizer.get_lr() == 0.1


def test_a_scaled_fit_equals_one_with_the_smaller_rate():
    results = []
    for rate, scale in ((0.1, 0.25), (0.025, 1.0)):
        paddle.seed(1)
        model = hapi_model(learning_rate=rate)
        fit(model, [PACTQuantCallback(lr_scale=scale)], epochs=2)
        results.append(weights_of(model.network))
    for key, value in results[0].items():
        np.testing.assert_allclose(value, results[1][key], atol=1e-6, err_msg=key)


def test_before_start_epoch_the_network_trains_as_without():
    paddle.seed(2)
    plain = hapi_model()
    fit(plain, epochs=2, evaluate=False)
    paddle.seed(2)
    model = hapi_model()
    watch = Watch(lambda: {key: value for key, value in weights_of(model.network).items() if "quanter" not in key})
    fit(model, [PACTQuantCallback(start_epoch=2, lr_scale=1.0), watch], epochs=3, evaluate=False)
    for key, value in weights_of(plain.network).items():
        np.testing.assert_array_equal(watch.seen[1][key], value, err_msg=key)
    assert all(quantizer.calibrated for quantizer in activation_quantizers(model.network).values())
    with pytest.raises(ValueError, match="start_epoch=3 is never reached in 3 epochs"):
        fit(hapi_model(), [PACTQuantCallback(start_epoch=3)], epochs=3)


def test_batch_norm_statistics_and_scales_can_stand_still():
    model = hapi_model()
    network = model.network
    watch = Watch(lambda: (network.bn1._mean.numpy().copy(), [float(a) for a in trained_scales(network)]))
    fit(model, [PACTQuantCallback(freeze_bn_after=2, freeze_scales_after=1), watch], epochs=4)
    means, scales = zip(*watch.seen, strict=True)
    assert (means[0] != means[1]).any()
    np.testing.assert_array_equal(means[1], means[3])
    assert scales[0] == scales[3]
    assert all(not alpha.stop_gradient for alpha in trained_scales(network))
    assert network.bn1.training == network.training


def test_several_calibration_batches_are_a_moving_average():
    model = hapi_model()
    data = Images(16)
    fit(
        model,
        [
            PACTQuantCallback(
                advanced=AdvancedPACTOptions(
                    calibration="percentile", calibration_batches=2, observer_momentum=0.75, alpha_lr_scale=0.0
                )
            )
        ],
        data=data,
    )
    first, second = (np.percentile(np.abs(data.images[part]), 99.9) for part in (slice(8), slice(8, 16)))
    alpha = float(model.network.conv1.activation_quanter.alpha)
    assert alpha == pytest.approx(0.75 * first + 0.25 * second, rel=1e-4)


def test_alpha_decay_pulls_alphas_down():
    ends = []
    for decay in (0.0, 5.0):
        paddle.seed(4)
        model = hapi_model(optimizer="Momentum")
        fit(model, [PACTQuantCallback(advanced=AdvancedPACTOptions(alpha_decay=decay))], epochs=2)
        ends.append(sum(float(alpha) for alpha in trained_scales(model.network)))
    assert ends[1] < ends[0]


def test_quantised_outputs_stand_behind_norm_and_relu_and_can_be_undone():
    network = TinyNet()
    keys = list(network.state_dict())
    undo = prepare_pact_(network, PACTConfig(quantize_outputs=True))
    new = [key for key in network.state_dict() if ".output_quanter." in key]
    places = [f"{layer}.output_quanter.{key}" for layer in ("relu", "conv2") for key in ("alpha", "grid")]
    assert new == places  # conv2 has no norm, but is the last before a Linear
    network.train()
    network(paddle.to_tensor(Images(8).images))
    assert network.relu.output_quanter.levels() == (0, 255)
    undo.close()
    assert list(network.state_dict()) == keys
    assert type(network.relu) is nn.ReLU


def test_a_convolution_that_nothing_normalises_holds_quanters_of_input_and_output():
    network = nn.Sequential(nn.Conv2D(3, 4, 1), nn.Hardswish(), nn.Conv2D(4, 4, 1))
    x = paddle.to_tensor(Images(8).images)
    quantised = ptq_int8(network, [x], quantize_outputs=True)
    found = activation_quantizers(quantised)
    assert sorted(found) == ["0.activation_quanter", "0.output_quanter", "2.activation_quanter"]
    assert all(quantizer.calibrated for quantizer in found.values())
    assert convert_for_export_(copy_network(quantised)) == ["0", "2"]


def test_a_transposed_convolution_is_simulated():
    layer = nn.Conv2DTranspose(3, 4, 3, stride=2, padding=1, output_padding=1, groups=1)
    network = nn.Sequential(layer)
    x = paddle.to_tensor(Images(4).images)
    plain = network(x).numpy()
    prepare_pact_(network, PACTConfig(alpha_percentile=100))
    got = network(x).numpy()
    assert got.shape == plain.shape
    assert 0 < np.abs(got - plain).max() < 0.05 * np.abs(plain).max()
    network(x).sum().backward()
    assert layer.weight.grad is not None


def test_a_network_quantised_otherwise_is_refused():
    network = TinyNet()
    prepare_pact_(network)
    prepare_pact_(network)  # the same again: nothing left to do
    with pytest.raises(ValueError, match="already quantised with weight_bits=8, activation_bits=8, method='pact'"):
        prepare_pact_(network, PACTConfig(weight_bits=4))
    with pytest.raises(ValueError, match="already quantised with"):
        fit(hapi_model(network), [PACTQuantCallback(method="lsq")])
    quantizer = paddle.quantization.quanters.FakeQuanterWithAbsMaxObserver()
    config = paddle.quantization.QuantConfig(activation=None, weight=None)
    config.add_type_config([nn.Conv2D], activation=quantizer, weight=quantizer)
    other = paddle.quantization.QAT(config).quantize(TinyNet())
    with pytest.raises(ValueError, match="already quantised by another tool"):
        prepare_pact_(other)


def test_sensitivity_finds_the_layer_that_was_spoilt():
    paddle.seed(0)
    network = TinyNet(width=8)
    prepare_pact_(network)
    x = paddle.to_tensor(Images(16).images)
    network(x)
    network.eval()
    spoilt = network.conv2.activation_quanter
    spoilt.alpha.set_value(spoilt.alpha * 0.05)
    sqnr = layer_sqnr(network, [[x]])
    assert next(iter(sqnr)) == "conv2"
    assert sqnr["conv2"] < min(sqnr["conv1"], sqnr["fc"]) - 3
    with quantizers_off(network):
        wanted = network(x)

    def score():
        return 1 - float((network(x) - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())

    assert next(iter(leave_one_out(network, score))) == "conv2"
    assert find_skips(network, score, metric_drop=0.05)[0] == "conv2"
    assert find_skips(network, score, metric_drop=0.0, most=2) == ["conv2", "fc"]
    assert find_skips(network, score, metric_drop=0.99) == []


def test_sqnr_is_that_of_the_formula():
    network = nn.Sequential(nn.Linear(5, 3))
    prepare_pact_(network, PACTConfig(weight_bits=3))
    x = paddle.randn([40, 5])
    network(x)
    layer = network[0]
    with quantizers_off(network):
        plain = network(x).numpy()
    noise = layer(x).numpy() - plain
    expected = 10 * np.log10((plain**2).sum() / (noise**2).sum())
    assert layer_sqnr(network, [[x]])["0"] == pytest.approx(expected, rel=1e-4)


@needs("paddle2onnx")
@pytest.mark.slow
def test_diagnosis_after_fit_measures_the_real_file_and_names_layers(caplog):
    model = hapi_model()
    fit(model, epochs=10, evaluate=False)
    mild = PACTQuantCallback(eval_data=Images(80))  # more batches than the diagnosis keeps
    fit(model, [mild], epochs=2)
    found = mild.diagnosis
    assert found.metric == "acc"
    assert found.engine == "openvino"
    assert found.int8 == found.fake_quant
    assert model.evaluate(Images(80), batch_size=32, verbose=0)["acc"] == pytest.approx(found.fake_quant)
    assert found.fp32 > 0.3
    assert mild.find_skips(0.5) == []
    model.network.fc.activation_quanter.alpha.set_value(paddle.to_tensor([1e-4]))
    harsh = PACTQuantCallback(eval_data=Images(), metric_drop=0.0, lr_scale=1e-9, freeze_scales_after=0)
    fit(model, [harsh])
    assert harsh.diagnosis.too_much
    assert "fc" in harsh.diagnosis.skips
    assert "Suggested: skip=['fc'" in " ".join(harsh.diagnosis.lines())
    assert "Suggested" in caplog.text
    assert "forward" not in vars(model.network)


@needs("paddle2onnx")
@pytest.mark.slow
@pytest.mark.parametrize("export_first", [False, True])
def test_the_diagnosis_stands_in_the_record(export_first, tmp_path):
    pact = PACTQuantCallback(eval_data=Images())
    export = ExportBenchCallback(
        tmp_path,
        engines=["openvino"],
        verbose=0,
        benchmark=BenchOptions(warmup=1, repeats=1, peak_memory=False, roofline=False),
    )
    fit(hapi_model(), [export, pact] if export_first else [pact, export])
    assert any("fp32" in note and "fake-quantised" in note for note in export.record.notes)


def test_a_hint_when_more_epochs_run_than_the_recipe_needs(caplog):
    fit(hapi_model(), [PACTQuantCallback(advanced=AdvancedPACTOptions(fp32_epochs=4))], epochs=2)
    assert "a quarter to a half of them is enough" not in caplog.text
    fit(hapi_model(), [PACTQuantCallback(advanced=AdvancedPACTOptions(fp32_epochs=4))], epochs=3)
    assert "a quarter to a half of them is enough" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dorefa"}, r"method must be one of \['pact', 'lsq'\]"),
        ({"calibration_batches": 0}, "calibration_batches must be a whole number of at least 1"),
        ({"observer_momentum": 1.0}, r"observer_momentum must be in \[0, 1\)"),
        ({"lr_scale": 0}, "lr_scale must be a finite number above 0"),
        ({"start_epoch": -1}, "start_epoch"),
        ({"freeze_bn_after": 1.5}, "freeze_bn_after"),
        ({"metric_drop": 3}, "metric_drop must be a share"),
        ({"activation": "paddleslim", "quantize_outputs": True}, "needs quantize_outputs=False, got True"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        PACTQuantCallback(**options)


TWO = """
import sys
sys.path.insert(0, {tests!r})
import paddle
from toy import Images, TinyNet, hapi_model
from paddlelite_callbacks import PACTQuantCallback
from paddlelite_callbacks.quant.prepare import trained_scales
paddle.distributed.init_parallel_env()
paddle.seed(0)
model = hapi_model(TinyNet())
callback = PACTQuantCallback(calibration_batches=2, quantize_outputs=True)
model.fit(Images(32), batch_size=8, epochs=2, verbose=0, callbacks=[callback])
alphas = paddle.concat([alpha.flatten() for alpha in trained_scales(model.network)])
rows = []
paddle.distributed.all_gather(rows, alphas)
assert len(rows) == 2 and len(alphas) == 5, (rows, alphas)
assert bool((rows[0] == rows[1]).all()), rows
print("EQUAL", alphas.numpy())
"""


@pytest.mark.slow
def test_two_processes_keep_their_alphas_equal(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO.format(tests=str(HELPERS)))
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--backend", "gloo", str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    logs = "".join(file.read_text() for file in tmp_path.glob("workerlog.*"))
    assert done.returncode == 0, logs[-2000:]
    assert "EQUAL" in logs


def test_resuming_a_half_trained_network_goes_on_from_its_scales(tmp_path):
    options = {"method": "lsq", "quantize_outputs": True, "lr_scale": 1.0}
    model = hapi_model()
    fit(model, [PACTQuantCallback(**options)], save_dir=str(tmp_path))
    fresh = TinyNet()
    prepare_pact_(fresh, PACTConfig(**options))
    other = hapi_model(fresh)
    other.load(str(tmp_path / "final"), reset_optimizer=True)
    assert set(weights_of(fresh)) == set(weights_of(model.network))
    before = [alpha.numpy().copy() for alpha in trained_scales(fresh)]
    for got, expected in zip(before, trained_scales(model.network), strict=True):
        np.testing.assert_array_equal(got, expected.numpy())
    fit(other, [PACTQuantCallback(**{**options, "lr_scale": 1e-9})])  # no first batch sets them anew
    for got, expected in zip(trained_scales(fresh), before, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)
    assert list(quantized_layers(fresh)) == ["conv1", "conv2", "fc"]
