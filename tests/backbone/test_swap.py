"""A backbone inside a network of each kind: chosen, fitted, trained, exported; and all that is refused."""

from __future__ import annotations

import copy
import sys
import types

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from swap_nets import CHANNELS, SIZE, SPEC, Detector, Pose, Scenes, Segmenter, Stages, mask_loss
from toy import TinyNet, equal_weights, weights_of

from paddlelite_callbacks import BackboneSwap, BenchOptions, ExportBenchCallback
from paddlelite_callbacks.backbone import registry as sources

KINDS = [
    pytest.param(Detector, [4, 8, 16, 32], 1, "PPLCNet_x0_25", ["blocks3", "blocks4", "blocks5", "blocks6"], id="fpn"),
    pytest.param(Pose, [8], 2, "MobileNetV3_small_x0_35", ["blocks.10"], id="pose"),
    pytest.param(Segmenter, [1], 2, "GhostNet_x0_5", ["_ghostbottleneck_4"], id="segmentation"),
]


@needs("paddleclas")
@pytest.mark.parametrize(("network", "strides", "channels", "name", "taps"), KINDS)
def test_swapped_trained_and_exported(network, strides, channels, name, taps, tmp_path):
    network, x = network(), paddle.rand([2, 3, SIZE, SIZE])
    network.eval()
    shapes = [out.shape for out in flat(network(x))]
    rest = {key: value for key, value in weights_of(network).items() if not key.startswith("backbone.")}
    assert BackboneSwap(name, at="backbone")(network, input_spec=SPEC) is network
    assert network.backbone.taps == taps
    assert [out.shape for out in flat(network(x))] == shapes
    assert equal_weights({key: weights_of(network)[key] for key in rest}, rest)

    model, data = paddle.Model(network), Scenes(strides, channels)
    model.prepare(paddle.optimizer.Adam(0.01, parameters=network.parameters()), mask_loss)
    before = weights_of(network)
    losses = Losses()
    export = ExportBenchCallback(
        tmp_path,
        name="light",
        engines=["paddle"],
        verbose=0,
        benchmark=BenchOptions(warmup=1, repeats=2, peak_memory=False, roofline=False),
    )
    model.fit(data, batch_size=4, epochs=6, shuffle=False, verbose=0, callbacks=[losses, export])
    assert losses.of_epoch[-1] < 0.8 * losses.of_epoch[0]
    still = [key for key, value in weights_of(network).items() if np.array_equal(value, before[key])]
    assert still == []  # nothing idle is left in the network: every weight learns, every statistic moves
    (check,) = export.record.checks
    assert check.passed
    assert (tmp_path / "light" / "model.json").is_file()


