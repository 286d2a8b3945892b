"""``forms=["lite"]``: Paddle Lite's files: checked, recorded, at the gate; the QDQ pair for Paddle 2.

Where no Paddle Lite is installed (``PADDLE_LITE_OPT``) a small script stands in for its ``opt``: what it writes is the
program that it was given, so what is told of an ``arm`` file, which no machine here could run, is the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from toy import Images, Strange, TinyNet, fit, hapi_model

from paddlelite_callbacks import (
    BenchOptions,
    Budget,
    ExportBenchCallback,
    ExportOptions,
    PACTQuantCallback,
    ptq_int8,
)
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.requantizing import on_symmetric_grid
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.lite_program import prepare_for_lite_
from paddlelite_callbacks.export.model_files import find_model
from paddlelite_callbacks.quant.prepare import activation_quantizers
from paddlelite_callbacks.report.gate import judge
from paddlelite_callbacks.report.record import read_records

LITE = os.environ.get("PADDLE_LITE_OPT")
BENCH = BenchOptions(warmup=0, repeats=1, engines=["paddle"], peak_memory=False, roofline=False)
X = Images(8).images


@pytest.fixture
def opt(tmp_path_factory, monkeypatch):
    monkeypatch.delenv("PADDLE_LITE_OPT", raising=False)
    path = tmp_path_factory.mktemp("tool") / "opt"
    path.write_text(
        '#!/bin/sh\nfor a in "$@"; do case $a in --optimize_out=*) o=${a#*=};; --model_file=*) m=${a#*=};; esac; done\n'
        "cp $m $o.nb\n"
    )
    path.chmod(0o755)
    return path


def exporter(folder, opt, *, forms=("lite",), targets=("arm",), budget=None, eval_data=None, **options):
    export = ExportOptions(forms=list(forms), targets=list(targets), opt=opt, report=False, **options)
    return ExportBenchCallback(
        folder, name="n", benchmark=BENCH, export=export, budget=budget, eval_data=eval_data, verbose=0
    )


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("symmetric", [False, True])
def test_files_are_written_checked_recorded_and_count_at_the_gate(symmetric, opt, tmp_path):
    model = hapi_model(TinyNet())
    budget = Budget(size_mb=0.5)
    before = [PACTQuantCallback(activation_symmetric=True)] if symmetric else []
    fit(model, [*before, exporter(tmp_path, opt, targets=["arm", "x86"], budget=budget)])
    home = tmp_path / "n"
    made = ["model.arm.nb", *(["model.int8.arm.nb"] if symmetric else []), "model.x86.nb"]
    assert [name for name in names(home) if name.endswith(".nb")] == made
    assert not (home / ".lite").exists()
    (record,) = read_records(tmp_path / "runs.jsonl")
    sizes = {Path(a.path).name: a.size_mb for a in record.artefacts if a.kind.startswith("lite")}
    assert sizes == {name: (home / name).stat().st_size / 1e6 for name in made}
    assert record.size_mb == min(sizes.values())
    assert {c.value for c in judge(record, budget).criteria if c.name == "size_mb"} == {record.size_mb}
    verdicts = {(v.kind, v.precision): v for v in record.verdicts}
    for precision in ("fp32", "int8") if symmetric else ("fp32",):
        assert verdicts["lite-arm", precision].agrees is None
        assert "not verified here (Paddle Lite runs it on ARM alone)" in verdicts["lite-arm", precision].text
        assert "agrees in Paddle" in verdicts["lite-arm", precision].text
    assert "a binary opt cannot run it" in verdicts["lite-x86", "fp32"].text
    files = {tuple(e["sha256"]): e for e in json.loads((home / "deploy.json").read_text())["files"]}
    assert "not verified here" in files[("model.arm.nb",)]["verdicts"]["paddlelite-arm"]
    assert {row.engine for row in record.latencies} == {"paddle"}  # they are not timed


def test_the_pair_for_paddle_2_of_a_symmetric_network_computes_what_was_trained(tmp_path):
    model = hapi_model(TinyNet())
    callback = exporter(tmp_path, None, forms=["pdmodel"])
    fit(model, [PACTQuantCallback(activation_symmetric=True), callback])
    assert {"model.int8.pdmodel", "model.int8.pdiparams", "model.json"} < set(names(tmp_path / "n"))
    assert "model.pdmodel" not in names(tmp_path / "n")
    (entry,) = [a for a in callback.record.artefacts if a.kind == "pdmodel"]
    size = sum((tmp_path / "n" / f"model.int8.{end}").stat().st_size for end in ("pdmodel", "pdiparams")) / 1e6
    assert (entry.error, entry.size_mb, callback.record.size_mb) == (None, size, size)
    assert [v.text for v in callback.record.verdicts if v.kind == "pdmodel"] == ["agrees"]


def test_a_network_on_other_grids_is_told_what_moving_it_would_cost(opt, tmp_path, caplog):
    model = hapi_model(TinyNet())
    data = Images(64)
    callback = exporter(tmp_path, opt, eval_data=data)
    fit(model, [PACTQuantCallback(), callback])
    assert "No int8 file for Paddle Lite will be written" in caplog.text  # before training
    assert [name for name in names(tmp_path / "n") if name.endswith(".nb")] == ["model.arm.nb"]
    (note,) = [note for note in callback.record.notes if "Paddle Lite" in note]
    moved = on_symmetric_grid(model.network)
    assert {q.levels() for q in activation_quantizers(moved).values()} == {(-127, 127)}
    for network in (model.network, moved):
        network.eval()
        with paddle.no_grad():
            right = network(paddle.to_tensor(data.images)).numpy().argmax(1) == data.labels.reshape(-1)
        assert f"{right.mean():.4g}" in note
    assert "64 images). Train with activation_symmetric=True" in note


def test_without_evaluation_the_change_of_the_output_is_told(opt, tmp_path):
    network = ptq_int8(TinyNet(), [paddle.to_tensor(X)])
    record = exporter(tmp_path, opt).export(network, X)
    (note,) = [note for note in record.notes if "Paddle Lite" in note]
    with paddle.no_grad():
        changed = np.abs((network(paddle.to_tensor(X)) - on_symmetric_grid(network)(paddle.to_tensor(X))).numpy()).max()
    assert f"would change by {changed:.3g} of" in note


def test_a_missing_opt_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.delenv("PADDLE_LITE_OPT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    model = hapi_model(TinyNet())
    before = {key: value.numpy() for key, value in model.network.state_dict().items()}
    with pytest.raises(ExportError, match=r"paddlelite==2\.13rc0.*Nothing was trained"):
        fit(model, [exporter(tmp_path / "out", None)])
    for key, value in model.network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])


def test_what_has_no_such_form_costs_that_file_alone_and_is_said_before_training(opt, tmp_path):
    record = exporter(tmp_path, opt).export(Strange(), X)
    errors = {a.kind: a.error for a in record.artefacts}
    assert "lp_pool2d, after the layer of the parameter 'stem." in errors["lite-arm"]
    assert errors["paddle"] is None
    with pytest.raises(ExportError, match=r"forms=\['lite'\].*lp_pool2d"):
        fit(hapi_model(Strange()), [exporter(tmp_path, opt)])


def test_a_tool_that_dies_costs_its_file_alone(opt, tmp_path):
    opt.write_text("#!/bin/sh\nkill -11 $$\n")
    record = exporter(tmp_path, opt).export(TinyNet(), X)
    errors = {a.kind: a.error for a in record.artefacts}
    assert "Paddle Lite's opt (for arm) failed: it was killed by SIGSEGV" in errors["lite-arm"]
    assert errors["paddle"] is None
    assert record.size_mb == next(a.size_mb for a in record.artefacts if a.kind == "paddle")


def test_a_file_of_a_program_that_computes_something_else_is_removed(opt, tmp_path, monkeypatch):
    def spoil(graph):
        prepare_for_lite_(graph)
        graph.parameters = {name: value * np.float32(1.1) for name, value in graph.parameters.items()}

    monkeypatch.setattr("paddlelite_callbacks.export.paddle_program.prepare_for_lite_", spoil)
    record = exporter(tmp_path, opt).export(TinyNet(), X)
    assert "computes something else than the network" in {a.kind: a.error for a in record.artefacts}["lite-arm"]
    assert not list((tmp_path / "n").glob("*.nb"))


def test_a_next_export_without_them_leaves_none(opt, tmp_path):
    network = ptq_int8(TinyNet(), [paddle.to_tensor(X)], activation_symmetric=True)
    for forms in (["lite", "pdmodel"], []):
        exporter(tmp_path, opt, forms=forms).export(network, X)
        left = [name for name in names(tmp_path / "n") if name.endswith((".nb", ".pdmodel"))]
        assert len(left) == (3 if forms else 0)


KILLED = """
import sys, time
import numpy as np, paddle
from paddlelite_callbacks import BenchOptions, ExportBenchCallback, ExportOptions
from paddlelite_callbacks.export.lite import LiteTool
from toy import TinyNet
def slow(self, *given, **options):
    print("writing", flush=True)
    time.sleep(60)
