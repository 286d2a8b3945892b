"""Frozen norms and stages stay still: through training, saving, loading, copying and quantisation."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from swap_nets import SIZE, SPEC, Pose, Scenes, mask_loss
from toy import TinyNet, weights_of

from paddlelite_callbacks import BackboneSwap, BenchOptions, ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.backbone.registry import build
from paddlelite_callbacks.nn.surgery import freeze_norm_

NAME = "PPLCNet_x0_25"
STAGES = ("backbone.conv1.", "backbone.blocks2.", "backbone.blocks3.")  # what runs up to the map of stride 4


def swapped(**options):
    network = Pose()
    BackboneSwap(NAME, at="backbone", **options)(network, SPEC)
    return network


def trained(network, *callbacks, epochs=1):
    """Return the keys of the weights and statistics that moved."""
    before = weights_of(network)
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.AdamW(0.01, parameters=network.parameters(), weight_decay=0.1), mask_loss)
    model.fit(Scenes([8], 2), batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))
    return {
        key for key, value in weights_of(network).items() if key in before and not np.array_equal(value, before[key])
    }


def norm_keys(network):
    return {
        f"{name}.{key}"
        for name, layer in network.named_sublayers()
        if isinstance(layer, nn.BatchNorm2D) and name.startswith("backbone.") and "project" not in name
        for key in layer.state_dict()
    }


@needs("paddleclas")
def test_freeze_norm_holds_statistics_scale_and_shift():
    network = swapped(freeze_norm=True)
    network.train()
    moved, still = trained(network), norm_keys(network)
    assert len(still) == 4 * 27
    assert not moved & still
    assert {key for key in weights_of(network) if key not in still} == moved  # and nothing else is still


@needs("paddleclas")
def test_without_stop_grad_the_statistics_alone_are_held():
    network = swapped(freeze_norm=True, stop_grad=False)
    moved = trained(network)
    still = {key for key in norm_keys(network) if key.endswith(("_mean", "_variance"))}
    assert {key for key in weights_of(network) if key not in still} == moved


@needs("paddleclas")
def test_a_frozen_norm_computes_in_training_what_it_computes_in_evaluation():
    network, x = build(NAME), paddle.randn([2, 3, 64, 64])
    for layer in network.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._mean.set_value(paddle.rand(layer._mean.shape))
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
    network.dropout.p = 0.0
    network.eval()
    expected = network(x).numpy()
    assert len(freeze_norm_(network)) == 27
    network.train()
    np.testing.assert_allclose(network(x).numpy(), expected, rtol=1e-5, atol=1e-6)


@needs("paddleclas")
def test_freeze_stages_holds_all_up_to_the_map_of_that_stage():
    network = swapped(freeze_stages=2)
    moved = trained(network)
    assert {key for key in weights_of(network) if not key.startswith(STAGES)} == moved


@needs("paddleclas")
@pytest.mark.parametrize("name", ["GhostNet_x0_5", "MobileNetV3_small_x0_35"])
def test_freezing_every_stage_leaves_the_head_alone_to_learn(name):
    network = Pose()
    BackboneSwap(name, at="backbone", freeze_stages=5)(network, SPEC)
    moved = trained(network)
    assert moved == {
        k for k in weights_of(network) if not k.startswith("backbone.") or k.startswith("backbone.project.")
    }


def test_dropout_in_a_frozen_stage_is_off_in_training_and_on_behind_it():
    class Dropping(nn.Layer):
        def __init__(self):
            super().__init__()
            self.one = nn.Sequential(nn.Conv2D(3, 4, 3, stride=2, padding=1), nn.Dropout(0.5))
            self.two = nn.Sequential(nn.Conv2D(4, 4, 3, stride=2, padding=1), nn.Dropout(0.5))

        def forward(self, x):
            return [first := self.one(x), self.two(first)]

    network = nn.Sequential(Dropping())
    BackboneSwap(Dropping(), at="0", freeze_stages=1)(network, SPEC)
    network.train()
    x = paddle.rand([1, 3, SIZE, SIZE])
    a, b = network(x), network(x)
    assert np.array_equal(a[0].numpy(), b[0].numpy())
    assert not np.array_equal(a[1].numpy(), b[1].numpy())


@needs("paddleclas")
@pytest.mark.parametrize("options", [{"freeze_norm": True}, {"freeze_stages": 2}])
def test_what_is_frozen_survives_saving_loading_and_copying(options, tmp_path):
    network = swapped(**options)
    trained(network)
    paddle.save(network.state_dict(), str(tmp_path / "a.pdparams"))
    again = swapped(**options)
    again.set_state_dict(paddle.load(str(tmp_path / "a.pdparams")))
    for other in (again, copy.deepcopy(network)):
        expected = (
            norm_keys(other) if "freeze_norm" in options else {k for k in weights_of(other) if k.startswith(STAGES)}
        )
        assert all(np.array_equal(value, weights_of(network)[key]) for key, value in weights_of(other).items())
        assert not trained(other) & expected


@needs("paddleclas")
def test_what_is_frozen_survives_quantisation_and_export(tmp_path):
    network = swapped(freeze_norm=True, freeze_stages=2)
    still = norm_keys(network) | {key for key in weights_of(network) if key.startswith(STAGES)}
    export = ExportBenchCallback(
        tmp_path,
        name="net",
        engines=["paddle"],
        verbose=0,
        benchmark=BenchOptions(warmup=1, repeats=2, peak_memory=False, roofline=False),
    )
    moved = trained(network, PACTQuantCallback(), export)
    assert not moved & still
    assert {key for key in weights_of(network) if key not in still and "quanter" not in key} == moved
    assert [check.passed for check in export.record.checks] == [True]
    assert not trained(network, PACTQuantCallback()) & still


@needs("paddleclas")
def test_a_whole_classifier_freezes_too():
    network = BackboneSwap(NAME, freeze_norm=True, freeze_stages=1)(paddle.vision.models.resnet18(num_classes=3))
    still = {key for key, p in network.named_parameters() if p.stop_gradient}
    norms = {f"{n}.{k}" for n, s in network.named_sublayers() if isinstance(s, nn.BatchNorm2D) for k in s.state_dict()}
    first = {key for key in network.state_dict() if key.startswith(("conv1.", "blocks2."))}
    assert still == norms | first
    before = weights_of(network)
    network.train()
    network(paddle.rand([2, 3, 64, 64])).sum().backward()
    assert all(np.array_equal(weights_of(network)[key], before[key]) for key in before)


@needs("paddleclas")
def test_stages_that_there_are_not_are_refused():
    with pytest.raises(
        ValueError, match=r"freeze_stages must be from 0 to 5 for PPLCNet, got 6: .*stages, which end with \["
    ):
        swapped(freeze_stages=6)


@pytest.mark.parametrize("norm", [nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2D, nn.BatchNorm])
def test_other_norms(norm):
    layer = norm(2, 4) if norm is nn.GroupNorm else norm([4, 8, 8]) if norm is nn.LayerNorm else norm(4)
    network = nn.Sequential(nn.Conv2D(3, 4, 3, padding=1), layer)
    before = weights_of(network)
    assert freeze_norm_(network) == ["1"]
    network.train()
    network(paddle.randn([2, 3, 8, 8])).sum().backward()
    assert network[0].weight.grad is not None
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert all(np.array_equal(weights_of(network)[key], before[key]) for key in before)


def test_synchronised_norms_are_refused():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(TinyNet())
    with pytest.raises(ValueError, match=r"SyncBatchNorm cannot be frozen \(\['bn1'\]\)"):
        freeze_norm_(network)
