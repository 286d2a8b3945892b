"""Maps whose strides differ by axis, as in text recognisers: found, chosen, refused, listed."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import weights_of

from paddlelite_callbacks import BackboneSwap, BenchOptions, ExportBenchCallback, list_backbones
from paddlelite_callbacks.backbone.catalogue import Backbone, BackboneMap, parsed_backbone, render_table
from paddlelite_callbacks.backbone.features import find_taps
from paddlelite_callbacks.backbone.registry import build, trunk_end
from paddlelite_callbacks.backbone.strides import checked_stride, coarseness, stride_between

LINES = {"stride_list": [2, [2, 1], [2, 1], [2, 1], [2, 1]]}
SPEC = [InputSpec([None, 3, 32, 96], name="x")]


class Chain(nn.Layer):
    """Convolutions of the given strides; gives the maps behind those numbered in ``out``."""

    def __init__(self, *strides, width=6, out=(-1,)):
        super().__init__()
        self.convs, self.out = nn.LayerList(), [i % len(strides) for i in out]
        for i, stride in enumerate(strides):
            conv = nn.Conv2D(width if i else 3, width, 3, stride=stride, padding=1)
            self.convs.append(nn.Sequential(conv, nn.BatchNorm2D(width), nn.ReLU()))

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return [maps[i] for i in self.out]


class Recogniser(nn.Layer):
    """``[N, 3, 32, W]`` to ``[N, W / s, classes]`` for CTC: one row of features, one column a step."""

    def __init__(self, *strides, classes=5):
        super().__init__()
        self.backbone, self.fc = Chain(*strides), nn.Linear(6, classes)

    def forward(self, x):
        (features,) = self.backbone(x)
        return self.fc(features.squeeze(2).transpose([0, 2, 1]))


def heavy():
    return Recogniser(2, (2, 1), (2, 1), (2, 1), (2, 1))


@pytest.mark.parametrize("steps", itertools.product([1, 2, 4, 8, 16, 32, 64], repeat=2))
def test_a_stride_is_told_from_sizes_axis_by_axis(steps):
    image = (224, 320)
    size = [-(-side // step) for side, step in zip(image, steps, strict=True)]
    assert stride_between(image, size) == (steps[0] if steps[0] == steps[1] else steps)


def test_what_no_power_of_two_divides_has_no_stride():
    assert stride_between((224, 224), (75, 224)) is None
    assert stride_between((224, 224), (448, 224)) is None


def test_strides_sort_by_what_they_merge():
    strides = [(32, 1), 2, (8, 2), 16, 4, (4, 2)]
    assert sorted(strides, key=coarseness) == [2, (4, 2), 4, (8, 2), (32, 1), 16]


def test_strides_of_the_user_are_numbers_or_pairs():
    assert [checked_stride(s) for s in (16, (16, 16), [32, 1])] == [16, 16, (32, 1)]
    for wrong in ((32,), (32, 1, 1), (2.0, 1), (0, 1), 0, True, None):
        with pytest.raises(ValueError, match=r"at least 1, or a pair \(height, width\) of them, got .*write 16, or"):
            BackboneSwap("PPLCNet_x0_25", at="backbone", taps=[wrong])


@needs("paddleclas")
def test_taps_have_the_strides_of_the_layers():
    """PP-LCNet's own argument says what they are: the products along each axis."""
    network = build("PPLCNet_x0_25", options=LINES)
    taps = find_taps(network, paddle.zeros([1, 3, 64, 128]), end=trunk_end("PPLCNet_x0_25"))
    by_stride = {tap.stride: tap.name for tap in taps if tap.default}
    height, width, expected = 1, 1, {}
    for stride, name in zip(LINES["stride_list"], [f"blocks{i}" for i in range(2, 7)], strict=True):
        down = stride if isinstance(stride, list) else [stride, stride]
        height, width = height * down[0], width * down[1]
        expected[height if height == width else (height, width)] = name
    assert by_stride == expected
    assert expected == {2: "blocks2", (4, 2): "blocks3", (8, 2): "blocks4", (16, 2): "blocks5", (32, 2): "blocks6"}


@needs("paddleclas")
@pytest.mark.parametrize("taps", [None, [(32, 2)], [[32, 2]], ["blocks6"]])
def test_a_recogniser_gets_a_light_backbone_and_trains(taps, tmp_path):
    network = heavy()
    shape = network(paddle.zeros([2, 3, 32, 96])).shape
    BackboneSwap("PPLCNet_x0_25", at="backbone", options=LINES, taps=taps)(network, SPEC)
    assert network.backbone.taps == ["blocks6"]
    assert network(paddle.zeros([2, 3, 32, 96])).shape == shape == [2, 48, 5]
    assert network(paddle.zeros([2, 3, 32, 64])).shape == [2, 32, 5]
    model, before = paddle.Model(network), weights_of(network)
    model.prepare(paddle.optimizer.Adam(0.01, parameters=network.parameters()), nn.CrossEntropyLoss())
    data = paddle.io.TensorDataset([paddle.rand([8, 3, 32, 96]), paddle.randint(0, 5, [8, 48])])
    export = ExportBenchCallback(
        tmp_path,
        name="r",
        engines=["paddle"],
        verbose=0,
        benchmark=BenchOptions(warmup=0, repeats=2, peak_memory=False, roofline=False),
    )
    model.fit(data, batch_size=4, verbose=0, callbacks=[export])
    assert [check.passed for check in export.record.checks] == [True]
    assert not [key for key, value in weights_of(network).items() if np.array_equal(value, before[key])]


