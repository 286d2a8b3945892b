"""``paddle.set_default_dtype("float64")``: what is made beside a network has the network's type, or is refused."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from toy import Images, TinyNet, fit, hapi_model, weights_of

from paddlelite_callbacks import BackboneSwap, DistillCallback, EMATeacher, PACTQuantCallback
from paddlelite_callbacks.distill.losses.afd import AttentionFeatureLoss
from paddlelite_callbacks.distill.terms import FeatureTerm
from paddlelite_callbacks.quant.ptq import ptq_int8


@pytest.fixture(params=["float32", "float64"])
def default(request):
    before = paddle.get_default_dtype()
    yield request.param
    paddle.set_default_dtype(before)


def attention():
    return [FeatureTerm(("conv1", "conv2"), ("conv1", "conv2"), loss=AttentionFeatureLoss(8))]


CALLBACKS = {
    "output": lambda teacher: DistillCallback(teacher),
    "projected": lambda teacher: DistillCallback(teacher, features={"conv1": "conv1"}),
    "attention": lambda teacher: DistillCallback(teacher, features=attention()),
    "average": lambda _: DistillCallback(EMATeacher(0.9)),
    "skip": lambda teacher: DistillCallback(teacher, on_nan="skip"),
    "pact": lambda _: PACTQuantCallback(),
    "lsq": lambda _: PACTQuantCallback(method="lsq", quantize_outputs=True, on_nan="skip"),
}


def trained(make, default, own="float32"):
    paddle.set_default_dtype(own)
    paddle.seed(0)
    network, teacher = TinyNet(), TinyNet(width=8)
    data = Images(16)
    data.images = data.images.astype(own)
    paddle.set_default_dtype(default)
    paddle.seed(1)
    fit(hapi_model(network, metrics=False), [make(teacher)], data=data, epochs=2, evaluate=False)
    return weights_of(network)


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_float32_network_trains_the_same_under_any_default(name, default):
    expected = trained(CALLBACKS[name], "float32")
    got = trained(CALLBACKS[name], default)
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert value.dtype == got[key].dtype
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", [name for name in CALLBACKS if name not in ("pact", "lsq")])
def test_a_float64_network_is_distilled(name, default):
    found = trained(CALLBACKS[name], default, own="float64")
    assert {value.dtype for value in found.values()} == {np.dtype("float64")}
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("name", ["pact", "lsq"])
def test_quantising_a_float64_network_is_refused_before_training(name, default):
    with pytest.raises(ValueError, match=r"The weight of conv1 is paddle.float64.*network.to\(dtype='float32'\)"):
        trained(CALLBACKS[name], default, own="float64")
    paddle.set_default_dtype("float64")
    with pytest.raises(ValueError, match=r"network.to\(dtype='float32'\)"):
        ptq_int8(TinyNet(), [paddle.rand([2, 3, 8, 8])])
    network = TinyNet()
    network.to(dtype="float32")
    paddle.set_default_dtype(default)
    images = paddle.to_tensor(Images(4).images)
    assert ptq_int8(network, [images], quantize_outputs=True)(images).dtype == paddle.float32


@pytest.mark.parametrize("own", ["float32", "float64"])
def test_projections_of_a_swapped_backbone_have_the_networks_type(own, default):
    paddle.set_default_dtype(own)
    network = paddle.nn.Sequential(
        ("backbone", paddle.vision.models.resnet18(num_classes=0, with_pool=False)),
        ("head", paddle.nn.Conv2D(512, 2, 1)),
    )
    light = paddle.vision.models.mobilenet_v3_small(num_classes=0, with_pool=False)
    paddle.set_default_dtype(default)
    spec = [paddle.static.InputSpec([None, 3, 32, 32], dtype=own)]
    swapped = BackboneSwap(light, at="backbone")(network, input_spec=spec)
    kinds = {str(item.dtype) for item in (*swapped.parameters(), *swapped.buffers()) if item.is_floating_point()}
    assert kinds == {f"paddle.{own}"}
    assert swapped(paddle.rand([2, 3, 32, 32], dtype=own)).shape[:2] == [2, 2]
