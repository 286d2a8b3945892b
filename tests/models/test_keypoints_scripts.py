"""The keypoint scripts as commands, on a handful of generated pictures."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
from installed import needs
from keypoint_scripts import DATA, SMALL, run, succeed
from PIL import Image

from paddlelite_callbacks.report.record import read_records


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which ``train.py`` has run for one epoch, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, succeed("train", *DATA, *SMALL, "--epochs", 1, cwd=folder)


@pytest.mark.slow
def test_evaluate_gives_what_train_printed(trained):
    folder, printed = trained
    weights = folder / "keypoints-out" / "last.pdparams"
    results = json.loads((folder / "keypoints-out" / "results.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "keypoints", "score"}
    again = succeed("evaluate", *DATA, *SMALL, "--weights", weights, "--out", "again", cwd=folder)
    figures = dict(line.split() for line in again.splitlines() if line.startswith("A"))
    last = printed.strip().splitlines()[-1].split()
    assert {name: f"{float(value):.3f}" for name, value in figures.items()} == dict(
        zip(last[::2], last[1::2], strict=True)
    )
    for old, new in zip(results, json.loads((folder / "again" / "results.json").read_text()), strict=True):
        np.testing.assert_allclose(old["keypoints"], new["keypoints"], rtol=1e-4, atol=1e-3)


@needs("paddle2onnx")
@pytest.mark.slow
def test_export_then_evaluate_the_files(trained):
    folder, _ = trained
    weights = folder / "keypoints-out" / "last.pdparams"
    succeed("export", *SMALL, "--weights", weights, "--settings", "toy-quick", "--size-mb", 20, cwd=folder)
    exported = folder / "keypoints-out" / "exported"
    files = {"model.json", "model.pdiparams", "model.onnx", "model.pdparams", "deploy.json"}
    assert files == {path.name for path in exported.iterdir()}
    (record,) = read_records(folder / "keypoints-out" / "runs.jsonl")
    assert len(record.checks) == 4
    assert all(check.passed for check in record.checks)
    assert "size" in (folder / "keypoints-out" / "report.md").read_text()
    printed = succeed("evaluate", *DATA, "--exported", exported, cwd=folder)
    for row in ("model.onnx on onnxruntime AP ", "model.onnx on openvino AP ", "model.json on paddle AP "):
        assert row in printed


@pytest.mark.slow
def test_infer_draws_every_picture_with_a_box(trained):
    folder, _ = trained
    pictures = folder / "toy-keypoints" / "val-3" / "images"
    boxes = {"000001.png": [[10, 10, 100, 200], [150, 20, 90, 180]], "000002.png": [[5, 5, 200, 200]]}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    flags = ["--weights", folder / "keypoints-out" / "last.pdparams", "--settings", "toy-quick", "--least", -1]
    succeed("infer", pictures, *SMALL, *flags, "--boxes", "boxes.json", cwd=folder)
    out = folder / "keypoints-out" / "drawn"
    assert sorted(path.name for path in out.glob("*.png")) == ["000001.png", "000002.png"]
    for path in out.glob("*.png"):
        drawn, before = (np.asarray(Image.open(p)).astype(int) for p in (path, pictures / path.name))
        assert np.abs(drawn - before).max() > 50
    (folder / "boxes.json").write_text('{"000001.png": [[10, 10, 0, 200]]}')
    done = run("infer", pictures, *SMALL, *flags, "--boxes", "boxes.json", cwd=folder)
    assert "with sizes above 0" in done.stderr.strip().splitlines()[-1]


@needs("paddle2onnx")
@pytest.mark.slow
def test_train_with_a_teacher_of_heatmaps_and_layers_and_pact(trained):
    folder, _ = trained
    weights = folder / "keypoints-out" / "last.pdparams"
    layers = ["backbone.head.projects.3=backbone.head.projects.3", "backbone.stages.1.3:1=backbone.stages.1.3:1"]
    teacher = ["--teacher", "wider_naive_lite_hrnet_18", "--teacher-weights", weights]
    flags = [
        *DATA,
        *SMALL,
        "--weights",
        weights,
        "--epochs",
        1,
        "--pact",
        "--pact-skip",
        "*depthwise*",
        "--distill-features",
        *layers,
    ]
    done = run("train", *flags, *teacher, "--out", "taught", cwd=folder)
    assert "belongs to another network" in done.stderr.strip().splitlines()[-1]
    teacher[1] = "naive_lite_hrnet_18"
    printed = succeed("train", *flags, *teacher, "--out", "taught", cwd=folder)
    for figure in ("task_loss", "distill_mse", "distill_fitnet"):
        assert figure in printed
    quantised = folder / "taught" / "last.pdparams"
    again = succeed("evaluate", *DATA, *SMALL, "--weights", quantised, "--out", "again-int8", cwd=folder)
    figures = dict(line.split() for line in again.splitlines() if line.startswith("A"))
    last = printed.strip().splitlines()[-1].split()
    assert {n: f"{float(v):.3f}" for n, v in figures.items()} == dict(zip(last[::2], last[1::2], strict=True))
    succeed("export", *DATA, *SMALL, "--weights", quantised, "--evaluate", "--out", "int8", cwd=folder)
    (record,) = read_records(folder / "int8" / "runs.jsonl")
    assert {row.precision for row in record.file_metrics} == {"int8", "fp32"}
    small, big = (folder / "int8" / "exported" / name for name in ("model.int8.onnx", "model.onnx"))
    assert small.stat().st_size < 0.5 * big.stat().st_size
    done = run("train", *flags[:-2], "no.such.layer=head", *teacher, "--out", "wrong", cwd=folder)
    assert "no.such.layer" in done.stderr.strip().splitlines()[-1]
    assert not (folder / "wrong" / "last.pdparams").exists()


@pytest.mark.slow
def test_train_on_mpii(tmp_path):
    random = np.random.RandomState(0)
    (tmp_path / "annot").mkdir()
    (tmp_path / "images").mkdir()
    for part in ("train", "valid"):
        records = []
        for k in range(4):
            name = f"{part}{k}.jpg"
            Image.fromarray(random.randint(0, 255, (120, 160, 3), dtype="uint8")).save(tmp_path / "images" / name)
            joints = random.uniform(40, 110, (16, 2)).tolist()
            records.append({"image": name, "center": [75, 70], "scale": 0.5, "joints": joints, "joints_vis": [1] * 16})
        (tmp_path / "annot" / f"{part}.json").write_text(json.dumps(records))
    printed = succeed("train", "--mpii", tmp_path, "--settings", "toy-quick", *SMALL, "--epochs", 1, cwd=tmp_path)
    assert "Head " in printed.splitlines()[-1]
    assert "Mean@0.1 " in printed.splitlines()[-1]


@pytest.mark.slow
def test_train_on_two_processes(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--master", f"127.0.0.1:{port}"]
    flags = ["--settings", "toy-quick", "--toy-images", 7, 5, *SMALL, "--epochs", 1]
    succeed("train", *flags, cwd=tmp_path, launch=launch)
    first, second = ((tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1))
    assert "AR75 " in first.strip().splitlines()[-1]
    assert "AR75 " not in second
    out = tmp_path / "keypoints-out"
    assert sorted(path.name for path in out.iterdir()) == ["last.pdparams", "log.jsonl", "results.json"]
    images = [item["image_id"] for item in json.loads((out / "results.json").read_text())]
    assert sorted(images) == [1, 2, 3, 4, 5]  # each once, though the two processes got six samples
    alone = succeed("evaluate", *flags[:-2], "--weights", out / "last.pdparams", "--out", "alone", cwd=tmp_path)
    figures = dict(line.split() for line in alone.splitlines() if line.startswith("A"))
    last = first.strip().splitlines()[-1].split()
    assert {n: f"{float(v):.3f}" for n, v in figures.items()} == dict(zip(last[::2], last[1::2], strict=True))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coco", "none"], "There is no file"),
        (["--mpii", "none"], "There is no file"),
        (["--lsp", "none"], "holds neither joints.mat"),
        (["--teacher", "hrnet_w18"], "go together"),
    ],
)
def test_missing_data_is_one_clear_line_before_training(flags, message, tmp_path):
    done = run("train", *flags, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "keypoints-out").exists()
