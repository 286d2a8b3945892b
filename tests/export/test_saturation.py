"""Saturation of int8 products on CPUs without VNNI: the static check against loops, files, and a capped engine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from itertools import combinations, permutations

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from test_int8 import Zoo, int8_file, trained
from toy import Images, TinyNet

from paddlelite_callbacks import PACTConfig, prepare_pact_, ptq_int8
from paddlelite_callbacks.benchmark.engines import OnnxRuntime
from paddlelite_callbacks.export.saturation import saturating_channels, saturation_of
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.quant.convert import convert_for_export_
from paddlelite_callbacks.utils.cpu import has_vnni

onnx = pytest.importorskip("onnx")
helper, array = onnx.helper, onnx.numpy_helper.from_array

X86 = platform.machine().lower() in ("x86_64", "amd64")


def vpmaddubsw(inputs, weights):
    """Sum products as AVX2 does: uint8 times int8, neighbours added in 16 bits with saturation, the rest in 32."""
    products = inputs.astype("int64") * weights.astype("int64")
    if products.shape[-1] % 2:
        products = np.concatenate([products, np.zeros_like(products[..., :1])], axis=-1)
    return np.clip(products[..., 0::2] + products[..., 1::2], -32768, 32767).sum(axis=-1)


def exact(inputs, weights):
    return (inputs.astype("int64") * weights.astype("int64")).sum(axis=-1)


def worst_inputs(weights):
    """All activations that meet a positive weight at 255 and the others at 0, and the other way round."""
    return [np.where(weights > 0, 255, 0), np.where(weights < 0, 255, 0)]


# --- the integers of twenty networks ---------------------------------------------------------------------------------

VISION = [
    ("resnet18", {}),
    ("mobilenet_v1", {"scale": 0.25}),
    ("mobilenet_v2", {"scale": 0.25}),
    ("mobilenet_v3_small", {"scale": 0.5}),
    ("mobilenet_v3_large", {"scale": 0.35}),
    ("shufflenet_v2_x0_25", {}),
    ("shufflenet_v2_x0_5", {}),
    ("squeezenet1_0", {}),
    ("squeezenet1_1", {}),
    ("LeNet", {}),
]
OWN = {"TinyNet": TinyNet, "wide TinyNet": lambda: TinyNet(width=24), "Zoo": Zoo}
NETWORKS = [
    *((name, options, method) for name, options in VISION for method in ("pact",)),
    *((name, options, "lsq") for name, options in (VISION[3], VISION[5], VISION[8], VISION[9])),
    *((name, {}, method) for name in OWN for method in ("pact", "lsq")),
]


def shipped_weights(name, options, method, reduce_range):
    """Return the int8 weights of the file, ``[output channels, reduction]`` each, in the order of channels first."""
    paddle.seed(len(name))
    network = OWN[name]() if name in OWN else getattr(paddle.vision.models, name)(num_classes=10, **options)
    size = 28 if name == "LeNet" else 8 if name in OWN else 64
    x = paddle.randn([2, 1 if name == "LeNet" else 3, size, size])
    prepare_pact_(network, PACTConfig(method=method, reduce_range=reduce_range))
    network.train()
    network(x)
    converted = set(convert_for_export_(network))
    found = []
    for layer_name, layer in network.named_sublayers():
        if layer_name in converted:
            weight = layer.weight_int8.numpy()
            last = type(layer).__name__.removeprefix("Int8") != "Conv2D"
            found.append(np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1) if last else weight)
    return [weight.reshape(len(weight), -1) for weight in found]


def test_they_are_twenty():
    assert len(NETWORKS) == 20


@pytest.mark.parametrize(("name", "options", "method"), NETWORKS, ids=lambda v: v if isinstance(v, str) else "")
def test_no_pair_of_a_networks_products_saturates_on_half_the_range(name, options, method):
    random, differs = np.random.RandomState(0), 0
    for reduce_range in (True, False):
        for weights in shipped_weights(name, options, method, reduce_range):
            assert np.abs(weights.astype("int64")).max() <= (64 if reduce_range else 127)
            ordered = np.sort(weights, axis=1)  # the largest of either sign meet
            for case in (weights, ordered):
                for inputs in (*worst_inputs(case), random.randint(0, 256, case.shape[1]), random.randint(0, 256)):
                    apart = vpmaddubsw(np.asarray(inputs), case) != exact(np.asarray(inputs), case)
                    if reduce_range:
                        assert not apart.any()
                    differs += int(apart.sum())
    if method == "pact":  # the steps of LSQ may be so wide that nothing comes near the end of the grid
        assert differs


# --- the check against loops -----------------------------------------------------------------------------------------


def by_hand(rows, top=255):
    """Return how many rows hold two weights that saturate, and the largest loss over all ways to make pairs."""
    count, worst = 0, 0
    for row in rows.astype("int64"):
        count += any(not -32768 <= top * (a + b) <= 32767 for a, b in combinations(row, 2) if a * b > 0)
        for inputs in (top * (row > 0), top * (row < 0)):
            for order in set(permutations(range(len(row)))):
                shuffled, ins = row[list(order)], inputs[list(order)]
                worst = max(worst, abs(int(vpmaddubsw(ins, shuffled) - exact(ins, shuffled))))
    return count, worst


STEP, WEIGHT_STEP = 0.02, 0.005


def model_of(nodes, constants, inputs=("x",), domain=""):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 13)])


def qdq(op_type, weight, *, axis, kind="uint8", clip=None, weight_kind="int8", between=(), **attributes):
    """``x`` and a weight through quantizers into ``op_type``; one scale per channel of ``axis``."""
    channels = weight.shape[axis]
    constants = {
        "s": np.float32(STEP),
        "z": np.zeros((), kind),
        "w": weight.astype(weight_kind),
        "ws": np.full(channels, WEIGHT_STEP, "float32"),
        "wz": np.zeros(channels, weight_kind),
    }
    nodes, given = [], "x"
    if clip is not None:
        constants |= {"low": np.float32(0), "high": np.float32(clip * STEP)}
        nodes.append(helper.make_node("Clip", ["x", "low", "high"], ["clipped"]))
        given = "clipped"
    nodes += [
        helper.make_node("QuantizeLinear", [given, "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
    ]
    last = "d"
    for number, (kind_of_node, options) in enumerate(between):
        nodes.append(helper.make_node(kind_of_node, [last], [f"between{number}"], **options))
        last = f"between{number}"
    nodes.append(helper.make_node(op_type, [last, "wd"], ["y"], **attributes))
    return model_of(nodes, constants)


def weights(*shape, seed=0):
    return np.random.RandomState(seed).randint(-127, 128, shape).astype("int8")


CASES = {
    "Conv": (qdq, "Conv", (6, 2, 1, 3), 0, lambda w: w.reshape(6, -1), {}),
    "grouped Conv": (qdq, "Conv", (6, 2, 1, 3), 0, lambda w: w.reshape(6, -1), {"group": 2}),
    "Conv1D behind a pool": (
        *(qdq, "Conv", (6, 2, 3), 0, lambda w: w.reshape(6, -1)),
        {"between": [("MaxPool", {"kernel_shape": [2]})]},
    ),
    "depthwise Conv": (qdq, "Conv", (6, 1, 2, 3), 0, lambda w: w.reshape(6, -1), {"group": 6}),
    "ConvTranspose": (qdq, "ConvTranspose", (3, 5, 1, 2), 1, lambda w: w.transpose(1, 0, 2, 3).reshape(5, -1), {}),
    "grouped ConvTranspose": (
        *(qdq, "ConvTranspose", (4, 3, 1, 2), 1),
        lambda w: np.concatenate(
            [w[:2].transpose(1, 0, 2, 3).reshape(3, -1), w[2:].transpose(1, 0, 2, 3).reshape(3, -1)]
        ),
        {"group": 2},
    ),
    "Gemm": (qdq, "Gemm", (6, 7), 1, lambda w: w.T, {}),
    "Gemm of a transposed weight": (qdq, "Gemm", (7, 6), 0, lambda w: w, {"transB": 1}),
    "MatMul": (qdq, "MatMul", (6, 7), 1, lambda w: w.T, {}),
    "four bits of activations": (qdq, "Conv", (6, 2, 1, 3), 0, lambda w: w.reshape(6, -1), {"clip": 15}),
    "clipped": (qdq, "Conv", (6, 2, 1, 3), 0, lambda w: w.reshape(6, -1), {"clip": 140}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("seed", range(3))
def test_channels_and_the_worst_loss_are_those_of_a_loop_over_all_pairs(case, seed):
    make, op_type, shape, axis, by_channel, options = case
    weight = weights(*shape, seed=seed)
    count, worst = by_hand(by_channel(weight), top=options.get("clip", 255))
    report = saturating_channels(make(op_type, weight, axis=axis, **options))
    assert (report.channels, report.total) == (count, len(by_channel(weight)))
    (layer,) = report.layers
    assert layer.worst == pytest.approx(worst * STEP * WEIGHT_STEP, rel=1e-5)
    assert layer.depthwise == (options.get("group") == 6)
    assert report.depthwise == (count if layer.depthwise else 0)
    assert (report.worst is None) == (count == 0)


@pytest.mark.parametrize(("pair", "counted"), [((64, 64), 0), ((65, 64), 1), ((127, -127), 0), ((-64, -65), 1)])
def test_the_border_is_128(pair, counted):
    weight = np.array(pair, "int8").reshape(1, 2, 1, 1)
    assert saturating_channels(qdq("Conv", weight, axis=0)).channels == counted
    assert by_hand(weight.reshape(1, 2))[0] == counted


@pytest.mark.parametrize("kinds", [{"kind": "int8"}, {"weight_kind": "uint8"}], ids=["s8 x s8", "u8 x u8"])
def test_products_that_engines_widen_are_not_counted(kinds):
    weight = np.full((4, 2, 1, 1), 127)
    assert saturating_channels(qdq("Conv", weight, axis=0, **kinds)).total == 0


def test_operators_on_integers():
    conv, product = weights(6, 2, 1, 3), weights(6, 7)
    scales = {
        "s": np.float32(STEP),
        "z": np.uint8(3),
        "ws": np.full(6, WEIGHT_STEP, "float32"),
        "wz": np.zeros(6, "int8"),
    }
    columns = {**scales, "ws": np.full(7, WEIGHT_STEP, "float32"), "wz": np.zeros(7, "int8")}
    one = {**scales, "ws": np.float32(WEIGHT_STEP), "wz": np.int8(0)}
    full = ["x", "s", "z", "w", "ws", "wz", "s", "z"]
    dynamic = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"])
    models = {
        "QLinearConv": model_of([helper.make_node("QLinearConv", full, ["y"])], {**scales, "w": conv}),
        "QLinearMatMul": model_of([helper.make_node("QLinearMatMul", full, ["y"])], {**columns, "w": product}),
        "QGemm": model_of([helper.make_node("QGemm", full, ["y"])], {**columns, "w": product}),
        "ConvInteger": model_of(
            [dynamic, helper.make_node("ConvInteger", ["q", "w", "qz", "wz"], ["y"])], {**one, "w": conv}
        ),
        "MatMulInteger": model_of(
            [dynamic, helper.make_node("MatMulInteger", ["q", "w", "qz", "wz"], ["y"])], {**one, "w": product}
        ),
        "DynamicQuantizeMatMul": model_of(
            [helper.make_node("DynamicQuantizeMatMul", ["x", "w", "ws", "wz"], ["y"])], {**one, "w": product}
        ),
    }
    for name, model in models.items():
        rows = conv.reshape(6, -1) if "Conv" in name else product.T
        count, worst = by_hand(rows)
        report = saturating_channels(model)
        assert (report.channels, report.total) == (count, len(rows)), name
        known = None if "Integer" in name or "Dynamic" in name else pytest.approx(worst * STEP * WEIGHT_STEP, rel=1e-5)
        assert report.layers[0].worst == known, name
        assert 0 < report.worst.share < 1
        json.dumps(report.figures(), allow_nan=False)


# --- files -----------------------------------------------------------------------------------------------------------


class _Readings:
    def __init__(self, batches):
        self._batches = iter(batches)

    def get_next(self):
        return next(self._batches, None)


def float_model(path):
    random = np.random.RandomState(0)
    constants = {
        "w1": random.randn(16, 3, 3, 3).astype("float32"),
        "w2": random.randn(16, 16, 1, 1).astype("float32"),
        "shape": np.array([0, -1], "int64"),
        "w3": random.randn(16 * 36, 10).astype("float32"),
        "b3": np.zeros(10, "float32"),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 10])],
        [array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("form", ["QDQ", "QDQ with float weights", "QOperator", "dynamic"])
def test_files_of_onnxruntime_quantization(tmp_path, form, per_channel, reduce_range):
    tools = pytest.importorskip("onnxruntime.quantization")
    source, target = float_model(tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    options = {"per_channel": per_channel, "reduce_range": reduce_range, "weight_type": tools.QuantType.QInt8}
    if form == "dynamic":
        tools.quantize_dynamic(source, target, **options)
    else:
        readings = _Readings([{"x": np.random.RandomState(1).rand(4, 3, 8, 8).astype("float32")}])
        tools.quantize_static(
            source,
            target,
            readings,
            quant_format=tools.QuantFormat.QOperator if form == "QOperator" else tools.QuantFormat.QDQ,
            activation_type=tools.QuantType.QUInt8,
            extra_options={"AddQDQPairToWeight": form == "QDQ with float weights"},
            **options,
        )
    report = saturating_channels(target)
    assert report.total == 16 + 16 + 10
    assert saturation_of("onnx", "int8", target) == report
    integers = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load(str(target)).graph.initializer
        if item.data_type == onnx.TensorProto.INT8 and len(item.dims) > 1
    }
    if integers:  # float weights are rounded by the file itself
        rows = [w.T if w.ndim == 2 and w.shape[1] == 10 else w.reshape(len(w), -1) for w in integers.values()]
        expected = sum(int((top_two(one) > 128).any()) for row in rows for one in row)
        assert report.channels == expected
    assert (report.channels == 0) == reduce_range


def top_two(row):
    """Return the sums of the two largest magnitudes of either sign."""
    row = row.astype("int64")
    return np.array([np.sort(sign * row)[-2:].clip(min=0).sum() for sign in (1, -1)])


def test_no_int8_file_has_no_report(tmp_path):
    path = float_model(tmp_path / "float.onnx")
    assert saturation_of("onnx", "fp32", path) is None
    assert saturation_of("paddle", "int8", path) is None
    assert saturating_channels(path).total == 0
    assert "no products" in str(saturating_channels(path))
    path.write_bytes(b"no model")
    assert saturation_of("onnx", "int8", path) is None


@needs("paddle2onnx")
@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("options", [{}, {"method": "lsq"}, {"quantize_outputs": True}], ids=["pact", "lsq", "outputs"])
def test_our_own_files(tmp_path, options, reduce_range):
    network = trained(Zoo(), reduce_range=reduce_range, **options)
    report = saturating_channels(int8_file(network, tmp_path).path)
    assert report.total == 8 + 8 + 8 + 4 + 8 + 6 + 4
    assert report.channels == 0 if reduce_range else report.channels > 0 or "method" in options
    assert sum(layer.depthwise for layer in report.layers) == 1


@needs("paddle2onnx")
@pytest.mark.parametrize("bits", [7, 4, 2])
def test_fewer_bits_never_saturate(tmp_path, bits):
    network = trained(TinyNet(), reduce_range=False, weight_bits=bits, activation_bits=8)
    assert saturating_channels(int8_file(network, tmp_path).path).channels == 0


# --- an engine without VNNI, in a child process ----------------------------------------------------------------------

CHILD = """
import sys
import numpy as np
from paddlelite_callbacks.benchmark.engines import OpenVino
from paddlelite_callbacks.export.artefact import Artefact
from pathlib import Path
file, inputs, answers = map(Path, sys.argv[1:])
artefact = Artefact(kind="onnx", path=file, files=(file,), precision="int8")
np.save(answers, OpenVino().load(artefact, threads=1)([np.load(inputs)])[0])
"""


def without_vnni(path, x, folder):
    """Return what OpenVINO computes where oneDNN may use AVX2 alone."""
    pytest.importorskip("openvino")
    np.save(folder / "x.npy", x)
    names = [str(path), str(folder / "x.npy"), str(folder / "y.npy")]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", CHILD, *names], env=environment, check=True, timeout=300)
    return np.load(folder / "y.npy")


@needs("paddle2onnx")
@pytest.mark.parametrize("options", [{}, {"method": "lsq"}, {"weight_bits": 4}], ids=["pact", "lsq", "four bits"])
def test_without_vnni_half_the_range_gives_what_was_trained(tmp_path, options):
    network, x = trained(Zoo(), **options), Images(64).images
    expected = network(paddle.to_tensor(x)).numpy()
    got = without_vnni(int8_file(network, tmp_path).path, x, tmp_path)
    off = np.abs(got - expected).max(axis=1) / np.abs(expected).max()
    assert np.mean(off < 1e-5) >= 0.9, off  # the others: a value on a rounding threshold
    assert off.max() < 0.02


LAYERS = {
    "convolution": lambda: nn.Conv2D(8, 8, 3),
    "grouped": lambda: nn.Conv2D(8, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2D(8, 8, 3, groups=8),
    "linear": lambda: nn.Linear(8, 8),
}


def large_weights(layer, folder, reduce_range):
    """Export a layer whose weights are all equal, so that every pair is as large as can be; return also its answers."""
    network = nn.Sequential(LAYERS[layer]())
    for name, parameter in network.named_parameters():
        parameter.set_value(paddle.full_like(parameter, 0.0 if "bias" in name else 0.125))
    shape = [8] if layer == "linear" else [8, 6, 6]
    x = np.ones([4, *shape], "float32")
    network = ptq_int8(network, [paddle.to_tensor(x)], alpha_percentile=100, reduce_range=reduce_range)
    forms = export_forms(network, folder, input_spec=[InputSpec([None, *shape], name="x")])
    file = next(a for a in forms.artefacts if (a.kind, a.precision) == ("onnx", "int8"))
    return file, x, network(paddle.to_tensor(x)).numpy()


@needs("paddle2onnx")
@pytest.mark.skipif(not X86, reason="vpmaddubsw is an instruction of x86")
@pytest.mark.parametrize("layer", LAYERS)
def test_without_vnni_the_full_range_saturates_by_what_the_check_says(tmp_path, layer):
    file, x, expected = large_weights(layer, tmp_path, reduce_range=False)
    (found,), got = saturating_channels(file.path).layers, without_vnni(file.path, x, tmp_path)
    assert (found.channels, found.total, found.depthwise) == (8, 8, layer == "depthwise")
    if found.depthwise:  # as the module says
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        return
    assert found.share == pytest.approx(1 - 32767 / (2 * 255 * 127))
    np.testing.assert_allclose(expected - got, found.worst, rtol=1e-4)
    np.testing.assert_allclose(got / expected, 1 - found.share, rtol=1e-4)


@needs("paddle2onnx")
def test_without_vnni_half_the_range_is_exact(tmp_path):
    file, x, expected = large_weights("convolution", tmp_path, reduce_range=True)
    assert saturating_channels(file.path).channels == 0
    np.testing.assert_allclose(without_vnni(file.path, x, tmp_path), expected, rtol=1e-5)


@needs("paddle2onnx")
@pytest.mark.skipif(not has_vnni(), reason="ONNX Runtime cannot be capped: this CPU has no VNNI and saturates")
def test_with_vnni_the_full_range_is_exact(tmp_path):
    file, x, expected = large_weights("convolution", tmp_path, reduce_range=False)
    np.testing.assert_allclose(OnnxRuntime().load(file, threads=1)([x])[0], expected, rtol=1e-5)


def test_has_vnni_obeys_the_cap(monkeypatch):
    alone = has_vnni()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert has_vnni() == has_vnni("onnxruntime") == alone
    assert has_vnni("openvino") == (not X86 and alone)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert has_vnni("openvino") == alone
