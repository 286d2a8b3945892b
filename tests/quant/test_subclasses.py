"""PACT converts a subclass that runs its parent's forward, and keeps what else the subclass has."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from test_direct_use import Tied
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import PACTConfig, PACTQuantCallback, prepare_pact_, ptq_int8
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.nn.kinds import computes_as
from paddlelite_callbacks.quant.prepare import quantized_layers


class SameConv(nn.Conv2D):
    """As users write them: other arguments, attributes, a parameter, a buffer, methods; forward is the parent's."""

    FACTOR = 2.0

    def __init__(self, inside, outside, kernel=3):
        super().__init__(inside, outside, kernel, padding=kernel // 2)
        self.note = "mine"
        self.gain = self.create_parameter([1], default_initializer=nn.initializer.Constant(0.5))
        self.register_buffer("offset", paddle.full([1], 0.25, "float32"))

    @property
    def doubled(self):
        return self.FACTOR * self.gain

    def after(self, x):
        return x * self.doubled + self.offset


class Head(nn.Linear):
    """Nothing but another name."""


class Computed(nn.Linear):
    """The weight is not the one that is held."""

    @property
    def weight(self):
        return self._parameters["held"] * 2

    def __init__(self, inside, outside):
        nn.Layer.__init__(self)
        self.held, self.bias, self.name = self.create_parameter([inside, outside]), None, None


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.head = SameConv(3, 4), Head(4, 4)

    def forward(self, x):
        x = F.relu(self.conv.after(self.conv(x)))
        assert self.conv.note == "mine"
        return self.head(x.mean([2, 3]))


class Plain(nn.Layer):
    """The same by hand, of Paddle's own layers."""

    def __init__(self, net):
        super().__init__()
        self.conv, self.head = nn.Conv2D(3, 4, 3, padding=1), nn.Linear(4, 4)
        self.conv.set_state_dict({key: net.conv.state_dict()[key] for key in ("weight", "bias")})
        self.head.set_state_dict(net.head.state_dict())

    def forward(self, x):
        return self.head(F.relu(self.conv(x) * 2.0 * 0.5 + 0.25).mean([2, 3]))


def test_it_computes_what_paddles_own_layers_do():
    paddle.seed(0)
    net = Net()
    plain, batch = Plain(net), paddle.to_tensor(Images(8).images)
    keys = set(net.state_dict())
    for made in (net, plain):
        prepare_pact_(made, PACTConfig())
    assert set(quantized_layers(net)) == set(quantized_layers(plain)) == {"conv", "head"}
    assert keys < set(net.state_dict())
    for made in (net, plain):
        made.train()
        made(batch)
        made.eval()
    np.testing.assert_array_equal(net(batch).numpy(), plain(batch).numpy())


def test_the_undo_gives_the_very_layers_back():
    net = Net()
    before = dict(net.named_sublayers())
    prepare_pact_(net).close()
    assert dict(net.named_sublayers()) == before
    assert type(net.conv) is SameConv


@needs("paddle2onnx", "onnxruntime")
def test_a_trained_one_ships(tmp_path):
    paddle.seed(0)
    net, callback = Net(), PACTQuantCallback()
    gain = net.conv.gain
    fit(hapi_model(net), [callback], epochs=2, evaluate=False)
    assert callback.unquantized == ()
    assert net.conv.gain is gain
    assert float(gain) != 0.5
    net.eval()
    forms = export_forms(net, tmp_path, input_spec=[InputSpec([None, 3, 8, 8])])
    assert not forms.errors
    batch = Images(4).images
    own = net(paddle.to_tensor(batch)).numpy()
    for artefact in forms.artefacts:
        if artefact.precision == "int8":
            engine = "paddle" if artefact.kind == "paddle" else "onnxruntime"
            (got,) = ENGINES[engine].load(artefact, threads=1)([batch])
            np.testing.assert_allclose(got, own, atol=0.02)


def test_a_weight_that_is_computed_is_left_alone():
    assert computes_as(Computed(3, 2), nn.Linear) is None


@pytest.mark.parametrize("quantise", [prepare_pact_, lambda net: ptq_int8(net, [paddle.rand([2, 3, 8, 8])])])
def test_public_functions_refuse_a_weight_that_forward_uses_itself(quantise):
    network = Tied()
    with pytest.raises(ValueError, match=r"calls \['fc'\] and also uses their weight itself.*skip=\['fc'\]"):
        quantise(network)
    assert not quantized_layers(network)
    quantise(TinyNet())
