"""Where alpha starts: over all calls of a layer in a batch, held against percentiles taken by hand."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.distributed.fleet.utils import recompute
from toy import hapi_model

from paddlelite_callbacks import AdvancedPACTOptions, PACTQuantCallback
from paddlelite_callbacks.quant.config import PACTConfig
from paddlelite_callbacks.quant.prepare import activation_quantizers, prepare_pact_
from paddlelite_callbacks.quant.ptq import ptq_int8

SCALES = (1.0, 8.0, 0.25)


class Heads(nn.Layer):
    """One head on several levels of a pyramid: inputs of other ranges and sizes at each call."""

    def __init__(self, scales=SCALES, kind="conv"):
        super().__init__()
        make = {
            "conv": lambda: nn.Conv2D(3, 4, 1),
            "transposed": lambda: nn.Conv2DTranspose(3, 4, 2, stride=2),
            "linear": lambda: nn.Linear(3, 4),
        }
        self.head = make[kind]()
        self.kind, self.scales = kind, scales

    def levels(self, x):
        """The inputs of the head, the largest level first."""
        maps = [scale * x[:, :, i:, i:] for i, scale in enumerate(self.scales)]
        return [item.transpose([0, 2, 3, 1]) for item in maps] if self.kind == "linear" else maps

    def forward(self, x):
        axes = [1, 2] if self.kind == "linear" else [2, 3]
        return sum(self.head(level).mean(axes) for level in self.levels(x))


class Parents(nn.Layer):
    """One layer below two parents, and a list of heads of which two are the same layer."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(3, 4)
        self.left, self.right = nn.Sequential(shared), nn.Sequential(shared)
        self.heads = nn.LayerList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.heads.append(self.heads[0])

    def forward(self, x):
        x = x.mean([2, 3])
        y = self.left(x) + self.right(4 * x)
        return sum(head(y) for head in self.heads)


class Sometimes(nn.Layer):
    """A layer that runs in every batch, one that runs in those with a large first value, and one that never does."""

    def __init__(self):
        super().__init__()
        self.always, self.rarely, self.never = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        x = x.mean([2, 3])
        y = self.always(x)
        return y + self.rarely(2 * x) if float(x[0, 0]) > 1 else y


class Recomputed(Heads):
    """Each call of the head is computed again in the backward pass."""

    def forward(self, x):
        x.stop_gradient = False  # else nothing is computed again
        return sum(recompute(self.head, level).mean([2, 3]) for level in self.levels(x))


def images(count=32, scale=1.0, seed=0):
    return (np.random.RandomState(seed).randn(count, 3, 6, 6) * scale).astype("float32")


def data(x):
    return paddle.io.TensorDataset([paddle.to_tensor(x), paddle.to_tensor(np.arange(len(x)) % 4)])


def percentile(x, share=99.9):
    return np.percentile(np.abs(np.asarray(x)), share)


def by_hand(network, x, share=99.9):
    """The largest percentile over the calls of the head in one batch."""
    return max(percentile(level.numpy(), share) for level in network.levels(paddle.to_tensor(x)))


def average(values, momentum=0.9):
    """A moving average that starts from its first value."""
    result = values[0]
    for value in values[1:]:
        result = momentum * result + (1 - momentum) * value
    return result


def fitted(network, x, *, batch=8, callbacks=(), **options):
    model = hapi_model(network, metrics=False)
    options = {"alpha_lr_scale": 0.0, "calibration": "percentile", **options}
    model.fit(data(x), batch_size=batch, shuffle=False, verbose=0, callbacks=[PACTQuantCallback(**options), *callbacks])
    return {
        name.rpartition(".")[0]: float(quantizer.alpha) for name, quantizer in activation_quantizers(network).items()
    }


@pytest.mark.parametrize("kind", ["conv", "transposed", "linear"])
@pytest.mark.parametrize("scales", [SCALES, SCALES[::-1], (8.0, 1.0)])
def test_a_layer_that_runs_several_times_is_calibrated_on_all_its_calls(kind, scales):
    network, x = Heads(scales, kind), images()
    assert fitted(network, x)["head"] == pytest.approx(by_hand(network, x[:8]), rel=1e-5)


