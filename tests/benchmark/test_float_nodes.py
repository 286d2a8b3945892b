"""No quantised node runs in float without being named: the profile of ONNX Runtime on the networks of the tables."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter

import numpy as np
import paddle
import pytest
from installed import needs
from paddle.static import InputSpec
from places import ROOT

from paddlelite_callbacks import export_forms, ptq_int8
from paddlelite_callbacks.report.record import ArtefactFigures

pytestmark = needs("onnxruntime", "paddle2onnx")
FLOAT = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits")
INTEGER = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")
BACKBONES = "paddleclas.ppcls.arch.backbone"
NETWORKS = {
    "MobileNetV3_small_x1_0": BACKBONES,
    "MobileNetV3_large_x1_0": BACKBONES,
    "PPLCNet_x2_5": BACKBONES,
    "ResNet50": BACKBONES,
    "lite_hrnet_18": "paddlelite_callbacks.models.lite_hrnet",
    "EfficientNet-Lite0": None,
}


def built(name):
    paddle.seed(0)
    if NETWORKS[name] is None:
        sys.path.insert(0, str(ROOT / "examples" / "imagenet"))
        try:
            return importlib.import_module("efficientnet_lite").EfficientNetLite(depth=1.0, size=64)
        finally:
            sys.path.pop(0)
    pytest.importorskip(NETWORKS[name].partition(".")[0])
    return getattr(importlib.import_module(NETWORKS[name]), name)()


def profiled(path, x, folder):
    """How often each kind of node ran in one call, as ONNX Runtime's profiler counts."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level, options.enable_profiling = 3, True
    options.profile_file_prefix = str(folder / "profile")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: x})
    events = json.loads((folder / session.end_profiling()).read_text())
    return Counter(e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time"))


def never_quantised(path):
    """Number of products in the file without an int8 weight: channel orders and bilinear upsampling of LiteHRNet."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(path)).graph
    integers = {item.name for item in graph.initializer if item.data_type == onnx.TensorProto.INT8}
    producers = {name: node for node in graph.node for name in node.output}

    def from_integers(name):
        while name in producers and producers[name].op_type in ("DequantizeLinear", "Cast", "Mul", "Reshape"):
            name = producers[name].input[0]
        return name in integers

    return sum(node.op_type in FLOAT and not from_integers(node.input[1]) for node in graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_quantised_layer_that_runs_in_float_is_named(name, tmp_path):
    network, x = built(name), np.random.RandomState(0).randn(1, 3, 64, 64).astype("float32")
    network.eval()
    for outputs in (
        (False, True) if name != "lite_hrnet_18" else (True,)
    ):  # its export takes minutes, that of LiteHRNet-30 twice as long
        folder = tmp_path / str(outputs)
        folder.mkdir()
        quantised = ptq_int8(network, [paddle.to_tensor(x)], quantize_outputs=outputs)
        forms = export_forms(quantised, folder, input_spec=[InputSpec([1, 3, 64, 64], name="x")])
        artefact = next(a for a in forms.artefacts if (a.kind, a.precision) == ("onnx", "int8"))
        named = ArtefactFigures.of(artefact).float_layers
        ran = profiled(artefact.path, x, folder)
        in_float = sum(ran[kind] for kind in FLOAT) - never_quantised(artefact.path)
        assert in_float == len(named) == len(set(named))
        assert name == "lite_hrnet_18" or never_quantised(artefact.path) == 0
        assert sum(ran[kind] for kind in INTEGER) > 0
