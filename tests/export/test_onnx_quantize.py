"""Float ONNX files of any maker in int8: one form, our grids, corrected biases, the answer of every engine."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
from installed import needs
from onnx import helper, numpy_helper
from onnx_graphs import STYLES, Maker, gemm_forms, inputs_of, shared_weight, tokens, torch_style

from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.float_onnx import read_float_onnx
from paddlelite_callbacks.export.onnx_bias_correction import bias_corrections
from paddlelite_callbacks.export.onnx_calibration import Observation, activation_ranges, observe_model
from paddlelite_callbacks.export.onnx_quantize import (
    ActivationRange,
    GraphScheme,
    output_tensors,
    quantize_graph,
    read_tensors,
)
from paddlelite_callbacks.export.onnx_session import run_model, with_outputs
from paddlelite_callbacks.export.onnx_tolerance import graph_reference
from paddlelite_callbacks.export.saturation import saturating_channels


def saved(model, folder, name="net.onnx"):
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def answers(model, inputs):
    """Outputs of the model as it was given, in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


def split_rows(inputs, size=4):
    count = min(len(array) for array in inputs.values())
    return [{name: array[i : i + size] for name, array in inputs.items()} for i in range(0, count, size)]


def quantised(source, inputs, *, calibration="mse", correct=True, **options):
    batches = [inputs] if "z" in inputs else split_rows(inputs)
    seen = observe_model(source, batches)
    ranges = activation_ranges(seen, calibration)
    scheme = GraphScheme(**options)
    model = quantize_graph(source, ranges, scheme)
    if correct:
        found = bias_corrections(source, model, seen.means, batches)
        model = quantize_graph(source, ranges, GraphScheme(**options, corrections=found))
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("style", STYLES)
def test_one_form_computes_what_the_file_does(style, tmp_path):
    model = STYLES[style]()
    source = read_float_onnx(saved(model, tmp_path))
    onnx.checker.check_model(source.model)
    inputs = inputs_of(model)
    got = run_model(source.model)(inputs)
    for name, expected in zip(got, answers(model, inputs), strict=True):
        np.testing.assert_allclose(got[name], expected, atol=2e-6 * max(1, np.abs(expected).max()), err_msg=name)


@pytest.mark.parametrize(
    ("style", "products", "left"),
    [
        ("torch_style", {"stem": "Conv", "dw": "Conv", "pw": "Conv", "fc": "Gemm"}, {}),
        ("tensorflow_style", {"model/conv/Conv2D": "Conv", "model/dense/MatMul": "Gemm"}, {}),
        ("gemm_forms", {"a": "Gemm", "b": "Gemm"}, {"c": "transposed"}),
        ("tokens", {"q": "MatMul", "v": "MatMul"}, {"/attention/MatMul": "computed", "/out/MatMul": "computed"}),
        ("shared_weight", {"w": "Conv", "second": "Conv"}, {}),
        ("two_inputs", {"up": "ConvTranspose", "line": "Conv"}, {}),
        ("old_exporter", {"conv": "Conv", "fc": "Gemm"}, {}),
    ],
    ids=list(STYLES),
)
def test_layers_and_what_stays_in_float(style, products, left, tmp_path):
    source = read_float_onnx(saved(STYLES[style](), tmp_path))
    assert {name: product.op_type for name, product in source.products.items()} == products
    assert list(source.left) == list(left)
    assert all(word in source.left[name] for name, word in left.items())


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("quantize_outputs", [False, True], ids=["inputs", "outputs"])
def test_the_int8_file_is_near_and_exact_everywhere(style, quantize_outputs, tmp_path):
    model = STYLES[style]()
    source = read_float_onnx(saved(model, tmp_path))
    inputs = inputs_of(model, 32)
    made = quantised(source, inputs, quantize_outputs=quantize_outputs)
    got = run_model(made)(inputs)
    for name, expected in zip(got, answers(model, inputs), strict=True):
        assert np.sqrt(np.mean((got[name] - expected) ** 2) / np.mean(expected**2)) < 0.05
    report = saturating_channels(made)
    assert (report.channels, report.total > 0) == (0, style != "two_inputs" or report.total > 0)
    stored = {item.name for item in made.graph.initializer if item.data_type == onnx.TensorProto.INT8}
    dequantised = [
        node
        for node in made.graph.node
        if node.op_type == "DequantizeLinear" or (node.op_type == "Cast" and node.input[0] in stored)  # at load
    ]
    weights = {numpy_helper.to_array(item).dtype.name for item in made.graph.initializer if len(item.dims) > 1}
    assert weights <= {"int8", "float32"}
    products = source.products.values()
    assert len(dequantised) >= len({one.weight for one in products}) + len({one.source for one in products})


