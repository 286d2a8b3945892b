"""The table of layer kinds: each kind of norm is one everywhere, and PACT changes no count of a network."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn
from toy import hapi_model

from paddlelite_callbacks import DistillCallback, PACTQuantCallback
from paddlelite_callbacks.nn.cost import count_macs, count_parameters, layer_macs
from paddlelite_callbacks.nn.kinds import (
    computes_as,
    depthwise_layers,
    is_batch_norm,
    is_norm,
    kind_of,
    running_statistics,
)
from paddlelite_callbacks.nn.surgery import freeze_norm_
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.prepare import prepare_pact_

BATCH_NORMS = {
    "BatchNorm": (lambda: nn.BatchNorm(4), [8, 4, 5, 5]),
    "BatchNorm1D": (lambda: nn.BatchNorm1D(4), [8, 4]),
    "BatchNorm1D of sequences": (lambda: nn.BatchNorm1D(4), [8, 4, 5]),
    "BatchNorm2D": (lambda: nn.BatchNorm2D(4), [8, 4, 5, 5]),
    "BatchNorm3D": (lambda: nn.BatchNorm3D(4), [8, 4, 3, 3, 3]),
}


class OwnNorm(nn.BatchNorm2D):
    """A subclass, as users write them."""


class Normed(nn.Layer):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.norm(x)
        return self.fc(x.reshape([x.shape[0], 4, -1]).mean(-1))


class Pieces(nn.Layer):
    """A convolution of each kind that PACT converts, one that it does not, norms and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2D(8)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2D(8, 8, 3, stride=2, padding=1, groups=8, bias_attr=False)
        self.up = nn.Conv2DTranspose(8, 6, 2, stride=2, groups=2)
        self.line = nn.Conv1D(6, 5, 3)
        self.norm = nn.LayerNorm(5)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.up(self.depthwise(self.relu(self.bn(self.conv(x)))))
        return self.fc(self.norm(self.line(x.flatten(2)).mean(-1)))


