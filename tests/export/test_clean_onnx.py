"""ONNX files are clean: few nodes that compute the same, the network's own names, who made them, labels as metadata."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.nn import functional as F
from paddle.static import InputSpec
from paddle.vision.models import mobilenet_v3_small
from toy import Images, TinyNet

import paddlelite_callbacks
from paddlelite_callbacks import BenchOptions, ExportBenchCallback, ExportOptions, ptq_int8
from paddlelite_callbacks.export.fold_bn import fold_batch_norms_
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle, output_names
from paddlelite_callbacks.export.variants import export_forms

pytestmark = needs("paddle2onnx", "onnx", "onnxruntime", "onnxslim")


class Recogniser(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv2D(3, 8, 3, padding=1), nn.LSTM(8, 6, direction="bidirect")
        self.fc = nn.Linear(12, 5)

    def forward(self, image):
        return self.fc(self.lstm(self.conv(image).mean(2).transpose([0, 2, 1]))[0])


class Branches(nn.Layer):
    """A branch and a loop; the branch reads tensors and a weight of the graph around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2D(3, 8, 3, padding=1), nn.Conv2D(8, 8, 3, padding=1)

    def forward(self, t1):
        y = self.second(F.relu(self.first(t1)))
        z = y * 3
        if y.mean(axis=[0, 1, 2, 3]) > 0:  # noqa: SIM108
            y = z + 1
        else:
            y = y * 2 - z
        i = paddle.zeros([1], "int32")
        while i < 3:
            y, i = F.relu(y) * 0.5 + paddle.ones([1]), i + 1
        return {"c4": y, "t5": y.sum(axis=[1, 2, 3]), "levels": [z]}


class Resized(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.head = nn.Conv2D(3, 8, 3, stride=2, padding=1), nn.Conv2D(8, 4, 1)

    def forward(self, image, scale):
        y = self.down(image)
        up = F.interpolate(y, size=image.shape[2:], mode="bilinear")
        return {"map": self.head(up) * scale, "rows": y.reshape([y.shape[0], 8, -1])}


def image(*sizes: int) -> np.ndarray:
    return np.random.RandomState(sum(sizes)).randn(*sizes).astype("float32")


ONE = np.ones([1], "float32")
FREE = [InputSpec([None, 3, None, None])]
CASES: dict[str, Any] = {  # network, specs, inputs of two sizes, nodes at most, allowed difference
    "mobilenet": (
        mobilenet_v3_small,
        [InputSpec([None, 3, 64, 64])],
        [[image(1, 3, 64, 64)], [image(3, 3, 64, 64)]],
        130,
        0,
    ),
    # Constants of the recurrent part are added beforehand: another order of the same sums.
    "lstm": (Recogniser, [InputSpec([None, 3, 16, None])], [[image(1, 3, 16, 20)], [image(2, 3, 16, 33)]], 20, 1e-6),
    "branches": (Branches, FREE, [[image(1, 3, 8, 8)], [-image(2, 3, 9, 12)]], 40, 0),
    "resized": (
        Resized,
        [*FREE, InputSpec([1], name="gain")],
        [[image(1, 3, 8, 8), ONE], [image(2, 3, 12, 10), 2 * ONE]],
        25,
        0,
    ),
}


def unoptimised(path: Path, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    outputs = [item.name for item in session.get_outputs()]
    return dict(zip(outputs, session.run(None, dict(zip(names, inputs, strict=True))), strict=True))


def nodes(graph: Any) -> int:
    bodies = [a.g for node in graph.node for a in node.attribute if a.g.node]
    return len(graph.node) + sum(nodes(body) for body in bodies)


@pytest.mark.parametrize("case", CASES)
def test_a_clean_file_computes_the_same_with_fewer_nodes(case, tmp_path):
    import onnx

    make, specs, batches, most, allowed = CASES[case]
    paddle.seed(3)
    network = make()
    network.eval()
    fold_batch_norms_(network, [paddle.to_tensor(item) for item in batches[1]])  # as every export does
    program = export_paddle(network, tmp_path, input_spec=specs)
    raw = export_onnx(program, tmp_path / "raw.onnx", clean=False).path
    clean = export_onnx(program, tmp_path / "clean.onnx").path
    before, after = onnx.load(str(raw)), onnx.load(str(clean))
    onnx.checker.check_model(after, full_check=True)
    assert nodes(after.graph) <= most < nodes(before.graph)
    assert not {"Identity", "Constant"} & {node.op_type for node in after.graph.node}
    assert [item.name for item in after.graph.input] == [item.name for item in before.graph.input]
    assert (after.producer_name, after.producer_version) == ("paddlelite_callbacks", paddlelite_callbacks.__version__)
    for inputs in batches:
        expected, got = unoptimised(raw, inputs), unoptimised(clean, inputs)
        assert list(got) == list(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=allowed, atol=allowed, err_msg=name)
        with paddle.no_grad():
            own = network(*map(paddle.to_tensor, inputs))
        if isinstance(own, dict):
            assert set(got) == {"c4", "t5", "levels.0"} if case == "branches" else set(own)
            name = sorted(own)[0]
            np.testing.assert_allclose(got[name], own[name].numpy(), rtol=1e-4, atol=1e-4)


class Pair(NamedTuple):
    boxes: Any
    scores: Any


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (1, ["output_0"]),
        ([1, (2, 3)], ["output_0", "output_1", "output_2"]),
        ({"b": 1, "a": [2, {"x": 3}]}, ["a.0", "a.1.x", "b"]),
        (Pair(1, [2, 3]), ["boxes", "scores.0", "scores.1"]),
        ([1, {"mask": 2}], ["output_0", "mask"]),
    ],
)
def test_outputs_are_named_by_their_keys(output, names):
    assert output_names(output) == names


