"""``forms=["pdmodel"]``: the guide's own pair of files beside the usual ones, checked, measured, at the gate."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from exporting import grouped
from paddle.static import InputSpec
from toy import Strange, TinyNet, fit, hapi_model

from paddlelite_callbacks import Budget, ExportBenchCallback, ExportOptions, PACTConfig, PACTQuantCallback
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.engines import PaddleInference
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.model_files import find_model
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.pir_operators import OPERATORS, Operator
from paddlelite_callbacks.report.gate import judge
from paddlelite_callbacks.report.record import read_records

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}


def answers(folder, x, suffix=".pdmodel"):
    files = folder / f"model{suffix}", folder / "model.pdiparams"
    artefact = Artefact(kind="pdmodel", path=files[0], files=files)
    return PaddleInference(onednn=False).load(artefact, threads=1)([x])[0]


@pytest.mark.parametrize("quantised", [False, True])
def test_the_pair_is_written_checked_and_counts_at_the_gate(quantised, tmp_path):
    model = hapi_model(TinyNet())
    budget = Budget(size_mb=0.5)
    callback = ExportBenchCallback(
        tmp_path, **grouped(name="n", engines=["paddle"], forms=["pdmodel"], budget=budget, **QUICK)
    )
    before = [PACTQuantCallback(PACTConfig(quantize_outputs=True))] if quantised else []
    fit(model, [*before, callback])
    home, precision = tmp_path / "n", "int8" if quantised else "fp32"
    (record,) = read_records(tmp_path / "runs.jsonl")
    (entry,) = [a for a in record.artefacts if a.kind == "pdmodel"]
    assert (entry.precision, entry.error) == (precision, None)
    size = sum((home / name).stat().st_size for name in ("model.pdmodel", "model.pdiparams")) / 1e6
    assert entry.size_mb == record.size_mb == size
    verdict = judge(record, budget)
    criteria = (*verdict.criteria, *verdict.rows[0].criteria)
    assert [c.value for c in criteria if c.name == "size_mb"] == [size, size]
    (verdict,) = [v for v in record.verdicts if v.kind == "pdmodel"]
    assert verdict.agrees
    assert {row.engine for row in record.latencies} == {"paddle"}  # it is not timed
    files = {entry["kind"]: entry for entry in json.loads((home / "deploy.json").read_text())["files"]}
    assert files["pdmodel"]["verdicts"] == {"paddle.pdmodel": "agrees"}
    assert sorted(files["pdmodel"]["sha256"]) == ["model.pdiparams", "model.pdmodel"]
    x = np.random.RandomState(1).rand(3, 3, 8, 8).astype("float32")
    np.testing.assert_allclose(answers(home, x), answers(home, x, ".json"), atol=1e-5)
    if not quantised:
        model.network.eval()
        np.testing.assert_allclose(answers(home, x), model.network(paddle.to_tensor(x)).numpy(), atol=1e-5)


def test_a_next_export_without_it_leaves_none(tmp_path):
    for forms in (["pdmodel"], []):
        callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=["paddle"], forms=forms, **QUICK))
        callback.export(TinyNet(), np.zeros([2, 3, 8, 8], "float32"))
        assert (tmp_path / "n/model.pdmodel").exists() == bool(forms)
    assert not (tmp_path / "n/previous_export").exists()


def test_what_has_no_such_form_costs_that_file_alone_and_names_the_layer(tmp_path):
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=["paddle"], forms=["pdmodel"], **QUICK))
    record = callback.export(Strange(), np.zeros([2, 3, 8, 8], "float32"))
    kinds = {a.kind: a for a in record.artefacts}
    assert kinds["paddle"].error is None
    assert "lp_pool2d, after the layer of the parameter 'stem." in kinds["pdmodel"].error
    assert not (tmp_path / "n/model.pdmodel").exists()
    assert record.size_mb == kinds["paddle"].size_mb
    strict = ExportBenchCallback(
        tmp_path, **grouped(name="s", engines=["paddle"], forms=["pdmodel"], strict=True, **QUICK)
    )
    with pytest.raises(ExportError, match=r"no pdmodel fp32 file.*lp_pool2d"):
        strict.export(Strange(), np.zeros([2, 3, 8, 8], "float32"))


def test_what_has_no_such_form_is_said_before_training(tmp_path):
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=["paddle"], forms=["pdmodel"], **QUICK))
    model = hapi_model(Strange())
    before = {key: value.numpy() for key, value in model.network.state_dict().items()}
    with pytest.raises(ExportError, match=r"forms=\['pdmodel'\].*lp_pool2d, after the layer of the parameter 'stem\."):
        fit(model, [callback])
    for key, value in model.network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
    assert not (tmp_path / "n").exists()


def test_a_pair_that_computes_something_else_is_removed_and_the_other_program_keeps_its_parameters(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(OPERATORS, "relu", Operator("sigmoid"))
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=["paddle"], forms=["pdmodel"], **QUICK))
    x = np.random.RandomState(1).rand(2, 3, 8, 8).astype("float32")
    network = TinyNet()
    record = callback.export(network, x)
    assert "computes something else" in {a.kind: a for a in record.artefacts}["pdmodel"].error
    assert sorted(p.name for p in (tmp_path / "n").glob("model.*")) == [
        "model.json",
        "model.pdiparams",
        "model.pdparams",
    ]
    network.eval()
    np.testing.assert_allclose(answers(tmp_path / "n", x, ".json"), network(paddle.to_tensor(x)).numpy(), atol=1e-5)


@pytest.mark.parametrize(("given", "said"), [("pdmodel", r"forms=\['pdmodel'\]"), (["nb"], r"'lite'\], got")])
def test_other_forms_are_refused_at_once(given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        ExportBenchCallback(tmp_path, export=ExportOptions(forms=given))


def test_a_finished_folder_from_the_command_line(tmp_path, capsys):
    export_paddle(TinyNet(), tmp_path / "from", input_spec=[InputSpec([None, 3, 8, 8], name="x0")])
    command = ["export", str(tmp_path / "from"), str(tmp_path / "to"), "--input", "1x3x8x8", "--forms", "pdmodel"]
    assert main(command) == 0
    assert "model.pdmodel" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["deploy.json", "model.pdiparams", "model.pdmodel"]
    x = np.random.RandomState(1).rand(2, 3, 8, 8).astype("float32")
    np.testing.assert_allclose(answers(tmp_path / "to", x), answers(tmp_path / "from", x, ".json"), atol=1e-6)
    assert find_model(tmp_path / "to").path.name == "model.pdmodel"
    assert main([*command[:1], str(tmp_path / "to"), str(tmp_path / "x"), *command[3:]]) == 1
    assert "already" in capsys.readouterr().err
    assert main([*command, "--fp16"]) == 1
    assert "add onnx" in capsys.readouterr().err


def test_a_named_program_is_the_one_that_is_taken(tmp_path):
    export_paddle(TinyNet(), tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x0")])
    command = ["export", str(tmp_path), str(tmp_path / "to"), "--input", "1x3x8x8", "--forms", "pdmodel"]
    assert main(command) == 0
    (tmp_path / "to/model.pdmodel").rename(tmp_path / "model.pdmodel")
    for name in ("model.pdmodel", "model.json"):
        assert find_model(tmp_path / name).path.name == name
