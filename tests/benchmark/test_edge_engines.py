"""MNN and ncnn on what their converters make of our ONNX files: the network's own outputs are the truth."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.engines import DEFAULT_ENGINES, ENGINES, EngineError, missing_reason, native_file
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export import edge_files
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.edge_files import check_float_onnx, convert_to_mnn, convert_to_ncnn
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle

onnx = pytest.importorskip("onnx")
EDGE = [
    pytest.param("mnn", marks=needs("paddle2onnx", "MNN")),
    pytest.param("ncnn", marks=needs("paddle2onnx", "ncnn", "pnnx")),
]


class Zoo(nn.Layer):
    """Strides, groups, norms, gates, a skip, interpolation, a transposed convolution; two outputs of unlike shapes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(3, 8, 3, stride=2, padding=1), nn.BatchNorm2D(8), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2D(8, 8, 3, padding=1, groups=8), nn.BatchNorm2D(8), nn.ReLU6())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2D(1), nn.Conv2D(8, 8, 1), nn.Hardsigmoid())
        self.down = nn.MaxPool2D(2)
        self.up = nn.Conv2DTranspose(8, 4, 2, stride=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x.clip(-2.0, 2.0))  # ncnn computes it in place
        y = self.depthwise(x)
        y = y * self.gate(y) + x
        small = self.down(y)
        wide = nn.functional.interpolate(self.up(small), size=[32, 32])
        return self.fc(small.mean([2, 3])), wide


def exported(network, folder, size=(32, 32), rows=None):
    network.eval()
    program = export_paddle(network, folder, input_spec=[InputSpec([rows, 3, *size], name="x")])
    return export_onnx(program, folder / "model.onnx")


def one_node(op, *, shape=(1, 3, 4, 4), attributes=None):
    """Return an ONNX model of one node with constant second and third inputs."""
    helper, element = onnx.helper, onnx.TensorProto
    constants = [
        helper.make_tensor("scale", element.FLOAT, [], [0.1]),
        helper.make_tensor("zero", element.UINT8, [], [128]),
    ]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "scale", "zero"], ["y"], **(attributes or {}))],
        "g",
        [helper.make_tensor_value_info("x", element.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", element.UINT8, list(shape))],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_they_run_only_where_they_are_named():
    assert list(DEFAULT_ENGINES) == ["paddle", "paddle-onednn", "onnxruntime", "openvino"]
    assert [engine.name for engine in BenchOptions().chosen()] == list(DEFAULT_ENGINES)
    assert [engine.name for engine in BenchOptions(engines=["mnn", "ncnn"]).chosen()] == ["mnn", "ncnn"]


def test_what_is_missing_is_said_with_the_remedy(monkeypatch):
    for name, wanted in {"mnn": ["[edge]"], "ncnn": ["[edge]", "--no-deps pnnx=="]}.items():
        for i, remedy in enumerate(wanted):
            given = [("numpy", "") for _ in wanted]
            given[i] = "no-such-package", type(ENGINES[name])._packages[i][1]
            monkeypatch.setattr(ENGINES[name], "_packages", given, raising=False)
            said = missing_reason(ENGINES[name])
            assert said.startswith("no-such-package not installed: pip install ")
            assert remedy in said


@pytest.mark.parametrize("converter", ["MNN", "pnnx", "onnx2tf"])
@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear"])
def test_a_quantised_file_is_refused(converter, op, tmp_path):
    path = tmp_path / "model.int8.onnx"
    path.write_bytes(one_node(op).SerializeToString())
    with pytest.raises(ExportError, match=rf"model.int8.onnx is quantised \({op}\), and .*fp32 model.onnx, or run"):
        check_float_onnx(path, converter)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 3, 0, 4), r"fixed sizes, the input x of model.onnx has dynamic ones.*input_spec that gives height"),
        ((4, 3, 4, 4), r"one image per call, model.onnx takes exactly 4.*dynamic_batch=True"),
    ],
)
def test_ncnn_refuses_sizes_that_it_cannot_have(shape, said, tmp_path):
    model = one_node("Relu", shape=shape)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=said):
        edge_files.ncnn_input_shapes(path)


