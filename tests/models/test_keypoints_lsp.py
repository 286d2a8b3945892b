"""Leeds Sports Pose in its forms, PCK and AP on its joints, and its ladder, on files made here."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from installed import needs
from keypoint_toy import Tiny
from PIL import Image
from places import ROOT

sys.path.insert(0, str(ROOT / "examples" / "keypoints"))

import coco
import ladder
import lsp
import pck
import settings
from dataset import KeypointDataset
from layouts import COCO_BODY, LSP_BODY

savemat = pytest.importorskip("scipy.io").savemat
WIDTH, HEIGHT = 100, 120


def poses(count, seed=0):
    """Joints ``[N, 14, 3]`` well inside the image, all labelled."""
    random = np.random.RandomState(seed)
    places = random.uniform([15, 15], [WIDTH - 15, HEIGHT - 15], (count, 14, 2))
    return np.concatenate([places.round(2), np.ones((count, 14, 1))], axis=2)


def write_images(folder, count, digits=5):
    folder.mkdir(parents=True)
    random = np.random.RandomState(1)
    for number in range(1, count + 1):
        picture = random.randint(0, 255, (HEIGHT, WIDTH, 3), dtype="uint8")
        Image.fromarray(picture).save(folder / f"im{number:0{digits}d}.jpg")


def write_extended(folder, table):
    """LSPET as published: ``[14, 3, N]``, the third number 0 for joints without a label."""
    write_images(folder / "images", len(table))
    savemat(str(folder / "joints.mat"), {"joints": table.transpose(1, 2, 0)})
    return folder


def write_lsp(folder, table):
    """LSP as published: ``[3, 14, N]``, the third number 1 for occluded joints."""
    write_images(folder / "images", len(table), digits=4)
    savemat(str(folder / "joints.mat"), {"joints": table.transpose(2, 1, 0)})
    return folder


def write_coco(folder, table, held_out):
    write_images(folder / "images", len(table))
    (folder / "annotations").mkdir()
    bounds = {"train": range(len(table) - held_out), "val": range(len(table) - held_out, len(table))}
    for part, chosen in bounds.items():
        content = {
            "images": [{"id": k + 1, "file_name": f"images/im{k + 1:05d}.jpg"} for k in chosen],
            "categories": [{"id": 1, "name": "person", "keypoints": list(LSP_BODY.joints)}],
            "annotations": [
                {
                    "id": k + 1,
                    "image_id": k + 1,
                    "category_id": 1,
                    "bbox": [1, 1, 50, 50],
                    "keypoints": (table[k] * [1, 1, 2]).reshape(-1).tolist(),
                }
                for k in chosen
            ],
        }
        (folder / "annotations" / f"{part}.json").write_text(json.dumps(content))
    return folder


def test_the_three_forms_give_the_same_persons(tmp_path):
    table = poses(20)
    extended = lsp.read_lsp(write_extended(tmp_path / "lspet", table))
    plain = lsp.read_lsp(write_lsp(tmp_path / "lsp", table * [1, 1, 0]))  # nobody is occluded, all are labelled
    cut_out = lsp.read_lsp(write_coco(tmp_path / "coco", table, held_out=2))
    for part, count in ((0, 18), (1, 2)):
        for people in (extended[part], plain[part], cut_out[part]):
            assert people.layout is LSP_BODY
            assert not people.dropped
            assert people.image_ids == (list(range(1, 19)) if part == 0 else [19, 20])
            assert len(people.people) == count
            for found, told in zip(people.people, table[[k - 1 for k in people.image_ids]], strict=True):
                np.testing.assert_allclose(found.joints, told[:, :2])
                assert set(found.visible) == {2.0}
                low, high = told[:, :2].min(0), told[:, :2].max(0)
                low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
                low, high = low.clip(0), high.clip(None, [WIDTH, HEIGHT])
                np.testing.assert_allclose(found.box, [*low, *(high - low)])
    assert plain[1].people[0].path.name == "im0019.jpg"


@pytest.mark.parametrize(("count", "held_out"), [(10_000, 1000), (2000, 1000), (1999, 199), (3, 1)])
def test_the_last_images_are_held_out(count, held_out, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im00001.jpg").touch()
    monkeypatch.setattr(lsp, "_joints_in", lambda path: np.repeat(poses(1), count, axis=0))
    train, test = lsp._published(tmp_path)
    assert (train.image_ids[0], train.image_ids[-1]) == (1, count - held_out)
    assert (test.image_ids[0], test.image_ids[-1]) == (count - held_out + 1, count)
    assert train.dropped["image file missing"] == count - held_out - 1
    assert test.dropped["image file missing"] == held_out


def test_unusable_labels_are_counted(tmp_path):
    table = poses(20)
    table[0, 3] = [np.nan, np.nan, 0]  # not labelled: whatever stands there
    table[1, 4, :2] = [WIDTH + 5, 20]
    table[2, :9, 2] = 0
    table[3, :, 2] = 0
    table[4, :, 0] = 30
    write_extended(tmp_path / "d", table)
    (tmp_path / "d/images/im00006.jpg").unlink()
    (tmp_path / "d/images/im00020.jpg").write_bytes(b"no picture")
    train, held_out = lsp.read_lsp(tmp_path / "d")
    assert train.dropped == {
        "image file missing": 1,
        "joint outside the image": 1,
        "fewer than 6 joints": 2,
        "empty box": 1,
    }
    assert len(train.people) == 18 - 4
    first, second = train.people[:2]
    assert first.visible.tolist() == [2, 2, 2, 0, *[2] * 10]
    assert first.joints[3].tolist() == [0, 0]
    assert second.visible[4] == 0
    assert second.box[0] + second.box[2] < WIDTH  # the box knows nothing of the joint outside
    dataset = KeypointDataset(held_out, (64, 64))
    assert dataset[1][2].sum() == 0  # the damaged picture's person counts as unlabelled
    assert dataset.damaged == {tmp_path / "d/images/im00020.jpg"}


def damaged(folder, content):
    write_images(folder / "images", 3)
    if isinstance(content, bytes):
        (folder / "joints.mat").write_bytes(content)
    else:
        savemat(str(folder / "joints.mat"), content)
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"MATLAB 5.0" + bytes(300), "joints.mat is no MATLAB file, or it is damaged", id="torn"),
        pytest.param(b"", "joints.mat is no MATLAB file, or it is damaged", id="empty"),
        pytest.param({"points": poses(3)}, r"joints.mat must hold 'joints' of the shape .*it holds nothing", id="name"),
        pytest.param({"joints": poses(4)}, r"joints.mat must hold 'joints'.*the shape \[4, 14, 3\]", id="order"),
        pytest.param({"joints": np.ones((14, 3))}, r"it holds the shape \[14, 3\]", id="axes"),
        pytest.param({"joints": np.ones((14, 3, 1))}, "at least 2 persons", id="one"),
        pytest.param({"joints": np.full((14, 3, 3), np.nan)}, "joints of image 1 are no finite numbers", id="nan"),
        pytest.param({"joints": np.zeros((14, 3, 3))}, "No person left in .*joints.mat", id="unlabelled"),
    ],
)
def test_damaged_files_are_refused_by_name(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lsp.read_lsp(damaged(tmp_path / "d", content))


def test_wrong_folders_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither joints\.mat and images/"):
        lsp.read_lsp(tmp_path)
    table = poses(4)
    folder = write_extended(tmp_path / "d", table)
    for file in (folder / "images").iterdir():
        file.rename(file.with_suffix(".png"))
    with pytest.raises(FileNotFoundError, match=r"no im00001\.jpg"):
        lsp.read_lsp(folder)
    other = write_coco(tmp_path / "c", table, held_out=1)
    path = other / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["keypoints"] = [*LSP_BODY.joints[:12], "head_top", "neck"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"val\.json has the joints .*expected are those of 'lsp', in this order"):
        lsp.read_lsp(other)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*val\.json"):
        lsp.read_lsp(other)


def test_the_constants_are_cocos_and_crowdposes():
    known = dict(zip(COCO_BODY.joints, COCO_BODY.sigmas, strict=True)) | {"neck": 0.079, "head_top": 0.079}
    assert LSP_BODY.sigmas.tolist() == [known[name] for name in LSP_BODY.joints]
    assert {LSP_BODY.joints[k] for k in LSP_BODY.upper_body} == {
        *("neck", "head_top"),
        *(f"{side}_{part}" for side in ("left", "right") for part in ("shoulder", "elbow", "wrist")),
    }


def test_pck_by_hand():
    joints = np.zeros((3, 14, 2))
    joints[:, 9] = [30, 40]  # left shoulder; right hip at (0, 0): a torso of 50, a reach of 10
    visible = np.full((3, 14), 2.0)
    visible[1, 12] = 0  # a neck without a label
    visible[2, 2] = 0  # the third person has no torso and counts for nothing
    people = [
        coco.Person(image_id=k, path=ROOT, box=(0, 0, 1, 1), joints=joints[k], visible=visible[k]) for k in range(3)
    ]
    assert set(pck.pck(joints, people).values()) == {1.0}
    places = joints.copy()
    places[2] += 1000
    places[0, 6] += [6, 8]  # right wrist: just within reach
    places[0, 11] += [6, 8.01]  # left wrist: just not
    places[1, 12] += 1000
    places[1, 13] += [0, 11]
    found = pck.pck(places, people)
    assert found["Wrist"] == pytest.approx((2 / 2 + 1 / 2) / 2)
    assert found["Head"] == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert [found[part] for part in ("Shoulder", "Elbow", "Hip", "Knee", "Ankle")] == [1.0] * 5
    assert found["Mean"] == pytest.approx((14 + 13 - 2) / (14 + 13))
    assert pck.pck(places, people, threshold=0.23)["Mean"] == 1.0


def average_precision(truth, answers, scores):
    """COCO's AP of one person an image, from its definition.

    Args:
        truth: ``[N, 14, 3]``.
        answers: ``[N, 14, 2]``.
        scores: ``[N]``.
    """
    low = [person[person[:, 2] > 0, :2].min(0) for person in truth]
    high = [person[person[:, 2] > 0, :2].max(0) for person in truth]
    sides = np.stack(high) - np.stack(low)
    areas = 0.53 * 1.2 * sides[:, 0] * 1.2 * sides[:, 1]
    same = []
    for person, answer, area in zip(truth, answers, areas, strict=True):
        squares = ((person[:, :2] - answer) ** 2).sum(1) / (2 * area * (2 * LSP_BODY.sigmas) ** 2)
        same.append(np.exp(-squares)[person[:, 2] > 0].mean())
    order, found = np.argsort(-np.asarray(scores)), []
    for threshold in np.linspace(0.5, 0.95, 10):
        right = np.cumsum(np.asarray(same)[order] >= threshold)
        precision, recall = right / np.arange(1, len(order) + 1), right / len(order)
        found.append(np.mean([precision[recall >= level].max(initial=0) for level in np.linspace(0, 1, 101)]))
    return np.mean(found)


@needs("pycocotools")
def test_the_metric_gives_pck_and_the_ap_of_the_definition(tmp_path):
    table = poses(40, seed=3) * [0.5, 0.5, 1] + [25, 30, 0]  # boxes end inside the image
    table[30:, 0, 2] = 0
    folder = write_coco(tmp_path / "d", table, held_out=39)
    dataset = KeypointDataset(lsp.read_lsp(folder)[1], (64, 64))
    random = np.random.RandomState(5)
    answers = table[1:, :, :2] + random.randn(39, 14, 2) * np.geomspace(0.5, 8, 39)[:, None, None]
    raw = [
        {
            "image_id": person.image_id,
            "category_id": 1,
            "keypoints": np.concatenate([answer, np.ones((14, 1))], axis=1).reshape(-1).tolist(),
            "score": float(score),
            "area": 1.0,
            "index": k,
        }
        for k, (person, answer, score) in enumerate(zip(dataset.people, answers, random.rand(39), strict=True))
    ]
    metric = settings.metric_of(dataset)
    figures = dict(zip(metric.name(), metric.figures([*raw, raw[3]]), strict=True))  # one comes twice: counts once
    expected = average_precision(table[1:], answers, [item["score"] for item in raw])
    assert 0.2 < expected < 0.8
    assert figures["AP"] == pytest.approx(expected, abs=2e-3)
    assert figures["PCK"] == pck.pck(answers, dataset.people)["Mean"]
    assert figures["Wrist"] == pck.pck(answers, dataset.people)["Wrist"]
    assert len(metric.results) == 39


@needs("paddle2onnx", "onnxruntime", "pycocotools")
def test_the_quick_ladder_on_lsp(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.NETWORKS, "tiny", Tiny)
    folder = write_extended(tmp_path / "lspet", poses(20))
    flags = ["--quick", "--lsp", folder, "--teacher", "tiny", "--light", "tiny", "--engines", "onnxruntime"]
    flags += ["--rows", "distilled", "distilled + PACT", "--pact-skip", "--out", tmp_path / "out", "--repeats", 1]
    asked = ladder.parse([str(flag) for flag in flags])
    assert asked.light_images is None  # all labels for every row
    rows = ladder.main(asked)
    assert [row["name"] for row in rows] == ["teacher", "distilled", "distilled + PACT"]
    for row in rows:
        for figures in row["files"].values():
            assert {"AP", "PCK", "Wrist"} <= figures.keys()
        assert {"AP", "PCK", "epochs"} <= row.keys()
    assert "model.int8.onnx on onnxruntime" in rows[2]["files"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.startswith("| model | AP, flip test | AP of the files | PCK, flip test | PCK of the files |")
    assert "| PCK of the files | model.int8.onnx on onnxruntime |" in text
    assert "points of PCK, same seed" in text
    assert "0.2 of the distance from left shoulder to right hip" in text
    with Image.open(tmp_path / "out" / "figures.jpg") as sheet:
        assert sheet.height == 4 * (240 + 16)  # truth and three rows
    assert not list((tmp_path / "out").glob("*/checkpoints"))
    lines = (tmp_path / "out" / "ladder.jsonl").read_text()
    assert ladder.main(ladder.parse([*map(str, flags), "--no-timing"])) == rows  # all finished: nothing is trained
    assert (tmp_path / "out" / "ladder.jsonl").read_text() == lines
    again = ladder.main(ladder.parse([*map(str, flags), "--no-timing", "--export-again"]))
    for old, new in zip(rows, again, strict=True):
        assert {**new, "ms": 0, "size_mb": 0} == {**old, "ms": 0, "size_mb": 0}
    lines = [json.loads(line) for line in (tmp_path / "out/weights-teacher-0/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1.0, 2.0]
