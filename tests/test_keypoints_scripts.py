"""The scripts end to end on a handful of generated pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples" / "keypoints"


def run(script, *flags, cwd):
    command = [sys.executable, str(FOLDER / f"{script}.py"), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_train_then_evaluate_then_infer(tmp_path):
    data = ["--settings", "toy-quick", "--toy-images", 6, 3, "--network", "naive_lite_hrnet_18"]
    done = run("train", *data, "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "AR75" in done.stdout
    weights = tmp_path / "keypoints-out" / "last.pdparams"
    results = json.loads((tmp_path / "keypoints-out" / "results.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "keypoints", "score"}
    picture = tmp_path / "toy-keypoints" / "val-3" / "images" / "000001.png"
    flags = ["--network", "naive_lite_hrnet_18", "--weights", weights, "--settings", "toy-quick", "--least", -1]
    done = run("infer", picture, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = np.asarray(Image.open(tmp_path / "keypoints-out" / "drawn" / "000001.png")).astype(int)
    assert np.abs(drawn - np.asarray(Image.open(picture))).max() > 50


def test_missing_data_is_one_clear_line_before_training(tmp_path):
    done = run("train", "--coco", tmp_path / "none", cwd=tmp_path)
    assert done.returncode != 0
    assert "There is no file" in done.stderr.strip().splitlines()[-1]
