"""Where networks are tapped, that the taps give the makers' own maps, and what a cut network survives."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from places import HELPERS
from swap_nets import SIZE, SPEC, Pose
from toy import weights_of

from paddlelite_callbacks import BackboneSwap, prepare_pact_
from paddlelite_callbacks.backbone.features import find_taps
from paddlelite_callbacks.backbone.registry import build, trunk_end
from paddlelite_callbacks.backbone.truncate import cut_
from paddlelite_callbacks.backbone.trunk import Trunk
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.workarounds.paddleclas_layers import cure_, upsample_nearest

X = [1, 3, 128, 128]


def defaults(network, end=None):
    return {tap.stride: tap.name for tap in find_taps(network, paddle.rand(X), end=end) if tap.default}


def trunk_of(name, *strides):
    network = build(name)
    taps = defaults(network, trunk_end(name))
    return Trunk(network, [taps[stride] for stride in strides])


@needs("paddleclas")
@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("PPLCNet_x0_25", {"blocks2": "blocks2", "blocks4": "blocks4", "blocks6": "blocks6"}),
        ("MobileNetV3_small_x0_35", {"blocks[0]": "blocks.0", "blocks[2]": "blocks.2", "blocks[10]": "blocks.10"}),
        ("ResNet18_vd", {"blocks[1]": "blocks.1", "blocks[5]": "blocks.5", "blocks[7]": "blocks.7"}),
        ("ESNet_x0_25", {"blocks[2]": "blocks.2", "blocks[9]": "blocks.9", "blocks[12]": "blocks.12"}),
    ],
)
def test_taps_give_the_maps_that_paddleclas_returns_itself(name, maps):
    """paddleclas's own ``return_stages`` is the independent truth."""
    theirs = build(name, options={"return_stages": True})
    ours = build(name)
    ours.set_state_dict(theirs.state_dict())
    assert set(maps.values()) <= set(defaults(ours, trunk_end(name)).values())
    theirs.eval()
    x = paddle.rand(X)
    expected = theirs(x)
    trunk = Trunk(ours, list(maps.values()))
    trunk.eval()
    cut_(trunk, x)
    for pattern, value in zip(maps, trunk(x), strict=True):
        assert np.array_equal(value.numpy(), expected[pattern].numpy()), pattern


def test_taps_are_what_papers_call_c1_to_c5():
    assert defaults(paddle.vision.models.resnet18()) == {
        2: "relu",
        4: "layer1",
        8: "layer2",
        16: "layer3",
        32: "layer4",
    }
    assert defaults(paddle.vision.models.mobilenet_v2()) == {
        2: "features.1",
        4: "features.3",
        8: "features.6",
        16: "features.13",
        32: "features.17",
    }


