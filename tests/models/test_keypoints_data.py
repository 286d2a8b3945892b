"""Reading and generating COCO keypoint data: what is counted, refused, hidden and drawn."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "examples" / "keypoints"))

import coco
import generator
from dataset import KeypointDataset, read_image
from layouts import MPII_BODY


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return generator.generate(tmp_path_factory.mktemp("toy"), 12, seed=3)


def test_what_cannot_be_used_is_counted(toy, tmp_path):
    content = json.loads(toy[0].read_text())
    first = content["annotations"][0]
    extra = [
        {**first, "id": 901, "iscrowd": 1},
        {**first, "id": 902, "keypoints": []},
        {**first, "id": 903, "keypoints": [0] * 51},
        {**first, "id": 904, "bbox": [1, 1, 0, 5]},
        {**first, "id": 905, "image_id": 777},
    ]
    content["images"].append({"id": 55, "file_name": "gone.png"})
    extra.append({**first, "id": 906, "image_id": 55})
    before = len(content["annotations"])
    content["annotations"] += extra
    (tmp_path / "a.json").write_text(json.dumps(content))
    people = coco.read_people(tmp_path / "a.json", toy[1])
    assert len(people.people) == before
    assert people.dropped == {
        "crowd": 1,
        "no keypoints": 1,
        "no visible joint": 1,
        "empty box": 1,
        "image not listed": 1,
        "image file missing": 1,
    }


def test_wrong_data_is_refused_before_training(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        coco.read_people(tmp_path / "none.json", toy[1])
    with pytest.raises(FileNotFoundError, match="no image folder"):
        coco.read_people(toy[0], tmp_path / "none")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        coco.read_people(tmp_path / "bad.json", toy[1])
    for content in ([], {"images": []}, {"images": {}, "annotations": []}, {"images": [{"id": 1}], "annotations": []}):
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="no COCO file"):
            coco.read_people(tmp_path / "other.json", toy[1])
    with pytest.raises(ValueError, match=r"has the joints nose, .*expected are those of 'mpii', in this order"):
        coco.read_people(toy[0], toy[1], layout=MPII_BODY)
    unnamed = {**json.loads(toy[0].read_text()), "categories": []}
    (tmp_path / "unnamed.json").write_text(json.dumps(unnamed))
    with pytest.raises(ValueError, match="has 17 joints, expected 16"):
        coco.read_people(tmp_path / "unnamed.json", toy[1], layout=MPII_BODY)
    (tmp_path / "zero.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(ValueError, match=r"No person left.*there are no records"):
        coco.read_people(tmp_path / "zero.json", toy[1])
    only_crowds = json.loads(toy[0].read_text())
    for record in only_crowds["annotations"]:
        record["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(only_crowds))
    with pytest.raises(ValueError, match=r"No person left.*crowd"):
        coco.read_people(tmp_path / "crowds.json", toy[1])


def test_wrong_boxes_are_refused_before_the_evaluation(toy, tmp_path):
    path = tmp_path / "boxes.json"
    with pytest.raises(FileNotFoundError, match="no file"):
        coco.read_people(*toy, boxes=path)
    path.write_text("[{")
    with pytest.raises(ValueError, match="no JSON"):
        coco.read_people(*toy, boxes=path)
    for content in ({"boxes": []}, [[1, 2, 3, 4]], [{"image_id": 1, "category_id": 1}]):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="no list of boxes"):
            coco.read_people(*toy, boxes=path)
    path.write_text(json.dumps([{"image_id": 999, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 1.0}]))
    with pytest.raises(ValueError, match=r"No person left.*image not listed"):
        coco.read_people(*toy, boxes=path)
    path.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 1, "a", 5], "score": 1.0}]))
    with pytest.raises(ValueError, match=r"No person left.*empty box"):
        coco.read_people(*toy, boxes=path)


def test_a_damaged_image_is_a_black_sample_without_target(toy, tmp_path):
    people = coco.read_people(*toy)
    broken = tmp_path / "broken.png"
    broken.write_bytes(people.people[0].path.read_bytes()[:200])
    assert read_image(broken) is None
    person = coco.Person(**{**vars(people.people[0]), "path": broken})
    damaged = coco.People(people=[person], dropped=people.dropped, annotations=toy[0], image_ids=[1])
    dataset = KeypointDataset(damaged, (64, 64))
    image, maps, weight, _ = dataset[0]
    assert np.ptp(image, axis=(1, 2)).max() == 0
    assert not maps.any()
    assert not weight.any()
    assert dataset.damaged == {broken}


def test_detector_boxes(toy, tmp_path):
    boxes = [
        {"image_id": 1, "category_id": 1, "bbox": [5, 5, 40, 80], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [5, 5, 40, 80], "score": 0.01},
        {"image_id": 1, "category_id": 3, "bbox": [5, 5, 40, 80], "score": 0.9},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    people = coco.read_people(*toy, boxes=tmp_path / "boxes.json", min_box_score=0.1)
    assert [person.score for person in people.people] == [0.9]
    assert people.dropped == {"box score too low": 1, "not a person": 1}


def test_a_part_of_the_data_and_hidden_labels(toy):
    dataset = KeypointDataset(coco.read_people(*toy), (64, 64), keep_images=True)
    part = dataset.first(3)
    assert {person.image_id for person in part.people} == {1, 2, 3}
    taught = dataset.first(3, others_unlabelled=True)
    assert len(taught) == len(dataset)
    for index, person in enumerate(taught.people):
        image, maps, weight, _ = taught[index]
        assert weight.any() == (person.image_id <= 3)
        assert maps.any() == (person.image_id <= 3)
        assert np.ptp(image) > 0
    assert all(person.visible.any() for person in dataset.people)  # the whole keeps its labels
    np.testing.assert_array_equal(part[0][0], dataset[0][0])
    with pytest.raises(ValueError, match="Nobody is on the first 0"):
        dataset.first(0)


def test_the_same_seed_draws_the_same_pictures(tmp_path, toy):
    again = generator.generate(tmp_path / "again", 12, seed=3)
    assert again[0].read_bytes() == toy[0].read_bytes()
    assert (again[1] / "000005.png").read_bytes() == (toy[1] / "000005.png").read_bytes()
    visible = np.array([person.visible for person in coco.read_people(*toy).people])
    assert set(np.unique(visible)) == {0, 1, 2}  # outside, hidden, seen
    assert 0.6 < (visible == 2).mean() < 0.98
