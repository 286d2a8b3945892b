"""Models from elsewhere: all of their files count, what is none is named, programs of Paddle 2 run on every engine."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import paddle
import pytest
from installed import needs
from onnx import TensorProto, helper, numpy_helper
from paddle.static import InputSpec
from toy import Images, TinyNet

from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason
from paddlelite_callbacks.cli import export as export_command
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.model_files import find_model
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.onnx_files import onnx_files
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.report.record import ArtefactFigures

QUICK = ["--warmup", "0", "--repeats", "2", "--no-memory"]


def external(name: str, array: np.ndarray, location: str, folder, **entries) -> TensorProto:
    """A tensor whose values lie in ``folder/location``."""
    tensor = numpy_helper.from_array(array, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    if folder is not None:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(array.tobytes())
    return tensor


def saved(folder, weights: TensorProto, *, constant: TensorProto | None = None):
    """``y = x @ w``, or with a constant of that shape instead of the initializer, in a branch of an If."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", 512), ("y", 512))]
    if constant is None:
        nodes, stored = [helper.make_node("MatMul", ["x", "w"], ["y"])], [weights]
    else:
        branch = helper.make_graph(
            [helper.make_node("Constant", [], ["c"], value=constant), helper.make_node("MatMul", ["x", "c"], ["b"])],
            "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 512])],
        )  # fmt: skip
        yes = numpy_helper.from_array(np.array(True), "yes")
        nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
        stored = [yes]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


@pytest.fixture
def matrix():
    return np.random.RandomState(0).rand(512, 512).astype("float32")


@pytest.mark.parametrize("where", ["initializer", "constant in a branch"])
def test_weights_beside_an_onnx_file_count(where, matrix, tmp_path, capsys):
    tensor = external("w", matrix, "data/w.bin", tmp_path, offset=0, length=matrix.nbytes)
    path = saved(tmp_path, tensor, constant=None if where == "initializer" else tensor)
    artefact = find_model(path)
    assert artefact.files == (path, tmp_path / "data/w.bin")
    assert artefact.size_mb == pytest.approx((path.stat().st_size + matrix.nbytes) / 1e6)
    assert artefact.sha256()["data/w.bin"] == hashlib.sha256(matrix.tobytes()).hexdigest()
    assert ArtefactFigures.of(artefact).artefact() == artefact
    if where == "initializer":
        given = ["bench", str(path), "--input", "1x512", "--engines", "onnxruntime", *QUICK]
        assert main([*given, "--size-mb", "0.5"]) == 3
        assert main([*given, "--size-mb", "1.1"]) == 0
        assert "1.05 MB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("none.bin", "needs none.bin, which is missing"),
        ("../w.bin", "outside its folder"),
        ("a/../../w.bin", "outside its folder"),
        ("/etc/hostname", "outside its folder"),
        ("short.bin", "10 bytes, net.onnx needs 1048576"),
        ("lfs.bin", "pointer of Git LFS"),
    ],
)
def test_weights_that_are_not_beside_it_are_named(location, said, matrix, tmp_path, capsys):
    (tmp_path / "short.bin").write_bytes(b"\x01" * 10)
    (tmp_path / "lfs.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    path = saved(tmp_path, external("w", matrix, location, None, length=matrix.nbytes))
    with pytest.raises(ValueError, match=said):
        onnx_files(path)
    assert main(["bench", str(path), "--input", "1x512", *QUICK]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["net.onnx", "net.pdmodel", "net.json", "net.pdiparams"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"PK\x03\x04", "a zip archive"),
        (b"", "empty"),
    ],
)
def test_what_only_bears_the_name_is_told_and_ends_nothing(name, content, said, tmp_path, capsys):
    other = "net.pdmodel" if name == "net.pdiparams" else "net.pdiparams"
    (tmp_path / other).write_bytes(b"\x0a\x02\x08\x01")
    (tmp_path / name).write_bytes(content)
    assert main(["bench", str(tmp_path / name), "--input", "1x3x8x8", *QUICK]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert name in error


@pytest.mark.parametrize(("name", "content"), [("net.pdmodel", b"\x0a\xb3\x36\x08"), ("net.json", b'{"a": 1}')])
def test_torn_and_other_programs_are_told(name, content, tmp_path, capsys):
    (tmp_path / "net.pdiparams").write_bytes(b"\x00" * 40)
    (tmp_path / name).write_bytes(content)
    assert main(["bench", str(tmp_path / name), "--input", "1x3x8x8", *QUICK]) == 1
    assert "program of Paddle" in capsys.readouterr().err


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """As PP-OCR's published files: a shape taken apart by slices, interpolation by a scale, Paddle 2's format."""
    folder = tmp_path_factory.mktemp("old")
    net = paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 4, 3, padding=1), paddle.nn.BatchNorm2D(4), paddle.nn.Hardswish(),
        paddle.nn.Conv2DTranspose(4, 4, 2, stride=2), paddle.nn.MaxPool2D(2),
    )  # fmt: skip
    net.eval()
    executor = paddle.static.Executor(paddle.CPUPlace())
    with paddle.pir_utils.OldIrGuard():
        spec = [InputSpec([None, 3, 8, 8], name="x")]
        paddle.jit.save(paddle.jit.to_static(net, input_spec=spec), str(folder / "plain"))
        program, feeds, (last,) = paddle.static.load_inference_model(str(folder / "plain"), executor)
        block = program.global_block()

        def new(shape, dtype="int32"):
            return block.create_var(name=f"more_{len(block.vars)}", shape=shape, dtype=dtype)

        larger, shape, first, rest = new([-1, 4, 16, 16], "float32"), new([4]), new([1]), new([1])
        out, kept = new([-1, 1024], "float32"), new([0], "float32")
        block.append_op(
            type="nearest_interp_v2", inputs={"X": last}, outputs={"Out": larger},
            attrs={"scale": [2.0, 2.0], "out_h": -1, "out_w": -1, "out_d": -1, "interp_method": "nearest",
                   "align_corners": False, "align_mode": 1, "data_layout": "NCHW"},
        )  # fmt: skip
        block.append_op(type="shape", inputs={"Input": larger}, outputs={"Out": shape})
        attributes = {"axes": [0], "starts": [0], "ends": [1], "decrease_axis": [0], "infer_flags": [1]}
        block.append_op(type="slice", inputs={"Input": shape}, outputs={"Out": first}, attrs=attributes)
        attributes = {"shape": [1], "value": 1024.0, "dtype": rest.dtype}
        block.append_op(type="fill_constant", outputs={"Out": rest}, attrs=attributes)
        block.append_op(
            type="reshape2", inputs={"X": larger, "ShapeTensor": [first, rest]},
            outputs={"Out": out, "XShape": kept}, attrs={"shape": [-1, 1024]},
        )  # fmt: skip
        first.desc.set_shape([1])
        feed = block.var(feeds[0])
        paddle.static.save_inference_model(
            str(folder / "inference"), [feed], [out], executor, program=program, skip_prune_program=True
        )
    for file in folder.glob("plain*"):
        file.unlink()
    return folder


