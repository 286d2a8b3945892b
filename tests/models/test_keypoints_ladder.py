"""The ladder's tables, from rows made by hand; the whole command on a handful of pictures."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from installed import needs
from keypoint_scripts import FOLDER, SMALL, run, succeed
from places import HELPERS, ROOT

sys.path.insert(0, str(ROOT / "examples" / "keypoints"))

import ladder_table


def row(name, seed, ap, *, int8=None, failed=()):
    files = {"model.onnx on openvino": {"AP": ap}, "model.onnx on onnxruntime": {"AP": ap + 0.01}}
    precision = "fp32" if int8 is None else "int8"
    if int8 is not None:
        files["model.int8.onnx on openvino"] = {"AP": int8}
    files["model.json on paddle"] = {"AP": 0.0} if failed else {"error": "no such engine"}
    return {
        "name": name,
        "seed": seed,
        "AP": ap,
        "files": files,
        "failed": {f"{precision} {engine}": "differs" for engine in failed},
        "parameters": 1_130_000,
        "size_mb": {f"{precision} paddle": 6.0, f"{precision} onnx": 5.0},
        "ms": {f"{precision} openvino": 4.0},
    }


def test_the_interval_is_students():
    values = [0.31, 0.35, 0.33]
    half = 4.303 * np.std(values, ddof=1) / np.sqrt(3)
    assert ladder_table.interval(values) == f"33.0 ± {100 * half:.1f}"
    assert ladder_table.interval([0.5]) == "50.0"
    assert ladder_table.interval([0.01, 0.01], sign=True) == "+1.0 ± 0.0"


def test_gains_are_paired_by_seed_and_on_files_of_the_right_precision():
    rows = [row("light", s, 0.30 + s / 10) for s in (0, 1, 2)]
    rows += [row("distilled + PACT", s, 0.40 + s / 10, int8=0.33 + s / 10) for s in (2, 0)]
    text = ladder_table.markdown(rows)
    assert "| distilled + PACT, int8 files, against light | +3.0 ± 0.0 | 2 |" in text
    assert "| distilled + PACT, int8 files, against the same weights in fp32 | -7.0 ± 0.0 | 2 |" in text
    assert "| distilled + PACT (int8) | 50.0 ± 127.1 | 43.0 ± 127.1 | 1.13 M | 6.00 | 5.00 | 4.00 |" in text


def test_an_engine_that_computes_something_else_does_not_count():
    good, bad = row("light", 0, 0.3), row("light", 1, 0.3, failed=["paddle"])
    assert ladder_table.file_value(bad, "fp32") == pytest.approx(0.3)
    assert ladder_table.value_of(bad, "model.json on paddle") is None
    assert "paddle" not in ladder_table.markdown([good, bad]).split("AP of the files |")[2]


def test_times_that_were_measured_together_win():
    times = {"ms": {"light": {"fp32 openvino": 1.25}}, "cpu": "x"}
    assert "| 1.25 |" in ladder_table.markdown([row("light", 0, 0.3)], times)


@needs("paddle2onnx")
@pytest.mark.slow
def test_the_quick_ladder_ends_in_int8_files_and_goes_on_where_it_stopped(tmp_path):
    flags = ["--quick", "--teacher", SMALL[1], "--light", SMALL[1], "--engines", "openvino"]
    flags += ["--toy-images", 16, 4, "--light-images", 8, "--steps", 1, "--short-steps", 1, "--teacher-steps", 1]
    rows = ["--rows", "distilled", "distilled + PACT"]
    succeed("ladder", *flags, *rows, cwd=tmp_path)
    out = tmp_path / "keypoints-ladder"
    lines = (out / "ladder.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["name"] for row in found] == ["teacher", "distilled", "distilled + PACT"]
    assert "model.int8.onnx on openvino" in found[-1]["files"]
    table = (out / "table.md").read_text()
    assert "| distilled + PACT (int8) |" in table
    assert "the same weights in fp32" in table
    succeed("ladder", *flags, *rows, "--no-timing", cwd=tmp_path)
    assert (out / "ladder.jsonl").read_text().splitlines() == lines
    succeed("ladder", *flags, *rows, "--no-timing", "--export-again", cwd=tmp_path)
    again = [json.loads(line) for line in (out / "ladder.jsonl").read_text().splitlines()]
    for old, new in zip(found, again, strict=True):
        assert {key: old[key] for key in old if key not in ("ms", "size_mb")} == {
            key: new[key] for key in new if key not in ("ms", "size_mb")
        }
        assert new["size_mb"] == pytest.approx(old["size_mb"], rel=0.01)


@pytest.mark.slow
def test_the_ladder_goes_on_past_a_row_that_cannot_be_exported(tmp_path):
    flags = ["--quick", "--teacher", "leaves_paddle", "--light", SMALL[1], "--engines", "paddle", "--rows", "distilled"]
    flags += ["--toy-images", 16, 4, "--light-images", 8, "--steps", 1, "--teacher-steps", 3]
    done = run(HELPERS.joinpath("failing_rung.py"), FOLDER / "ladder.py", *flags, cwd=tmp_path)
    assert done.returncode == 1, done.stdout[-1000:] + done.stderr[-2000:]
    assert done.stderr.endswith("Nothing was exported of teacher, seed 0.\n")
    out = tmp_path / "keypoints-ladder"
    (row,) = [json.loads(line) for line in (out / "ladder.jsonl").read_text().splitlines()]
    assert row["name"] == "distilled"  # by the teacher of which there is no file
    assert "model.json on paddle" in row["files"]
    assert (out / "teacher-0" / "model.pdparams").is_file()
    assert "| distilled " in (out / "table.md").read_text()
