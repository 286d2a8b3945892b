"""Programs in Paddle 2's format: what Paddle's own inference computes from them is what the network computes.

Every operator rule is tried by a small network (see `operator_cases`); a wrong attribute in a rule is seen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from crashing import Server
from operator_cases import CASES, Case, network_of
from paddle import nn
from paddle.static import InputSpec
from places import HELPERS
from toy import Strange, TinyNet

from paddlelite_callbacks.backbone.registry import build
from paddlelite_callbacks.export import legacy_program, pir_operators
from paddlelite_callbacks.export.legacy_program import UnknownOperatorError, write_legacy_program
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.pir_operators import OPERATORS
from paddlelite_callbacks.export.pir_program import read_pir_program
from paddlelite_callbacks.export.program_desc import read_program_desc
from paddlelite_callbacks.export.slim_program import number_parameters
from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_
from paddlelite_callbacks.models import lite_hrnet_18
from paddlelite_callbacks.nn.nested import flat_outputs

CHILD = HELPERS.joinpath("paddle_child.py")
PADDLE_2 = os.environ.get("PADDLE_2_PYTHON")  # path of a Python with paddlepaddle 2.6.2
NETWORKS = {
    "PPLCNet_x0_25": (lambda: build("PPLCNet_x0_25", num_classes=10), 64),
    "MobileNetV3_small_x0_35": (lambda: build("MobileNetV3_small_x0_35", num_classes=10), 64),
    "resnet18": (lambda: build("resnet18", num_classes=10), 64),
    "lite_hrnet_18": (lite_hrnet_18, 64),
}


def exported(network: nn.Layer, folder: Path, inputs: list[np.ndarray], specs: list[InputSpec]) -> list[np.ndarray]:
    """Export, convert, keep the inputs for `run`; returns what the network gives."""
    folder.mkdir(parents=True)
    network.eval()
    with paddle.no_grad():
        outputs = [one.numpy() for one in flat_outputs(network(*[paddle.to_tensor(x) for x in inputs]))]
    export_paddle(network, folder, input_spec=specs)
    number_parameters(folder / "model.json")
    np.savez(folder / "inputs.npz", **{f"x{i}": x for i, x in enumerate(inputs)})
    return outputs


def run(folders: list[Path], python: str = sys.executable, **environment: str) -> None:
    """Run ``model.pdmodel`` in each folder with the inference engine of a Paddle."""
    waiting = [str(folder) for folder in folders]
    while waiting:
        subprocess.run(
            [python, str(CHILD), *waiting],
            check=False,
            capture_output=True,
            timeout=600,
            env={**os.environ, **environment},
        )
        died = [i for i, f in enumerate(waiting) if said_of(Path(f)) == "the process died"]
        waiting = waiting[died[0] + 1 :] if died else []


def said_of(folder: Path) -> str | None:
    error = folder / "error.txt"
    return error.read_text() if error.is_file() else None


def difference(folder: Path, expected: list[np.ndarray]) -> float:
    """Largest difference over the largest value; infinite where it did not run or gives other shapes."""
    if said_of(folder) is not None:
        return float("inf")
    with np.load(folder / "outputs.npz") as file:
        got = [file[f"y{i}"] for i in range(len(file.files))]
    if [one.shape for one in got] != [one.shape for one in expected]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        a, b = a.astype("float64"), b.astype("float64")
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return float("inf")
        worst = max(
            worst, float(np.nanmax(np.abs(a - b), initial=0.0)) / max(1.0, float(np.nanmax(np.abs(a), initial=0)))
        )
    return worst


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """All cases exported and converted; folder and expected outputs by name."""
    home, made = tmp_path_factory.mktemp("cases"), {}
    for name, case in CASES.items():
        made[name] = home / name, exported(network_of(case), home / name, case.inputs(), case.specs())
        write_legacy_program(home / name / "model.json", home / name / "model")
    return made


@pytest.fixture(scope="module")
def ran(cases):
    run([folder for folder, _ in cases.values()])
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_in_paddles_inference_what_it_computes_in_the_network(name, ran):
    folder, expected = ran[name]
    assert said_of(folder) is None
    assert difference(folder, expected) < 1e-5


@pytest.mark.slow
def test_every_rule_is_tried_by_a_case(cases):
    used = {op.name for folder, _ in cases.values() for op in read_pir_program(folder / "model.json").operations}
    assert set(OPERATORS) - used == set()


@pytest.mark.slow
@pytest.mark.skipif(PADDLE_2 is None, reason="PADDLE_2_PYTHON names no Python with paddlepaddle 2.6.2")
def test_paddle_2_computes_the_same(cases, tmp_path):
    folders = {name: shutil.copytree(folder, tmp_path / name) for name, (folder, _) in cases.items()}
    run(list(folders.values()), PADDLE_2)
    off = {name: said_of(folder) for name, folder in folders.items() if difference(folder, cases[name][1]) > 1e-5}
    assert off == {}


def _wrong(name: str, **changes):
    return lambda: (name, replace(OPERATORS[name], **changes))


_MUTATIONS = {
    "activation-elu": _wrong("elu", left_out={"alpha": None}),
    "activation-hardsigmoid": _wrong("hardsigmoid", left_out={"slope": None}),
    "activation-leaky_relu": _wrong("leaky_relu", renamed={}, left_out={"negative_slope": None}),
    "binary-subtract": _wrong("subtract", inputs=("Y", "X")),
    "reduce-mean": _wrong("mean", left_out={"keepdim": None}),
    "shape-tril": _wrong("tril", fixed={"lower": False}),
    "shape-transpose": _wrong("transpose", renamed={}, left_out={"perm": None}, fixed={"axis": [0, 3, 2, 1]}),
    "layer-batch_norm": _wrong(
        "batch_norm_", inputs=("X", "Variance", "Mean", "Scale", "Bias"), outputs=OPERATORS["batch_norm_"].outputs
    ),
    "layer-layer_norm": _wrong("layer_norm", left_out={"epsilon": None}),
    "layer-conv2d": _wrong("conv2d", left_out={"strides": None}),
    "layer-depthwise": _wrong("depthwise_conv2d", left_out={"groups": None}),
    "shape-scale": _wrong("scale", left_out={"bias_after_scale": None}),
    "shape-pad": _wrong("pad3d", left_out={"pad_value": None}),
    "reduce-cumprod": _wrong("cumprod", left_out={"dim": None}, fixed={"dim": 1}),
}


def test_a_wrong_attribute_is_seen(tmp_path, monkeypatch):
    expected, right = {}, []
    for name in _MUTATIONS:
        case = CASES[name]
        expected[name] = exported(network_of(case), tmp_path / name, case.inputs(), case.specs())
        write_legacy_program(tmp_path / name / "model.json", tmp_path / name / "model")
        shutil.copytree(tmp_path / name, tmp_path / f"right-{name}")
        right.append(tmp_path / f"right-{name}")
        with monkeypatch.context() as patched:
            patched.setitem(OPERATORS, *_MUTATIONS[name]())
            write_legacy_program(tmp_path / name / "model.json", tmp_path / name / "model")
    run([*right, *(tmp_path / name for name in _MUTATIONS)])
    assert [name for name in _MUTATIONS if difference(tmp_path / f"right-{name}", expected[name]) > 1e-5] == []
    assert [name for name in _MUTATIONS if difference(tmp_path / name, expected[name]) < 1e-5] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_free_batch(name, tmp_path):
    make, size = NETWORKS[name]
    x = np.random.RandomState(0).rand(2, 3, size, size).astype("float32")
    network = make()
    settle_(network, paddle.to_tensor(x))
    expected = exported(network, tmp_path / name, [x], [InputSpec([None, 3, size, size], name="x0")])
    program, parameters = write_legacy_program(tmp_path / name / "model.json", tmp_path / name / "model")
    assert parameters == tmp_path / name / "model.pdiparams"
    assert program.stat().st_size < 0.6 * (tmp_path / name / "model.json").stat().st_size
    python = [sys.executable, *([PADDLE_2] if PADDLE_2 else [])]
    for one in python:
        run([tmp_path / name], one)
        assert difference(tmp_path / name, expected) < 1e-4, (one, said_of(tmp_path / name))


def test_a_set_of_its_own_shares_no_name(tmp_path):
    x = np.random.RandomState(0).rand(2, 3, 8, 8).astype("float32")
    expected = exported(TinyNet(), tmp_path / "a", [x], [InputSpec([None, 3, 8, 8], name="x0")])
    program, parameters = write_legacy_program(tmp_path / "a/model.json", tmp_path / "b/net")
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == ["net.pdiparams", "net.pdmodel"]
    assert (program.name, parameters.read_bytes()) == ("net.pdmodel", (tmp_path / "a/model.pdiparams").read_bytes())
    shutil.copy(tmp_path / "a/inputs.npz", tmp_path / "b")
    run([tmp_path / "b"], PROGRAM_NAME="net")
    assert difference(tmp_path / "b", expected) < 1e-5
    desc = read_program_desc(program)
    assert [op.type for op in desc.blocks[0].ops][:1] == ["feed"]
    assert [op.type for op in desc.blocks[0].ops][-1:] == ["fetch"]


def test_an_unknown_operator_is_named_with_its_layer(tmp_path):
    spec = [InputSpec([None, 3, 8, 8], name="x0")]
    export_paddle(Strange(), tmp_path, input_spec=spec)
    with pytest.raises(UnknownOperatorError, match=r"lp_pool2d, .*the layer of the parameter 'stem\.(bias|weight)'"):
        write_legacy_program(tmp_path / "model.json", tmp_path / "model")
    network = nn.Sequential(Strange())
    network.eval()
    paddle.jit.save(network, str(tmp_path / "own"), input_spec=spec)  # with the scopes that the export leaves out
    with pytest.raises(UnknownOperatorError, match=r"lp_pool2d, of the layer Strange, .*pool2d.*leave"):
        write_legacy_program(tmp_path / "own.json", tmp_path / "own")
    assert not list(tmp_path.glob("*.pdmodel"))


class Loop(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2D(3, 4, 3)

    def forward(self, x):
        y = self.stem(x)
        if y.mean() > 0:  # noqa: SIM108 (what is tested)
            y = y * 2
        else:
            y = y * 3
        return y


def test_a_branch_is_refused(tmp_path):
    export_paddle(Loop(), tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x0")])
    with pytest.raises(UnknownOperatorError, match="branch or a loop"):
        write_legacy_program(tmp_path / "model.json", tmp_path / "model")


@pytest.fixture
def program(tmp_path):
    export_paddle(TinyNet(), tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x0")])
    return tmp_path / "model.json"


def test_damaged_and_foreign_files_are_refused_by_name(program, tmp_path):
    text, parameters = program.read_text(), tmp_path / "model.pdiparams"
    values = parameters.read_bytes()
    for content, said in (
        (text[:-40], "truncated"),
        ("{}", "not a program of Paddle 3"),
        ("version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (text.replace("0.t_dtensor", "0.t_strange"), "programs of Paddle 3.3 "),
    ):
        program.write_text(content)
        with pytest.raises(ValueError, match=rf"model\.json.*{said}"):
            write_legacy_program(program, tmp_path / "out")
    program.write_text(text)
    parameters.write_bytes(values[:-5])
    with pytest.raises(ValueError, match=r"model\.pdiparams is truncated"):
        write_legacy_program(program, tmp_path / "out")
    export_paddle(TinyNet(width=6), tmp_path / "wide", input_spec=[InputSpec([None, 3, 8, 8])])
    shutil.copy(tmp_path / "wide/model.pdiparams", parameters)
    with pytest.raises(ValueError, match=r"model\.pdiparams does not belong to model\.json.*'bn1"):
        write_legacy_program(program, tmp_path / "out")
    export_paddle(nn.Sequential(nn.Conv2D(3, 2, 1)), tmp_path / "one", input_spec=[InputSpec([None, 3, 8, 8])])
    shutil.copy(tmp_path / "one/model.pdiparams", parameters)
    with pytest.raises(ValueError, match=r"holds 2 tensors"):
        write_legacy_program(program, tmp_path / "out")
    parameters.unlink()
    with pytest.raises(ValueError, match=r"model\.pdiparams is missing"):
        write_legacy_program(program, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_damaged_pdmodel_is_refused_by_name(program, tmp_path):
    written, _ = write_legacy_program(program, tmp_path / "model")
    whole = written.read_bytes()
    assert len(read_program_desc(written).blocks[0].ops) > 5
    for content, said in (
        (whole[:-9], "truncated"),
        (b"", "empty"),
        (b"PK\x03\x04" + whole, "zip"),
        (b"\x0a\x00", "operation"),
    ):
        written.write_bytes(content)
        with pytest.raises(ValueError, match=rf"model\.pdmodel.*{said}"):
            read_program_desc(written)


def test_outputs_keep_their_names_unless_these_are_taken(program, tmp_path):
    content = json.loads(program.read_text())
    for given, name in (("scores", "scores"), ("x0", "x0_"), ("tmp_1", "tmp_1"), ("bn1._mean", "bn1._mean_")):
        for op in content["program"]["regions"][0]["blocks"][0]["ops"]:
            if op["#"] == "1.fetch":
                next(item["AT"] for item in op["A"] if item["N"] == "name")["D"] = given
        program.write_text(json.dumps(content))
        written, _ = write_legacy_program(program, tmp_path / "model")
        block = read_program_desc(written).blocks[0]
        assert block.ops[-1].inputs[0].arguments[0] == name
        names = [item.name for item in block.vars]
        assert len(set(names)) == len(names)
        np.savez(tmp_path / "inputs.npz", x0=np.ones([1, 3, 8, 8], "float32"))
        run([tmp_path])
        assert said_of(tmp_path) is None


def test_an_attribute_that_paddle_2_does_not_know_is_refused(program, tmp_path):
    content = json.loads(program.read_text())
    for op in content["program"]["regions"][0]["blocks"][0]["ops"]:
        if op["#"] == "1.relu":
            op["A"] = [{"N": "novelty", "AT": {"#": "0.a_i32", "D": 3}}]
    program.write_text(json.dumps(content))
    with pytest.raises(UnknownOperatorError, match="novelty"):
        write_legacy_program(program, tmp_path / "model")


def test_killed_while_the_pair_is_written(tmp_path):
    """The former pair, or the new one; where the program stands, the parameters are its own."""
    for name, width in (("old", 4), ("new", 6)):
        export_paddle(TinyNet(width=width), tmp_path / name, input_spec=[InputSpec([None, 3, 8, 8])])
    pairs, seen = {}, set()
    server = Server("scenes")
    try:
        for name in ("old", "new"):
            files = write_legacy_program(tmp_path / name / "model.json", tmp_path / name / "whole")
            pairs[name] = tuple(file.read_bytes() for file in files)
        for event in range(60):
            folder = tmp_path / str(event)
            write_legacy_program(tmp_path / "old/model.json", folder / "phone")
            ended = server.run("legacy", folder, source=str(tmp_path / "new"), kill={"event": event}) == 0
            files = folder / "phone.pdmodel", folder / "phone.pdiparams"
            if files[0].is_file():
                (found,) = [k for k, pair in pairs.items() if pair == tuple(file.read_bytes() for file in files)]
                seen.add(found)
            write_legacy_program(tmp_path / "new/model.json", folder / "phone")
            assert pairs["new"] == tuple(file.read_bytes() for file in files)
            assert sorted(path.name for path in folder.iterdir()) == ["phone.pdiparams", "phone.pdmodel"]
            if ended:
                break
        assert ended
        assert seen == {"old", "new"}
    finally:
        server.close()


def test_attributes_that_paddle_ignores_but_paddle_lite_reads(tmp_path):
    """Paddle's own kernel of hard_swish goes by none of its attributes, so that no run of it can tell."""
    case = replace(CASES["activation-relu"], make=lambda: lambda x: nn.functional.relu6(nn.functional.hardswish(x)))
    exported(network_of(case), tmp_path / "a", case.inputs(), case.specs())
    program, _ = write_legacy_program(tmp_path / "a/model.json", tmp_path / "a/model")
    ops = {op.type: {a.name: a.f for a in op.attrs} for op in read_program_desc(program).blocks[0].ops}
    assert {key: ops["hard_swish"][key] for key in ("threshold", "scale", "offset")} == {
        "threshold": 6.0,
        "scale": 6.0,
        "offset": 3.0,
    }
    assert ops["relu6"]["threshold"] == 6.0


def test_results_that_only_training_needs_are_left_out(tmp_path):
    """Paddle Lite for x86 knows no ReserveSpace and ends the process."""
    case = CASES["layer-batch_norm"]
    exported(network_of(case), tmp_path / "a", case.inputs(), case.specs())
    program, _ = write_legacy_program(tmp_path / "a/model.json", tmp_path / "a/model")
    block = read_program_desc(program).blocks[0]
    (norm,) = [op for op in block.ops if op.type == "batch_norm"]
    slots = {item.parameter for item in norm.outputs}
    assert slots == {"Y", "MeanOut", "VarianceOut", "SavedMean", "SavedVariance"}
    used = {name for op in block.ops for item in (*op.inputs, *op.outputs) for name in item.arguments}
    assert {item.name for item in block.vars} == used


def test_the_table_and_the_converter_know_each_other():
    assert legacy_program.OPERATORS is pir_operators.OPERATORS
    assert all(isinstance(case, Case) for case in CASES.values())
