"""The catalogue's figures are those of the networks, and everything offered is accounted for."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import paddle
import pytest
from installed import needs
from paddle import nn
from toy import TinyNet

from paddlelite_callbacks import BackboneSwap, list_backbones
from paddlelite_callbacks.backbone.catalogue import DATA, render_table, why_left_out
from paddlelite_callbacks.backbone.registry import build, known_names, source_of
from paddlelite_callbacks.backbone.truncate import cut_
from paddlelite_callbacks.backbone.trunk import Trunk
from paddlelite_callbacks.maintainer_tools.backbone_checks import CHECKS
from paddlelite_callbacks.maintainer_tools.measure_backbones import LeftOutError, main, measure
from paddlelite_callbacks.nn.cost import count_macs, count_parameters

QUICK = ["PPLCNet_x0_25", "MobileNetV3_small_x0_35", "mobilenet_v1", "ShuffleNetV2_x0_25"]
SLOW = ["PPLCNet_x2_5", "MobileNetV3_large_x1_0", "GhostNet_x1_0", "ESNet_x1_0", "PPHGNetV2_B0", "ResNet18_vd", "vgg11"]


def entry(name):
    (found,) = [b for b in json.loads(DATA.read_text())["backbones"] if b["name"] == name]
    return {key: value for key, value in found.items() if key != "checks"}


@needs("paddleclas")
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_rebuilt_and_measured_again_it_is_the_same(name):
    measured = measure(name)
    assert measured.pop("checks") == {}
    assert measured == entry(name)


@needs("paddleclas")
@pytest.mark.parametrize("name", QUICK)
def test_shapes_are_those_of_the_table(name):
    (backbone,) = list_backbones(name)
    trunk = Trunk(build(name), [tap.name for tap in backbone.taps])
    for sides in ((64, 96), (224, 224)):
        for tap, value in zip(backbone.taps, trunk(paddle.rand([2, 3, *sides])), strict=True):
            assert value.shape == [2, tap.channels, sides[0] // tap.stride, sides[1] // tap.stride]


@needs("paddleclas")
@pytest.mark.parametrize("check", [*CHECKS])
@pytest.mark.parametrize(
    "name", ["PPLCNet_x0_25", *(pytest.param(n, marks=pytest.mark.slow) for n in ("GhostNet_x0_5", "PPHGNetV2_B0"))]
)
def test_trains_ships_and_quantises(name, check):
    (backbone,) = list_backbones(name)
    x = paddle.rand([1, 3, 64, 64])
    trunk = Trunk(build(name), [tap.name for tap in backbone.taps])
    cut_(trunk, x)
    assert CHECKS[check](trunk, x) is True


def test_a_check_that_fails_says_why():
    class Idle(nn.Layer):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2D(3, 4, 3), nn.Conv2D(3, 4, 3)

        def forward(self, x):
            return self.used(x)

    x = paddle.rand([1, 3, 8, 8])
    assert CHECKS["train"](Idle(), x) == "no gradient: ['idle.weight', 'idle.bias']"
    assert CHECKS["paddle"](TinyNet(), x).startswith("ValueError: The backbone must return maps")


@pytest.mark.parametrize(
    ("name", "parameters_m", "macs_m"),
    [  # torchvision's documentation, and the papers of MobileNetV3 (arXiv:1905.02244) and PP-LCNet (arXiv:2109.15099)
        ("resnet18", 11.69, 1814),
        ("resnet50", 25.56, 4089),
        ("mobilenet_v2", 3.50, 301),
        ("mobilenet_v3_small", 2.54, 56),
        ("vgg16", 138.36, 15470),
        ("densenet121", 7.98, 2834),
        ("PPLCNet_x1_0", 2.96, 161),
        ("PPLCNet_x2_5", 9.04, 906),
    ],
)
def test_figures_are_the_published_ones(name, parameters_m, macs_m):
    (backbone,) = list_backbones(name)
    assert backbone.parameters / 1e6 == pytest.approx(parameters_m, rel=0.005)
    assert backbone.macs / 1e6 == pytest.approx(macs_m, rel=0.04)  # some count activations too


def test_multiply_accumulates_by_hand():
    network = nn.Sequential(
        nn.Conv2D(4, 6, 3, stride=2, padding=1, groups=2),  # 6 * 2 * 9 weights at 5 * 5 places
        nn.BatchNorm2D(6),
        nn.Conv2DTranspose(6, 3, 2, stride=2),  # 6 * 3 * 4 weights at 5 * 5 places of the input
        nn.Flatten(2),
        nn.Linear(100, 7),  # 700 weights for each of 3 rows
    )
    before = copy.deepcopy(network.state_dict())
    expected = 108 * 25 + 72 * 25 + 700 * 3
    assert count_macs(network, [paddle.rand([1, 4, 10, 10])]) == expected
    assert count_macs(network, [paddle.rand([5, 4, 10, 10])]) == expected
    assert count_parameters(network) == (108 + 6) + 12 + (72 + 3) + 707
    assert network.training
    assert all(bool((value == before[key]).all()) for key, value in network.state_dict().items())
    assert not any(layer._forward_post_hooks for layer in network.sublayers())


def test_every_entry_is_complete():
    backbones = list_backbones()
    assert len({b.name for b in backbones}) == len(backbones)
    for b in backbones:
        strides = [tap.stride for tap in b.taps]
        assert {8, 16, 32} <= set(strides), b.name
        assert strides == sorted(set(strides)), b.name
        assert 0 < b.trunk_parameters <= b.parameters, b.name
        assert 0 < b.trunk_macs <= b.macs, b.name
        assert b.licence == "Apache-2.0"
        assert set(b.checks) <= set(CHECKS)
        assert all(result is True or isinstance(result, str) for result in b.checks.values())


def test_every_entry_was_trained_saved_and_loaded_again():
    """The data say so; `CHECKS` do it, and run above on some."""
    for b in list_backbones():
        tried = {name: b.checks.get(name) for name in ("train", "paddle")}
        assert tried == {"train": True, "paddle": True}, b.name


def test_every_network_is_offered_or_left_out_with_a_reason():
    offered, left_out = {b.name for b in list_backbones()}, why_left_out()
    assert not offered & set(left_out)
    others = {name for name in known_names() if source_of(name).name != "models"}
    assert offered | set(left_out) >= others
    assert all(left_out.values())


def test_lists_are_filtered_and_shown():
    names = [b.name for b in list_backbones("MobileNetV3_*")]
    assert len(names) == 10
    assert {b.source for b in list_backbones(source="paddle.vision")} == {"paddle.vision"}
    with pytest.raises(ValueError, match=r"No backbone matches 'PPLCNet_x3'; near names: \['PPLCNet_x"):
        list_backbones("PPLCNet_x3")
    table = render_table(list_backbones("PPLCNet_x2_5"))
    assert "| PPLCNet_x2_5 | 9.0" in table
    assert "blocks5 16x640" in table
    assert "_pretrained.pdparams |" in table


@pytest.mark.parametrize("pattern", ["pplcnet_x*", "PPLCNET_X*", "PPLCNet_x*"])
def test_patterns_and_sources_match_in_any_case(pattern):
    by_hand = [b for b in list_backbones() if b.name.startswith("PPLCNet_x")]
    assert len(by_hand) == 9
    assert list_backbones(pattern) == by_hand
    assert list_backbones(pattern, source="PaddleClas") == by_hand
    assert [b.name for b in list_backbones("resnet18")] == ["resnet18"]
    assert {b.name for b in list_backbones("RESNET18")} == {"resnet18", "ResNet18"}
    with pytest.raises(ValueError, match=r"No backbone matches 'pplcnet_x3'; near names: \['PPLCNet_x"):
        list_backbones("pplcnet_x3")


@needs("paddleclas")
def test_names_are_found_in_any_case():
    network = build("pplcnet_X0_25", num_classes=3)
    assert list(network.state_dict()) == list(build("PPLCNet_x0_25", num_classes=3).state_dict())
    assert BackboneSwap("MOBILENET_V2").name == "mobilenet_v2"
    assert type(BackboneSwap("pplcnet_x0_25")(TinyNet())).__name__ == "PPLCNet"
    assert type(build("resnet18")).__module__.startswith("paddle.vision")
    assert type(build("ResNet18")).__module__.startswith("paddleclas")
    with pytest.raises(ValueError, match=r"may be any of \['ResNet18', 'resnet18'\], which differ only in case"):
        BackboneSwap("RESNET18")
    with pytest.raises(ValueError, match=r"backbone 'pplcnet_X3'.*\['PPLCNet_x"):
        BackboneSwap("pplcnet_X3")


def test_the_list_needs_no_network_library():
    code = (
        "import sys, paddlelite_callbacks as p; assert p.list_backbones('PPLCNet_*');"
        "print([m for m in ('paddle', 'paddleclas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs("paddleclas")
def test_what_cannot_serve_is_left_out_with_the_reason():
    with pytest.raises(LeftOutError, match=r"maps of strides \[.*\], needed are \[8, 16, 32\]"):
        measure("alexnet")
    with pytest.raises(LeftOutError, match="fails at 224x224: KeyError: 'HRNet_W60_C'"):
        measure("HRNet_W60_C")


@needs("paddleclas")
@pytest.mark.slow
def test_the_generating_command_adds_to_a_file_and_keeps_the_rest(tmp_path, capsys):
    file = tmp_path / "data.json"
    assert main(["PPLCNet_x0_25", "alexnet", "--output", str(file), "--checks"]) == 0
    assert main(["mobilenet_v1", "--output", str(file), "--checks", "train"]) == 0
    data = json.loads(file.read_text())
    assert [b["name"] for b in data["backbones"]] == ["mobilenet_v1", "PPLCNet_x0_25"]
    assert data["backbones"][0]["checks"] == {"train": True}
    assert "alexnet" in data["left_out"]
    assert data["versions"]["paddlepaddle"] == paddle.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
    with pytest.raises(SystemExit, match="No backbone matches"):
        main(["nothing_*", "--output", str(file)])
