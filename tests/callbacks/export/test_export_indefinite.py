"""Networks that no file can be held against: NaN weights and outputs, randomness, state, no output at all."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest
from exporting import grouped
from paddle import nn
from toy import TinyNet, fit, hapi_model

from paddlelite_callbacks import ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.validate import own_movement
from paddlelite_callbacks.report.record import read_records
from paddlelite_callbacks.utils.safe_load import read_saved

NAN, INF = float("nan"), float("inf")
QUICK = {"engines": ["paddle"], "warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False}
ONES = np.ones((4, 3), "float32")


def with_one(value) -> np.ndarray:
    array = ONES.copy()
    array[0, 0] = value
    return array


@pytest.mark.parametrize("expected", [NAN, INF, -INF])
@pytest.mark.parametrize("got", [NAN, INF, 1.0, 50.0])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_never_found_equal(expected, got, place):
    """NaN is in no order, and within a tolerance relative to Inf lies everything."""
    sides = [[with_one(expected), with_one(got)], [ONES * 50, ONES]][:: 1 if place == 0 else -1]
    expected_outputs, got_outputs = zip(*sides, strict=True)
    for one, other in ((expected_outputs, got_outputs), (expected_outputs, expected_outputs)):
        check = compare_outputs(one, other, engine="e")
        assert not check.passed
        assert f"NaN or Inf in the network's own output {place}" in check.error


def test_no_output_is_nothing_to_compare():
    assert not compare_outputs([], [], engine="e").passed


def test_the_command_does_not_pass_over_nan():
    check = compare_outputs([ONES, ONES], [ONES, with_one(NAN)], engine="onnxruntime")  # which `export` asks
    assert not check.passed


class AtTheEnd(paddle.callbacks.Callback):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def on_train_end(self, logs=None):
        self.act(self.model.network)


def spoil(weight, value) -> None:
    array = weight.numpy()
    array.flat[0] = value
    weight.set_value(array)


def refused(network, folder, act=lambda network: None, more=(), loss=None) -> str:
    """Export over an older, good export; return what is said. The older one is kept, and so is what was trained."""
    fit(hapi_model(), [ExportBenchCallback(folder, **grouped(name="n", report=False, **QUICK))])
    before = {path.name: path.read_bytes() for path in (folder / "n").iterdir()}
    callback = ExportBenchCallback(folder, **grouped(name="n", report=False, eval_data=False, preflight=False, **QUICK))
    with pytest.raises(ExportError) as caught:
        fit(hapi_model(network, metrics=False, loss=loss), [AtTheEnd(act), callback, *more], evaluate=False)
    assert {path.name: path.read_bytes() for path in (folder / "n" / "previous_export").iterdir()} == before
    assert not list((folder / "n").glob("model.*[!s]"))
    kept = read_saved(folder / "n" / "model.pdparams")
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(kept[key].numpy(), value.numpy())
    assert callback.record.failure == " ".join(str(caught.value).split())
    assert read_records(folder / "runs.jsonl")[-1].failure == callback.record.failure
    assert callback.record.failure in callback.summary()
    return str(caught.value)


class Two(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b = TinyNet(), TinyNet()

    def forward(self, x):
        return self.a(x), self.b(x)


def both(first, second, labels):
    return nn.functional.cross_entropy(first, labels) + nn.functional.cross_entropy(second, labels)


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_went_bad_are_named(value, tmp_path):
    said = refused(Two(), tmp_path, lambda network: spoil(network.b.fc.weight, value), loss=both)
    assert "Two in eval mode has weights that are not finite: ['b.fc.weight'] (1 in all)" in said
    assert "earlier checkpoint" in said


def test_weights_that_a_relu_hides(tmp_path):
    """The outputs are finite, and Paddle's engine gives the same."""
    said = refused(TinyNet(), tmp_path, lambda network: spoil(network.conv1.weight, NAN))
    assert "not finite: ['conv1.weight']" in said


def test_an_alpha_that_went_bad(tmp_path):
    def act(network):
        spoil(network.conv2.activation_quanter.alpha, NAN)

    assert "not finite: ['conv2.activation_quanter.alpha']" in refused(TinyNet(), tmp_path, act, [PACTQuantCallback()])


class Ending(nn.Layer):
    """A network whose eval mode is made by ``end(network, output)``."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end, self.calls = TinyNet(), end, 0
        self.register_buffer("mask", paddle.to_tensor([[0.0, -INF, 0.0, 0.0]]))

    def forward(self, x):
        output = self.net(x)
        return output if self.training else self.end(self, output)


def counted(network, output):
    network.calls += 1
    return output * (1 + network.calls % 2)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda _, y: y / (y * 0), r"NaN or infinite values \(output 0: 32 of 32\).*division"),
        (lambda _, y: nn.functional.dropout(y, 0.5), r"another output when it is called again .* dropout"),
        (lambda _, y: y + paddle.rand(y.shape), "another output when it is called again"),
        (counted, r"another output when it is called again .* a state that forward"),
        (lambda _, y: None, "The network's output holds a NoneType"),
        (lambda _, y: [], "returns no output"),
    ],
    ids=["division", "dropout", "random", "state", "none", "empty"],
)
def test_a_network_that_gives_nothing_definite(end, said, tmp_path):
    assert re.search(said, refused(Ending(end), tmp_path), re.DOTALL)


def test_a_mask_may_be_infinite(tmp_path):
    callback = ExportBenchCallback(tmp_path, **grouped(report=False, eval_data=False, **QUICK))
    network = Ending(lambda self, y: nn.functional.softmax(y + self.mask))
    fit(hapi_model(network, metrics=False), [callback], evaluate=False)
    assert [check.passed for check in callback.record.checks] == [True]


def test_quantised_randomness_is_no_rounding_noise(tmp_path):
    """The tolerance of a quantised file grows with what its output moves by: that must not be the network's dice."""
    said = refused(Ending(lambda _, y: y + paddle.rand(y.shape)), tmp_path, more=[PACTQuantCallback()])
    assert "another output" in said


def test_a_network_that_takes_token_numbers_does_not_move_by_their_last_bits():
    network = nn.Embedding(10, 4)
    network.eval()
    tokens = np.arange(4)
    assert own_movement(network, [tokens]) == 0.0