@needs("onnxruntime", "openvino")
@pytest.mark.parametrize("style", ["torch_style", "tensorflow_style", "gemm_forms"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_give_the_defined_answer(style, engine, tmp_path):
    model = STYLES[style]()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model, 16)
    made = quantised(source, inputs, quantize_outputs=True)
    reference = graph_reference(made, inputs)
    path = saved(made, tmp_path, "int8.onnx")
    artefact = Artefact(kind="onnx", path=path, files=(path,), precision="int8")
    got = ENGINES[engine].load(artefact, threads=1)(list(inputs.values()))
    limits = zip(reference.outputs, got, reference.noise, reference.flips, strict=True)
    for expected, found, noise, flip in limits:
        assert np.abs(expected - found).max() <= 1e-4 + 1e-3 * np.abs(expected).max() + 4 * noise + 1.5 * flip


def by_hand(model, source, inputs, ranges):
    """Quantise ``Conv, HardSwish, Conv, Gemm`` of `chain` in NumPy, with a loop over everything."""
    weights = {item.name: numpy_helper.to_array(item).astype("float64") for item in model.graph.initializer}

    def activation(x, name):
        found = ranges[name]
        low, high = (-128, 127) if found.signed else (0, 255)
        step = found.alpha / high
        if found.lowest is not None:  # the values lie above zero for the most part
            step = (found.alpha - found.lowest) / 255
            low = -round(-found.lowest / step)
            high = 255 + low
        step = np.float64(np.float32(step))
        return np.clip(np.rint((x / step).astype("float32")), low, high) * step, step

    def weight(name, axis):
        w = weights[name]
        columns = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
        steps = np.float32(np.abs(columns).max(axis=1) / 64).astype("float64")
        shape = [-1 if i == axis else 1 for i in range(w.ndim)]
        exact = (np.abs(columns).max(axis=1) / 64).reshape(shape)
        return np.rint(w / exact) * steps.reshape(shape), steps

    def bias(name, steps):
        return np.rint(weights[name] / steps) * steps

    x, step = activation(inputs["x"].astype("float64"), "x")
    w, steps = weight("a.weight", 0)
    y = np.einsum("nihw,oi->nohw", x, w[:, :, 0, 0]) + bias("a.bias", step * steps)[:, None, None]
    y = y * np.clip(y / 6 + 0.5, 0, 1)
    f, step = activation(y.mean(axis=(2, 3)), "f")
    w, steps = weight("fc.weight", 0)
    return f @ w.T + bias("fc.bias", step * steps)


def chain():
    m = Maker(3)
    m.weight("a.weight", 6, 3, 1, 1), m.weight("a.bias", 6, scale=0.1)
    m.weight("fc.weight", 4, 6), m.weight("fc.bias", 4, scale=0.1)
    m.add("Conv", ["x", "a.weight", "a.bias"], "c", name="a")
    m.add("HardSwish", ["c"], "h", name="act")
    m.add("ReduceMean", ["h"], "f", name="mean", axes=[2, 3], keepdims=0)
    m.add("Gemm", ["f", "fc.weight", "fc.bias"], "y", name="fc", transB=1)
    return m.model({"x": ["n", 3, 6, 6]}, {"y": ["n", 4]})


def test_the_graph_computes_what_numpy_computes_by_hand(tmp_path):
    model = chain()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model, 16)
    ranges = activation_ranges(observe_model(source, [inputs]), "min_max")
    assert ranges["x"] == ActivationRange(alpha=float(np.abs(inputs["x"]).max()), signed=True)
    got = run_model(quantize_graph(source, ranges, GraphScheme()))(inputs)["y"]
    expected = by_hand(model, source, inputs, ranges)
    largest = np.abs(expected).max()
    assert np.median(np.abs(got - expected)) < 1e-5 * largest
    assert np.abs(got - expected).max() < 0.02 * largest  # one value on a threshold


