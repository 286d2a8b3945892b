"""``bench`` and ``export`` ask for the sizes that a file leaves free, and name no file that the user does not have."""

from __future__ import annotations

import json
import shutil
import tempfile

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.nn import functional as F
from paddle.static import InputSpec
from toy import TinyNet

from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.export.legacy_program import write_legacy_program
from paddlelite_callbacks.export.model_files import complete_inputs, declared_inputs, find_model, parse_input
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.report.record import read_records

pytestmark = needs("paddle2onnx", "onnx", "onnxruntime")
QUICK = ["--warmup", "0", "--repeats", "1", "--no-memory"]


class Two(nn.Layer):
    """An image of any size, and a vector of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3)

    def forward(self, image, kinds):
        return self.conv(image).mean([2, 3]) + F.one_hot(kinds, 4).sum(1)


SPECS = [InputSpec([None, 3, None, None]), InputSpec([None, 5], dtype="int64")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same two networks as programs of Paddle 3 and 2, and as ONNX."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    for name, network, specs in (("tiny", TinyNet(), [InputSpec([None, 3, 8, 8])]), ("two", Two(), SPECS)):
        network.eval()
        program = export_paddle(network, folder / name, input_spec=specs)
        made[name, "new"] = program.path
        made[name, "onnx"] = export_onnx(program, folder / f"{name}.onnx").path
        (folder / f"{name}_old").mkdir()
        write_legacy_program(program.path, folder / f"{name}_old" / "inference")
        made[name, "old"] = folder / f"{name}_old" / "inference.pdmodel"
    return made


@pytest.mark.parametrize("kind", ["new", "old", "onnx"])
def test_the_file_is_asked_for_its_inputs(files, kind):
    tiny, two = find_model(files["tiny", kind]), find_model(files["two", kind])
    assert declared_inputs(tiny) == {"x": ([-1, 3, 8, 8], "float32")}
    assert declared_inputs(two) == {"image": ([-1, 3, -1, -1], "float32"), "kinds": ([-1, 5], "int64")}
    assert [list(spec.shape) for spec in complete_inputs(tiny, [])] == [[1, 3, 8, 8]]
    for given in ("image:2x3x8x9", "2x3x8x9"):
        specs = complete_inputs(two, [parse_input(given)])
        assert [(spec.name, list(spec.shape)) for spec in specs] == [("image", [2, 3, 8, 9]), ("kinds", [1, 5])]
        assert [str(np.dtype(str(spec.dtype).rpartition(".")[2].lower())) for spec in specs] == ["float32", "int64"]
    said = r"dynamic sizes \(-1\) in image of \[-1, 3, -1, -1\]: give .* --input image:1x3xNxN with a number for each N"
    with pytest.raises(ValueError, match=said):
        complete_inputs(two, [])
    with pytest.raises(ValueError, match=r"has the inputs \['image', 'kinds'\], not \['imag'\].*\['image'"):
        complete_inputs(two, [parse_input("imag:1x3x8x8")])


@pytest.mark.parametrize("kind", ["new", "old", "onnx"])
def test_bench_needs_no_input_where_the_file_knows_it(files, kind, tmp_path, capsys):
    engines = ["--engines", "onnxruntime" if kind == "onnx" else "paddle,onnxruntime"]
    assert main(["bench", str(files["tiny", kind]), *engines, *QUICK, "--record", str(tmp_path)]) == 0
    (run,) = read_records(tmp_path / "runs.jsonl")
    assert all(row.p50_ms and row.batch_size == 1 for row in run.latencies)
    assert main(["bench", str(files["two", kind]), "--input", "3x3x8x9", "--input", "3x5:int64", *engines, *QUICK]) == 0
    capsys.readouterr()
    assert main(["bench", str(files["two", kind]), *engines, *QUICK]) == 1
    assert "--input image:1x3xNxN" in capsys.readouterr().err


def test_deploy_json_fills_what_the_file_leaves_free(files, tmp_path):
    file = tmp_path / "model.onnx"
    shutil.copy(files["two", "onnx"], file)
    described = {
        "inputs": [{"name": "image", "shape": [None, 3, 20, 30]}, {"name": "kinds", "shape": [None, 5]}],
        "files": [{"sha256": {"model.onnx": ""}, "precision": "fp32"}],
    }
    (tmp_path / "deploy.json").write_text(json.dumps(described), encoding="utf-8")
    assert [list(spec.shape) for spec in complete_inputs(find_model(file), [])] == [[1, 3, 20, 30], [1, 5]]
    described["files"][0]["sha256"] = {"other.onnx": ""}
    (tmp_path / "deploy.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ValueError, match=r"dynamic sizes .*give them"):
        complete_inputs(find_model(file), [])


def test_export_needs_no_input_either(files, tmp_path):
    assert main(["export", str(files["tiny", "old"]), str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "deploy.json").read_text(encoding="utf-8"))
    assert told["inputs"] == [{"name": "x", "shape": [None, 3, 8, 8], "dtype": "float32"}]


class Unconvertible(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3)

    def forward(self, x):
        return paddle.linalg.svd(self.conv(x).mean(1))[1]


def test_messages_name_no_temporary_path(files, tmp_path, capsys, monkeypatch):
    """Bad inputs of every kind; the temporary folder has a name that would be seen."""
    hidden = tmp_path / "elsewhere"
    hidden.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(hidden))
    shown = tmp_path / "shown"
    network = Unconvertible()
    network.eval()
    program = export_paddle(network, shown, input_spec=[InputSpec([None, 3, 8, 8])])
    torn = shown / "torn.onnx"
    torn.write_bytes(files["tiny", "onnx"].read_bytes()[:-40])
    wrong = shown / "wrong.onnx"
    import onnx

    model = onnx.load(str(files["tiny", "onnx"]))
    next(node for node in model.graph.node if node.op_type == "Conv").op_type = "Convolve"
    onnx.save(model, str(wrong))
    outcomes = [
        main(["bench", *map(str, given), *QUICK])
        for given in (
            [program.path, "--engines", "paddle,onnxruntime"],
            [torn],
            [wrong],
            [files["tiny", "new"], "--input", "1x3x8"],
            [files["two", "old"], "--input", "1x3x2x2", "--input", "1x5:int64"],
            [files["two", "old"].parent, "--input", "image:1x3x96"],
        )
    ]
    outcomes += [main(["export", str(program.path), str(tmp_path / "out")])]
    outcomes.pop(4)  # of an image below the kernel's size Paddle makes something
    assert outcomes == [1] * len(outcomes)
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "unsupported operators" in said
    assert "Convolve" in said
    assert "elsewhere" not in said