class Echo(nn.Layer):
    """An output called like the input, and one called like another that had to make way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return {"x": self.fc(x), "x_out": x * 2}


def test_names_that_collide_give_way(tmp_path):
    network = Echo()
    file = export_onnx(export_paddle(network, tmp_path, input_spec=[InputSpec([None, 4])]), tmp_path / "m.onnx").path
    got = unoptimised(file, [image(2, 4)])
    assert list(got) == ["x_out", "x_out_out"]
    np.testing.assert_allclose(got["x_out_out"], 2 * image(2, 4))


def test_every_engine_and_deploy_json_use_the_same_names(tmp_path):
    import onnx

    options = {"preprocess": {"mean": [0.5]}, "labels": ["a", "b", "\u732b", "d"]}
    network = ptq_int8(TinyNet(), [paddle.to_tensor(Images().images)])
    for name, exported in {"float": TinyNet(), "int8": network}.items():
        callback = ExportBenchCallback(
            tmp_path,
            name=name,
            verbose=0,
            export=ExportOptions(report=False, fp16=name == "float", sidecar=options),
            benchmark=BenchOptions(warmup=0, repeats=1, peak_memory=False, roofline=False),
        )
        callback.export(exported, Images().images)
        told = json.loads((tmp_path / name / "deploy.json").read_text(encoding="utf-8"))
        assert [item["name"] for item in (*told["inputs"], *told["outputs"])] == ["x", "output_0"]
        files = sorted((tmp_path / name).glob("*.onnx"))
        assert len(files) == 2
        for file in files:
            model = onnx.load(str(file))
            assert [item.name for item in (*model.graph.input, *model.graph.output)] == ["x", "output_0"]
            found = {item.key: json.loads(item.value) for item in model.metadata_props}
            assert found == options
            assert model.producer_name == "paddlelite_callbacks"
        from paddle import inference

        config = inference.Config(str(tmp_path / name / "model.json"), str(tmp_path / name / "model.pdiparams"))
        config.disable_glog_info()
        predictor = inference.create_predictor(config)
        assert (predictor.get_input_names(), predictor.get_output_names()) == (["x"], ["output_0"])


def test_plain_onnxruntime_says_nothing(tmp_path):
    network = mobilenet_v3_small()
    network.eval()
    program = export_paddle(network, tmp_path, input_spec=[InputSpec([None, 3, 64, 64])])
    for name, network in {
        "float": Recogniser(),
        "int8": ptq_int8(TinyNet(), [paddle.to_tensor(Images().images)]),
    }.items():
        (tmp_path / name).mkdir()
        shape = [None, 3, 16, 24] if name == "float" else [None, 3, 8, 8]
        export_forms(network, tmp_path / name, input_spec=[InputSpec(shape)])
    files = [export_onnx(program, tmp_path / "m.onnx").path, *tmp_path.glob("*/*.onnx")]
    assert len(files) == 4
    code = (
        "import sys, onnxruntime\n"
        "for path in sys.argv[1:]: onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, timeout=120, check=True
    )
    assert [line for line in done.stderr.splitlines() if "telemetry" not in line] == []


def test_a_quantised_network_with_branches_and_names_of_its_own(tmp_path):
    paddle.seed(5)
    network = ptq_int8(Branches(), [paddle.to_tensor(image(4, 3, 8, 8))])
    forms = export_forms(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8])])
    assert not forms.errors
    for inputs in ([image(1, 3, 8, 8)], [-image(2, 3, 8, 8)]):
        got = unoptimised(tmp_path / "model.int8.onnx", inputs)
        with paddle.no_grad():
            own = network(paddle.to_tensor(inputs[0]))
        np.testing.assert_allclose(got["c4"], own["c4"].numpy(), atol=1e-4)
        np.testing.assert_allclose(got["levels.0"], own["levels"][0].numpy(), atol=1e-4)


def test_without_the_cleaner_the_file_is_larger_but_there(tmp_path, monkeypatch, caplog):
    """The folder stands before the packages on the child's path."""
    (tmp_path / "onnxslim.py").write_text("raise ImportError('broken')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    program = export_paddle(TinyNet(), tmp_path, input_spec=[InputSpec([None, 3, 8, 8])])
    file = export_onnx(program, tmp_path / "m.onnx").path
    assert list(unoptimised(file, [image(1, 3, 8, 8)])) == ["output_0"]
    assert "cleaning ONNX files needs onnxslim" in caplog.text
