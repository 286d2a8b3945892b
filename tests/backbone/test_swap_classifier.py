"""Whole classifiers."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import BackboneSwap, BenchOptions, ExportBenchCallback

SPEC = [InputSpec([None, 3, 32, 32], name="x")]


@needs("paddleclas")
@pytest.mark.parametrize("name", ["PPLCNet_x0_25", "MobileNetV3_small_x0_35", "mobilenet_v2", "GhostNet_x0_5"])
def test_the_head_has_as_many_classes(name):
    big = paddle.vision.models.resnet18(num_classes=7)
    before = weights_of(big)
    light = BackboneSwap(name)(big)
    assert light(paddle.rand([2, 3, 64, 64])).shape == [2, 7]
    assert equal_weights(weights_of(big), before)
    assert not any(key.startswith(("network", "trunk", "project")) for key in light.state_dict())


@needs("paddleclas")
def test_trained_and_exported(tmp_path):
    light = BackboneSwap("PPLCNet_x0_25", options={"stride_list": [1, 1, 2, 2, 2]})(TinyNet(), SPEC)
    model, export = (
        hapi_model(light),
        ExportBenchCallback(
            tmp_path,
            engines=["paddle"],
            verbose=0,
            benchmark=BenchOptions(repeats=2, peak_memory=False, roofline=False),
        ),
    )
    fit(model, [export], data=Images(16, size=32), epochs=2)
    assert [check.passed for check in export.record.checks] == [True]
    assert export.record.checks[0].top1_agreement == 1.0


def test_a_network_of_ones_own_gets_a_new_head():
    own = TinyNet(outputs=9)
    own.eval()
    kept = weights_of(own)
    light = BackboneSwap(own)(TinyNet(outputs=3), SPEC)
    assert own.fc.weight.shape == [4, 9]  # a copy was changed
    assert light(paddle.rand([2, 3, 32, 32])).shape == [2, 3]
    assert all(np.array_equal(weights_of(light)[key], kept[key]) for key in kept if not key.startswith("fc."))
    same = TinyNet(outputs=3)
    assert equal_weights(weights_of(BackboneSwap(same)(TinyNet(outputs=3), SPEC)), weights_of(same))


@needs("paddleclas")
def test_the_number_of_classes_comes_from_the_output_or_the_last_linear():
    convolutional = nn.Sequential(nn.Conv2D(3, 6, 3), nn.AdaptiveAvgPool2D(1), nn.Flatten())
    assert BackboneSwap("PPLCNet_x0_25")(convolutional, SPEC)(paddle.rand([1, 3, 32, 32])).shape == [1, 6]
    with pytest.raises(ValueError, match=r"has no Linear that tells its number of classes: give input_spec"):
        BackboneSwap("PPLCNet_x0_25")(convolutional)


@needs("paddleclas")
def test_what_is_no_classifier_is_refused():
    with pytest.raises(
        ValueError, match=r"A classifier must return \[N, classes\], Conv2D returns \[1, 4, 30, 30\].* at='backbone'"
    ):
        BackboneSwap("PPLCNet_x0_25")(nn.Conv2D(3, 4, 3), SPEC)
    with pytest.raises(ValueError, match=r"Conv2D is not a classifier: .*got \[1, 4, 30, 30\]"):
        BackboneSwap(nn.Conv2D(3, 4, 3))(TinyNet(), SPEC)
    headless = nn.Sequential(nn.Conv2D(3, 6, 3), nn.AdaptiveAvgPool2D(1), nn.Flatten())
    with pytest.raises(ValueError, match="returns 6 scores instead of 4, and has no Linear"):
        BackboneSwap(headless)(TinyNet(), SPEC)
    with pytest.raises(TypeError, match=r"got a paddle\.Model: swap before"):
        BackboneSwap("PPLCNet_x0_25")(paddle.Model(TinyNet()))


@needs("paddleclas")
def test_summary_of_a_whole_swap():
    swap = BackboneSwap("PPLCNet_x0_25")
    big = paddle.vision.models.resnet18(num_classes=10)
    swap(big, [InputSpec([None, 3, 64, 64])])
    summary = swap.summary(warmup=1, repeats=3)
    assert summary.before.parameters == 11_689_512 - 990 * 513  # torchvision's resnet18, less 990 classes
    assert summary.before.size_mb > 4 * 11.18
    assert summary.latency_ratio < 1
    assert summary.after.macs < summary.before.macs / 10