def test_several_maps_of_strides_by_axis_are_chosen_one_by_one():
    network = nn.Sequential(Chain(2, (2, 1), (2, 1), (1, 2), out=(0, 1, 2, 3)))
    light = Chain((2, 1), (1, 2), (2, 1), (2, 1), (1, 2), width=6)
    spec = [InputSpec([None, 3, 64, 96])]
    shapes = [value.shape for value in network(paddle.zeros([1, 3, 64, 96]))]
    swap = BackboneSwap(light, at="0", freeze_stages=2)
    swap(network, spec)
    assert network[0].taps == ["convs.1", "convs.2", "convs.3", "output:0"]
    assert [value.shape for value in network(paddle.zeros([1, 3, 64, 96]))] == shapes
    frozen = {name.split(".")[1] for name, p in network[0].named_parameters() if p.stop_gradient and "_" not in name}
    assert frozen == {"0", "1"}  # the stages end with strides (2, 1) and 2


def refused(match, network, *args, spec=SPEC, **options):
    before = weights_of(network)
    with pytest.raises(ValueError, match=match):
        BackboneSwap(*args, at="backbone", **options)(network, spec)
    assert weights_of(network).keys() == before.keys()


@needs("paddleclas")
def test_refusals_name_both_axes_and_do_not_contradict_themselves():
    square = (
        r"maps by stride \(height, width\): \{2: 'blocks2', 4: 'blocks3', 8: 'blocks4', 16: 'blocks5', 32: 'blocks6'\}"
    )
    lines = r"\{2: 'blocks2', \(4, 2\): 'blocks3', \(8, 2\): 'blocks4', \(16, 2\): 'blocks5', \(32, 2\): 'blocks6'\}"
    size = r"no map of stride \(32, 2\) \(size \[1, 48\] for an input \[1, 3, 32, 96\]\); its " + square
    refused(size, heavy(), "PPLCNet_x0_25")
    refused(
        r"no map of stride 32\. Choose among its maps by stride: " + lines,
        heavy(),
        "PPLCNet_x0_25",
        options=LINES,
        taps=[32],
    )
    wrong = r"Tap 'blocks6' of PPLCNet_x0_25 returns \[1, 3\] \(height, width\) .* the old map is \[1, 48\]"
    refused(wrong, heavy(), "PPLCNet_x0_25", taps=[32])
    one = r"returns 1 maps, so give 1 taps, got \[32, 2\]. One stride \(height, width\) is written \[\(32, 2\)\]"
    refused(one, heavy(), "PPLCNet_x0_25", options=LINES, taps=(32, 2))


class Pooled(nn.Layer):
    """As PP-OCRv4's recogniser: its last map is no stride of the image but a pool of fixed size."""

    def __init__(self):
        super().__init__()
        self.body = Chain(2, (2, 1), (2, 1), width=6)

    def forward(self, x):
        return nn.functional.avg_pool2d(self.body(x)[0], [4, 3])  # 3 is no power of two


def test_a_map_that_is_no_stride_of_a_square_image_is_found_on_the_image_itself():
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.backbone = Pooled()
            self.fc = nn.Linear(6, 5)

        def forward(self, x):
            return self.fc(self.backbone(x).squeeze(2).transpose([0, 2, 1]))

    net, light = Net(), Pooled()
    BackboneSwap(light, at="backbone")(net, SPEC)
    assert net.backbone.taps == ["output"]
    assert net(paddle.zeros([2, 3, 32, 96])).shape == [2, 16, 5]


def test_the_table_and_the_data_know_pairs():
    entry = {
        "name": "Lines",
        "source": "models",
        "parameters": 1_000_000,
        "macs": 2_000_000,
        "trunk_parameters": 500_000,
        "trunk_macs": 1_000_000,
        "taps": [{"name": "a", "channels": 8, "stride": 2}, {"name": "b", "channels": 16, "stride": [32, 1]}],
        "licence": "Apache-2.0",
        "weights": None,
    }
    backbone = parsed_backbone(entry)
    assert isinstance(backbone, Backbone)
    assert backbone.taps[1] == BackboneMap(name="b", channels=16, stride=(32, 1))
    assert "| a 2x8, b (32, 1)x16 |" in render_table([backbone])


class Factorised(nn.Layer):
    """A block as MicroNet's (Li 2021, arXiv:2108.05894): first the height is halved, then the width."""

    def __init__(self, width):
        super().__init__()
        self.down, self.across = (nn.Conv2D(width, width, 3, stride=s, padding=1) for s in ((2, 1), (1, 2)))

    def forward(self, x):
        return self.across(self.down(x))


def test_a_block_that_halves_one_axis_after_the_other_is_one_block():
    network = nn.Sequential(nn.Conv2D(3, 4, 3, stride=2, padding=1), Factorised(4), Factorised(4))
    assert {tap.stride: tap.name for tap in find_taps(network, paddle.zeros([1, 3, 64, 64])) if tap.default} == {
        2: "0",
        4: "1",
        8: "output",
    }


@needs("paddleclas")
def test_micronet_is_tapped_as_measured():
    (measured,) = list_backbones("MicroNet_M0")
    found = find_taps(build("MicroNet_M0"), paddle.zeros([1, 3, 224, 224]))
    assert [(tap.name, tap.stride) for tap in found if tap.default] == [(t.name, t.stride) for t in measured.taps]
