"""MPII's annotations and PCKh, on files made here."""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
import pytest
from keypoint_toy import Tiny
from PIL import Image
from places import ROOT

sys.path.insert(0, str(ROOT / "examples" / "keypoints"))

import affine
import infer
import mpii
import settings
from dataset import Augment, KeypointDataset
from layouts import LAYOUTS, MPII_BODY


def write_mpii(folder, records):
    (folder / "images").mkdir(exist_ok=True)
    for record in records:
        Image.new("RGB", (200, 160), (90, 120, 150)).save(folder / "images" / record["image"])
    (folder / "valid.json").write_text(json.dumps(records))
    return folder / "valid.json", folder / "images"


def person(k=0, **changes):
    joints = np.stack([41.0 + 7 * np.arange(16), 31.0 + 5 * (np.arange(16) % 7)], axis=1) + k
    record = {"image": f"{k}.png", "center": [101.0, 61.0], "scale": 0.5, "joints": joints.tolist()}
    return {**record, "joints_vis": [1] * 16, **changes}


def test_places_count_from_zero_and_the_region_is_hrnets(tmp_path):
    people = mpii.read_mpii(*write_mpii(tmp_path, [person(joints_vis=[1] * 15 + [0])]))
    found = people.people[0]
    assert people.layout is MPII_BODY
    assert found.joints[0].tolist() == [40.0, 30.0]
    assert found.joints[15].tolist() == [0.0, 0.0]
    assert found.visible.tolist() == [2.0] * 15 + [0.0]
    centre, size = affine.box_to_region(found.box, 1.0)
    np.testing.assert_allclose(centre, [100.0, 60.0 + 15 * 0.5])  # as HRNet's reader moves the centre
    np.testing.assert_allclose(size, 200 * 0.5 * 1.25)
    assert found.head == pytest.approx(np.hypot(7, 5))  # from upper neck (8) to head top (9)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_mirrored_joints_have_mirrored_names(layout):
    mirrored = dict(layout.flip_pairs)
    for left, right in mirrored.items():
        assert layout.joints[left] == layout.joints[right].replace("right", "left")
    sided = [k for k, name in enumerate(layout.joints) if name.startswith(("left", "right"))]
    assert sorted([*mirrored, *mirrored.values()]) == sided
    assert len(layout.skeleton) >= len(layout.joints) - 1
    assert {layout.side(left) for left in mirrored} == {"left"}


def test_a_mirrored_sample_swaps_mpiis_pairs(tmp_path):
    people = mpii.read_mpii(*write_mpii(tmp_path, [person()]))
    flip = Augment(scale=0.0, degrees=0.0, flip=1.0, half_body=0.0)
    straight, mirrored = KeypointDataset(people, (64, 64)), KeypointDataset(people, (64, 64), augment=flip)
    _, before, _ = straight.sample(0)
    _, after, _ = mirrored.sample(0)
    order = np.arange(16)
    for left, right in MPII_BODY.flip_pairs:
        order[[left, right]] = right, left
    # the region turns with the image; a pixel is counted at its middle, hence 0.64 = one pixel of the image
    np.testing.assert_allclose(after[:, 0], 64 - before[order, 0], atol=1.0)
    np.testing.assert_allclose(after[:, 1], before[order, 1], atol=1e-6)


def test_pckh_by_hand(tmp_path):
    records = [person(0), person(1), person(2, joints_vis=[1] * 9 + [0] + [1] * 6)]
    people = mpii.read_mpii(*write_mpii(tmp_path, records)).people
    places = np.stack([p.joints for p in people])
    assert set(mpii.pckh(places, people).values()) == {1.0}
    assert people[2].head == 0.0  # its head top is not labelled: it does not count
    places[2] += 1000
    places[:, [6, 7]] += 1000  # pelvis and thorax do not count
    places[0, 10] += [0.4 * people[0].head, 0.0]
    places[1, 15] += [0.0, 0.6 * people[1].head]
    got, strict = mpii.pckh(places, people), mpii.pckh(places, people, threshold=0.1)
    assert got["Wrist"] == pytest.approx((1 + 0.5) / 2)
    assert got["Mean"] == pytest.approx(27 / 28)
    assert strict["Mean"] == pytest.approx(26 / 28)
    assert strict["Knee"] == 1.0


def test_head_sizes_of_the_official_file(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    files = write_mpii(tmp_path, [person(0), person(1)])
    boxes = np.zeros((2, 2, 2))
    boxes[:, :, 1] = [[10, 10], [40, 50]]
    boxes[:, :, 0] = [[0, 0], [6, 8]]
    scipy_io.savemat(str(tmp_path / "gt_valid.mat"), {"headboxes_src": boxes})
    people = mpii.read_mpii(*files, heads=tmp_path / "gt_valid.mat").people
    assert [p.head for p in people] == pytest.approx([6.0, 30.0])
    scipy_io.savemat(str(tmp_path / "other.mat"), {"headboxes_src": boxes[:, :, :1]})
    with pytest.raises(ValueError, match=r"one per person, got \(2, 2, 1\)"):
        mpii.read_mpii(*files, heads=tmp_path / "other.mat")


def test_what_is_left_out_is_counted_and_wrong_files_are_refused(tmp_path):
    notes, images = write_mpii(tmp_path, [person(0), person(1, joints_vis=[0] * 16), person(2)])
    (images / "2.png").unlink()
    people = mpii.read_mpii(notes, images)
    assert len(people.people) == 1
    assert people.dropped == {"image file missing": 1, "no visible joint": 1}
    with pytest.raises(FileNotFoundError, match="no file"):
        mpii.read_mpii(tmp_path / "none.json", images)
    with pytest.raises(FileNotFoundError, match="no image folder"):
        mpii.read_mpii(notes, tmp_path / "none")
    for content, message in [
        ({"images": []}, "no MPII file"),
        ([], "No person left"),
        ([{"image": "0.png"}], "Record 0 lacks"),
        ([person(0, joints=[[1, 1]] * 17)], "has 17 joints and 16 visibilities, expected 16"),
        ([person(0, scale=-1)], "scale -1"),
    ]:
        notes.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            mpii.read_mpii(notes, images)


def test_the_metric_gives_1_for_perfect_heatmaps_and_counts_a_person_once(tmp_path):
    people = mpii.read_mpii(*write_mpii(tmp_path, [person(0), person(1)]))
    dataset = KeypointDataset(people, (128, 128), unbiased=True)
    metric = mpii.PCKh(dataset, dark=True)
    assert set(metric.accumulate()) == {0.0}
    maps = np.stack([dataset[i][1] for i in range(2)])
    metric.update(*metric.compute(paddle.to_tensor(maps), paddle.to_tensor([0, 1])))
    metric.update(np.zeros_like(maps[:1]), np.array([1]))  # padding of another process: replaces the first answer
    metric.update(maps[1:], np.array([1]))
    figures = dict(zip(metric.name(), metric.accumulate(), strict=True))
    assert figures["Mean"] == 1.0
    assert figures["Mean@0.1"] > 0.9
    assert len(metric.results) == 2


def test_two_persons_of_one_picture_are_inferred(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.NETWORKS, "tiny", Tiny)
    Image.new("RGB", (80, 60), (90, 120, 150)).save(tmp_path / "a.png")
    people = infer.find_people(tmp_path, {"a.png": [[0, 0, 40, 60], [2, 0, 40, 60]]}, MPII_BODY)
    found = infer.predict(settings.network("tiny", MPII_BODY), KeypointDataset(people, (32, 32)))
    assert [len(result["keypoints"]) for result in found] == [48, 48]  # MPII has no constants for OKS: both are kept