def test_no_call_is_clipped_beyond_the_percentile():
    """A level of few values would vanish in the percentile over all values."""
    network, x = Heads((1.0, 0.5, 0.5, 0.5, 50.0)), np.abs(images())
    float_outputs = Heads((1.0, 0.5, 0.5, 0.5, 50.0))
    float_outputs.set_state_dict(network.state_dict())
    fitted(network, x, alpha_percentile=100, lr_scale=1e-12)
    network.eval()
    expected, got = float_outputs(paddle.to_tensor(x[:8])).numpy(), network(paddle.to_tensor(x[:8])).numpy()
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_calibration_batches_counts_batches_and_not_calls(batches, accumulate):
    x = np.concatenate([images(8, scale, seed) for seed, scale in enumerate((1.0, 3.0, 0.5, 7.0))])
    network = Heads()
    model = hapi_model(network, metrics=False)
    callback = PACTQuantCallback(
        advanced=AdvancedPACTOptions(
            calibration="percentile", calibration_batches=batches, observer_momentum=0.75, alpha_lr_scale=0.0
        )
    )
    model.fit(data(x), batch_size=8, shuffle=False, verbose=0, callbacks=[callback], accumulate_grad_batches=accumulate)
    expected = average([by_hand(network, x[8 * i : 8 * i + 8]) for i in range(batches)], 0.75)
    assert float(network.head.activation_quanter.alpha) == pytest.approx(expected, rel=1e-5)


def test_one_layer_below_two_parents_and_twice_in_a_list():
    network, x = Parents(), images(8)
    before = copy.deepcopy(network)
    found = fitted(network, x)
    pooled = x.mean((2, 3))
    assert found["left.0"] == pytest.approx(percentile(4 * pooled), rel=1e-5)
    assert network.left[0] is network.right[0]
    y = before.left(paddle.to_tensor(pooled)) + before.right(4 * paddle.to_tensor(pooled))
    assert found["heads.0"] == pytest.approx(percentile(y.numpy()), rel=0.05)  # of quantised layers in front
    assert network.heads[2] is network.heads[0]


@pytest.mark.parametrize("batches", [1, 2])
def test_batches_in_which_a_layer_does_not_run_are_not_counted(batches):
    x = np.concatenate([images(8, 0.1, seed) + start for seed, start in enumerate((0, 2, 0, 3))])
    network = Sometimes()
    found = fitted(network, x, calibration_batches=batches)
    pooled = [x[8 * i : 8 * i + 8].mean((2, 3)) for i in range(4)]
    assert found["always"] == pytest.approx(average([percentile(item) for item in pooled[:batches]]), rel=1e-5)
    ran = [2 * pooled[1], 2 * pooled[3]]
    assert found["rarely"] == pytest.approx(average([percentile(item) for item in ran[:batches]]), rel=1e-5)
    assert found["never"] == 0
    assert not network.never.activation_quanter.calibrated


@pytest.mark.parametrize("batches", [1, 3])
def test_activations_that_are_computed_again_do_not_count_twice(batches):
    x = np.concatenate([images(8, scale, seed) for seed, scale in enumerate((1.0, 3.0, 0.5))])
    plain, again = Heads((8.0, 1.0)), Recomputed((8.0, 1.0))
    again.set_state_dict(plain.state_dict())
    options = {"calibration_batches": batches}
    assert fitted(again, x, **options) == pytest.approx(fitted(plain, x, **options), rel=1e-5)
    np.testing.assert_allclose(again.head.weight.numpy(), plain.head.weight.numpy(), rtol=1e-4, atol=1e-6)


def test_evaluation_and_predictions_before_training_calibrate_nothing():
    network, x = Heads(), images(8)
    prepare_pact_(network, PACTConfig(calibration="percentile"))
    network.eval()
    expected = sum(network.head(level).mean([2, 3]) for level in network.levels(paddle.to_tensor(9 * x)))
    np.testing.assert_array_equal(network(paddle.to_tensor(9 * x)).numpy(), expected.numpy())
    model = hapi_model(network, metrics=False)
    model.evaluate(data(9 * x), batch_size=4, verbose=0)
    assert not network.head.activation_quanter.calibrated
    assert fitted(network, x)["head"] == pytest.approx(by_hand(network, x), rel=1e-5)