class Selecting(paddle.nn.Layer):
    """Puts channels into another order, one of them twice, and leaves some out."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 8, 3)

    def forward(self, x):
        return paddle.gather(self.conv(x), paddle.to_tensor([7, 2, 2, 0, 5]), axis=1)


@pytest.mark.parametrize("engine", EDGE)
def test_channels_are_selected(engine, tmp_path):
    paddle.seed(2)
    network, x = Selecting(), np.random.RandomState(0).randn(1, 3, 16, 16).astype("float32")
    got = ENGINES[engine].load(exported(network, tmp_path, size=(16, 16)), threads=1)([x])[0]
    np.testing.assert_allclose(got, network(paddle.to_tensor(x)).numpy(), atol=1e-5)


@needs("onnx", "pnnx")
@pytest.mark.parametrize(("axis", "shape"), [(2, [1, 3, 6, 4]), (1, [1, 6, 4])])
def test_ncnn_refuses_selections_that_pnnx_gets_wrong(axis, shape, tmp_path):
    onnx, float32 = pytest.importorskip("onnx"), 1
    result = [*shape[:axis], 2, *shape[axis + 1 :]]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["x", "i"], ["y"], axis=axis)],
        "g",
        [onnx.helper.make_tensor_value_info("x", float32, shape)],
        [onnx.helper.make_tensor_value_info("y", float32, result)],
        [onnx.numpy_helper.from_array(np.asarray([1, 0]), "i")],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ExportError, match=rf"model.onnx has one on axis {axis} of a tensor of shape .*Select channels"):
        edge_files.convert_to_ncnn(path, tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("engine", EDGE)
def test_outputs_are_the_networks(engine, tmp_path):
    paddle.seed(1)
    network = Zoo()
    network(paddle.rand([4, 3, 32, 32]))  # statistics that are not those of a new norm
    artefact = exported(network, tmp_path)
    for rows in (1, 3):
        x = np.random.RandomState(rows).randn(rows, 3, 32, 32).astype("float32")
        expected = [item.numpy() for item in network(paddle.to_tensor(x))]
        for file in (artefact, native_file(engine, artefact)):
            got = ENGINES[engine].load(file, threads=1)([x])
            assert [item.shape for item in got] == [item.shape for item in expected]
            for a, b in zip(expected, got, strict=True):
                np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max() + 1e-6)


@pytest.mark.parametrize("engine", EDGE)
def test_a_file_is_converted_once(engine, tmp_path, monkeypatch):
    artefact = exported(TinyNet(), tmp_path, size=(8, 8))
    first = native_file(engine, artefact)
    assert native_file(engine, artefact) is first
    assert native_file(engine, first) is first
    assert all(file.is_file() for file in first.files)
    other = exported(TinyNet(width=5), tmp_path / "other", size=(8, 8))
    assert native_file(engine, other).path != first.path


@pytest.mark.parametrize("engine", [EDGE[0]])
def test_mnn_takes_free_sizes(engine, tmp_path):
    network = nn.Sequential(nn.Conv2D(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten())
    predict = ENGINES[engine].load(exported(network, tmp_path, size=(None, None)), threads=1)
    for size in ((8, 8), (12, 20)):
        x = np.random.RandomState(0).randn(2, 3, *size).astype("float32")
        np.testing.assert_allclose(predict([x])[0], network(paddle.to_tensor(x)).numpy(), atol=1e-5)


class Looked(nn.Layer):
    """Two inputs, one of whole numbers."""

    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, x, index):
        return self.fc(x) + self.table(index).sum(1)[:, :3]


@needs("paddle2onnx", "MNN")
def test_mnn_takes_whole_numbers(tmp_path):
    network = Looked()
    network.eval()
    specs = [InputSpec([None, 4], name="x"), InputSpec([None, 2], "int64", name="index")]
    artefact = export_onnx(export_paddle(network, tmp_path, input_spec=specs), tmp_path / "model.onnx")
    x, index = np.ones([3, 4], "float32"), np.array([[0, 5], [1, 2], [3, 3]], "int64")
    expected = network(paddle.to_tensor(x), paddle.to_tensor(index)).numpy()
    names = [item.name for item in onnx.load(str(artefact.path)).graph.input]
    given = {"x": x, "index": index}
    got = ENGINES["mnn"].load(artefact, threads=1)([given[name] for name in names])[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("engine", EDGE)
def test_a_damaged_file_is_an_error_and_not_the_end(engine, tmp_path):
    path = tmp_path / "model.onnx"
    model = one_node("Relu")
    model.graph.node[0].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"model\.onnx"):
        ENGINES[engine].load(Artefact(kind="onnx", path=path, files=(path,)), threads=1)([np.ones([1, 3, 4, 4], "f4")])
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
@needs("paddle2onnx", "onnxruntime", "MNN", "ncnn", "pnnx")
def test_in_the_record_like_the_others(tmp_path):
    network = TinyNet()
    callback = ExportBenchCallback(
        tmp_path, name="run", engines=["onnxruntime", "mnn", "ncnn"], repeats=3, warmup=1, strict=True
    )
    fit(hapi_model(network), [PACTQuantCallback(), callback])
    checks = {(check.engine, check.precision): check for check in callback.record.checks}
    rows = {(row.engine, row.precision): row for row in callback.record.latencies}
    for engine in ("mnn", "ncnn"):
        assert checks[engine, "fp32"].passed, checks[engine, "fp32"].verdict
        assert rows[engine, "fp32"].p50_ms > 0
        assert rows[engine, "int8"].p50_ms is None
        assert "model.int8.onnx is quantised" in rows[engine, "int8"].error
    assert rows["onnxruntime", "int8"].p50_ms > 0
    files = json.loads((tmp_path / "run" / "deploy.json").read_text())["files"]
    verdicts = {file["precision"]: file["verdicts"] for file in files if file["kind"] == "onnx"}
    assert verdicts["fp32"]["mnn"] == verdicts["fp32"]["ncnn"] == "agrees"


@pytest.mark.slow
@pytest.mark.parametrize("engine", EDGE)
def test_bench_times_them(engine, tmp_path, capsys):
    artefact = exported(TinyNet(), tmp_path, size=(8, 8))
    given = ["bench", str(artefact.path), "--engines", f"onnxruntime,{engine}", "--repeats", "3", "--json"]
    assert main(given) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["engine"]: row for row in record["latencies"]}
    assert rows[engine]["p50_ms"] > 0
    assert rows[engine]["load_ms"] > 0
    assert rows[engine]["peak_mb"] > 0
    assert all(check["passed"] for check in record["checks"])
    assert {"mnn": "MNN", "ncnn": "pnnx"}[engine] in record["machine"]["packages"]


@pytest.mark.slow
@needs("paddle2onnx", "MNN", "ncnn", "pnnx", "onnxruntime")
def test_why_quantised_files_are_refused(tmp_path, monkeypatch):
    """Should this fail, a converter has been mended: then `check_float_onnx` can let it through."""
    from paddlelite_callbacks.benchmark.engines import OnnxRuntime

    network, quick = Zoo(), BenchOptions(warmup=0, repeats=1, peak_memory=False, roofline=False)
    fit(
        hapi_model(OneOutput(network)),
        [PACTQuantCallback(), ExportBenchCallback(tmp_path, name="run", benchmark=quick)],
        data=Images(16, 32),
    )
    path = tmp_path / "run" / "model.int8.onnx"
    artefact = Artefact(kind="onnx", path=path, files=(path,), precision="int8")
    x = Images(4, 32).images
    expected = OnnxRuntime().load(artefact, threads=1)([x])[0]
    monkeypatch.setattr(edge_files, "check_float_onnx", lambda *_: None)
    for convert, engine, target in ((convert_to_mnn, "mnn", tmp_path / "m.mnn"), (convert_to_ncnn, "ncnn", tmp_path)):
        try:
            got = ENGINES[engine].load(convert(path, target), threads=1)([x])[0]
        except (ExportError, EngineError):
            continue
        assert got.shape != expected.shape or np.abs(got - expected).max() > 0.05 * np.abs(expected).max(), engine


class OneOutput(nn.Layer):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)[0][:, :4]


@pytest.mark.slow
@needs("paddle2onnx", "MNN", "ncnn", "pnnx")
@pytest.mark.parametrize("name", os.environ.get("EDGE_NETWORKS", "MobileNetV3_small_x0_35,PPLCNet_x0_25").split(","))
def test_catalogue_networks(name, tmp_path):
    from paddlelite_callbacks.backbone.registry import build
    from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_

    pytest.importorskip("paddleclas")
    network, x = build(name), paddle.rand([2, 3, 224, 224])
    settle_(network, x)
    artefact = exported(network, tmp_path, size=(224, 224))
    expected = network(x).numpy()
    for engine in ("mnn", "ncnn"):
        got = ENGINES[engine].load(artefact, threads=1)([x.numpy()])[0]
        np.testing.assert_allclose(got, expected, atol=1e-4 + 1e-3 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("engine", EDGE)
def test_keypoint_network(engine, tmp_path):
    from paddlelite_callbacks import models
    from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_

    paddle.seed(0)
    network, x = models.keypoint_net(models.lite_hrnet_18()), paddle.rand([2, 3, 64, 64])
    settle_(network, x)
    artefact = exported(network, tmp_path, size=(64, 64))
    expected = network(x).numpy()
    got = ENGINES[engine].load(artefact, threads=1)([x.numpy()])[0]
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())  # random weights magnify rounding


LITERT = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
file, given, got = sys.argv[1:]
x = np.load(given)
interpreter = Interpreter(file)
interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.transpose(0, 2, 3, 1).shape)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
interpreter.invoke()
outputs = [interpreter.get_tensor(item["index"]) for item in interpreter.get_output_details()]
np.savez(got, *outputs)
"""


