"""EfficientNet-Lite as an example: sizes of the paper's networks, TensorFlow's padding, names of the weight files."""

from __future__ import annotations

import sys

import numpy as np
import paddle
import pytest
from PIL import Image
from places import ROOT

sys.path.insert(0, str(ROOT / "examples" / "imagenet"))

from efficientnet_lite import Pictures, efficientnet_lite, load_weights_, preprocess


@pytest.mark.parametrize(("name", "millions"), [("lite0", 4.652), ("lite1", 5.417)])
def test_the_networks_have_the_published_numbers_of_parameters(name, millions):
    """4.7 M and 5.4 M (github.com/tensorflow/tpu, efficientnet/lite)."""
    network = efficientnet_lite(name)
    count = sum(p.size for p in network.parameters() if p.trainable)
    assert count / 1e6 == pytest.approx(millions, abs=1e-3)
    assert not network.training


@pytest.mark.parametrize(("size", "kernel", "stride"), [(224, 3, 2), (56, 5, 2), (15, 5, 2), (14, 5, 1), (7, 3, 1)])
def test_padding_is_tensorflows_same(size, kernel, stride):
    """Outputs are ceil(size / stride) wide, and of an odd total the larger part is below and right."""
    from efficientnet_lite import _conv_norm

    conv = _conv_norm(1, 1, kernel, stride=stride, size=size)[0]
    conv.weight.set_value(paddle.ones_like(conv.weight))
    got = conv(paddle.ones([1, 1, size, size]))
    assert got.shape == [1, 1, -(-size // stride), -(-size // stride)]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    assert float(got[0, 0, 0, 0]) == (kernel - total // 2) ** 2
    assert float(got[0, 0, -1, -1]) == (kernel - (total - total // 2)) ** 2


def torch_name(key):
    head, _, tail = key.rpartition(".")
    tail = {"_mean": "running_mean", "_variance": "running_var"}.get(tail, tail)
    for mine, theirs in (("stem.0", "_conv_stem"), ("stem.1", "_bn0"), ("head.0", "_conv_head"), ("head.1", "_bn1")):
        if head == mine:
            return f"{theirs}.{tail}"
    parts = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    parts |= {"project": ("_project_conv", "_bn2")}
    if head == "fc":
        return f"_fc.{tail}"
    _, number, part, place = head.split(".")
    return f"_blocks.{number}.{parts[part][int(place)]}.{tail}"


def test_weights_with_pytorchs_names_are_loaded(tmp_path):
    network = efficientnet_lite("lite0")
    random = np.random.RandomState(0)
    wanted = {key: np.float32(random.rand(*value.shape)) for key, value in network.state_dict().items()}
    saved = {torch_name(key): value for key, value in wanted.items()}
    saved["_fc.weight"] = saved["_fc.weight"].T
    np.savez(tmp_path / "weights.npz", **saved, **{"_bn0.num_batches_tracked": np.int64(3)})
    load_weights_(network, tmp_path / "weights.npz")
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), wanted[key], err_msg=key)
    with pytest.raises(ValueError, match="is of another network"):
        load_weights_(efficientnet_lite("lite1"), tmp_path / "weights.npz")
    with pytest.raises(ValueError, match=r"name must be one of \['lite0', 'lite1'\], got 'lite9'"):
        efficientnet_lite("lite9")


def test_pictures_are_cropped_and_every_fifth_calibrates(tmp_path):
    picture = Image.new("RGB", (400, 300), (255, 0, 127))
    got = preprocess(picture, 224)
    assert got.shape == (3, 224, 224)
    np.testing.assert_allclose(got[:, 100, 100], [1, -1, 127 / 127.5 - 1], atol=1e-6)
    names = [f"{number}.jpg" for number in range(11)]
    for name in names:
        picture.save(tmp_path / name)
    (tmp_path / "list.txt").write_text("".join(f"{name} {number}\n" for number, name in enumerate(names)))
    labels = [label for _, label in Pictures(tmp_path, 64, calibration=True).entries]
    assert labels == [0, 5, 10]
    assert len(Pictures(tmp_path, 64)) == 11
    assert len(Pictures(tmp_path, 64, calibration=False)) == 8
    images, labels = next(Pictures(tmp_path, 64).batches(4))
    assert images.shape == (4, 3, 64, 64)
    assert list(labels) == [0, 1, 2, 3]