@needs("paddle2onnx")
def test_a_program_of_paddle_2_runs_on_every_engine(old, tmp_path):
    source = find_model(old)
    assert source.path.suffix == ".pdmodel"
    made = export_onnx(source, tmp_path / "model.onnx")
    x = [Images(3).images]
    expected = ENGINES["paddle"].load(source, threads=1)(x)
    assert expected[0].shape == (3, 1024)
    for engine in ("onnxruntime", "openvino"):
        np.testing.assert_allclose(ENGINES[engine].load(made, threads=1)(x)[0], expected[0], atol=1e-5)


@needs("paddle2onnx")
def test_a_named_engine_without_a_figure_is_an_error(tmp_path, capsys):
    program = export_paddle(TinyNet(), tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    path = export_onnx(program, tmp_path / "net.onnx").path
    given = ["bench", str(path), "--input", "1x3x8x8", *QUICK]
    assert main([*given, "--engines", "onnxruntime,paddle"]) == 1
    assert "paddle gave no measurement: an ONNX file has no Paddle program" in capsys.readouterr().err
    assert main([*given, "--engines", "onnxruntime"]) == 0
    assert main(given) == 0


def test_a_ready_onnx_file_needs_its_engine_alone(monkeypatch):
    import importlib.metadata

    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("paddle2onnx", "onnx"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert missing_reason(ENGINES["onnxruntime"]) is None
    assert missing_reason(ENGINES["openvino"]) is None


@needs("paddle2onnx")
def test_export_checks_on_the_engine_that_is_there_and_compares_shapes(tmp_path, monkeypatch, capsys):
    program = export_paddle(TinyNet(), tmp_path / "in", input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    monkeypatch.setattr(ENGINES["onnxruntime"], "package", "no-such-package", raising=False)
    used = []
    real = export_command._answers
    monkeypatch.setattr(export_command, "_answers", lambda a, engine, x: used.append(engine) or real(a, engine, x))
    given = ["export", str(program.path), str(tmp_path / "out"), "--input", "2x3x8x8"]
    assert main(given) == 0
    assert used == ["paddle", "openvino"]
    monkeypatch.setattr(  # one row for two would be broadcast
        export_command, "_answers", lambda a, engine, x: real(a, engine, [x[0][:1] if a.kind == "onnx" else x[0]])
    )
    assert main([*given[:2], str(tmp_path / "other"), *given[3:]]) == 1
    assert "outputs [[1, 4]], the network's are [[2, 4]]" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_an_artefact_of_one_folder(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"x")
    artefact = Artefact(kind="onnx", path=tmp_path / "a.onnx", files=(tmp_path / "a.onnx",))
    assert artefact.sha256() == {"a.onnx": hashlib.sha256(b"x").hexdigest()}
    assert onnx.TensorProto.EXTERNAL == 1