def outputs_in_litert(path, x, folder):
    """Convert with onnx2tf and run the file, in an environment of their own; return the outputs by NCHW shape."""
    python, clean = os.environ["ONNX2TF_PYTHON"], {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    made = folder / "litert"
    convert = [python, "-m", "onnx2tf", "-i", str(path), "-o", str(made), "-n"]
    subprocess.run(convert, check=True, capture_output=True, env=clean)
    np.save(folder / "x.npy", x)
    given = [str(made / f"{path.stem}_float32.tflite"), str(folder / "x.npy"), str(folder / "y.npz")]
    subprocess.run([python, "-c", LITERT, *given], check=True, capture_output=True, env=clean)
    with np.load(folder / "y.npz") as stored:
        found = {stored[key].shape: stored[key] for key in stored.files}  # some maps keep the order of ONNX
    maps = [item.transpose(0, 3, 1, 2) for item in found.values() if item.ndim == 4]
    return {item.shape: item for item in maps} | found


needs_onnx2tf = pytest.mark.skipif("ONNX2TF_PYTHON" not in os.environ, reason="ONNX2TF_PYTHON names no Python with it")


@pytest.mark.slow
@needs("paddle2onnx")
@needs_onnx2tf
def test_onnx2tf_takes_the_file_as_it_is(tmp_path):
    network = Zoo()
    artefact = exported(network, tmp_path)
    x = np.random.RandomState(0).randn(1, 3, 32, 32).astype("float32")
    got = outputs_in_litert(artefact.path, x, tmp_path)
    for item in network(paddle.to_tensor(x)):
        expected = item.numpy()
        np.testing.assert_allclose(got[expected.shape], expected, atol=1e-5 * np.abs(expected).max() + 1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs("paddle2onnx")
@needs_onnx2tf
@pytest.mark.parametrize(
    "name", os.environ.get("EDGE_NETWORKS", "MobileNetV3_small_x0_35,PPLCNet_x0_25,lite_hrnet_18").split(",")
)
def test_onnx2tf_takes_catalogue_networks(name, tmp_path):
    from paddlelite_callbacks.backbone.registry import build
    from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_
    from paddlelite_callbacks.nn.nested import flat_outputs

    pytest.importorskip("paddleclas")
    size = (256, 192) if "lite_hrnet" in name else (224, 224)  # their papers'
    network, x = build(name), paddle.rand([1, 3, *size])
    settle_(network, paddle.rand([2, 3, *size]))
    artefact = exported(network, tmp_path, size=size)
    got = outputs_in_litert(artefact.path, x.numpy(), tmp_path)
    for item in flat_outputs(network(x)):
        expected = item.numpy()
        np.testing.assert_allclose(got[expected.shape], expected, atol=1e-4 + 1e-3 * np.abs(expected).max())
