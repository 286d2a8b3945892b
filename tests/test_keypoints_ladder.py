"""The ladder's tables, from rows made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "keypoints"))

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
    assert ladder_table.file_ap(bad, "fp32") == pytest.approx(0.3)
    assert ladder_table.ap_of(bad, "model.json on paddle") is None
    assert "paddle" not in ladder_table.markdown([good, bad]).split("AP of the files |")[2]


def test_times_that_were_measured_together_win():
    times = {"ms": {"light": {"fp32 openvino": 1.25}}, "cpu": "x"}
    assert "| 1.25 |" in ladder_table.markdown([row("light", 0, 0.3)], times)
