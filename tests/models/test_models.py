"""The networks: counts of the papers, function of the papers, the guide's weights, training, export."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from keypoint_reference import HRReference, LiteReference
from paddle import nn

from paddlelite_callbacks import models
from paddlelite_callbacks.models.guide_weights import convert_guide_weights, load_guide_weights_

NETS = {
    "lite_18": (lambda: models.lite_hrnet_18(), lambda: LiteReference((2, 4, 2), 40, True)),
    "lite_30": (lambda: models.lite_hrnet_30(), lambda: LiteReference((3, 8, 3), 40, True)),
    "naive_18": (lambda: models.naive_lite_hrnet_18(), lambda: LiteReference((2, 4, 2), 30, False)),
    "wider_naive_18": (lambda: models.wider_naive_lite_hrnet_18(), lambda: LiteReference((2, 4, 2), 40, False)),
    "w32": (lambda: models.hrnet_w32(multi_scale=False), lambda: HRReference(32)),
    "w18_small_v2": (
        lambda: models.hrnet_w18_small_v2(multi_scale=False),
        lambda: HRReference(18, modules=(1, 3, 2), blocks=2),
    ),
}


def calibrated(net, size):
    """Random weights whose activations keep their size, and normalisation statistics that differ by channel."""
    norms = [layer for layer in net.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    for key, value in net.state_dict().items():
        if value.ndim == 4:
            value.set_value(paddle.randn(value.shape) * float(np.sqrt(2 / np.prod(value.shape[1:]))))
        elif key.endswith(("norm.weight", "norm.bias")):
            value.set_value(value + 0.2 * paddle.randn(value.shape))
    for norm in norms:
        norm._momentum = 0.0
    net.train()
    with paddle.no_grad():
        net(paddle.randn([4, 3, *size]))
    for norm in norms:  # a channel that is dead on these images would magnify rounding without bound
        norm._variance.set_value(norm._variance.clip(min=0.05))
    net.eval()
    return net


def count(net, size=(256, 192)):
    """Trained parameters, and multiply-adds of one image by the sizes of the convolutions and linear layers."""
    total = []

    def add(layer, _, output):
        pixels = int(np.prod(output.shape[2:])) if output.ndim == 4 else 1
        total.append(pixels * int(np.prod(layer.weight.shape)))

    for layer in net.sublayers():
        if isinstance(layer, (nn.Conv2D, nn.Linear)):
            layer.register_forward_post_hook(add)
    net.eval()
    with paddle.no_grad():
        net(paddle.zeros([1, 3, *size]))
    parameters = [p for name, p in net.named_parameters() if not name.endswith(("_mean", "_variance"))]
    return sum(int(np.prod(p.shape)) for p in parameters), sum(total)


@pytest.mark.parametrize(
    ("make", "parameters", "macs"),
    [
        # the HRNet paper counts in 2**30, the Lite-HRNet paper in 1e6 and with pooling, norms and activations
        (lambda: models.hrnet_w32(multi_scale=False), "28.5", 7.1 * 2**30),
        (lambda: models.hrnet_w48(multi_scale=False), "63.6", 14.6 * 2**30),
        (models.lite_hrnet_18, "1.1", 205.2e6),
        (models.lite_hrnet_30, "1.8", 319.2e6),
        (models.wider_naive_lite_hrnet_18, "1.3", 311.1e6),
    ],
)
def test_counts_of_the_papers(make, parameters, macs):
    got = count(models.keypoint_net(make()))
    assert f"{got[0] / 1e6:.1f}" == parameters
    assert got[1] == pytest.approx(macs, rel=0.005 if macs > 2**30 else 0.035)


@pytest.mark.parametrize("name", NETS)
def test_loads_the_guides_weights_and_computes_the_papers_function(name):
    make, reference = NETS[name]
    size = (128, 96)
    truth, net = calibrated(reference(), size), models.keypoint_net(make())
    state = truth.state_dict()
    converted = convert_guide_weights(state)
    assert {k: list(v.shape) for k, v in converted.items()} == {k: v.shape for k, v in net.state_dict().items()}
    load_guide_weights_(net, state)
    net.eval()
    x = paddle.randn([2, 3, *size])
    with paddle.no_grad():
        reference32, got32 = truth(x), net(x)
        expected, got = truth.to(dtype="float64")(x.astype("float64")), net.to(dtype="float64")(x.astype("float64"))
    scale = float(expected.abs().max())
    assert 1e-2 < scale < 1e3
    # what remains is the bilinear operator of the reference, which keeps its ratios in fp32
    assert float((expected - got).abs().max()) / scale < 1e-6
    # in fp32 random weights magnify rounding: 1e-5, or what the reference itself loses against fp64
    lost = float((expected - reference32.astype("float64")).abs().max()) / scale
    assert float((reference32 - got32).abs().max()) / scale < max(1e-5, 4 * lost)


@pytest.mark.parametrize("make", [models.lite_hrnet_18, models.hrnet_w18])
def test_backbone_gives_four_maps_and_learns(make):
    net = make()
    maps = net(paddle.randn([2, 3, 64, 32]))
    assert [m.shape[1] for m in maps] == net.channels
    assert [m.shape[2:] for m in maps] == [[16, 8], [8, 4], [4, 2], [2, 1]]
    sum(m.mean() for m in maps).backward()
    assert [name for name, p in net.named_parameters() if not p.stop_gradient and p.grad is None] == []


def test_wrong_input_and_wrong_weights_are_refused():
    net = models.keypoint_net(models.lite_hrnet_18())
    with pytest.raises(ValueError, match="multiples of 32, got 100x96"):
        net(paddle.zeros([1, 3, 100, 96]))
    with pytest.raises(ValueError, match="keys missing"):
        load_guide_weights_(net, {"backbone.stem.conv1.conv.weight": np.zeros([32, 3, 3, 3], "float32")})
    with pytest.raises(ValueError, match="shapes differ"):
        load_guide_weights_(net, LiteReference((2, 4, 2), 40, True, joints=16).state_dict())
    with pytest.raises(TypeError, match="channels"):
        models.keypoint_net(nn.Conv2D(3, 3, 1))
    with pytest.raises(ValueError, match="num_joints"):
        models.keypoint_net(models.lite_hrnet_18(), 0)
