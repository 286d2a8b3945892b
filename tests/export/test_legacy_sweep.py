"""A sample of the catalogue in Paddle 2's format; ``sweep_legacy_programs.py`` does all of it, in hours."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import paddle
import pytest
import sweep_legacy_programs as sweep
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from places import ROOT

from paddlelite_callbacks.backbone.catalogue import DATA
from paddlelite_callbacks.export.legacy_program import write_legacy_program
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.program_graph import ProgramGraph

SUMMARY = ROOT / "examples" / "results" / "phone" / "pdmodel.json"
SAMPLE = ["MicroNet_M0", "DLA46x_c", "MobileViTV3_XXS", "GhostNet_x0_5", "StarNet_S1", "RedNet26"]


@pytest.mark.slow
@needs("paddleclas")
@pytest.mark.parametrize("name", SAMPLE)
def test_a_network_of_the_catalogue(name, tmp_path):
    noted = {}
    sweep.prepare(name, tmp_path)
    noted.update(sweep.convert(tmp_path))
    pythons = {"3.3.1": sys.executable}
    if os.environ.get("PADDLE_2_PYTHON"):
        pythons["2.6.2"] = os.environ["PADDLE_2_PYTHON"]
    sweep._run({name: (tmp_path, noted)}, pythons)
    assert sweep.verdict(noted) == "passed"


def test_what_is_said_of_a_network():
    good, bad = {"off": 1e-6, "of": 1.0, "passed": True}, {"off": 0.5, "of": 1.0, "passed": False}
    assert sweep.verdict({"3.3.1": good, "2.6.2": good}) == "passed"
    assert sweep.verdict({"error": "ValueError: no"}) == "ValueError: no"
    assert sweep.verdict({"3.3.1": good, "2.6.2": "the process died"}) == "Paddle 2.6.2: the process died"
    assert sweep.verdict({"3.3.1": good, "2.6.2": bad, "moves": 0.1}) == "off by 0.5 of 1"
    assert sweep.verdict({"3.3.1": bad, "moves": 0.9}).startswith(
        "chaotic: off by 0.5 of 1, its own output moves by 0.9"
    )
    assert sweep.verdict({"3.3.1": bad, "moves": 0.9, "apart": 1e-7}).startswith("chaotic: ")
    assert sweep.verdict({"3.3.1": bad, "moves": 1e-3, "apart": 0.0}) == "off by 0.5 of 1"
    assert sweep.verdict({"3.3.1": bad, "moves": 0.1, "apart": 0.0}) == "passed"


def test_the_summary_speaks_of_every_network():
    lines = [{"name": "A", "3.3.1": {"off": 0.0, "of": 1.0, "passed": True}}, {"name": "B", "error": "no"}]
    found = sweep.summary(lines, ["C", "B", "A"], ["3.3.1"])
    assert found["passed"] == ["A"]
    assert found["other"] == {"B": "no", "C": "not run"}


def test_an_earlier_summary_speaks_where_no_line_does():
    bad = {"off": 0.5, "of": 1.0, "passed": False}
    earlier = {
        "passed": ["A", "B"],
        "other": {"C": "not run", "D": "chaotic: off by 1", "E": "not run"},
        "smaller": {"A": 96},
    }
    good = {"off": 0.0, "of": 1.0, "passed": True}
    lines = [{"name": "B", "size": 224, "3.3.1": bad}, {"name": "E", "size": 128, "3.3.1": good}]
    found = sweep.summary(lines, ["A", "B", "C", "D", "E"], ["3.3.1"], earlier)
    assert found["passed"] == ["A", "E"]
    assert found["other"] == {"B": "off by 0.5 of 1", "C": "not run", "D": "chaotic: off by 1"}
    assert (found["size"], found["smaller"]) == (224, {"A": 96, "E": 128})


def test_the_committed_sweep_is_of_this_catalogue():
    found = json.loads(SUMMARY.read_text(encoding="utf-8"))
    names = {entry["name"] for entry in json.loads(DATA.read_text(encoding="utf-8"))["backbones"]}
    assert set(found["passed"]) == names
    assert found["other"] == {}
    assert set(found[sweep.CHAOTIC]) < names


def test_chaotic_networks_that_passed_are_named():
    bad = {"off": 0.5, "of": 1.0, "passed": False}
    lines = [{"name": "A", "3.3.1": bad, "moves": 0.9, "apart": 0.0}, {"name": "B", "3.3.1": bad, "apart": 0.1}]
    found = sweep.summary(lines, ["A", "B", "C"], ["3.3.1"], {"passed": ["C"], "other": {}, sweep.CHAOTIC: ["B", "C"]})
    assert found["passed"] == ["A", "C"]
    assert found[sweep.CHAOTIC] == ["A", "C"]


def test_the_file_is_compared_with_the_program_bit_for_bit(tmp_path):
    paddle.seed(0)
    network = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten())
    network.eval()
    export_paddle(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x0")])
    program, parameters = write_legacy_program(tmp_path / "model.json", tmp_path / "model")
    np.savez(tmp_path / "inputs.npz", x0=np.random.RandomState(0).randn(2, 3, 8, 8).astype("float32"))
    assert sweep.apart(tmp_path) == 0
    graph = ProgramGraph(program, parameters)
    (norm,) = [one for one in graph.operators if one.type == "batch_norm"]
    graph.set_attribute(norm, "epsilon", 2e-5)
    graph.write(tmp_path / "model")
    assert 0 < sweep.apart(tmp_path) < 1e-3
