"""Scripts and pages for PaddleSeg, PaddleDetection and PaddleOCR, run and checked against the packages themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from code_bases import code_base
from installed import needs
from places import ROOT

from paddlelite_callbacks.report.record import read_records

SCRIPTS = ROOT / "examples" / "own_loops"
GUIDES = ROOT / "docs" / "guides"
RUNS = {
    "seg": ("paddleseg_mobileseg.py", "paddleseg", [], "mobileseg"),
    "det": ("paddledetection_picodet.py", "paddledet", [], "picodet"),
    "db": ("paddleocr_db_crnn.py", None, ["--only", "db"], "db"),
    "crnn": ("paddleocr_db_crnn.py", None, ["--only", "crnn"], "crnn"),
    "svtr": ("paddleocr_db_crnn.py", None, ["--only", "svtr"], "svtr"),
}
TRAINERS = {
    "paddleseg": ("paddleseg", ["paddleseg/core/train.py"]),
    "paddledetection": ("paddledet", ["ppdet/engine/trainer.py"]),
    "paddleocr": ("paddleocr", ["paddleocr/tools/program.py", "paddleocr/tools/train.py"]),
}


def run(command, folder, *packages):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@needs("paddleclas", "paddle2onnx", "openvino")
def test_a_network_goes_through_distillation_int8_and_every_engine(name, tmp_path):
    script, package, options, written = RUNS[name]
    packages = [] if package is None else [code_base(package)]
    done = run([str(SCRIPTS / script), "--quick", "--out", str(tmp_path / "out"), *options], tmp_path, *packages)
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = read_records(tmp_path / "out" / "runs.jsonl")
    assert record.name == written
    assert record.checks
    assert all(check.passed for check in record.checks), record.checks
    files = {path.name for path in (tmp_path / "out" / written).iterdir()}
    assert {"model.json", "model.pdiparams", "model.onnx", "model.int8.onnx", "model.pdparams"} <= files
    assert "'distill_loss': " in done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_what_is_added_is_less_than_thirty_lines(script):
    _, added = (SCRIPTS / script).read_text(encoding="utf-8").split("    # what is added to Paddle")
    glue = added.split("\n\n\n")[0].splitlines()[1:]
    assert 5 < len(glue) < 30


@pytest.mark.slow
def test_the_block_for_paddleseg_runs(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (GUIDES / "own-loop-paddleseg.md").read_text(), re.M | re.S)
    (tmp_path / "block.py").write_text(block)
    done = run(["block.py"], tmp_path, code_base("paddleseg"))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", TRAINERS)
def test_the_lines_that_a_page_changes_stand_in_the_trainer(page):
    package, files = TRAINERS[page]
    folder = code_base(package)
    sources = [" ".join((folder / file).read_text(encoding="utf-8").split()) for file in files]
    diffs = re.findall(r"^```diff\n(.*?)^```$", (GUIDES / f"own-loop-{page}.md").read_text(), re.M | re.S)
    assert diffs
    for diff in diffs:
        before = " ".join(" ".join(line[1:] for line in diff.splitlines() if line[0] != "+").split())
        assert any(before in source for source in sources), before
