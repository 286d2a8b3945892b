"""Weights that are dequantised at load: same values, chosen as ONNX Runtime itself chooses, still int8 in OpenVINO."""

from __future__ import annotations

import numpy as np
import pytest
from installed import needs

from paddlelite_callbacks.benchmark.unfused_layers import float_layers
from paddlelite_callbacks.export.int8_layers import int8_layers, layers_computed_in_float, with_layers_in_float
from paddlelite_callbacks.export.onnx_graph import OnnxGraph, copied_model
from paddlelite_callbacks.export.saturation import saturating_channels
from paddlelite_callbacks.export.stored_weights import dequantize_at_load_

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
FLOAT = onnx.TensorProto.FLOAT
# What stands between convolution and next quantizer; whether ONNX Runtime fuses the convolution, and whether its
# weight can be stored for loading: in the other cases ONNX Runtime quantises a float weight itself, or folds it.
BEHIND = {
    "nothing": (["Q"], True, False),
    "relu": (["Relu", "Q"], True, False),
    "clip": (["Clip", "Q"], True, False),
    "maximum": (["MaxPool", "Q"], True, False),
    "relu before a signed grid": (["Relu", "Q signed"], False, False),
    "clip inside the grid": (["Clip inside", "Q"], False, False),
    "constant factor": (["Mul", "Q"], False, False),
    "hard-swish": (["HardSwish", "Q"], False, True),
    "sigmoid": (["Sigmoid", "Q"], False, True),
    "mean": (["GlobalAveragePool", "Q"], False, True),
    "relu and mean": (["Relu", "GlobalAveragePool", "Q"], False, True),
    "maximum and sigmoid": (["MaxPool", "Sigmoid", "Q"], False, True),
    "output": ([], False, True),
}


def model_of(behind, kind="Conv", signed=False, more=False, integer_bias=False):
    """Return ``x, Q, DQ, conv, ...behind``; ``more``: the convolution's result is an output, too."""
    random = np.random.RandomState(0)
    zero = np.int8(0) if signed else np.uint8(128)
    held = {
        "xs": np.float32(0.02),
        "xz": zero,
        "layer.weight_int8": random.randint(-64, 65, (8, 4, 3, 3) if kind == "Conv" else (4, 8, 3, 3)).astype("int8"),
        "ws": random.uniform(0.001, 0.004, 8).astype("float32"),
        "wz": np.zeros(8, "int8"),
        "b": random.randn(8).astype("float32") / 10,
        "low": np.float32(0),
        "high": np.float32(100),
        "ys": np.float32(0.03),
        "yz": zero
        if signed or "Q signed" in behind or not {"Relu", "Clip", "Clip inside"} & set(behind)
        else np.uint8(0),
        "inside": np.float32(4),
        "factor": np.float32(3),
    }
    node = onnx.helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("DequantizeLinear", ["layer.weight_int8", "ws", "wz"], ["wd"], axis=0 if kind == "Conv" else 1),
    ]
    if integer_bias:
        held |= {"bs": held["xs"] * held["ws"], "bz": np.zeros(8, "int32")}
        held["b"] = np.rint(held["b"] / held["bs"]).astype("int32")
        nodes.append(node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0))
    nodes.append(node(kind, ["xd", "wd", "bd" if integer_bias else "b"], ["c"]))
    name = "c"
    for number, step in enumerate(behind):
        new = f"t{number}"
        if step in ("Q", "Q signed"):
            nodes.append(node("QuantizeLinear", [name, "ys", "yz"], ["yq"]))
            nodes.append(node("DequantizeLinear", ["yq", "ys", "yz"], [new]))
        elif step == "MaxPool":
            nodes.append(node("MaxPool", [name], [new], kernel_shape=[2, 2]))
        else:
            extra = {"Clip": ["low", "high"], "Mul": ["factor"]}.get(step, [])
            if step == "Clip inside":
                step, extra = "Clip", ["low", "inside"]
            nodes.append(node(step, [name, *extra], [new]))
        name = new
    results = dict.fromkeys(["c", name] if more else [name])
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", FLOAT, [2, 4, 10, 10])],
        [onnx.helper.make_tensor_value_info(one, FLOAT, [None] * 4) for one in results],
        [onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in held.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def rewritten(model):
    graph = OnnxGraph(copied_model(model))
    return dequantize_at_load_(graph), graph.to_model()


def run(model, optimised=False):
    options = runtime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.RandomState(1).randn(2, 4, 10, 10).astype("float32")})