class Winding(nn.Layer):
    """Anything but a chain: a long shortcut, a gate, an auxiliary head, layers that run only when training."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 4, 3, stride=2, padding=1)
        self.side = nn.Conv2D(4, 6, 1, stride=2)
        self.down = nn.Conv2D(4, 6, 3, stride=2, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2D(1), nn.Conv2D(6, 6, 1), nn.Sigmoid())
        self.noise = nn.Dropout(0.5)
        self.join = nn.Conv2D(6, 5, 3, padding=1)
        self.deep = nn.Sequential(nn.Conv2D(5, 7, 3, stride=2, padding=1), nn.ReLU())
        self.aux = nn.Linear(5, 2)
        self.fc = nn.Linear(7, 2)

    def forward(self, x):
        x = self.stem(x)
        short = self.side(x)
        long = self.down(x)
        long = long * self.gate(long)
        if self.training:
            long = self.noise(long)
        joined = self.join(short + long)
        scores = self.fc(self.deep(joined).mean(axis=[2, 3]))
        return scores, self.aux(joined.mean(axis=[2, 3]))


def test_the_trunk_is_told_from_shortcuts_gates_and_auxiliary_heads():
    network = Winding()
    assert defaults(network) == {2: "stem", 4: "join", 8: "deep"}
    names = {tap.name for tap in find_taps(network, paddle.rand(X))}
    assert not names & {"side", "down", "gate", "aux"}


def test_the_cut_keeps_what_runs_only_in_training():
    trunk = Trunk(Winding(), ["join"])
    before = weights_of(trunk)
    assert sorted(cut_(trunk, paddle.rand(X))) == ["aux", "deep", "fc"]
    assert {name for name, _ in trunk.named_children()} == {"stem", "side", "down", "gate", "noise", "join"}
    trunk.train()
    assert trunk(paddle.rand(X))[0].shape == [1, 5, 32, 32]
    assert all(np.array_equal(value, before[key]) for key, value in weights_of(trunk).items())


def test_a_cut_that_the_network_cannot_do_without_is_taken_back():
    class Peeking(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(3, 4, 3, stride=2, padding=1)
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.conv(x * self.fc.weight.mean()).mean(axis=[2, 3]))

    trunk = Trunk(Peeking(), ["conv"])
    assert cut_(trunk, paddle.rand(X)) == []
    assert "fc.weight" in trunk.state_dict()


@needs("paddleclas")
def test_the_search_and_the_cut_leave_statistics_modes_and_the_random_stream_alone():
    network = build("MobileNetV3_small_x0_35")
    network.eval()
    before = weights_of(network)
    paddle.seed(7)
    first = paddle.rand([2]).numpy()
    paddle.seed(7)
    trunk = Trunk(network, [tap.name for tap in find_taps(network, paddle.zeros(X)) if tap.stride == 16][-1:])
    cut_(trunk, paddle.zeros(X))
    assert np.array_equal(paddle.rand([2]).numpy(), first)
    assert not any(layer.training for layer in trunk.sublayers(include_self=True))
    assert all(np.array_equal(value, before[key]) for key, value in weights_of(trunk).items())
    assert not any(p.stop_gradient for n, p in trunk.named_parameters() if not n.endswith(("_mean", "_variance")))


@needs("paddleclas")
def test_keys_are_the_networks_own():
    full = list(build("PPLCNet_x0_25").state_dict())
    trunk = trunk_of("PPLCNet_x0_25", 8, 16)
    cut_(trunk, paddle.rand(X))
    keys = list(trunk.state_dict())
    assert keys == [key for key in full if key.split(".")[0] in ("conv1", "blocks2", "blocks3", "blocks4", "blocks5")]
    other = trunk_of("PPLCNet_x0_25", 8, 16)
    other.set_state_dict({key: value + 1 for key, value in trunk.state_dict().items()})
    assert all(np.array_equal(weights_of(other)[key], value + 1) for key, value in weights_of(trunk).items())


@needs("paddleclas")
@pytest.mark.parametrize("name", ["PPLCNet_x0_25", "GhostNet_x0_5", "MobileNetV2_x0_25"])
def test_a_copy_is_a_network_of_its_own(name):
    trunk, x = trunk_of(name, 8, 32), paddle.rand(X)
    cut_(trunk, x)
    trunk.fit_channels([(1, 1), (trunk(x)[1].shape[1], 5)])
    trunk.eval()
    expected = [value.numpy() for value in trunk(x)]
    twin = copy.deepcopy(trunk)
    for parameter in twin.parameters():
        parameter.set_value(parameter * 0)
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(trunk(x), expected, strict=True))
    assert float(twin(x)[0].abs().max()) == 0
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in trunk.parameters()}


@needs("paddleclas")
@pytest.mark.parametrize("name", ["PPLCNet_x0_25", "GhostNet_x0_5", "ShuffleNetV2_x0_25"])
def test_quantised_layers_are_the_ones_that_run(name):
    """Also where the network keeps its blocks in a plain list of its own."""
    trunk, x = trunk_of(name, 16), paddle.rand([2, *X[1:]])
    cut_(trunk, x)
    trunk.fit_channels([(trunk(x)[0].shape[1], 5)])
    convolutions = [n for n, layer in trunk.named_sublayers() if isinstance(layer, (nn.Conv2D, nn.Linear))]
    undo = prepare_pact_(trunk)
    assert list(quantized_layers(trunk)) == convolutions
    trunk.train()
    trunk(x)
    assert all(layer.activation_quanter.calibrated for layer in quantized_layers(trunk).values())
    undo.close()
    assert [n for n, layer in trunk.named_sublayers() if isinstance(layer, (nn.Conv2D, nn.Linear))] == convolutions


def test_a_convolution_in_a_plain_list_is_quantised_too():
    class Listed(nn.Layer):
        def __init__(self):
            super().__init__()
            self.parts = [self.add_sublayer(f"part{i}", nn.Conv2D(3, 3, 3, padding=1)) for i in range(2)]

        def forward(self, x):
            for part in self.parts:
                x = part(x)
            return x

    network, x = Listed(), paddle.rand([1, 3, 8, 8])
    expected = network(x).numpy()
    assert cure_(network) == ["plain lists"]
    assert np.array_equal(network(x).numpy(), expected)
    prepare_pact_(network)
    network(x)
    assert all(layer.activation_quanter.calibrated for layer in quantized_layers(network).values())
    assert np.array_equal(network(x).numpy(), copy.deepcopy(network)(x).numpy())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_upsampling_is_nearest_interpolation_bit_for_bit(factor):
    x = paddle.randn([2, 3, 5, 7])
    expected = F.interpolate(x, scale_factor=factor, mode="nearest").numpy()
    assert np.array_equal(upsample_nearest(x, factor).numpy(), expected)


@needs("paddleclas")
@pytest.mark.slow
def test_the_cured_hrnet_equals_paddleclass_and_ships(tmp_path):
    """The original fails in Paddle Inference with oneDNN and in paddle2onnx, at every interpolation."""
    module = __import__("paddleclas.ppcls.arch.backbone.legendary_models.hrnet", fromlist=["HRNet_W18_C"])
    theirs, ours, x = module.HRNet_W18_C(class_num=5), build("HRNet_W18_C", num_classes=5), paddle.rand([1, 3, 64, 64])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.set_state_dict(theirs.state_dict())
    theirs.eval()
    ours.eval()
    assert np.array_equal(ours(x).numpy(), theirs(x).numpy())
    program = export_paddle(ours, tmp_path, input_spec=[InputSpec([None, 3, 64, 64], name="x")])
    assert export_onnx(program, tmp_path / "model.onnx").path.is_file()


@needs("paddleclas")
def test_the_same_network_can_be_built_twice_with_names_of_its_own():
    """paddleclas gives GhostNet fixed parameter names, which Paddle refuses the second time."""
    first, second = build("GhostNet_x0_5"), build("GhostNet_x0_5")
    names = [p.name for network in (first, second, nn.Conv2D(1, 1, 1)) for p in network.parameters()]
    assert len(set(names)) == len(names)


@needs("paddleclas")
def test_under_data_parallel_and_autocast():
    trunk, x = trunk_of("PPLCNet_x0_25", 8), paddle.rand(X)
    trunk.eval()
    expected = trunk(x)[0].numpy()
    assert np.array_equal(paddle.DataParallel(trunk)(x)[0].numpy(), expected)
    with paddle.amp.auto_cast(level="O1"):
        assert trunk(x)[0].shape == list(expected.shape)


@needs("paddleclas")
def test_trained_as_a_static_program():
    network = Pose()
    BackboneSwap("PPLCNet_x0_25", at="backbone")(network, SPEC)
    x = paddle.rand([2, 3, SIZE, SIZE])
    network.eval()
    expected = network(x).numpy()
    static = paddle.jit.to_static(copy.deepcopy(network), full_graph=True)
    static.eval()
    np.testing.assert_allclose(static(x).numpy(), expected, atol=1e-6)
    static.train()
    static(x).mean().backward()
    missing = [n for n, p in static.named_parameters() if not p.stop_gradient and p.grad is None]
    assert missing == []


_TWO = """
import sys
import numpy as np
import paddle
sys.path.insert(0, {tests!r})
from swap_nets import SPEC, Pose, Scenes, mask_loss
from paddlelite_callbacks import BackboneSwap