def test_the_zero_point_is_0_or_128_or_where_the_values_are(tmp_path):
    model = torch_style()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model)
    made = quantised(source, inputs, calibration="min_max", quantize_outputs=True)
    stored = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    quantizers = {n.input[0]: stored[n.input[2]] for n in made.graph.node if n.op_type == "QuantizeLinear"}
    assert all(point.dtype == np.uint8 for point in quantizers.values())
    seen = {**inputs, **run_model(with_outputs(source.model, [name for name in quantizers if name != "x"]))(inputs)}
    kinds = set()
    for name, point in quantizers.items():
        lowest, highest = float(seen[name].min()), float(seen[name].max())
        middle = -lowest >= 0.5 * np.abs(seen[name]).max()
        kinds.add("none" if lowest >= 0 else "as many" if middle else "few")
        expected = 0 if lowest >= 0 else 128 if middle else -lowest / (highest - lowest) * 255
        assert abs(int(point) - expected) <= 0.51, name
    assert {"none", "few"} <= kinds


@pytest.mark.parametrize("bits", [8, 5])
def test_behind_hard_swish_no_integer_is_wasted(bits, tmp_path):
    model = torch_style()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model, 32)
    ranges = activation_ranges(observe_model(source, split_rows(inputs)), "mse", bits=bits)
    made = quantize_graph(source, ranges, GraphScheme(activation_bits=bits))
    values = run_model(with_outputs(made, ["h1", "h1.quantized.back"]))(inputs)
    x, back = values["h1"], values["h1.quantized.back"]
    assert 0.8 * 2**bits <= len(np.unique(back)) <= 2**bits
    in_the_middle = np.abs(x).max() / (2 ** (bits - 1) - 1)
    halves = np.sqrt(np.mean((np.clip(np.rint(x / in_the_middle), -(2 ** (bits - 1)), None) * in_the_middle - x) ** 2))
    assert np.sqrt(np.mean((back - x) ** 2)) < 0.65 * halves


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_coarser_weights_and_activations(bits, tmp_path):
    model = torch_style()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model, 16)
    made = quantised(source, inputs, weight_bits=bits, activation_bits=bits, raised=["dw"], correct=False)
    stored = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    for product in source.products.values():
        weight = next(
            v for k, v in stored.items() if k.startswith(product.weight) and v.dtype == np.int8 and v.ndim > 1
        )
        levels = 129 if product.name == "dw" else 2**bits - 1
        assert len(np.unique(np.abs(weight))) <= levels // 2 + 1
    clips = [node for node in made.graph.node if node.op_type == "Clip"]
    assert len(clips) == len({product.source for product in source.products.values()})
    x = inputs["x"]
    tensor = next(node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear")
    values = run_model(with_outputs(made, ["x.quantized.back"]))(inputs)["x.quantized.back"]
    assert tensor == "x.quantized.clipped"
    assert len(np.unique(values)) <= 2**bits
    assert np.abs(values - np.clip(x, values.min(), values.max())).max() <= np.diff(np.unique(values)).max() / 2 + 1e-6


def test_skipped_layers_stay_in_float(tmp_path):
    model = torch_style()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model)
    made = quantised(source, inputs, skip=["dw", "fc"])
    weights = {node.op_type: [] for node in made.graph.node}
    for node in made.graph.node:
        weights[node.op_type].append(node)
    stored = {item.name: numpy_helper.to_array(item).dtype for item in made.graph.initializer}
    assert [stored.get(node.input[1]) for node in weights["Conv"]] == [None, np.float32, None]
    assert stored[weights["Gemm"][0].input[1]] == np.float32
    with pytest.raises(ValueError, match="Nothing is left to quantise: 4 products"):
        quantize_graph(source, {}, GraphScheme(skip=list(source.products)))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_shared_weight_is_stored_once(bits, tmp_path):
    source = read_float_onnx(saved(shared_weight(), tmp_path))
    made = quantised(source, inputs_of(shared_weight()), correct=False, weight_bits=bits)
    assert sum(item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 4 for item in made.graph.initializer) == 1


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_channel_of_tiny_weights_keeps_its_bias(bits, tmp_path):
    m = Maker()
    m.weight("w.weight", 4, 3, 1, 1)
    m.weights["w.weight"][2] = 1e-30
    m.constant("b", np.asarray([1, 2, 3, 4], "float32"))
    m.add("Conv", ["x", "w.weight", "b"], "y", name="w")
    model = m.model({"x": ["n", 3, 4, 4]}, {"y": ["n", 4, 4, 4]})
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model)
    got = run_model(quantised(source, inputs, correct=False, weight_bits=bits))(inputs)["y"]
    np.testing.assert_allclose(got[:, 2], 3.0, rtol=1e-5)


