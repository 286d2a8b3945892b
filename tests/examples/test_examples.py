"""The examples as a reader runs them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from installed import needs
from PIL import Image
from places import HELPERS, ROOT

from paddlelite_callbacks.report.record import read_records

EXAMPLES = ROOT / "examples"


def example(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, check=False, cwd=folder
    )


@pytest.mark.slow
@needs("paddleclas", "paddle2onnx")
def test_digits_quick(tmp_path):
    kept = tmp_path / "runs" / "digits" / "001"
    kept.mkdir(parents=True)
    (kept / "ladder.md").write_text("of an earlier run")
    done = example("digits.py", "--quick", folder=tmp_path)
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
    for row in ("fp32", "PTQ 8 bits", "PACT 8 bits", "PTQ 4 bits", "PACT 4 bits"):
        assert f"| {row} |" in done.stdout


@pytest.mark.slow
@needs("paddleclas")
def test_own_network_quick(tmp_path):
    done = example("own_network.py", "--quick", "--out", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 61 pictures cannot be read and are left out:\n  out/pictures/disc/broken.jpg: " in done.stdout
    assert "Training pictures: cross 10, disc 20, square 20" in done.stdout
    records = {record.name: record for record in read_records(tmp_path / "out" / "runs.jsonl")}
    assert list(records) == ["teacher", "light", "light-int8"]
    assert records["light"].size_mb < 0.1 * records["teacher"].size_mb
    assert all(check.passed for record in records.values() for check in record.checks)
    assert json.loads((tmp_path / "out" / "light" / "deploy.json").read_text())["labels"] == ["cross", "disc", "square"]
    assert "light-int8: " in done.stdout
    assert "light-int8" in (tmp_path / "out" / "report.md").read_text()


@pytest.fixture(scope="module")
def own_network():
    spec = importlib.util.spec_from_file_location("own_network", EXAMPLES / "own_network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("L", 7, (7, 7, 7)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
        ("LA", (7, 255), (7, 7, 7)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_pictures_of_every_kind_become_rgb(own_network, tmp_path, mode, colour, expected):
    Image.new(mode, (5, 9), colour).save(tmp_path / "picture.png")
    picture = own_network.load(str(tmp_path / "picture.png"))
    assert (picture.mode, picture.size) == ("RGB", (5, 9))
    assert picture.getpixel((0, 0)) == expected
    (image, label) = own_network.Pictures([(str(tmp_path / "picture.png"), 2)], 32, train=False)[0]
    np.testing.assert_allclose(image[:, 3, 4], (np.array(expected) - own_network.MEAN) / own_network.STD, rtol=1e-5)
    assert (image.dtype, image.shape, label) == (np.float32, (3, 32, 32), 2)


def test_own_pictures_are_sorted_split_and_weighed(own_network, tmp_path, capsys):
    for name, count in (("b", 3), ("a", 11), ("c", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (20 + i, 30)).save(tmp_path / name / f"{i}.png")
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "empty.png").write_bytes(b"")
    folder = paddle.vision.datasets.DatasetFolder(str(tmp_path))
    samples = own_network.readable(folder.samples)
    printed = capsys.readouterr().out
    assert printed.startswith("2 of 17 pictures cannot be read")
    assert f"{tmp_path}/a/cut.png: " in printed
    assert f"{tmp_path}/b/empty.png: " in printed
    with pytest.raises(SystemExit, match="Class 'c' has 1 readable pictures"):
        own_network.split(samples, folder.classes, 0)
    train, test = own_network.split([sample for sample in samples if sample[1] < 2], ["a", "b"], 0)
    assert sorted(train + test) == sorted(sample for sample in samples if sample[1] < 2)
    assert [sum(label == number for _, label in test) for number in (0, 1)] == [2, 1]
    np.testing.assert_allclose(own_network.class_weights(train, ["a", "b"]).numpy(), [11 / 18, 11 / 4], rtol=1e-6)


def test_teacher_weights_for_other_classes_are_taken_but_for_the_last_layer(own_network, tmp_path, capsys):
    mine, theirs = (paddle.vision.models.resnet18(num_classes=count) for count in (3, 5))
    paddle.save(theirs.state_dict(), str(tmp_path / "theirs.pdparams"))
    own_network.load_teacher_weights_(mine, str(tmp_path / "theirs.pdparams"))
    assert "['fc.bias', 'fc.weight']" in capsys.readouterr().out
    np.testing.assert_array_equal(mine.conv1.weight.numpy(), theirs.conv1.weight.numpy())
    paddle.save({"other": paddle.ones([2])}, str(tmp_path / "other.pdparams"))
    with pytest.raises(SystemExit, match="holds no weight of this network"):
        own_network.load_teacher_weights_(mine, str(tmp_path / "other.pdparams"))