class Losses(paddle.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.of_epoch = []

    def on_epoch_end(self, epoch, logs=None):
        self.of_epoch.append(float(logs["loss"][0]))


def flat(output):
    return list(output) if isinstance(output, (list, tuple)) else [output]


@needs("paddleclas")
@pytest.mark.parametrize("by", ["layer", "weights"])
@pytest.mark.parametrize("name", ["PPLCNet_x0_25", "ShuffleNetV2_x0_25"])
def test_swapping_a_backbone_for_itself_changes_no_bit(name, by, tmp_path):
    network, x = Pose(), paddle.rand([2, 3, SIZE, SIZE])
    BackboneSwap(name, at="backbone")(network, SPEC)
    expected, keys = network(x).numpy(), list(network.state_dict())
    weights = {key[len("backbone.") :]: value for key, value in network.state_dict().items() if "backbone." in key}
    network.eval()
    expected = network(x).numpy()
    if by == "layer":
        again = BackboneSwap(copy.deepcopy(network.backbone), at="backbone")
    else:
        own = {key: value for key, value in weights.items() if not key.startswith("project.")}
        paddle.save(own, str(tmp_path / "own.pdparams"))
        again = BackboneSwap(name, at="backbone", pretrained=tmp_path / "own.pdparams")
    again(network, SPEC)
    if by == "weights":
        network.backbone.set_state_dict(weights)  # the projection is new; the rest was loaded
        assert again.report.complete
        assert not again.report.missing
    assert list(network.state_dict()) == keys
    assert np.array_equal(network(x).numpy(), expected)


@needs("paddleclas")
@pytest.mark.parametrize("pack", [None, list, tuple, dict])
def test_the_structure_of_the_output_is_kept(pack):
    network = nn.Sequential(Stages([8] if pack is None else [8, 32], pack=pack))
    before = network(paddle.rand([1, 3, SIZE, SIZE]))
    BackboneSwap("PPLCNet_x0_25", at="0")(network, SPEC)
    after = network(paddle.rand([1, 3, SIZE, SIZE]))
    assert type(after) is type(before)
    if pack is dict:
        assert list(after) == ["c8", "c32"]
        before, after = before.values(), after.values()
    assert [m.shape for m in flat(list(after) if pack else after)] == [
        m.shape for m in flat(list(before) if pack else before)
    ]


def test_channels_that_fit_get_no_projection():
    network = nn.Sequential(Stages([8, 16], pack=list))
    new = nn.Sequential(
        *[nn.Conv2D(i, o, 3, stride=2, padding=1) for i, o in ((3, 4), (4, 5), (5, CHANNELS[8]), (CHANNELS[8], 9))]
    )
    BackboneSwap(new, at="0")(network, SPEC)
    assert [key for key in network.state_dict() if "project" in key] == [
        "0.project.1.0.weight",
        *(f"0.project.1.1.{name}" for name in ("weight", "bias", "_mean", "_variance")),
    ]


@needs("paddleclas")
def test_taps_by_name_by_the_makers_spelling_and_by_stride():
    def taps(*asked):
        network = nn.Sequential(Stages([8, 16]))
        BackboneSwap("MobileNetV3_small_x0_35", at="0", taps=asked)(network, SPEC)
        return network[0].taps

    assert taps("blocks.1", "blocks.5") == ["blocks.1", "blocks.5"]
    assert taps("blocks[2]", "blocks[7]") == ["blocks.2", "blocks.7"]
    assert taps(8, 16) == ["blocks.2", "blocks.7"]


@needs("paddleclas")
def test_strides_changed_by_options_are_seen():
    """The usual way to semantic maps of stride 8: the last stages keep their resolution."""
    network = nn.Sequential(Stages([8], pack=None))
    BackboneSwap("PPLCNet_x0_25", at="0", options={"stride_list": [2, 2, 2, 1, 1]})(network, SPEC)
    assert network[0].taps == ["blocks6"]


@needs("paddleclas")
def test_rebuild_gets_the_new_channels():
    network, seen = Segmenter(), []

    def rebuild(net, channels):
        seen.extend(channels)
        net.scores = nn.Conv2D(channels[0], 2, 1)

    swap = BackboneSwap("PPLCNet_x0_25", at="backbone", adapt="rebuild", rebuild=rebuild)
    swap(network, SPEC)
    assert seen == [32]
    assert network.scores.weight.shape == [2, 32, 1, 1]
    assert not [key for key in network.state_dict() if "project" in key]
    assert network(paddle.rand([1, 3, SIZE, SIZE])).shape == [1, 2, SIZE, SIZE]
    summary = swap.summary(warmup=0, repeats=1)
    assert summary.before.error is None
    assert summary.before.parameters > summary.after.parameters


@needs("paddleclas")
def test_a_rebuild_that_fails_leaves_the_network_as_it_was():
    def half(net, channels):
        net.upscale = nn.Conv2DTranspose(2, 2, 8, stride=8)
        del net.scores

    network = Segmenter()
    before, old, x = weights_of(network), network.backbone, paddle.rand([1, 3, SIZE, SIZE])
    network.eval()
    expected = network(x).numpy()
    for rebuild, error in ((lambda net, channels: None, ValueError), (half, AttributeError)):
        with pytest.raises(error):
            BackboneSwap("PPLCNet_x0_25", at="backbone", adapt="rebuild", rebuild=rebuild)(network, SPEC)
        assert network.backbone is old
        assert equal_weights(weights_of(network), before)
        assert np.array_equal(network(x).numpy(), expected)


def test_a_network_of_ones_own_is_copied_and_serves_twice():
    own = nn.Sequential(nn.Conv2D(3, 5, 3, stride=8, padding=1), nn.Conv2D(5, 2, 3, stride=2, padding=1))
    before = weights_of(own)
    swap = BackboneSwap(own, at="0", freeze_stages=1)
    networks = [swap(nn.Sequential(Stages([8])), SPEC) for _ in range(2)]
    assert equal_weights(weights_of(own), before)
    assert not any(parameter.stop_gradient for parameter in own.parameters())
    first, second = ({id(p) for p in network.parameters()} for network in networks)
    assert not first & second
    assert "0.1.weight" not in networks[0].state_dict()  # cut off in the copy


@needs("paddleclas")
def test_modes_come_back_and_the_new_backbone_takes_the_old_ones():
    network = Pose()
    network.deconv.eval()
    BackboneSwap("PPLCNet_x0_25", at="backbone")(network, SPEC)
    assert network.backbone.training
    assert not network.deconv.training
    network.eval()
    BackboneSwap("PPLCNet_x0_25", at="backbone")(network, SPEC)
    assert not any(layer.training for layer in network.sublayers(include_self=True))


@needs("paddleclas")
def test_summary_tells_before_and_after():
    network = Pose()
    old = sum(int(np.prod(p.shape)) for n, p in network.named_parameters() if "_mean" not in n and "_variance" not in n)
    swap = BackboneSwap("PPLCNet_x0_25", at="backbone")
    with pytest.raises(RuntimeError, match=r"summary\(\).* call swap\(network"):
        swap.summary()
    swap(network, SPEC)
    keys = list(network.state_dict())
    summary = swap.summary(warmup=1, repeats=3)
    assert summary.before.parameters == old
    assert summary.after.parameters > old
    assert summary.before.macs != summary.after.macs
    assert summary.before.size_mb > 0
    assert summary.latency_ratio == pytest.approx(summary.after.p50_ms / summary.before.p50_ms)
    assert "| before |" in str(summary)
    assert list(network.state_dict()) == keys


def refused(match, *args, error=ValueError, network=None, spec=SPEC, **options):
    network = network or Detector()
    before = [(name, id(layer)) for name, layer in network.named_sublayers()]
    with pytest.raises(error, match=match) as raised:
        BackboneSwap(*args, **{"at": "backbone", **options})(network, spec)
    assert "\n" not in str(raised.value)
    assert [(name, id(layer)) for name, layer in network.named_sublayers()] == before


@needs("paddleclas")
def test_names_that_there_are_not_are_refused_with_near_ones():
    refused(r"backbone 'PPLCNet_x2_6'.*\['PPLCNet_x2_5'", "PPLCNet_x2_6")
    refused(r"no sublayer 'bakbone'; near names: \['backbone'", "PPLCNet_x0_25", at="bakbone")
    taps = ["blocks3", "blocks4", "blocks5"]
    refused(r"no tap 'blocks9'; near names: \['blocks", "PPLCNet_x0_25", taps=[*taps, "blocks9"])
    refused(r"returns 4 maps, so give 4 taps", "PPLCNet_x0_25", taps=taps)
    refused(r"taps must be a list", "PPLCNet_x0_25", taps="blocks3", error=TypeError)
    refused(r"mobilenet_v2 cannot be built with options \{'width': 3\}", "mobilenet_v2", options={"width": 3})


@needs("paddleclas")
def test_strides_that_there_are_not_are_refused_with_those_that_there_are():
    network = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1))
    by_stride = r"its maps by stride: \{2: 'blocks2', 4: 'blocks3', 8: 'blocks4', 16: 'blocks5', 32: 'blocks6'\}"
    refused(r"no map of stride 1 .*" + by_stride, "PPLCNet_x0_25", at="0", network=network)
    refused(r"no map of stride 64\. Choose among " + by_stride, "PPLCNet_x0_25", taps=[4, 8, 16, 64])
    asked = ["blocks2", "blocks4", "blocks5", "blocks6"]
    refused(
        r"Tap 'blocks2' of PPLCNet_x0_25 returns \[32, 32\].* the old map is \[16, 16\]", "PPLCNet_x0_25", taps=asked
    )