# ---- bias correction


def one_after_the_other(source, ranges, scheme, means, inputs):
    """Correct layer by layer, running the whole graph with all corrections so far each time."""
    found = {}
    for name, product in source.products.items():
        model = quantize_graph(source, ranges, GraphScheme(**scheme, corrections=found))
        y = run_model(with_outputs(model, [product.output]))(inputs)[product.output]
        axes = tuple(i for i in range(y.ndim) if i != product.channel_axis % y.ndim)
        found[name] = means[name] - y.mean(axis=axes, dtype="float64")
    return found


@pytest.mark.parametrize("quantize_outputs", [False, True], ids=["inputs", "outputs"])
def test_bias_correction_is_that_of_the_paper(quantize_outputs, tmp_path):
    model = torch_style()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model, 24)
    batches, scheme = split_rows(inputs, 8), {"weight_bits": 4, "quantize_outputs": quantize_outputs}
    seen = observe_model(source, batches)
    ranges = activation_ranges(seen, "min_max")
    found = bias_corrections(source, quantize_graph(source, ranges, GraphScheme(**scheme)), seen.means, batches)
    expected = one_after_the_other(source, ranges, scheme, seen.means, inputs)
    assert list(found) == list(expected)
    for name in found:
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=0.05 * largest + 1e-4, err_msg=name)
    corrected = quantize_graph(source, ranges, GraphScheme(**scheme, corrections=found))
    got, plain = (run_model(m)(inputs)["y"] for m in (corrected, quantize_graph(source, ranges, GraphScheme(**scheme))))
    (exact,) = answers(model, inputs)
    assert np.abs(got.mean(axis=0) - exact.mean(axis=0)).max() < 2e-3 * np.abs(exact).max()
    assert np.sqrt(np.mean((got - exact) ** 2)) < np.sqrt(np.mean((plain - exact) ** 2))


def test_a_bias_behind_a_product_of_three_axes_is_corrected_there(tmp_path):
    source = read_float_onnx(saved(tokens(), tmp_path))
    inputs = inputs_of(tokens(), 16)
    seen = observe_model(source, [inputs])
    ranges = activation_ranges(seen, "min_max")
    found = bias_corrections(source, quantize_graph(source, ranges, GraphScheme(weight_bits=3)), seen.means, [inputs])
    assert list(found) == ["q"]  # the other has no bias
    made = quantize_graph(source, ranges, GraphScheme(weight_bits=3, corrections=found))
    onnx.checker.check_model(made)
    float_q = run_model(with_outputs(source.model, ["q"]))(inputs)["q"]
    got = run_model(with_outputs(made, ["q"]))(inputs)["q"]
    np.testing.assert_allclose(got.mean(axis=(0, 1)), float_q.mean(axis=(0, 1)), atol=1e-5)


# ---- placement


def test_the_tensors_that_are_quantised(tmp_path):
    source = read_float_onnx(saved(torch_style(), tmp_path))
    assert read_tensors(source) == ["x", "r0", "h1", "f"]
    assert output_tensors(source) == {"stem": "r0", "dw": "c1", "pw": "c2"}


