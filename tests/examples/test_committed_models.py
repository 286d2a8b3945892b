"""The networks to take away: complete, alike in two engines, and as accurate as their cards say."""

from __future__ import annotations

import hashlib
import json
import re
import sys

import numpy as np
import pytest
from installed import needs
from paddle import inference
from PIL import Image
from places import ROOT

sys.path.insert(0, str(ROOT / "examples"))

MODELS = sorted(path.parent for path in (ROOT / "examples" / "results" / "models").glob("*/README.md"))
LINES = [
    json.loads(line)
    for line in (ROOT / "examples/results/cifar10/ladder.jsonl").read_text(encoding="utf-8").splitlines()
]
each = pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)


def test_there_is_one():
    assert MODELS


@each
def test_files_are_those_that_were_checked(folder):
    told = json.loads((folder / "deploy.json").read_text(encoding="utf-8"))
    sums = {name: digest for entry in told["files"] for name, digest in entry["sha256"].items()}
    assert sums.keys() == {path.name for path in folder.glob("model*")}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@each
@needs("onnxruntime")
def test_the_onnx_file_and_paddles_program_see_the_same_classes(folder):
    from classify import Classifier

    classifier = Classifier(folder)
    stream = np.random.default_rng(0)
    noise = [stream.normal(0, 12, [32, 32, 3]).cumsum(axis=0).cumsum(axis=1) for _ in range(60)]
    pictures = [Image.fromarray(np.uint8((x - x.min()) / np.ptp(x) * 255)) for x in noise]
    config = inference.Config(str(folder / "model.pdmodel"), str(folder / "model.pdiparams"))
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    entry = predictor.get_input_handle(predictor.get_input_names()[0])
    exit_ = predictor.get_output_handle(predictor.get_output_names()[0])
    same = 0
    for picture in pictures:
        named = classifier(picture)
        assert sorted(name for name, _ in named) == sorted(classifier.labels)
        assert sum(share for _, share in named) == pytest.approx(1, abs=1e-5)
        entry.copy_from_cpu(classifier.prepare(picture))
        predictor.run()
        same += classifier.labels[int(exit_.copy_to_cpu()[0].argmax())] == named[0][0]
    assert same >= 57  # values that cross a rounding threshold may decide a close call


@each
def test_the_card_says_what_was_measured(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    names = [f"cifar10-{line['light']}-{line['rung']}-{line['seed']}".replace("+", "-") for line in LINES]
    found = LINES[names.index(folder.name)]
    rows = re.findall(r"^\| `([^`]+)` \| (\S+) \| ([\d.]+) \|", card, flags=re.MULTILINE)
    assert rows
    for file, engine, accuracy in rows:
        assert f"{100 * found['files'][f'{file} on {engine}']:.2f}" == accuracy