@needs("paddleclas")
def test_outputs_without_channels_and_odd_networks_are_refused():
    spec = [InputSpec([None, 3, 8, 8])]
    refused(
        r"must take one image \[N, C, H, W\], got \[\[1, 4\]\]",
        "PPLCNet_x0_25",
        at="fc",
        network=TinyNet(),
        spec=spec,
    )
    tokens = nn.Sequential(nn.Conv2D(3, 8, 4, stride=4), nn.Flatten(2))
    refused(r"must return maps \[N, C, H, W\], got \[\[1, 8, 256\]\]", "PPLCNet_x0_25", at="1", network=tokens)
    with pytest.raises(TypeError, match=r"network must be a paddle\.nn\.Layer, got int"):
        BackboneSwap("PPLCNet_x0_25", at="backbone")(3, SPEC)


@needs("paddleclas")
def test_inputs_that_cannot_be_measured_are_refused():
    refused("give input_spec=", "PPLCNet_x0_25", spec=None)
    refused("input_spec has dynamic sizes", "PPLCNet_x0_25", spec=[InputSpec([None, 3, None, None])])


@needs("paddleclas")
def test_a_layer_that_does_not_run_or_takes_two_inputs_is_refused():
    network = Detector()
    network.idle = nn.Conv2D(3, 3, 1)
    refused("'idle' did not run", "PPLCNet_x0_25", at="idle", network=network)

    class Two(nn.Layer):
        def __init__(self):
            super().__init__()
            self.join = Join()

        def forward(self, x):
            return self.join(x, x)

    class Join(nn.Layer):
        def forward(self, a, b):
            return a + b

    refused(r"got \[\[1, 3, 64, 64\], \[1, 3, 64, 64\]\]", "PPLCNet_x0_25", at="join", network=Two())