@needs("onnxruntime")
def test_onnxruntime_computes_in_integers_with_quantised_outputs(tmp_path):
    model = torch_style()
    source = read_float_onnx(saved(model, tmp_path))
    made = quantised(source, inputs_of(model), quantize_outputs=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert kinds.count("QGemm") == 1
    assert not {"Conv", "FusedConv", "Gemm"} & set(kinds)


# ---- calibration and tolerance


def test_ranges_by_every_method(tmp_path):
    model = torch_style()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model, 16)
    batches = split_rows(inputs, 8)
    seen = observe_model(source, batches, percentile=99.0)
    ranges = {name: activation_ranges(seen, name) for name in ("min_max", "percentile", "mse", "kl")}
    for found in ranges.values():
        assert list(found) == [*read_tensors(source), "c1", "c2"]
    assert ranges["min_max"]["x"].alpha == pytest.approx(np.abs(inputs["x"]).max())
    by_batch = [np.percentile(np.abs(batch["x"]), 99.0) for batch in batches]
    assert ranges["percentile"]["x"].alpha == pytest.approx(np.mean(by_batch), rel=1e-6)
    assert all(ranges["mse"][name].alpha <= ranges["min_max"][name].alpha * 1.0001 for name in ranges["mse"])
    r0 = run_model(with_outputs(source.model, ["r0"]))(inputs)["r0"]
    steps = np.linspace(0.5, 1, 26) * r0.max() / 255
    errors = [np.mean((r0 - np.clip(np.rint(r0 / step), 0, 255) * step) ** 2) for step in steps]
    own = ranges["mse"]["r0"].alpha / 255
    assert np.mean((r0 - np.clip(np.rint(r0 / own), 0, 255) * own) ** 2) <= 1.05 * min(errors)


def test_means_are_those_of_the_float_outputs(tmp_path):
    model = torch_style()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model, 24)
    seen = observe_model(source, split_rows(inputs, 8))
    for name, product in source.products.items():
        y = run_model(with_outputs(source.model, [product.output]))(inputs)[product.output]
        axes = tuple(i for i in range(y.ndim) if i != product.channel_axis % y.ndim)
        np.testing.assert_allclose(seen.means[name], y.mean(axis=axes, dtype="float64"), rtol=1e-4, atol=1e-5)


def test_the_tolerance_is_what_last_bits_and_one_step_cause(tmp_path):
    m = Maker(3)
    m.weight("fc.weight", 4, 6)
    m.add("Gemm", ["x", "fc.weight"], "y", name="fc", transB=1)
    model = m.model({"x": ["n", 6]}, {"y": ["n", 4]})
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model, 16)
    ranges = activation_ranges(observe_model(source, [inputs]), "min_max")
    made = quantize_graph(source, ranges, GraphScheme(activation_bits=4))
    found = graph_reference(made, inputs)
    np.testing.assert_array_equal(found.outputs[0], run_model(made)(inputs)["y"])
    step, weights = ranges["x"].alpha / 7, np.abs(m.weights["fc.weight"])
    assert weights.max(axis=0).min() * step * 0.98 < found.flips[0] < weights.max() * step * 1.02  # one value a row
    assert 0 <= found.middle[0] <= found.noise[0] <= weights.max() * step * 1.02


# ---- what is refused


def half(model):
    for item in model.graph.initializer:
        if item.name == "pw.weight":
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype("float16"), item.name))
    return model


def infinite(model):
    for item in model.graph.initializer:
        if item.name == "pw.weight":
            item.CopyFrom(numpy_helper.from_array(np.full(list(item.dims), np.inf, "float32"), item.name))
    return model


def with_quantizer(model):
    scale, zero = helper.make_node("Constant", [], ["s"], value_float=0.1), numpy_helper.from_array(np.uint8(0), "z")
    model.graph.initializer.append(zero)
    model.graph.node.insert(0, scale)
    model.graph.node.append(helper.make_node("QuantizeLinear", ["p", "s", "z"], ["never"]))
    return model


