"""Pictures and arrays for calibration: labels by folder, list or file, preprocessing as the file tells it."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import paddle
import pytest
from onnx_graphs import torch_style
from PIL import Image
from toy import Images

from paddlelite_callbacks.export.model_files import find_model
from paddlelite_callbacks.recipes.sample_data import Preprocess, read_metadata, read_samples

SPEC = {"x": ([-1, 3, 8, 8], "float32")}


def picture(path, colour, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        for i in range(3):
            picture(tmp_path / "pictures" / name / f"{i}.png", (10 * i, 100 * number, 255))
    (tmp_path / "pictures" / "dog" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "pictures" / "readme.md").write_text("not a picture")
    return tmp_path / "pictures"


def read(data, tmp_path, declared=None, **options):
    return read_samples(data, declared or SPEC, work=tmp_path, verbose=0, **options)


def test_sub_folders_are_classes(folder, tmp_path):
    found = read(folder, tmp_path)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.inputs["x"].shape == (6, 3, 8, 8)
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    expected = (np.float32([20, 0, 255]) - mean) / std
    np.testing.assert_allclose(found.inputs["x"][2].mean(axis=(1, 2)), expected, rtol=1e-5)
    assert [path.rsplit("/", 1)[1] for path in found.broken] == ["broken.jpg"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [(["dog", "bird", "cat"], [2, 2, 2, 0, 0, 0]), (["dog", "bird"], [0, 0, 0, 1, 1, 1])],
    ids=["in the metadata", "others"],
)
def test_class_numbers_follow_the_labels_of_the_file(names, labels, folder, tmp_path):
    assert read(folder, tmp_path, metadata={"labels": names}).labels.tolist() == labels


def test_folders_named_by_class_numbers(tmp_path):
    for number in (2, 10):
        picture(tmp_path / "pictures" / str(number) / "a.png", (0, 0, 0))
    assert read(tmp_path / "pictures", tmp_path).labels.tolist() == [10, 2]


def test_a_list_as_paddleclas_writes_it(folder, tmp_path):
    (folder / "list.txt").write_text("dog/1.png 7\ncat/0.png 3\n\n")
    assert read(folder, tmp_path).labels.tolist() == [7, 3]
    (folder / "list.txt").write_text("dog/1.png seven\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 1, must be a path and a class number"):
        read(folder, tmp_path)


def test_a_folder_without_classes_has_no_labels(tmp_path):
    for i in range(4):
        picture(tmp_path / "pictures" / f"{i}.PNG", (i, i, i))
    found = read(tmp_path / "pictures", tmp_path, most=2)
    assert found.labels is None
    assert len(found) == 2
    assert found.inputs["x"][1, 0, 0, 0] > found.inputs["x"][0, 0, 0, 0]  # the first and the last


def test_channels_last_and_grey(folder, tmp_path):
    last = np.array(read(folder, tmp_path, {"x": ([-1, 8, 8, 3], "float32")}).inputs["x"])
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), read(folder, tmp_path).inputs["x"])
    grey = read(folder, tmp_path, {"x": ([1, 1, 8, 8], "float32")}, preprocess={"mean": [0], "std": [1]})
    assert grey.inputs["x"].shape == (6, 1, 8, 8)
    assert grey.inputs["x"].max() <= 255


def test_the_centre_is_cut_out(tmp_path):
    """Of 40 x 20 pixels, with half of the shorter side kept: 16 x 32, of which the middle 8 x 8."""
    values = np.zeros((20, 40, 3), "uint8")
    values[5:15, 15:25] = 200
    (tmp_path / "pictures").mkdir()
    Image.fromarray(values).save(tmp_path / "pictures" / "a.png")
    plain = {"mean": [0], "std": [1]}
    cut = read(tmp_path / "pictures", tmp_path, preprocess={**plain, "crop": 0.5}).inputs["x"]
    assert cut[0, :, 1:-1, 1:-1].min() == 200
    squeezed = read(tmp_path / "pictures", tmp_path, preprocess=plain).inputs["x"]
    assert squeezed[0, 0, 4, 0] == 0


def test_preprocessing_is_read_from_the_file(tmp_path):
    model = torch_style()
    held = {"preprocess": {"mean": [1.0, 2.0, 3.0], "std": [4.0], "size": 16}, "labels": ["a", "b"]}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in held.items()})
    onnx.save(model, tmp_path / "net.onnx")
    assert read_metadata(find_model(tmp_path / "net.onnx")) == held
    chosen = Preprocess.of({"size": None, "crop": 0.9}, held["preprocess"])
    assert chosen == Preprocess(size=16, crop=0.9, mean=(1.0, 2.0, 3.0), std=(4.0,))


def test_arrays_by_name_and_by_order(tmp_path):
    x, y = np.random.RandomState(0).rand(5, 3, 8, 8), np.arange(5)
    two = {"a": ([-1, 2], "float32"), "b": ([-1], "int64")}
    a, b = np.ones((4, 2)), np.arange(4)
    np.savez(tmp_path / "x.npz", x=x, label=y)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "two.npz", b=b, a=a)
    for data in (tmp_path / "x.npz", {"x": x, "y": y}, [x, y], [paddle.to_tensor(x), paddle.to_tensor(y)]):
        found = read(data, tmp_path)
        assert found.labels.tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(found.inputs["x"], x.astype("float32"))
    for data in (tmp_path / "x.npy", x, [x]):
        assert read(data, tmp_path).labels is None
    for data in (tmp_path / "two.npz", [a, b]):
        found = read(data, tmp_path, two)
        assert [array.dtype.name for array in found.inputs.values()] == ["float32", "int64"]
        assert found.inputs["b"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("loader", [False, True], ids=["data set", "loader"])
def test_data_sets_and_loaders(loader, tmp_path):
    data = Images(20)
    found = read(paddle.io.DataLoader(data, batch_size=8) if loader else data, tmp_path)
    np.testing.assert_array_equal(found.inputs["x"], data.images)
    assert found.labels.reshape(-1).tolist() == data.labels.tolist()
    assert len(read(data, tmp_path, most=16)) == 16


def test_calibration_and_evaluation_are_apart_where_they_can_be(tmp_path):
    found = read(np.zeros((10, 3, 8, 8)), tmp_path)
    chosen, rest = found.split(3)
    assert (chosen.tolist(), rest.tolist()) == ([0, 4, 9], [1, 2, 3, 5, 6, 7, 8])
    chosen, rest = found.split(8)
    assert (len(chosen), rest.tolist()) == (8, list(range(10)))
    assert len(found.split(100)[0]) == 10


@pytest.mark.parametrize(
    ("data", "declared", "options", "said"),
    [
        ("nothing", SPEC, {}, "No data at nothing: give a folder of pictures"),
        (np.zeros((4, 3, 7, 8)), SPEC, {}, "holds [4, 3, 7, 8] for the input x, which takes [-1, 3, 8, 8]"),
        ({"z": np.zeros(3), "w": np.zeros(3)}, SPEC, {}, "holds no ['x'], only ['w', 'z']"),
        ([np.zeros((4, 3, 8, 8)), np.zeros(3)], SPEC, {}, "as many rows for every input and label, got [3, 4]"),
        ([np.zeros((0, 3, 8, 8))], SPEC, {}, "as many rows"),
        (np.zeros((4, 3, 8, 8)), SPEC, {"preprocess": {"size": 8}}, "preprocess is for pictures"),
        ("FOLDER", {"x": ([-1, 3, -1, -1], "float32")}, {}, "dynamic sizes: give size (--size)"),
        ("FOLDER", SPEC, {"preprocess": {"size": 9}}, "takes 8 x 8 pixels, not 9"),
        ("FOLDER", SPEC, {"preprocess": {"sise": 9}}, "Unknown keys ['sise'] of preprocess; near names: ['size']"),
        ("FOLDER", SPEC, {"preprocess": {"crop": 2}}, "crop must be a share in (0, 1], got 2"),
        ("FOLDER", SPEC, {"preprocess": {"std": [0]}}, "std must be one or three numbers above 0"),
        ("FOLDER", {"x": ([-1, 10], "float32")}, {}, "takes no pictures"),
        ("FOLDER", {"x": SPEC["x"], "y": SPEC["x"]}, {}, "takes 2 inputs (x, y), and pictures are one"),
        ("EMPTY", SPEC, {}, "holds no pictures"),
        ("TORN", SPEC, {}, "torn.npz cannot be read"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_data_that_do_not_fit(data, declared, options, said, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.npz").write_bytes(b"PK")
    places = {"FOLDER": folder, "EMPTY": tmp_path / "empty", "TORN": tmp_path / "torn.npz"}
    with pytest.raises(ValueError, match=re.escape(said)):
        read(places.get(data, data) if isinstance(data, str) else data, tmp_path, declared, **options)


def test_data_of_another_kind(tmp_path):
    with pytest.raises(
        TypeError, match=r"data must be a folder, a \.npy or \.npz file, arrays, a data set or a loader"
    ):
        read(7, tmp_path)