def test_options_out_of_range_are_refused():
    for options, match in (
        ({"adapt": "rebuild"}, "adapt='rebuild', rebuild=None"),
        ({"adapt": "resize"}, "adapt must be 'project', or 'rebuild'"),
        ({"rebuild": print}, "adapt must be"),
        ({"freeze_stages": -1}, "at least 0, got -1"),
        ({"at": None, "taps": [4]}, "taps and adapt need at"),
    ):
        refused(match, "PPLCNet_x0_25", **options)
    refused("options and pretrained=True need a name", nn.Conv2D(3, 3, 1), pretrained=True)
    refused("backbone must be a name or a paddle.nn.Layer, got int", 3, error=TypeError)


@needs("paddleclas")
def test_what_is_already_trained_or_wrapped_is_refused():
    network = Pose()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    refused("already in use by SGD: the new backbone would never be trained", "PPLCNet_x0_25", network=network)
    del optimizer
    model = paddle.Model(network)
    with pytest.raises(TypeError, match=r"swap before paddle\.Model is made"):
        BackboneSwap("PPLCNet_x0_25", at="backbone")(model, SPEC)
    BackboneSwap("PPLCNet_x0_25", at="backbone")(network, SPEC)  # not prepared yet: nothing can go wrong
    model.prepare(paddle.optimizer.SGD(0.1, parameters=network.parameters()), mask_loss)
    refused("already in use by SGD", "PPLCNet_x0_25", network=network)


def test_networks_of_this_package_are_found_by_name_or_named_as_lacking(monkeypatch):
    module = types.ModuleType("paddlelite_callbacks.models.some")
    module.some_net = lambda width=4: Stages([4, 8, 16, 32])
    monkeypatch.setitem(sys.modules, "paddlelite_callbacks.models.some", module)
    monkeypatch.setitem(sources._OURS, "some_net", "some")
    monkeypatch.setitem(sources._OURS, "absent_net", "absent")
    network = Detector()
    BackboneSwap("some_net", at="backbone")(network, SPEC)
    assert network.backbone.taps == [f"output:{i}" for i in range(4)]
    refused(r"absent_net needs paddlelite_callbacks\.models\.absent", "absent_net")
    with pytest.raises(ValueError, match=r"no weights for .* give a path"):
        BackboneSwap("some_net", at="backbone", pretrained=True)(Detector(), SPEC)
