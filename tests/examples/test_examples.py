"""The examples as a reader runs them."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from installed import needs
from places import HELPERS, ROOT
from warm_converter import run_script

from paddlelite_callbacks.report.record import read_records

EXAMPLES = ROOT / "examples"


def example(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return run_script(EXAMPLES / name, *arguments, cwd=folder)


@pytest.mark.slow
@needs("paddleclas", "paddle2onnx")
def test_digits_quick(tmp_path):
    kept = tmp_path / "runs" / "digits" / "001"
    kept.mkdir(parents=True)
    (kept / "ladder.md").write_text("of an earlier run")
    command = [sys.executable, str(EXAMPLES / "digits.py"), "--quick"]  # one of all examples just as a reader starts it
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("Loading Paddle ...")
    assert "distill_loss" in done.stdout
    assert (kept / "ladder.md").read_text() == "of an earlier run"
    folder = tmp_path / "runs" / "digits" / "002"
    names = ["resnet18", "light", "light+distil", "light+pact", "light+distil+pact"]
    ladder = read_records(folder / "ladder.jsonl")
    assert [record.name for record in ladder] == names
    for record in ladder:
        assert all(check.passed for check in record.checks), record.name
        assert all(row.error is None for row in record.latencies), record.name
        assert (folder / "weights" / f"{record.name}.pdparams").is_file()
        (line,) = (folder / "logs" / f"{record.name}.jsonl").read_text().splitlines()
        assert json.loads(line)["test_acc"] == pytest.approx(record.metrics["acc"])
    sizes = {record.name: record.size_mb for record in ladder}
    assert sizes["light"] < 0.2 * sizes["resnet18"]
    assert sizes["light+distil+pact"] < 0.35 * sizes["light"]
    text = (folder / "ladder.md").read_text()
    assert text in done.stdout
    assert all(f"| {name} |" in text for name in names)
    assert (folder / "ladder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@needs("paddleclas")
def test_digits_go_on_past_a_rung_that_cannot_be_exported(tmp_path):
    flags = ["--quick", "--teacher", "leaves_paddle", "--student", "PPLCNet_x0_25", "--engines", "paddle"]
    script = HELPERS.joinpath("failing_rung.py")
    done = example(str(script), str(EXAMPLES / "digits.py"), *flags, folder=tmp_path)
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stderr.endswith("Nothing was exported of leaves_paddle: see the report.\n")
    folder = tmp_path / "runs" / "digits" / "001"
    names = ["light", "light+distil", "light+pact", "light+distil+pact"]
    failed, *others = read_records(folder / "ladder.jsonl")
    assert (failed.name, [record.name for record in others]) == ("leaves_paddle", names)
    assert "LeavesPaddle cannot be exported" in failed.failure
    assert [record.failure for record in others] == [None] * 4
    for name in ["leaves_paddle", *names]:
        assert (folder / name / "model.pdparams").is_file()
        assert (folder / name / "model.json").is_file() == (name != "leaves_paddle")
        assert f"| {name} |" in (folder / "ladder.md").read_text()


def test_help_explains_every_flag(tmp_path):
    done = example("digits.py", "--help", folder=tmp_path)
    assert done.returncode == 0
    flags = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    assert len(flags) > 15
    for block in done.stdout.split("\n  --")[1:]:
        words = block.split()
        assert len(words) > 3, f"--{words[0]} has no explanation"
    assert not list(tmp_path.iterdir())


SCRIPTS = sorted(
    str(path.relative_to(EXAMPLES))
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("keypoints/*.py"), *EXAMPLES.glob("cifar10/*.py")]
    if "parse_args" in path.read_text(encoding="utf-8")
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_help(name, tmp_path):
    done = example(name, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-1000:]
    assert "usage: " in done.stdout


@pytest.mark.slow
@needs("paddle2onnx")
def test_int8_study_quick(tmp_path):
    done = example("int8_study.py", "--quick", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for row in ("fp32", *(f"{method} {bits} bits" for method in ("PTQ", "PACT", "LSQ") for bits in (8, 4))):
        assert f"| {row} |" in done.stdout
    written = "\n".join((tmp_path / "out" / "int8_study" / f"{name}.md").read_text() for name in ("table", "pairs"))
    assert written.strip() in done.stdout
    assert "| LSQ 4 bits against PACT 4 bits |" in written


def test_int8_study_compares_seed_by_seed(monkeypatch):
    """Differences 1, 2, 3 have mean 2, standard error 1/√3 and, with two degrees of freedom, t = 4.3027."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    study = runpy.run_path(str(EXAMPLES / "int8_study.py"))
    runs = [{"fp32": 90.0, "PTQ 4 bits": 60.0 + 9 * k, "PACT 4 bits": 60.0 + 10 * k} for k in (1, 2, 3)]
    assert study["pairs_table"](runs).splitlines()[2:] == ["| PACT 4 bits against PTQ 4 bits | +2.00 ± 2.48 |"]
    assert study["table"](runs).splitlines()[2:4] == [
        "| fp32 | 90.00 | +0.00 ± 0.00 |",
        "| PTQ 4 bits | 78.00 | -12.00 ± 22.36 |",
    ]
    assert study["table"](runs[:1]).splitlines()[-1] == "| PACT 4 bits | 70.00 | -20.00 |"


@pytest.mark.slow
def test_heatmap_study_quick(tmp_path):
    done = example("keypoints/heatmap_study.py", "--quick", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "out" / "heatmaps" / "heatmaps.md").read_text()
    assert table in done.stdout
    rows = [line.split(" | ")[0] for line in table.splitlines()[4:]]
    half = ", half of the joints labelled"
    ways = ("alone", "heatmap_mse", "mse of heatmaps")
    assert rows == [f"| {way}{words}" for words in ("", half) for way in ways]
    found = json.loads((tmp_path / "out" / "heatmaps" / "heatmaps.json").read_text())
    assert all(len(values) == 2 and 0 <= min(values) <= max(values) <= 1 for values in found["PCK"].values())


@pytest.mark.slow
@needs("paddleclas")
def test_own_network_quick(tmp_path):
    done = example("own_network.py", "--quick", "--out", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 61 pictures cannot be read and are left out:\n  out/pictures/disc/broken.jpg: " in done.stdout
    assert "Training pictures: cross 10, disc 20, square 20" in done.stdout
    records = {record.name: record for record in read_records(tmp_path / "out" / "runs.jsonl")}
    assert list(records) == ["teacher", "PPLCNet_x1_0", "PPLCNet_x1_0-int8"]
    assert records["PPLCNet_x1_0"].size_mb < 0.1 * records["teacher"].size_mb
    assert all(check.passed for record in records.values() for check in record.checks)
    labels = json.loads((tmp_path / "out" / "PPLCNet_x1_0" / "deploy.json").read_text())["labels"]
    assert labels == ["cross", "disc", "square"]
    assert re.search(r"=== 3 of 3, PPLCNet_x1_0-int8: 1 epoch; about \d+ (s|min) left ===", done.stdout)
    assert "PPLCNet_x1_0-int8" in (tmp_path / "out" / "report.md").read_text()