@pytest.mark.parametrize("batches", [1, 2])
def test_in_a_loop_of_ones_own(batches):
    network = Heads()
    prepare_pact_(network, PACTConfig(calibration="percentile", calibration_batches=batches))
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    found = []
    for seed in range(3):
        x = images(8, 1.0 + seed, seed)
        loss = network(paddle.to_tensor(x)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        network.eval()
        network(paddle.to_tensor(100 * x))  # an evaluation in between
        network.train()
        found.append(by_hand(network, x))
    assert float(network.head.activation_quanter.alpha) == pytest.approx(average(found[:batches]), rel=1e-5)


def test_parts_that_are_called_by_themselves_are_calibrated_too():
    network = Parents()
    prepare_pact_(network, PACTConfig(calibration="percentile"))
    x = images(8).mean((2, 3))
    network.left(paddle.to_tensor(x))  # the network as a whole never runs
    network.left(paddle.to_tensor(2 * x))
    assert float(network.left[0].activation_quanter.alpha) == pytest.approx(percentile(x), rel=1e-5)


def test_a_copy_of_a_prepared_network_calibrates_on_its_own():
    network = Heads()
    prepare_pact_(network, PACTConfig(calibration="percentile"))
    twin = copy.deepcopy(network)
    x = images(8)
    network(paddle.to_tensor(x))
    twin(paddle.to_tensor(3 * x))
    twin(paddle.to_tensor(100 * x))
    assert float(network.head.activation_quanter.alpha) == pytest.approx(by_hand(network, x), rel=1e-5)
    assert float(twin.head.activation_quanter.alpha) == pytest.approx(by_hand(network, 3 * x), rel=1e-5)


def test_the_hooks_that_count_batches_end_with_fit_and_with_the_undo():
    network = Heads()
    undo = prepare_pact_(network)
    assert len(network._forward_pre_hooks) == len(network._forward_post_hooks) == 1
    prepare_pact_(network).close()
    assert len(network._forward_pre_hooks) == len(network._forward_post_hooks) == 1
    undo.close()
    assert not [*network._forward_pre_hooks, *network._forward_post_hooks]
    fitted(network, images(8))
    assert not [*network._forward_pre_hooks, *network._forward_post_hooks]


def test_a_batch_that_is_left_out_is_calibrated_on_no_value_that_is_not_finite():
    x = images(16)
    x[3] = np.nan
    network = Heads()
    fitted(network, x, on_nan="skip")
    assert float(network.head.activation_quanter.alpha) == pytest.approx(by_hand(network, x[8:]), rel=1e-5)


@pytest.mark.parametrize("kind", ["conv", "transposed", "linear"])
def test_post_training_quantisation_counts_batches_too(kind):
    network = Heads(kind=kind)
    batches = [images(8, scale, seed) for seed, scale in enumerate((1.0, 4.0, 2.0))]
    quantised = ptq_int8(network, [paddle.to_tensor(x) for x in batches], alpha_percentile=99)
    expected = np.mean([by_hand(network, x, 99) for x in batches])
    assert float(quantised.head.activation_quanter.alpha) == pytest.approx(expected, rel=1e-5)
    assert quantised.head.activation_quanter.levels() == (-128, 127)


def test_post_training_quantisation_of_layers_that_run_in_some_batches():
    x = [images(8, 0.1, seed) + start for seed, start in enumerate((0, 2, 0, 3))]
    quantised = ptq_int8(Sometimes(), [paddle.to_tensor(item) for item in x], calibration="percentile")
    pooled = [item.mean((2, 3)) for item in x]
    alphas = {name: float(q.alpha) for name, q in activation_quantizers(quantised).items()}
    assert alphas["always.activation_quanter"] == pytest.approx(np.mean([percentile(p) for p in pooled]), rel=1e-5)
    mean = np.mean([percentile(2 * pooled[1]), percentile(2 * pooled[3])])
    assert alphas["rarely.activation_quanter"] == pytest.approx(mean, rel=1e-5)
    assert quantised.rarely.activation_quanter.levels() == (0, 255)
    low, high = quantised.always.activation_quanter.levels()  # one batch of four reaches below zero, by little
    lowest, alpha = min(item.min() for item in pooled), alphas["always.activation_quanter"]
    assert lowest < 0
    assert (low, high) == (-round(-lowest * 255 / (alpha - lowest)), 255 + low)
    assert not quantised.never.activation_quanter.calibrated