def cannot_upgrade(_):
    m = Maker()
    m.weight("w.weight", 3, 3, 1, 1), m.constant("one", np.ones(3, "float32"))
    m.add("Conv", ["x", "w.weight"], "c", name="w")
    m.add("BatchNormalization", ["c", *["one"] * 4], "y", spatial=0)
    return m.model({"x": ["n", 3, 4, 4]}, {"y": ["n", 3, 4, 4]}, opset=7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (half, "holds weights in float16 ('pw.weight')"),
        (infinite, "The weight 'pw.weight' of"),
        (with_quantizer, "is quantised already (QuantizeLinear computes 'never')"),
        (cannot_upgrade, "has opset 7; scales per channel need 13"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_quantised_is_refused(change, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        read_float_onnx(saved(change(torch_style()), tmp_path))


def test_data_that_are_not_finite_are_named(tmp_path):
    model = torch_style()
    source, inputs = read_float_onnx(saved(model, tmp_path)), inputs_of(model)
    inputs["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="The tensor 'x' is not finite on the calibration data"):
        observe_model(source, [inputs])
    with pytest.raises(ValueError, match="no image to calibrate on"):
        observe_model(source, [])


def test_external_data_are_read(tmp_path):
    model = gemm_forms()
    onnx.save_model(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0)
    source = read_float_onnx(tmp_path / "net.onnx")
    inputs = inputs_of(model)
    got = run_model(source.model)(inputs)
    np.testing.assert_allclose(got["y"], answers(gemm_forms(), inputs)[0], atol=1e-5)


def test_local_functions_are_inlined(tmp_path):
    """As ``torch.onnx.export(dynamo=True)`` writes modules."""
    model = gemm_forms()
    inside = [helper.make_node("Gemm", ["i", "w"], ["o"], name="inner")]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Linear", ["i", "w"], ["o"], inside, opsets))
    for node in model.graph.node:
        if node.name == "c":
            node.CopyFrom(helper.make_node("Linear", ["t", "c.weight"], ["w"], domain="mine", name="c"))
    place = next(i for i, node in enumerate(model.graph.node) if node.name == "c")
    model.graph.node.insert(place, helper.make_node("Transpose", ["z"], ["t"], perm=[1, 0]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    source = read_float_onnx(saved(model, tmp_path))
    assert "c" in source.products


@pytest.mark.slow
@needs("onnxruntime")
def test_the_quantizer_of_onnxruntime_is_not_nearer(tmp_path):
    """The same calibration data, 7 bits for the weights, a scale per channel, outputs quantised by both."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    model = torch_style(width=32, size=24)
    inputs = inputs_of(model, 64)
    path = saved(model, tmp_path)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(split_rows(inputs, 16))

        def get_next(self):
            return next(self.batches, None)

    theirs = tmp_path / "theirs.onnx"
    options = {"per_channel": True, "reduce_range": True, "quant_format": QuantFormat.QDQ}
    quantize_static(path, theirs, Reader(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **options)
    source = read_float_onnx(path)
    seen = observe_model(source, split_rows(inputs, 16))
    ranges = activation_ranges(seen, "mse")
    plain = quantize_graph(source, ranges, GraphScheme(quantize_outputs=True))
    found = bias_corrections(source, plain, seen.means, split_rows(inputs, 16))
    ours = quantize_graph(source, ranges, GraphScheme(quantize_outputs=True, corrections=found))
    other = inputs_of(model, 64, seed=5)
    (expected,) = answers(model, other)
    error = [np.sqrt(np.mean((run_model(m)(other)["y"] - expected) ** 2)) for m in (ours, onnx.load(theirs))]
    assert error[0] < error[1]


def test_a_sample_of_a_large_tensor_has_values_of_every_column():
    """With a step of 4 through rows of 16 the large column would never be seen."""
    value = np.ones([1 << 16, 16], "float32")
    value[:, 1] = 10.0
    seen = Observation()
    seen.keep("x", value, 95.0)
    assert seen.percentiles["x"] == [np.percentile(value, 95.0)] == [10.0]
    points, counts = seen.histograms["x"].points()
    assert counts[points > 5].sum() / counts.sum() == pytest.approx(1 / 16, rel=1e-3)
