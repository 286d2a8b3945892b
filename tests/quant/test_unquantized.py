"""The log and the record name what PACT leaves in float, why, and its share of the multiply-accumulates."""

from __future__ import annotations

import logging

import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import PACTQuantCallback


class Own(nn.Conv2D):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return super().forward(x) * 2


class Mixed(nn.Layer):
    """Each kind of product that PACT does not convert, and a convolution that it does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 1)
        self.own = Own(4, 4, 1)
        self.kernel = self.create_parameter([4, 4, 1, 1])
        self.line = nn.Conv1D(4, 4, 1)
        self.rnn = nn.LSTM(4, 4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = F.conv2d(self.own(self.conv(x)), self.kernel)
        x = self.line(x.flatten(2)).transpose([0, 2, 1])
        return self.fc(self.rnn(x)[0].mean(1))


MACS = {"conv": 64 * 12, "own": 64 * 16, "Mixed": 64 * 16, "line": 64 * 16, "rnn": 64 * 4 * 4 * 8, "fc": 16}


def test_every_part_is_named_with_its_reason_and_share(caplog):
    callback = PACTQuantCallback(skip=["fc"])
    with caplog.at_level(logging.WARNING):
        fit(hapi_model(Mixed()), [callback])
    total = sum(MACS.values())
    shares = {part.name: part.share for part in callback.unquantized}
    assert shares == {name: pytest.approx(macs / total) for name, macs in MACS.items() if name != "conv"}
    reasons = {part.name: part.reason for part in callback.unquantized}
    assert reasons["own"] == "Own is a subclass of Conv2D with a forward of its own"
    assert reasons["Mixed"] == "its forward computes conv2d"
    assert reasons["line"].startswith("Conv1D: PACT converts")
    assert reasons["rnn"].startswith("LSTM: PACT converts")
    assert reasons["fc"] == "in skip"
    (note,) = callback.notes()
    assert note.startswith(f"Not quantised, {100 * (1 - MACS['conv'] / total):.1f} % of the MACs: rnn (LSTM")
    assert note in caplog.text


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"include": ["conv*"]}, "fc", "not in include"),
        ({"layer_types": ["Conv2D"]}, "fc", "not in layer_types"),
        ({"skip": ["conv2"]}, "conv2", "in skip"),
    ],
)
def test_what_the_user_leaves_out(options, name, reason):
    callback = PACTQuantCallback(**options)
    fit(hapi_model(), [callback])
    assert [(part.name, part.reason) for part in callback.unquantized] == [(name, reason)]


def test_nothing_is_said_where_all_is_quantized(caplog):
    callback = PACTQuantCallback()
    with caplog.at_level(logging.WARNING):
        fit(hapi_model(), [callback], data=Images(8))
        fit(hapi_model(TinyNet()), [callback], data=Images(8))
    assert callback.unquantized == callback.notes() == ()
    assert "Not quantised" not in caplog.text


def test_the_operators_of_paddle_are_as_before():
    before = (paddle._C_ops.conv2d, paddle.Tensor.__matmul__)
    fit(hapi_model(Mixed()), [PACTQuantCallback()])
    assert (paddle._C_ops.conv2d, paddle.Tensor.__matmul__) == before