LiteTool.write = slow
export = ExportOptions(forms=["lite"], opt=sys.argv[2], report=False)
bench = BenchOptions(engines=["paddle"], warmup=0, repeats=1, peak_memory=False, roofline=False)
callback = ExportBenchCallback(sys.argv[1], name="n", benchmark=bench, export=export, verbose=0)
callback.export(TinyNet(), np.zeros([2, 3, 8, 8], "float32"))
"""


def test_a_kill_while_writing_leaves_the_former_set(opt, tmp_path):
    exporter(tmp_path, opt).export(TinyNet(), X)
    former = {file.name: file.read_bytes() for file in (tmp_path / "n").iterdir()}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), str(opt)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "writing" in child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    kept = {file.name: file.read_bytes() for file in (tmp_path / "n/previous_export").iterdir()}
    for name in ("model.arm.nb", "model.json", "model.pdiparams", "deploy.json"):
        assert kept[name] == former[name]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"targets": "arm"}, ValueError, r"write targets=\['arm'\]"),
        ({"targets": ["ios"]}, ValueError, r"some of \['arm', 'x86'\], got \['ios'\]"),
        ({"targets": []}, ValueError, "leave it out for"),
        ({"opt": 3}, TypeError, "opt must be a path, got int"),
        ({"onnx_opset": 12}, ValueError, r"onnx_opset must be a whole number in \[13, 19\], got 12"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, error, said):
    with pytest.raises(error, match=said):
        ExportOptions(**options)


@pytest.mark.parametrize("kind", ["float", "old", "symmetric", "other"])
def test_a_finished_folder_from_the_command_line(kind, opt, tmp_path, capsys, monkeypatch):
    network = TinyNet()
    if kind in ("symmetric", "other"):
        network = ptq_int8(network, [paddle.to_tensor(X)], activation_symmetric=kind == "symmetric")
    exporter(tmp_path, opt, forms=["pdmodel"] if kind == "old" else []).export(network, X)
    source = tmp_path / "n" / ("model.pdmodel" if kind == "old" else "model.json")
    before, out = names(tmp_path / "n"), tmp_path / "out"
    command = ["export", str(source), str(out), "--input", "2x3x8x8", "--forms", "lite", "--opt", str(opt)]
    assert main(command) == (1 if kind == "other" else 0)
    said = capsys.readouterr()
    assert names(tmp_path / "n") == before
    if kind == "other":
        assert "train with activation_symmetric=True" in said.err
        assert not out.exists()
        return
    file = "model.int8.arm.nb" if kind == "symmetric" else "model.arm.nb"
    assert names(out) == ["deploy.json", file]
    assert "not verified here (Paddle Lite runs it on ARM alone)" in said.out
    (entry,) = json.loads((out / "deploy.json").read_text())["files"]
    assert (entry["kind"], entry["precision"]) == ("lite-arm", "int8" if kind == "symmetric" else "fp32")
    assert "not verified here" in entry["verdicts"]["paddlelite-arm"]
    assert main([*command, "--targets", "arm", "x86"]) == (1 if kind == "symmetric" else 0)
    assert ("int8 kernels for x86 are faulty" in capsys.readouterr().err) == (kind == "symmetric")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(command[:-2]) == 1
    assert "paddlelite==2.13rc0" in capsys.readouterr().err


def test_a_folder_with_both_int8_programs_is_one_model(opt, tmp_path, capsys):
    network, home = ptq_int8(TinyNet(), [paddle.to_tensor(X)], activation_symmetric=True), tmp_path / "n"
    exporter(tmp_path, opt, forms=["pdmodel"]).export(network, X)
    assert {"model.json", "model.int8.pdmodel"} < set(names(home))
    assert find_model(home) == find_model(home / "model.json")
    assert find_model(home / "model.int8").path == home / "model.int8.pdmodel"
    command = ["export", str(home), str(tmp_path / "out"), "--input", "2x3x8x8", "--forms", "lite", "--opt", str(opt)]
    assert main(command) == 0
    assert names(tmp_path / "out") == ["deploy.json", "model.int8.arm.nb"]
    capsys.readouterr()
    for file in ("model.json", "model.pdiparams"):
        (home / file).rename(home / file.replace("model", "other"))
    with pytest.raises(ValueError, match=r"holds several models \(model\.int8, other\): name one"):
        find_model(home)


@pytest.mark.slow
@pytest.mark.skipif(not LITE, reason="PADDLE_LITE_OPT names no Python with paddlelite")
@pytest.mark.parametrize("symmetric", [False, True])
def test_with_paddle_lite_itself(symmetric, tmp_path):
    model = hapi_model(TinyNet())
    before = [PACTQuantCallback(activation_symmetric=True)] if symmetric else []
    callback = exporter(tmp_path, None, targets=["arm", "x86"], strict=True)
    fit(model, [*before, callback])
    assert [v.text for v in callback.record.verdicts if v.kind == "lite-x86"] == ["agrees"]
    made = {a.kind + a.precision: a.size_mb for a in callback.record.artefacts}
    assert ("lite-armint8" in made) == symmetric
