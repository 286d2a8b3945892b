"""Programs of Paddle 2 with a file for each parameter, or with parameters of another name; Paddle writes each file."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
from installed import needs
from paddle.static import InputSpec
from toy import Images, TinyNet

from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.engines import PaddleInference
from paddlelite_callbacks.export.legacy_program import write_legacy_program
from paddlelite_callbacks.export.model_files import declared_inputs, find_model
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle

IMAGES = Images(4).images
SPLIT = """
import sys, numpy as np, paddle
from paddle.base import core
prefix, folder = sys.argv[1:]
paddle.enable_static()
with paddle.pir_utils.OldIrGuard():
    executor = paddle.static.Executor(paddle.CPUPlace())
    program, *_ = paddle.static.load_inference_model(prefix, executor)
    for variable in program.list_vars():
        if variable.persistable and variable.name not in ("feed", "fetch"):
            tensor = paddle.static.global_scope().find_var(variable.name).get_tensor()
            core.save_dense_tensor(tensor, f"{folder}/{variable.name}")
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with ``pair/model.pdmodel`` + ``.pdiparams`` and ``each/__model__`` + a file a parameter; the answer."""
    folder = tmp_path_factory.mktemp("old")
    network = TinyNet()
    network(paddle.to_tensor(IMAGES))  # statistics of its own
    network.eval()
    program = export_paddle(network, folder, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    (folder / "pair").mkdir()
    (folder / "each").mkdir()
    write_legacy_program(program.path, folder / "pair" / "model")
    shutil.copyfile(folder / "pair" / "model.pdmodel", folder / "each" / "__model__")
    arguments = [str(folder / "pair" / "model"), str(folder / "each")]
    subprocess.run([sys.executable, "-c", SPLIT, *arguments], check=True, capture_output=True)
    return folder, network(paddle.to_tensor(IMAGES)).numpy()


def renamed(old, tmp_path, program, parameters):
    shutil.copyfile(old[0] / "pair" / "model.pdmodel", tmp_path / program)
    shutil.copyfile(old[0] / "pair" / "model.pdiparams", tmp_path / parameters)
    return tmp_path


def answer(artefact):
    return PaddleInference(onednn=False).load(artefact, threads=1)([IMAGES])[0]


def test_a_file_for_each_parameter(old):
    folder, expected = old[0] / "each", old[1]
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) > 8
    for given in (folder, folder / "__model__"):
        artefact = find_model(given)
        assert sorted(artefact.sha256()) == names
        assert artefact.size_mb == pytest.approx(sum(path.stat().st_size for path in folder.iterdir()) / 1e6)
        assert declared_inputs(artefact) == {"x": ([-1, 3, 8, 8], "float32")}
        np.testing.assert_allclose(answer(artefact), expected, rtol=1e-5, atol=1e-6)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert artefact.sha256() == sums


@pytest.mark.parametrize(
    ("program", "parameters"), [("model.pdmodel", "params"), ("__model__", "__params__"), ("__model__", "params")]
)
def test_parameters_of_another_name(old, tmp_path, program, parameters):
    folder = renamed(old, tmp_path, program, parameters)
    for given in (folder, folder / program):
        artefact = find_model(given)
        assert [file.name for file in artefact.files] == [program, parameters]
        np.testing.assert_allclose(answer(artefact), old[1], rtol=1e-5, atol=1e-6)


@needs("paddle2onnx", "onnxruntime")
def test_they_become_onnx(old, tmp_path):
    import onnxruntime

    file = export_onnx(find_model(old[0] / "each"), tmp_path / "model.onnx")
    (got,) = onnxruntime.InferenceSession(str(file.path)).run(None, {"x": IMAGES})
    np.testing.assert_allclose(got, old[1], rtol=1e-4, atol=1e-5)


def test_bench_takes_them(old, capsys):
    flags = ["--engines", "paddle", "--repeats", "1", "--warmup", "0", "--json"]
    assert main(["bench", str(old[0] / "each"), *flags]) == 0
    record = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in (old[0] / "each").iterdir()) / 1e6
    assert record["artefacts"][0]["size_mb"] == pytest.approx(size)
    assert record["latencies"][0]["p50_ms"] > 0


def test_missing_and_torn_files_are_named(old, tmp_path):
    shutil.copytree(old[0] / "each", tmp_path / "m")
    first = next(path for path in sorted((tmp_path / "m").iterdir()) if path.name != "__model__")
    content = first.read_bytes()
    first.write_bytes(content[:-3])
    with pytest.raises(ValueError, match=rf"{first.name} is truncated"):
        find_model(tmp_path / "m")
    first.unlink()
    with pytest.raises(ValueError, match=rf"__model__ has no parameters beside it: .*1 are \({first.name}\)"):
        find_model(tmp_path / "m")