PIECES_MACS = 3 * 8 * 9 * 64 + 8 * 9 * 16 + 8 * 3 * 4 * 16 + 6 * 5 * 3 * 62 + 5 * 4
PIECES_PARAMETERS = (216 + 8) + 16 + 72 + (8 * 3 * 4 + 6) + (90 + 5) + 10 + (20 + 4)


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_freeze_bn_after_holds_the_statistics_of_every_batch_norm(kind):
    make, shape = BATCH_NORMS[kind]
    network = Normed(make())
    data = paddle.io.TensorDataset([paddle.randn(shape) * 3 + 2, paddle.randint(0, 4, [8])])
    hapi_model(network).fit(data, batch_size=4, verbose=0, callbacks=[PACTQuantCallback(freeze_bn_after=0)])
    mean, variance = (item.numpy() for item in running_statistics(network.norm))
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(variance, 1)
    assert network.norm.training == network.training
    hapi_model(network).fit(data, batch_size=4, verbose=0, callbacks=[PACTQuantCallback(freeze_bn_after=1)])
    assert np.abs(network.norm._mean.numpy()).max() > 0.3  # one epoch of moving


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_a_frozen_norm_of_any_kind_gives_the_same_in_training(kind):
    make, shape = BATCH_NORMS[kind]
    norm, x = make(), paddle.randn(shape)
    norm.eval()
    expected = norm(x).numpy()
    norm.train()
    assert freeze_norm_(norm) == [""]
    np.testing.assert_allclose(norm(x).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_which_layers_are_norms():
    batch = [nn.BatchNorm(2), nn.BatchNorm1D(2), nn.BatchNorm2D(2), nn.BatchNorm3D(2), nn.SyncBatchNorm(2), OwnNorm(2)]
    others = [nn.InstanceNorm1D(2), nn.InstanceNorm2D(2), nn.InstanceNorm3D(2), nn.GroupNorm(1, 2), nn.LayerNorm(2)]
    neither = [nn.Conv2D(2, 2, 1), nn.Linear(2, 2), nn.Dropout(), nn.LSTM(2, 2)]
    assert all(is_batch_norm(layer) and is_norm(layer) and len(running_statistics(layer)) == 2 for layer in batch)
    assert all(is_norm(layer) and not is_batch_norm(layer) and not running_statistics(layer) for layer in others)
    assert not any(is_norm(layer) for layer in neither)


def test_a_subclass_computes_as_its_base_unless_it_has_a_forward_of_its_own():
    class Same(nn.Conv2D):
        def __init__(self, channels):
            super().__init__(channels, channels, 3, padding=1)

    class Other(nn.Conv2D):
        def forward(self, x):
            return super().forward(x) * 2

    patched = Same(2)
    patched.forward = lambda x: x
    assert computes_as(Same(2), nn.Linear, nn.Conv2D) is nn.Conv2D
    assert computes_as(Other(2, 2, 1), nn.Conv2D) is None
    assert computes_as(patched, nn.Conv2D) is None


@pytest.mark.parametrize("options", [{}, {"method": "lsq"}, {"quantize_outputs": True}, {"weight_bits": 4}])
def test_pact_changes_neither_parameters_nor_macs(options):
    network = Pieces()
    assert count_parameters(network) == PIECES_PARAMETERS
    assert count_macs(network, [paddle.rand([2, 3, 8, 8])]) == PIECES_MACS
    kinds = {name: kind_of(layer) for name, layer in network.named_sublayers()}
    prepare_pact_(network, PACTConfig(**options))
    assert count_parameters(network) == PIECES_PARAMETERS
    assert count_macs(network, [paddle.rand([2, 3, 8, 8])]) == PIECES_MACS
    assert kinds == {name: kind_of(layer) for name, layer in network.named_sublayers() if name in kinds}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_macs_by_the_formula_in_both_layouts(layout):
    conv = nn.Conv2D(3, 8, 3, stride=2, padding=1, data_format=layout)
    up = nn.Conv2DTranspose(8, 4, 2, stride=2, data_format=layout)
    x = paddle.rand([2, 3, 8, 10] if layout == "NCHW" else [2, 8, 10, 3])
    macs = layer_macs(nn.Sequential(conv, up), [x])
    assert macs == {"0": 8 * 3 * 9 * 4 * 5, "1": 8 * 4 * 4 * 4 * 5}


@pytest.mark.parametrize(("kind", "gates"), [("SimpleRNN", 1), ("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize(("direction", "layers", "time_major"), [("forward", 1, False), ("bidirect", 2, True)])
def test_macs_of_recurrent_layers(kind, gates, direction, layers, time_major):
    ways = 2 if direction == "bidirect" else 1
    layer = getattr(nn, kind)(6, 5, num_layers=layers, direction=direction, time_major=time_major)
    expected = sum(7 * ways * gates * 5 * ((6 if layer == 0 else 5 * ways) + 5) for layer in range(layers))
    network = Turned(layer) if time_major else layer
    assert count_macs(network, [paddle.rand([3, 7, 6])]) == expected


class Turned(nn.Layer):
    """The batch in front, as everywhere else."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose([1, 0, 2]))[0]


class Recogniser(nn.Layer):
    """Convolutions, a recurrent layer over the columns, a linear layer over the steps, as CRNN."""

    def __init__(self, kind="LSTM", dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 3, stride=(2, 1), padding=1)
        self.relu = nn.ReLU()
        self.rnn = getattr(nn, kind)(32, 8, num_layers=2, direction="bidirectional", dropout=dropout)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.relu(self.conv(x)).transpose([0, 3, 1, 2]).flatten(2)
        return self.fc(self.rnn(x)[0])


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", ["distill", "pact"])
@pytest.mark.parametrize("on_nan", [None, "skip"])
def test_recurrent_networks_train(kind, dropout, method, on_nan):
    """The dropout state of an RNN is a buffer that holds no memory on the CPU."""
    network = Recogniser(kind, dropout)
    callback = (
        PACTQuantCallback(on_nan=on_nan)
        if method == "pact"
        else DistillCallback(Recogniser(kind), loss="mse", on_nan=on_nan)
    )
    before = network.rnn.weight_ih_l0.numpy().copy()
    data = paddle.io.TensorDataset([paddle.randn([8, 3, 8, 6]), paddle.randint(0, 4, [8, 6])])
    hapi_model(network, metrics=False).fit(data, batch_size=4, verbose=0, callbacks=[callback])
    assert np.abs(network.rnn.weight_ih_l0.numpy() - before).max() > 0


def test_depthwise_convolutions_have_a_group_for_each_input_channel():
    network = nn.Sequential(
        nn.Conv2D(3, 8, 3),
        nn.Conv2D(8, 8, 3, groups=8),
        nn.Conv2D(8, 16, 3, groups=8),  # two filters for each
        nn.Conv2D(16, 16, 3, groups=4),
        nn.Sequential(nn.Conv2DTranspose(16, 16, 2, groups=16), nn.Conv2DTranspose(16, 8, 2, groups=8)),
        nn.Conv2D(8, 1, 3, groups=1),
        nn.Conv2D(1, 4, 3),
        nn.Conv1D(4, 4, 3, groups=4),
        nn.Linear(4, 4),
    )
    assert depthwise_layers(network) == ["1", "2", "4.0", "7"]
    prepare_pact_(network)
    assert depthwise_layers(network) == ["1", "2", "4.0", "7"]