paddle.distributed.init_parallel_env()
rank = paddle.distributed.get_rank()
paddle.seed(rank)  # the ranks draw different weights; Paddle hands out those of rank 0
network = Pose()
BackboneSwap("PPLCNet_x0_25", at="backbone")(network, SPEC)
model = paddle.Model(network)
try:
    BackboneSwap("PPLCNet_x0_25", at="backbone")(network, SPEC)
except ValueError as error:
    print("REFUSED", error, flush=True)
model.prepare(paddle.optimizer.SGD(0.1, parameters=network.parameters()), mask_loss)
model.fit(Scenes([8], 2), batch_size=2, epochs=2, shuffle=False, verbose=0)
weights = {{k: v.numpy() for k, v in network.state_dict().items() if not k.endswith(("_mean", "_variance"))}}
np.savez({out!r} + f"/{{rank}}.npz", **weights)
"""


@needs("paddleclas")
@pytest.mark.slow
def test_two_processes_stay_equal_and_a_late_swap_is_refused(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(_TWO.format(tests=str(HELPERS), out=str(tmp_path)))
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, env=environment, timeout=300)
    log = "".join(file.read_text() for file in tmp_path.glob("workerlog.*"))
    assert done.returncode == 0, log[-2000:]
    assert log.count("REFUSED The parameters of 'backbone' are already in use by DataParallel") == 2
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert sorted(first) == sorted(second)
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_a_head_behind_a_layer_that_the_forward_only_names_is_removed():
    """``self.pool`` is looked up before ``self.norm`` runs, so it must stay; the head behind both must not."""

    class Light(nn.Layer):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2D(3, 8, 3, stride=8, padding=1)
            self.norm = nn.BatchNorm2D(8)
            self.pool = nn.AdaptiveAvgPool2D(1)
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            return self.head(paddle.flatten(self.pool(self.norm(self.stem(x))), start_axis=1))

    class Heavy(nn.Layer):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Conv2D(3, 8, 3, stride=8, padding=1)

        def forward(self, x):
            return self.backbone(x)

    network = BackboneSwap(Light(), at="backbone")(Heavy(), input_spec=[InputSpec([None, 3, 32, 32])])
    assert not [key for key in network.state_dict() if "head" in key]
    assert list(network(paddle.randn([2, 3, 32, 32])).shape) == [2, 8, 4, 4]
