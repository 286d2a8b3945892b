"""The few-label study runs from end to end, and its interval is the textbook's."""

from __future__ import annotations

import importlib.util
import json

import pytest
from places import ROOT
from warm_converter import run_script

SCRIPT = ROOT / "examples" / "few_labels.py"


def module():
    spec = importlib.util.spec_from_file_location("few_labels", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.slow
def test_the_quick_study_prints_its_table(tmp_path):
    out = run_script(SCRIPT, "--quick", "--json", "figures.json", cwd=tmp_path, seconds=300)
    assert out.returncode == 0, out.stderr[-2000:]
    rows = [line.split(" |")[0].removeprefix("| ") for line in out.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["Way", "alone", "kl", "fitnet", "dml (two students, no teacher)"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(len(values) == 2 for values in figures["accuracy"].values())
    assert figures["teacher"] > 80
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figures.json"]


def test_the_interval_is_students():
    """Differences 1, 2, 3: mean 2, standard error 1/√3, t with two degrees of freedom 4.3027."""
    mean, low, high = module().gain([11, 22, 33], [10, 20, 30])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_the_draws_are_ten_a_class_and_never_of_the_test_images():
    study = module()
    images, labels, test_images, _ = study.digits()
    assert len(images) + len(test_images) == 1797
    for seed in range(3):
        chosen = study.few(labels, seed)
        assert sorted(labels[chosen].tolist()) == sorted(list(range(10)) * 10)
        assert len(set(chosen.tolist())) == 100
    assert study.few(labels, 0).tolist() != study.few(labels, 1).tolist()