def in_float(model, folder):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return list(float_layers(path))


@pytest.mark.parametrize("integer_bias", [False, True], ids=["float bias", "integer bias"])
@pytest.mark.parametrize("name", BEHIND)
def test_only_what_onnx_runtime_computes_in_float_is_dequantised_at_load(name, integer_bias, tmp_path):
    behind, fused, at_load = BEHIND[name]
    model = model_of(behind, integer_bias=integer_bias)
    assert in_float(model, tmp_path) == ([] if fused else ["layer"])  # the engine's own graph
    count, made = rewritten(model)
    onnx.checker.check_model(made)
    assert count == at_load
    assert in_float(made, tmp_path) == ([] if fused else ["layer"])
    assert int8_layers(made) == ["layer"]
    assert layers_computed_in_float(made) == (["layer"] if at_load else [])
    np.testing.assert_array_equal(run(made)[0], run(model)[0])
    if at_load:  # nothing is rounded but by the file
        np.testing.assert_allclose(run(made, optimised=True)[0], run(made)[0], atol=1e-5)


@pytest.mark.parametrize("integer_bias", [False, True], ids=["float bias", "integer bias"])
def test_onnx_runtime_dequantises_the_weight_once(integer_bias, tmp_path):
    _, made = rewritten(model_of(["HardSwish", "Q"], integer_bias=integer_bias))
    options = runtime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimised.onnx")
    runtime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert ran.count("DequantizeLinear") == 2  # activations alone
    assert not {"Cast", "Mul"} & set(ran)


@pytest.mark.parametrize("behind", [["Q"], ["Relu", "Q"]], ids=["plain", "relu"])
def test_a_result_that_is_read_twice_is_computed_in_float(behind, tmp_path):
    model = model_of(behind)
    name = "t0" if "Relu" in behind else "c"
    model.graph.node.append(onnx.helper.make_node("Sigmoid", [name], ["z"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", FLOAT, [None] * 4))
    assert in_float(model, tmp_path) == ["layer"]
    count, made = rewritten(model)
    assert count == 1
    for expected, got in zip(run(model), run(made, optimised=True), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_output_that_is_quantised_too_stays():
    assert rewritten(model_of(["Q"], more=True))[0] == 0


def test_nodes_that_nothing_reads_do_not_count():
    model = model_of(["Relu", "Q"])
    model.graph.node.append(onnx.helper.make_node("Sigmoid", ["t0"], ["unread"]))
    assert rewritten(model)[0] == 0


def test_a_transposed_convolution():
    for behind, at_load in ((["Sigmoid", "Q"], 1), (["Q"], 0)):
        model = model_of(behind, kind="ConvTranspose")
        count, made = rewritten(model)
        assert count == at_load
        if at_load:
            np.testing.assert_allclose(run(made, optimised=True)[0], run(model)[0], atol=1e-5)


def test_files_of_engines_with_signed_activations_stay():
    model = model_of(["HardSwish", "Q"], signed=True)
    assert rewritten(model)[0] == 0


def test_saturation_is_the_same_in_both_forms():
    model = model_of(["HardSwish", "Q"])
    wide = next(item for item in model.graph.initializer if item.name == "layer.weight_int8")
    wide.CopyFrom(onnx.numpy_helper.from_array(np.full((8, 4, 3, 3), 127, "int8"), wide.name))
    reports = [saturating_channels(one) for one in (model, rewritten(model)[1])]
    assert reports[0].channels == reports[1].channels == 8
    assert reports[0].worst.worst == reports[1].worst.worst


def test_put_back_to_float_like_the_other_form():
    model = model_of(["HardSwish", "Q"])
    made = [with_layers_in_float(one, ["layer"], outputs=False) for one in (model, rewritten(model)[1])]
    assert [node.op_type for node in made[0].graph.node] == [node.op_type for node in made[1].graph.node]
    np.testing.assert_array_equal(run(made[0])[0], run(made[1])[0])


@needs("openvino")
def test_openvino_computes_it_in_int8(tmp_path):
    import openvino

    path = tmp_path / "model.onnx"
    path.write_bytes(rewritten(model_of(["HardSwish", "Q"]))[1].SerializeToString())
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU")
    kinds = {
        op.get_rt_info()["layerType"].astype(str): op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ops()
    }
    assert kinds["Convolution"] in ("u8", "i8")
