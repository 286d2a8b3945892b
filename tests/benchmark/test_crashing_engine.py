"""A file that kills an engine costs that engine alone: ``bench`` names engine, file and signal; the others go on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from installed import needs

from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.crash_probe import crash_of
from paddlelite_callbacks.export.model_files import find_model
from paddlelite_callbacks.report.record import read_records

pytestmark = needs("onnx", "onnxruntime", "openvino")
QUICK = ["--warmup", "0", "--repeats", "1"]
LOAD = """
import sys, openvino
openvino.Core().compile_model(sys.argv[1], "CPU")
"""


@pytest.fixture(scope="module")
def crashing(tmp_path_factory):
    """A valid file with a branch that is never taken: folding it, OpenVINO reads far outside of a constant."""
    import onnx
    from onnx import helper, numpy_helper

    def values(name):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4, 8, 8])

    data = numpy_helper.from_array(np.ones([2, 4, 8, 8], "float32"), "data")
    far = numpy_helper.from_array(np.array([[2**40]]), "far")
    never = helper.make_graph(
        [helper.make_node("GatherND", ["data", "far"], ["a"])], "n", [], [values("a")], [data, far]
    )
    always = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "a", [], [values("b")])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "limit"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=never, else_branch=always),
    ]
    limit = numpy_helper.from_array(np.float32(1e9), "limit")
    graph = helper.make_graph(nodes, "g", [values("x")], [values("y")], [limit])
    path = tmp_path_factory.mktemp("crash") / "strange.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, timeout=120, check=False)
    if done.returncode >= 0:
        pytest.skip("this OpenVINO does not crash on the file")
    return path, done.returncode


def test_the_others_go_on(crashing, tmp_path, capsys):
    path, code = crashing
    assert main(["bench", str(path), *QUICK, "--record", str(tmp_path)]) == 0
    (run,) = read_records(tmp_path / "runs.jsonl")
    rows = {row.engine: row for row in run.latencies}
    assert rows["onnxruntime"].p50_ms
    assert rows["openvino"].p50_ms is None
    name = {-11: "SIGSEGV", -6: "SIGABRT", -7: "SIGBUS", -8: "SIGFPE"}[code]
    said = f"openvino crashed on strange.onnx: it was killed by {name}"
    assert said in rows["openvino"].error
    assert said in capsys.readouterr().out.replace("\\", "")


def test_a_named_engine_that_crashes_is_a_failure(crashing, capsys):
    path, _ = crashing
    given = ["bench", str(path), *QUICK, "--no-memory", "--engines"]
    assert main([*given, "onnxruntime,openvino"]) == 1
    assert (
        "openvino gave no measurement: openvino crashed on strange.onnx: it was killed by SIG"
        in capsys.readouterr().err
    )
    assert main([*given, "openvino"]) == 1
    said = capsys.readouterr().err
    assert "No engine could run" in said
    assert "openvino crashed on strange.onnx: it was killed by SIG" in said


def test_an_exception_is_no_crash(crashing):
    artefact = find_model(crashing[0])
    assert crash_of("onnxruntime", artefact, [np.zeros([1, 4, 8, 8], "float32")]) is None
    assert crash_of("onnxruntime", artefact, [np.zeros([1, 4], "int64")]) is None  # ONNX Runtime raises
