"""The notebooks of ``docs/``: public names, two languages of the same code, nothing stored, and they run."""

from __future__ import annotations

import ast
import json
import re

import pytest
from installed import needs
from places import HELPERS, ROOT

import paddlelite_callbacks
from paddlelite_callbacks.report.record import read_records

FOLDER = ROOT / "docs" / "notebooks"
NAMES = ("first-ladder", "own-pictures")
ENGINE = "onnxruntime"
# Put behind the cell tagged "parameters", as papermill does.
QUICK = {
    "first-ladder": f"EPOCHS, IMAGES = dict.fromkeys(EPOCHS, 1), 64\nENGINES, REPEATS = [{ENGINE!r}], 3",
    "own-pictures": (
        f"COUNT, SIZE, TEACHER_EPOCHS, EPOCHS = 5, 32, 1, 1\nCANDIDATES = ['mobilenet_v3_small']\n"
        f"ENGINES, REPEATS = [{ENGINE!r}], 3"
    ),
}
# Conversions are forked from one process, as those of the other tests are.
WARM = f"""
import os, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append({str(HELPERS)!r})
from paddlelite_callbacks.export import onnx_export
from warm_converter import _ConverterOfAScript
onnx_export.run_module = _ConverterOfAScript().run_module
sys.path.remove({str(HELPERS)!r})
"""


def cells(name, kind):
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def test_there_are_two_in_two_languages():
    wanted = sorted(f"{name}{language}.ipynb" for name in NAMES for language in ("", ".zh"))
    assert sorted(path.name for path in FOLDER.iterdir() if path.suffix == ".ipynb") == wanted


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_hold_the_same_code(name):
    english, chinese = ([re.sub(r"  # .*", "", code) for code in cells(one, "code")] for one in (name, f"{name}.zh"))
    assert english == chinese
    texts = [cells(one, "markdown") for one in (name, f"{name}.zh")]
    kept = [[sorted(re.findall(r"^#+ |\]\([^)]*\)|`[^`]+`", text, re.M)) for text in language] for language in texts]
    assert kept[0] == [[mark.replace(".zh.ipynb", ".ipynb") for mark in marks] for marks in kept[1]]
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in texts[1])


@pytest.mark.parametrize("name", [f"{name}{language}" for name in NAMES for language in ("", ".zh")])
def test_nothing_is_stored_that_could_be_out_of_date(name):
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    codes = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)
    assert [cell["metadata"].get("tags") for cell in codes].count(["parameters"]) == 1
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name):
    for code in cells(name, "code"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("paddlelite_callbacks")]
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("paddlelite_callbacks"):
                assert node.module == "paddlelite_callbacks"
                assert {alias.name for alias in node.names} <= set(paddlelite_callbacks.__all__)


def run(name, folder):
    """Run a notebook in ``folder`` with few images and epochs; return all that it printed."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (place,) = [i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())]
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(WARM + QUICK[name]))
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    return "".join(output.get("text", "") or output["data"].get("text/markdown", "") for output in outputs)


@pytest.mark.slow
@needs("nbclient", "ipykernel", "paddleclas", "paddle2onnx", "sklearn", "matplotlib")
def test_the_first_ladder_runs(tmp_path):
    folder = tmp_path / "\u76ee\u5f55 with spaces"
    folder.mkdir()
    said = run("first-ladder", folder)
    records = {record.name: record for record in read_records(folder / "ladder" / "runs.jsonl")}
    assert list(records) == ["resnet18", "light", "light-int8"]
    int8 = records["light-int8"].metric_of("acc", ENGINE, "int8")
    assert float(re.search(r"accuracy of the int8 file: ([\d.]+)", said)[1]) == pytest.approx(int8)
    assert all(f"| {name} |" in said for name in records)


@pytest.mark.slow
@needs("nbclient", "ipykernel", "paddle2onnx", "matplotlib")
def test_own_pictures_runs(tmp_path):
    folder = tmp_path / "\u76ee\u5f55 with spaces"
    folder.mkdir()
    said = run("own-pictures", folder)
    assert "['cross', 'disc', 'square'] 12 training and 3 test pictures" in said
    records = {record.name: record for record in read_records(folder / "lightened" / "runs.jsonl")}
    assert list(records) == ["teacher", "mobilenet_v3_small", "mobilenet_v3_small-int8"]
    told = folder / "lightened" / "best" / "lighten.json"
    found = re.search(r"model\.(int8\.)?onnx accuracy ([\d.]+)", said)
    assert told.is_file() == (found is not None)
    if found:
        best = records[json.loads(told.read_text(encoding="utf-8"))["name"]]
        kind = "int8" if found[1] else "fp32"
        assert float(found[2]) == pytest.approx(best.metric_of("acc", ENGINE, kind))
