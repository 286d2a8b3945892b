"""Folders of pictures as people have them: every kind, broken ones, classes of any size, weights of other networks."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlelite_callbacks.recipes.pictures import (
    MEAN,
    STD,
    PictureFolder,
    Pictures,
    class_weights,
    load_fitting_weights_,
    load_picture,
    readable,
    split,
)


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
def test_pictures_of_every_kind_become_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (5, 9), colour).save(tmp_path / "picture.png")
    picture = load_picture(tmp_path / "picture.png")
    assert (picture.mode, picture.size) == ("RGB", (5, 9))
    assert picture.getpixel((0, 0)) == expected
    (image, label) = Pictures([(str(tmp_path / "picture.png"), 2)], 32, train=False)[0]
    np.testing.assert_allclose(image[:, 3, 4], (np.array(expected) - MEAN) / STD, rtol=1e-5)
    assert (image.dtype, image.shape, label) == (np.float32, (3, 32, 32), 2)


def test_a_picture_that_a_telephone_held_sideways_stands_upright(tmp_path):
    picture = Image.new("RGB", (4, 2), (255, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    picture.save(tmp_path / "p.jpg", exif=exif)
    assert load_picture(tmp_path / "p.jpg").size == (2, 4)


def folder_of(place, **counts):
    for name, count in counts.items():
        (place / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20 + i, 30)).save(place / name / f"{i}.png")
    return place


def test_own_pictures_are_sorted_split_and_weighed(tmp_path):
    folder_of(tmp_path, b=3, a=11, c=1)
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "empty.png").write_bytes(b"")
    folder = paddle.vision.datasets.DatasetFolder(str(tmp_path))
    samples, broken = readable(folder.samples)
    assert sorted(broken) == [f"{tmp_path}/a/cut.png", f"{tmp_path}/b/empty.png"]
    assert all(broken.values())
    with pytest.raises(ValueError, match="Class 'c' has 1 readable pictures"):
        split(samples, folder.classes, 0)
    train, test = split([sample for sample in samples if sample[1] < 2], ["a", "b"], 0)
    assert sorted(train + test) == sorted(sample for sample in samples if sample[1] < 2)
    assert [sum(label == number for _, label in test) for number in (0, 1)] == [2, 1]
    np.testing.assert_allclose(class_weights(train, ["a", "b"]), [11 / 18, 11 / 4], rtol=1e-6)


def test_a_whole_folder(tmp_path):
    folder_of(tmp_path, disc=5, cross=10)
    (tmp_path / "disc" / "broken.jpg").write_bytes(b"no picture")
    read = PictureFolder.read(tmp_path, size=16)
    assert read.classes == ("cross", "disc")
    assert (len(read.train), len(read.test), read.found) == (12, 3, 16)
    first, second, last = read.lines()
    assert first == "1 of 16 pictures cannot be read and are left out:"
    assert second.startswith(f"  {tmp_path}/disc/broken.jpg: ")
    assert last == "Training pictures: cross 8, disc 4"
    assert read.sidecar["labels"] == ["cross", "disc"]
    assert read.train[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize("kind", ["missing", "one class", "no pictures"])
def test_what_is_no_folder_of_pictures(kind, tmp_path):
    if kind == "one class":
        folder_of(tmp_path, a=3)
    if kind == "no pictures":
        for name in "ab":
            (tmp_path / name).mkdir()
    place = tmp_path / "nothing" if kind == "missing" else tmp_path
    with pytest.raises(ValueError, match=r"must hold pictures in one sub-folder per class|holds no pictures"):
        PictureFolder.read(place, size=16)


def test_teacher_weights_for_other_classes_are_taken_but_for_the_last_layer(tmp_path):
    mine, theirs = (paddle.vision.models.resnet18(num_classes=count) for count in (3, 5))
    paddle.save(theirs.state_dict(), str(tmp_path / "theirs.pdparams"))
    taken = load_fitting_weights_(mine, tmp_path / "theirs.pdparams")
    assert taken.left == ("fc.bias", "fc.weight")
    assert len(taken.loaded) == len(mine.state_dict()) - 2
    np.testing.assert_array_equal(mine.conv1.weight.numpy(), theirs.conv1.weight.numpy())
    paddle.save({"other": paddle.ones([2])}, str(tmp_path / "other.pdparams"))
    with pytest.raises(ValueError, match="holds no weight of this network"):
        load_fitting_weights_(mine, tmp_path / "other.pdparams")
