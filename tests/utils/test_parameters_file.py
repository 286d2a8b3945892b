"""A file of parameters that was cut anywhere is refused; Paddle takes one that is cut within its last tensor."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet

from paddlelite_callbacks import DistillCallback
from paddlelite_callbacks.benchmark.engines import EngineError, PaddleInference
from paddlelite_callbacks.export.model_files import find_model
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.utils.parameters_file import check_not_truncated


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    paddle.seed(0)
    spec = [InputSpec([None, 3, 8, 8], "float32", "x")]
    return export_paddle(TinyNet(), tmp_path_factory.mktemp("whole"), input_spec=spec)


def cut_to(size, program, folder):
    """A copy of ``program`` whose parameters end after ``size`` bytes; negative: that many are missing."""
    for file in program.files:
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[:size] if file.suffix == ".pdiparams" else data)
    return replace(program, path=folder / program.path.name, files=tuple(folder / file.name for file in program.files))


def test_a_whole_file_is_taken(program, tmp_path):
    check_not_truncated(program.files[1])
    assert find_model(program.path).files == program.files
    assert DistillCallback(str(program.path.with_suffix(""))).teacher is not None
    whole = cut_to(None, program, tmp_path)
    outputs = PaddleInference(onednn=False).load(whole, threads=1)([Images(2).images])
    assert np.isfinite(outputs[0]).all()


def test_every_cut_is_refused(program, tmp_path):
    size, ends = program.files[1].stat().st_size, []
    for length in range(1, size):
        torn = cut_to(length, program, tmp_path).files[1]
        try:
            check_not_truncated(torn)
        except ValueError:
            continue
        ends.append(length)
    assert 0 < len(ends) < 9  # between two tensors a file is whole; Paddle itself refuses one that has too few
    for length in ends:
        with pytest.raises(RuntimeError):
            paddle.jit.load(str(cut_to(length, program, tmp_path).path.with_suffix("")))


def test_paddle_alone_takes_memory_for_what_is_missing(program, tmp_path):
    """Should Paddle mend it one day, `check_not_truncated` can go."""
    torn = cut_to(-40, program, tmp_path)
    paddle.jit.load(str(torn.path.with_suffix("")))


@pytest.mark.parametrize("missing", [1, 40])
def test_nobody_takes_a_torn_file(missing, program, tmp_path):
    torn = cut_to(-missing, program, tmp_path)
    with pytest.raises(
        ValueError, match=rf"model\.pdiparams is truncated: it ends after \d+ bytes, {missing} bytes too"
    ):
        DistillCallback(str(torn.path.with_suffix("")))
    with pytest.raises(ValueError, match="is truncated"):
        find_model(tmp_path)
    with pytest.raises(EngineError, match="is truncated"):
        PaddleInference(onednn=False).load(torn, threads=1)


class Types(nn.Layer):
    """Parameters and buffers of every type that an export holds."""

    def __init__(self):
        super().__init__()
        self.weight = self.create_parameter([3, 4])
        self.register_buffer("small_values", paddle.ones([5], "int8"))
        self.register_buffer("large_values", paddle.ones([2, 2], "int64"))
        self.register_buffer("half_values", paddle.ones([7], "float16"))
        self.register_buffer("double_values", paddle.ones([1], "float64"))
        self.register_buffer("flag_values", paddle.ones([3], "bool"))

    def forward(self, x):
        small, large = self.small_values.astype("float32").sum(), self.large_values.astype("float32").sum()
        half, double = self.half_values.astype("float32").sum(), self.double_values.astype("float32").sum()
        return paddle.matmul(x, self.weight) + small + large + half + double + self.flag_values.astype("float32").sum()


def test_types_of_every_width(tmp_path):
    network = Types()
    program = export_paddle(network, tmp_path, input_spec=[InputSpec([None, 3], "float32", "x")])
    check_not_truncated(program.files[1])
    assert program.files[1].stat().st_size > sum(t.size * t.element_size() for t in network.state_dict().values())


def test_a_file_of_another_kind_is_left_to_paddle(tmp_path):
    file = tmp_path / "other.pdiparams"
    unknown_field = struct.pack("<IQIi", 0, 0, 0, 2) + b"\x7a\x00"
    file.write_bytes(unknown_field + b"values")
    check_not_truncated(file)
    file.write_bytes(b"")
    check_not_truncated(file)
