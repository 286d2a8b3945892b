"""The user's process is as found after every public call: each scene of `calls` runs in a process of its own.

Watched are threads, child processes, random streams, Paddle's flags, modes and device, OpenMP's threads, signal
handlers, logging, warnings, the environment, the working folder, streams, matplotlib's settings and temporary files;
around the first calls of every public function, also where one calls another.
"""

from __future__ import annotations

import importlib.util
import json

import paddle
import pytest
from crashing import Server
from process_state import public_functions
from toy import equal_weights, weights_of

from paddlelite_callbacks import BackboneSwap

SCENES = {
    "distil": {},
    "resume": {},
    "peers": {},
    "heatmaps": {},
    "cache": {"num_workers": 0},
    "cache_workers": {"num_workers": 2},
    "pact": {},
    "quantise": {},
    "export": {},
    "phone": {},
    "records": {},
    "commands": {},
    "swap": {},
    "swap_inside": {},
    "catalogue": {},
    "small_parts": {},
}
SLOW = ("pact", "quantise", "export", "phone", "records", "commands", "swap", "swap_inside", "catalogue")
# Building layers draws their weights from Paddle's generator: the same seed gives the same weights, which is worth more
# than an untouched generator. Within a fit the projections' draws are undone, so that training goes on as without.
GENERATOR = "paddle's generator and gradient mode"
BUILDS = {
    "backbone.registry.build": GENERATOR,
    "maintainer_tools.measure_backbones.measure": GENERATOR,
    "distill.losses.features.projection_for": GENERATOR,
    "AttentionFeatureLoss": GENERATOR,
    "BackboneSwap": "environment: KMP_",  # set by scikit-learn, which paddleclas imports, for the OpenMP it brings
    "backbone.registry.source_of": "environment: KMP_",
    "backbone.registry.known_names": "environment: KMP_",
    "backbone.arguments.own_layer": "environment: KMP_",
}
WHOLE = {
    "swap": (GENERATOR,),
    "swap_inside": (GENERATOR, "environment: KMP_"),
    "catalogue": (GENERATOR,),
}
BESIDE = {
    "maintainer_tools.measure_backbones.main",  # writes the catalogue of this package
    "maintainer_tools.arm_emulator.build_arm_root",  # downloads an ARM system
    "maintainer_tools.arm_check.main",  # needs it
    "maintainer_tools.phone_table.main",
    "maintainer_tools.phone_table.measure",
    # run in a child process alone, which ends with it
    "benchmark.engine_child.file_and_inputs",
    "export.clean_onnx.clean_onnx",
    "export.clean_onnx.sign_onnx",
    "export.old_program.translate_old_program",
}


@pytest.fixture(scope="module")
def server():
    server = Server("calls")
    yield server
    server.close()


seen: set[str] = set()
NEEDS = {
    "swap_inside": "paddleclas",
    "export": "paddle2onnx",
    "phone": "paddle2onnx",
    "commands": "paddle2onnx",
    "pact": "paddle2onnx",
    "small_parts": "onnx",
}


@pytest.mark.parametrize("scene", [pytest.param(s, marks=pytest.mark.slow if s in SLOW else ()) for s in SCENES])
def test_the_process_is_as_found(scene, server, tmp_path):
    if scene in NEEDS and importlib.util.find_spec(NEEDS[scene]) is None:
        pytest.skip(f"needs {NEEDS[scene]}, which this Python has no build of")
    assert server.run(scene.removesuffix("_workers"), tmp_path, **SCENES[scene]) == 0
    watched = json.loads((tmp_path / "watched.json").read_text())
    seen.update(watched["seen"])
    left = {}
    for name, changes in watched["bad"].items():
        known = WHOLE.get(scene, ()) if name.startswith("the scene") else (BUILDS.get(name, "-"),)
        if unexpected := [change for change in changes if not change.startswith(known)]:
            left[name] = unexpected
    assert not left


def test_every_public_function_was_called(request):
    """Runs behind the scenes, all of them."""
    chosen = [item for item in request.session.items if item.name.startswith("test_the_process_is_as_found")]
    if len(chosen) < len(SCENES) or not all(map(importlib.util.find_spec, NEEDS.values())):
        pytest.skip("only some of the scenes ran")
    not_called = sorted(set(public_functions()) - seen - BESIDE)
    assert not not_called, "\n".join(not_called)


def test_a_swap_with_the_same_seed_gives_the_same_weights():
    networks = []
    for _ in range(2):
        paddle.seed(11)
        heavy = paddle.vision.models.resnet18(num_classes=4)
        networks.append(weights_of(BackboneSwap("mobilenet_v3_small")(heavy)))
    assert equal_weights(*networks)
