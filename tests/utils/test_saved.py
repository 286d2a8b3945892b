"""Files of paddle.save are read without running code, and as paddle.load reads them."""

from __future__ import annotations

import os
import pickle
import zlib

import numpy as np
import paddle
import pytest
from toy import TinyNet, fit, hapi_model

from paddlelite_callbacks import DistillCallback
from paddlelite_callbacks.utils.safe_load import check_no_code, read_saved


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, paddle.Tensor):
        return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy())
    return a == b


def adam_state():
    network = TinyNet()
    rate = paddle.optimizer.lr.CosineAnnealingDecay(0.1, 3)
    optimizer = paddle.optimizer.Adam(rate, parameters=network.parameters())
    network(paddle.rand([2, 3, 8, 8])).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


SAVED = {
    "state_dict": lambda: TinyNet().state_dict(),
    "optimizer": adam_state,
    "nested": lambda: {"position": 1.5, "weights": {"a": {"b": TinyNet().state_dict()}}, "list": [paddle.ones([2]), 3]},
    "bfloat16": lambda: {
        "w": paddle.ones([2], "bfloat16"),
        "b": paddle.ones([2], "bool"),
        "h": paddle.ones([2], "float16"),
    },
    "arrays": lambda: {"w": np.ones(3), "scalar": np.float32(2.0), "text": "x", "none": None},
    "scalar tensor": lambda: {"w": paddle.to_tensor(3.0), "empty": paddle.zeros([0, 3])},
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", SAVED)
def test_reads_what_paddle_load_reads(name, protocol, tmp_path):
    path = tmp_path / "x.pdparams"
    paddle.save(SAVED[name](), str(path), protocol=protocol)
    assert same(paddle.load(str(path)), read_saved(path))


def test_reads_a_static_graphs_tensors(tmp_path):
    array = np.arange(3.0, dtype="float32")
    with (tmp_path / "x").open("wb") as file:
        file.write(pickle.dumps({"w": Evaluated("data", {"data": array})}, protocol=2))
    np.testing.assert_array_equal(read_saved(tmp_path / "x")["w"].numpy(), array)


def test_reads_arrays_that_were_split(tmp_path):
    state = {"w@@.0": np.arange(4), "w@@.1": np.arange(2), "b": np.ones(1)}
    state["UnpackBigParamInfor@@"] = {"w": {"slices": ["w@@.0", "w@@.1"], "OriginShape": (2, 3)}}
    (tmp_path / "x").write_bytes(pickle.dumps(state, protocol=2))
    assert same(paddle.load(str(tmp_path / "x")), read_saved(tmp_path / "x"))
    assert read_saved(tmp_path / "x")["w"].shape == [2, 3]


class Evaluated:
    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return eval, self.arguments


class Called:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "attack",
    [
        lambda file: Called(os.system, f"touch {file}"),
        lambda file: Evaluated(f"open({str(file)!r}, 'w')", {}),
        lambda file: Called(exec, f"open({str(file)!r}, 'w')"),
        lambda file: Called(getattr, "text", "format"),
        lambda file: Called(np.load, str(file)),
        lambda file: Called(zlib.decompress, b""),
        lambda file: Called(bytearray, 10),
    ],
)
def test_nothing_in_a_file_is_run(attack, protocol, tmp_path):
    (tmp_path / "bad.pdparams").write_bytes(pickle.dumps({"w": np.ones(2), "x": attack(tmp_path / "ran")}, protocol))
    for read in (read_saved, check_no_code):
        with pytest.raises(ValueError, match=r"would call .* when it is opened.*not opened.*paddle\.save"):
            read(tmp_path / "bad.pdparams")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"weights", b"PK\x03\x04zip", os.urandom(100)], ids=range(5))
def test_torn_and_other_files(content, tmp_path):
    (tmp_path / "torn").write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated, or not a file of paddle\.save"):
        read_saved(tmp_path / "torn")


def test_a_checkpoint_that_is_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "x"
    paddle.save(TinyNet().state_dict(), str(path))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated"):
            read_saved(path)


def test_the_weights_load(tmp_path):
    model = hapi_model()
    model.save(str(tmp_path / "ck"))
    other = TinyNet()
    other.set_state_dict(read_saved(tmp_path / "ck.pdparams"))
    for key, value in model.network.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[key].numpy(), value.numpy())


@pytest.mark.parametrize("alone", [True, False], ids=["checkpoint", "checkpoint and network"])
def test_nothing_in_a_teachers_checkpoint_is_run(alone, tmp_path):
    bad, ran = tmp_path / "bad.pdparams", tmp_path / "ran"
    bad.write_bytes(pickle.dumps({"x": Called(os.system, f"touch {ran}")}))
    with pytest.raises(ValueError, match=r"would call .* when it is opened"):
        fit(hapi_model(), [DistillCallback(bad if alone else (bad, TinyNet()))])
    assert not ran.exists()
