"""Layers that run in float, and the choice of those that should: against the engine's own graph and brute force."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.engines import OnnxRuntime
from paddlelite_callbacks.benchmark.int8_advice import int8_notes
from paddlelite_callbacks.benchmark.int8_search import Int8Plan, choose_float_layers, search_int8_layers
from paddlelite_callbacks.benchmark.unfused_layers import float_layers, float_layers_of
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.int8_layers import int8_layers, with_layers_in_float
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.quant.ptq import ptq_int8

onnx = pytest.importorskip("onnx")
X = np.random.RandomState(0).randn(2, 3, 8, 8).astype("float32")


class Small(nn.Layer):
    """A ReLU that the unsigned grid replaces, a depthwise convolution, a sum, a head."""

    def __init__(self):
        super().__init__()
        self.first, self.bn = nn.Conv2D(3, 8, 3, padding=1, bias_attr=False), nn.BatchNorm2D(8)
        self.depthwise = nn.Conv2D(8, 8, 3, padding=1, groups=8)
        self.act = nn.Hardswish()
        self.last, self.fc = nn.Conv2D(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = nn.functional.relu(self.bn(self.first(x)))
        return self.fc((self.last(self.act(self.depthwise(x))) + x).mean([2, 3]))


def small():
    """Return the network with weights on the int8 grid, so that quantising them changes nothing."""
    paddle.seed(0)
    network, random = Small(), np.random.RandomState(1)
    for layer in (network.first, network.depthwise, network.last, network.fc):
        integers = random.randint(-63, 64, layer.weight.shape)
        integers[(0, slice(None)) if layer is network.fc else (slice(None), 0, 0, 0)] = 64  # largest of each channel
        layer.weight.set_value((integers / 512).astype("float32"))
    network.eval()
    return network


def int8_file(folder, **options):
    folder.mkdir()
    quantised = ptq_int8(small(), [paddle.to_tensor(X)], bias_correction=False, **options)
    made = export_forms(quantised, folder, input_spec=[InputSpec([2, 3, 8, 8], name="x")]).artefacts
    return next(artefact for artefact in made if (artefact.kind, artefact.precision) == ("onnx", "int8"))


@needs("paddle2onnx")
@pytest.mark.parametrize("outputs", [False, True])
def test_layers_put_back_are_as_if_they_had_been_skipped(outputs, tmp_path):
    whole = onnx.load(str(int8_file(tmp_path / "whole", quantize_outputs=outputs).path))
    assert int8_layers(whole) == ["first", "depthwise", "last", "fc"]
    for number, skip in enumerate((["first", "fc"], ["depthwise"])):
        skipped = int8_file(tmp_path / str(number), quantize_outputs=outputs, skip=skip)
        model = with_layers_in_float(whole, skip, outputs=outputs)
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(model.SerializeToString())
        put_back = Artefact(kind="onnx", path=path, files=(path,), precision="int8")
        engine = OnnxRuntime(optimised=False)
        got, expected = (engine.load(file, threads=1)([X])[0] for file in (put_back, skipped))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        counts = [Counter(n.op_type for n in m.graph.node) for m in (model, onnx.load(str(skipped.path)))]
        assert all(
            counts[0][kind] == counts[1][kind] for kind in ("QuantizeLinear", "DequantizeLinear", "Conv", "Relu")
        )


@needs("paddle2onnx")
@pytest.mark.parametrize("outputs", [False, True])
def test_the_layers_in_float_are_those_that_the_engine_does_not_fuse(outputs, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    artefact = int8_file(tmp_path / "file", quantize_outputs=outputs)
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    runtime.InferenceSession(str(artefact.path), options, providers=["CPUExecutionProvider"])
    ran = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    found = float_layers(artefact.path)
    assert len(found) == 4 - ran["QLinearConv"] - ran["QGemm"]
    assert found == (() if outputs else ("first", "depthwise", "last"))
    assert float_layers_of("onnx", "int8", artefact.path) == found
    assert float_layers_of("onnx", "fp32", artefact.path) is None
    assert float_layers_of("onnx", "int8", tmp_path / "none.onnx") is None
    assert [("depthwise" in note) for note in int8_notes([], float_layers=found)] == ([True] if found else [])


def chain(int8, in_float, change):
    """A chain of layers, each with its time in both formats, and a price for each change of format."""
    names = [f"layer{number}" for number in range(len(int8))]

    def cost(chosen):
        kinds = [True, *(name in chosen for name in names), True]  # input and output are float
        changes = sum(a != b for a, b in itertools.pairwise(kinds))
        return (
            sum(f if name in chosen else i for name, i, f in zip(names, int8, in_float, strict=True)) + change * changes
        )

    return names, cost


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_near_the_best_of_all(seed):
    random = np.random.RandomState(seed)
    names, cost = chain(random.uniform(1, 3, 8), random.uniform(1, 3, 8), random.uniform(0, 1))
    every = [frozenset(one) for size in range(9) for one in itertools.combinations(names, size)]
    best = min(cost(one) for one in every)
    chosen, tried = choose_float_layers(names, cost)
    assert cost(chosen) <= min(1.1 * best, cost(frozenset()))
    assert tried <= 200
    assert choose_float_layers(names, cost) == (chosen, tried)


def test_a_slow_first_layer_and_a_slow_part_are_left_in_float():
    names, cost = chain([9, 1, 1, 1, 5, 5, 1, 1], [2, 3, 3, 3, 4, 4, 3, 3], 0.5)
    assert choose_float_layers(names, cost)[0] == {"layer0", "layer4", "layer5"}


def test_gains_within_the_noise_change_nothing():
    names, cost = chain([1.0] * 6, [0.995] * 6, 0)
    assert choose_float_layers(names, cost) == (frozenset(), 1 + 2 + 6)


def test_no_more_combinations_than_allowed_are_timed():
    names, cost = chain([3.0] * 32, [1.0] * 32, 0)
    calls = []
    chosen, tried = choose_float_layers(names, lambda one: calls.append(one) or cost(one), trials=5)
    assert len(calls) == len(set(calls)) == tried == 5
    assert cost(chosen) < cost(frozenset())


@needs("paddle2onnx")
def test_a_search_with_the_engine_leaves_the_network_as_it_was():
    network = small()
    before = {name: value.numpy() for name, value in network.state_dict().items()}
    plan = search_int8_layers(network, paddle.to_tensor(X), repeats=1, trials=3)
    assert set(plan.skip) <= {"first", "depthwise", "last", "fc"}
    assert (plan.layers, plan.quantize_outputs, plan.engine) == (4, True, "onnxruntime")
    assert 1 <= plan.trials <= 3
    assert 0 < plan.ratio <= plan.ratio_all
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_a_plan_says_where_int8_does_not_pay():
    plan = {"engine": "onnxruntime", "skip": ("first",), "quantize_outputs": True, "layers": 9, "trials": 5}
    won, lost = Int8Plan(**plan, ratio=0.6, ratio_all=0.9), Int8Plan(**plan, ratio=0.99, ratio_all=1.4)
    assert won.is_faster
    assert "0.60 of fp32's time with 1 of 9 layers in float, 0.90 with none" in str(won)
    assert not lost.is_faster
    assert "model.onnx" in str(lost)
