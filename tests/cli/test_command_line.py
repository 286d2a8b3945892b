"""``python -m paddlelite_callbacks bench | export | gate | report``: exit codes, one-line errors, foreign models."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import paddle
import pytest
from installed import needs
from paddle.static import InputSpec
from records import record
from toy import Images, TinyNet

from paddlelite_callbacks.__main__ import COMMANDS, main
from paddlelite_callbacks.export.model_files import find_model, parse_input
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.report.record import append_record, read_records

QUICK = ["--warmup", "0", "--repeats", "2", "--no-memory"]


@pytest.fixture(scope="module")
def network():
    paddle.seed(0)
    made = TinyNet()
    made.eval()
    return made


@pytest.fixture(scope="module")
def old_folder(network, tmp_path_factory):
    """As PaddleClas and PaddleDetection write it."""
    folder = tmp_path_factory.mktemp("a folder \u4e2d")
    with paddle.pir_utils.OldIrGuard():
        spec = [InputSpec([None, 3, 8, 8], name="x")]
        paddle.jit.save(paddle.jit.to_static(network, input_spec=spec), str(folder / "inference"))
    assert (folder / "inference.pdmodel").is_file()
    return folder


@pytest.fixture(scope="module")
def new_program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new")
    paddle.seed(0)
    return export_paddle(TinyNet(), folder, input_spec=[InputSpec([None, 3, 8, 8], name="x")], name="inference")


@needs("paddle2onnx")
def test_bench_of_an_old_inference_folder(old_folder, tmp_path, capsys):
    arguments = ["bench", str(old_folder), "--input", "1x3x8x8", "--batch", "1,3", *QUICK, "--record", str(tmp_path)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for engine in ("paddle", "paddle-onednn", "onnxruntime", "openvino"):
        assert said.count(f"| {engine} | fp32 | 1 | ") == 2
    (run,) = read_records(tmp_path / "runs.jsonl")
    assert run.name == old_folder.name
    assert all(check.passed for check in run.checks)
    assert len(run.checks) == 4
    assert run.macs == 8 * 8 * 9 * 3 * 4 + 8 * 8 * 9 * 4 * 4 + 16
    assert (tmp_path / "report.html").is_file()


@needs("paddle2onnx")
def test_bench_of_an_onnx_file_as_json_and_its_gate(new_program, tmp_path, capsys):
    onnx = export_onnx(new_program, tmp_path / "net.onnx")
    arguments = ["bench", str(onnx.path), "--input", "2x3x8x8", "--engines", "onnxruntime,paddle", "--json", *QUICK]
    assert main([*arguments, "--latency-ms", "10000", "--size-mb", "1"]) == 1  # paddle is named and gives nothing
    run = json.loads(capsys.readouterr().out)
    assert run["latencies"][0]["batch_size"] == 2
    assert run["latencies"][1]["error"] == "an ONNX file has no Paddle program"
    assert main([*arguments, "--size-mb", "0.000001"]) == 3


@needs("paddle2onnx")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "{}/nothing", "--input", "1x3x8x8"], "No model at {}/nothing: give an .onnx file"),
        (["bench", "{}", "--input", "1x3x8x8"], "The folder {} has no model"),
        (["bench", "{}/net.pdparams", "--input", "1x3"], "is a checkpoint: weights without the network"),
        (["bench", "{}/half", "--input", "1x3"], "has no parameters beside it: half.pdiparams is missing"),
        (["bench", "NEW", "--input", "1x3x8"], "takes x of [-1, 3, 8, 8] (-1: any), [1, 3, 8] was given"),
        (["bench", "NEW", "--input", "1x3x8x8", "--input", "1x2"], "takes 1 inputs (x), 2 were given"),
        (["bench", "NEW", "--input", "image:1x3x8x8"], "['x'] were not given"),
        (["bench", "NEW", "--input", "1,3,8,8"], "input must be 1x3x224x224"),
        (["bench", "NEW", "--input", "1x3x8x8", "--engines", "tensorrt"], "Unknown engine 'tensorrt'"),
        (["bench", "NEW", "--input", "1x3x8x8", "--threads", "a"], "--threads must be whole numbers"),
        (["bench", "TORN", "--input", "1x3x8x8"], "cannot be read"),
        (["export", "{}/net.pdparams", "{}/out", "--input", "1x3"], "is a checkpoint"),
        (["report", "{}"], "No record file {}/runs.jsonl"),
        (["gate", "{}", "--size-mb", "20"], "No record file"),
        (["gate", "{}"], "Give at least one limit"),
        (["gate", "{}", "--metric-drop", "0.1"], "--metric-drop needs --metric and --baseline"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(arguments, said, new_program, tmp_path, capsys):
    folder = tmp_path / "f"
    folder.mkdir()
    (tmp_path / "torn.onnx").write_bytes(b"torn")
    if "half" in arguments[1]:
        (folder / "half.json").write_text("{}")
    places = {"NEW": str(new_program.path), "TORN": str(tmp_path / "torn.onnx")}
    given = [places.get(item, item.replace("{}", str(folder))) for item in arguments]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert said.replace("{}", str(folder)) in error
    last = error.replace("\r", "\n").strip().splitlines()
    assert last[-1].startswith(f"python -m paddlelite_callbacks {arguments[0]}: ")


@needs("paddle2onnx")
def test_export_writes_onnx_that_computes_the_same(new_program, tmp_path, capsys):
    out = tmp_path / "out \u4e2d"
    assert main(["export", str(new_program.path.parent), str(out), "--input", "2x3x8x8", "--fp16"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["deploy.json", "model.fp16.onnx", "model.onnx"]
    x = Images(4).images
    loaded = paddle.jit.load(str(new_program.path.with_suffix("")))
    loaded.eval()
    expected = loaded(paddle.to_tensor(x)).numpy()
    for name, atol in (("model.onnx", 1e-5), ("model.fp16.onnx", 1e-2)):
        (got,) = onnxruntime.InferenceSession(str(out / name)).run(None, {"x": x})
        np.testing.assert_allclose(got, expected, atol=atol)
    (out / "mine.txt").write_text("keep")
    assert main(["export", str(new_program.path), str(out), "--input", "1x3x8x8"]) == 1
    assert "holds other files (mine.txt)" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "keep"


def test_gate_over_a_folder(tmp_path, capsys):
    for item in (record("a", acc=0.5), record("big", acc=0.94, size=50), record("a", acc=0.93)):
        append_record(tmp_path / "runs.jsonl", item)
    limits = ["gate", str(tmp_path), "--size-mb", "20", "--latency-ms", "10", "--metric", "acc", "--baseline", "0.94"]
    assert main(limits) == 0
    said = capsys.readouterr().out
    assert "a: pass: size 10 <= 20 MB" in said
    assert "big: fail: size 50 > 20 MB" in said
    assert "Most accurate of those that pass: a" in said
    assert main([*limits, "--all"]) == 3
    assert main([*limits, "--run", "big"]) == 3
    assert main([*limits, "--run", "a"]) == 0
    assert main([*limits, "--engine", "paddle"]) == 3  # 50 ms
    assert main([*limits, "--run", "b"]) == 1
    assert "run 'b'; near names: ['big']" in capsys.readouterr().err


def test_find_model_takes_what_people_have(old_folder, new_program):
    for given in (
        old_folder,
        old_folder / "inference",
        old_folder / "inference.pdmodel",
        old_folder / "inference.pdiparams",
    ):
        assert find_model(given).path == old_folder / "inference.pdmodel"
    assert find_model(str(new_program.path)).path == new_program.path
    with_dots = new_program.path.with_name("v1.5.json")
    with_dots.write_bytes(new_program.path.read_bytes())
    with_dots.with_suffix(".pdiparams").write_bytes(new_program.files[1].read_bytes())
    assert find_model(with_dots.with_name("v1.5")).path == with_dots
    with pytest.raises(ValueError, match=r"holds several models \(inference, v1\.5\): name one"):
        find_model(new_program.path.parent)


def test_inputs_as_they_are_written():
    assert (parse_input("1x3x224x224").shape, parse_input("1x3").name) == ((1, 3, 224, 224), None)
    spec = parse_input("im_shape:1x2:int64")
    assert (spec.name, tuple(spec.shape), np.dtype(str(spec.dtype).rpartition(".")[2].lower())) == (
        "im_shape",
        (1, 2),
        np.int64,
    )


@needs("paddle2onnx")
def test_help_and_a_command_that_fails_in_a_process_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "paddlelite_callbacks", "--help"], capture_output=True, text=True, check=True
    )
    assert all(name in done.stdout for name in COMMANDS)
    command = [sys.executable, "-m", "paddlelite_callbacks", "gate", str(tmp_path), "--size-mb", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.strip().splitlines()
    assert [line for line in lines if "ccache" not in line and "warnings.warn" not in line] == [
        f"python -m paddlelite_callbacks gate: No record file {tmp_path}/runs.jsonl: give the folder of "
        "ExportBenchCallback(folder), after a fit has ended."
    ]


@pytest.mark.parametrize("name", ["x", "x0", "x1", "0x1x"])
def test_inputs_named_like_sizes(name):
    """``x`` is what this package's own exports call theirs."""
    spec = parse_input(f"{name}:1x3x8x8:float32")
    assert (spec.name, tuple(spec.shape)) == (name, (1, 3, 8, 8))
