"""Programs for Paddle Lite: quantised ones on its grid, the forms that its ``opt`` takes, and its own files.

With ``PADDLE_2_PYTHON`` the programs are run by Paddle 2.6.2, too; with ``PADDLE_LITE_OPT`` (a Python with paddlelite)
``opt`` writes files, and those for x86 are run; ``PADDLE_LITE_LARGE=1`` adds one of several minutes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec
from places import HELPERS
from toy import Images, TinyNet

from paddlelite_callbacks import PACTConfig, ptq_int8
from paddlelite_callbacks.backbone.registry import build
from paddlelite_callbacks.errors import ExportError, MissingDependencyError
from paddlelite_callbacks.export import lite, lite_program, pdmodel_qdq
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.eval_copy import eval_copy
from paddlelite_callbacks.export.legacy_program import write_legacy_program
from paddlelite_callbacks.export.lite import find_opt
from paddlelite_callbacks.export.lite_program import prepare_for_lite_
from paddlelite_callbacks.export.nb_encoding import program_of_nb
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.pdmodel_qdq import rewrite_program_as_qdq
from paddlelite_callbacks.export.program_graph import ProgramGraph
from paddlelite_callbacks.export.variants import Variants
from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_
from paddlelite_callbacks.models import lite_hrnet_18, lite_hrnet_30
from paddlelite_callbacks.nn.nested import flat_outputs
from paddlelite_callbacks.utils.parameters_file import read_tensors, write_tensors

PADDLE_2 = os.environ.get("PADDLE_2_PYTHON")
LITE = os.environ.get("PADDLE_LITE_OPT")
needs_lite = pytest.mark.skipif(not LITE, reason="PADDLE_LITE_OPT names no Python with paddlelite")
RANDOM = np.random.RandomState(0)


class Zoo(nn.Layer):
    """All kinds of quantised layers, with and without bias and norm, groups, a sum, a gate; one layer runs twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1, bias_attr=False), nn.BatchNorm2D(8), nn.ReLU())
        self.depthwise = nn.Conv2D(8, 8, 3, padding=1, groups=8)
        self.twice = nn.Conv2D(8, 8, 1)
        self.up = nn.Conv2DTranspose(8, 8, 2, stride=2)
        self.up_alone = nn.Conv2DTranspose(8, 8, 2, stride=2, groups=8)
        self.gate = nn.Conv2D(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(x)
        y = self.twice(nn.functional.hardswish(self.depthwise(x))) + x
        y = self.twice(nn.functional.relu(y)) * nn.functional.hardsigmoid(self.gate(y.mean([2, 3], keepdim=True)))
        return self.fc(nn.functional.relu(self.up_alone(self.up(y))).mean([2, 3]))


def quantised(network, x, **options):
    """Return a network that computes on Paddle Lite's grid, and what has to come out."""
    settle_(network, paddle.to_tensor(x))
    made = ptq_int8(network, [paddle.to_tensor(x)], config=PACTConfig(activation_symmetric=True, **options))
    variants = Variants(eval_copy(made, [paddle.to_tensor(x)]), [paddle.to_tensor(x)])
    return variants, variants.references["int8"]


def programs(network, folder, shape, precision="fp32"):
    """Export; return the graph of the program in Paddle 2's format."""
    export_paddle(network, folder, input_spec=[InputSpec([None, *shape], name="x")], precision=precision)
    return ProgramGraph(*write_legacy_program(folder / "model.json", folder / "model"))


def answers(files, x, python=sys.executable):
    """Run a pair by the inference of a Paddle, in a process of its own."""
    folder = files[0].parent
    np.savez(folder / "inputs.npz", x0=x)
    environment = {**os.environ, "PROGRAM_NAME": files[0].stem}
    child = [python, str(HELPERS / "paddle_child.py"), str(folder)]
    subprocess.run(child, check=True, capture_output=True, timeout=300, env=environment)
    error = folder / "error.txt"
    assert not error.exists(), error.read_text()
    found = np.load(folder / "outputs.npz")
    return [found[f"y{i}"] for i in range(len(found.files))]


def check(reference, got):
    return compare_outputs(
        reference.outputs, got, engine="", noise=reference.noise, middle=reference.middle, flips=reference.flips
    )


PYTHONS = [sys.executable, *([PADDLE_2] if PADDLE_2 else [])]
OPTIONS = {
    "default": {},
    "full range": {"reduce_range": False},
    "outputs": {"quantize_outputs": True},
    "lsq": {"method": "lsq"},
    "four bits": {"weight_bits": 4, "activation_bits": 4},
    "skip": {"skip": ["first.0", "fc", "up"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_quantised_program_computes_what_was_simulated(options, tmp_path):
    x = Images(16).images
    variants, reference = quantised(Zoo(), x, **options)
    graph = programs(variants.int8_network(), tmp_path, x.shape[1:], "int8")
    weights = rewrite_program_as_qdq(graph)
    assert weights == len([name for name, value in graph.parameters.items() if value.dtype == np.int8])
    assert weights == 7 - len(options.get("skip", ()))
    files = {"plain": graph.write(tmp_path / "qdq")}
    prepare_for_lite_(graph)
    files["prepared"] = graph.write(tmp_path / "prepared")
    kinds = {operator.type for operator in graph.operators}
    assert {"quantize_linear", "dequantize_linear"} < kinds
    assert not {"round", "cast", "depthwise_conv2d_transpose"} & kinds
    for operator in graph.operators:  # Paddle 3 goes by qmax, Paddle 2 and Paddle Lite by the bits
        if operator.type.endswith("quantize_linear"):
            assert [graph.attribute(operator, name) for name in ("bit_length", "round_type")] == [8, 1]
    far = 20 * x - 10  # beyond every alpha
    with paddle.no_grad():
        expected = variants.network(paddle.to_tensor(far)).numpy()
    for python in PYTHONS:
        for pair in files.values():
            found = check(reference, answers(pair, x, python))
            assert found.passed, (python, found)
            off = np.abs(answers(pair, far, python)[0] - expected).max(axis=1) / np.abs(expected).max()
            assert np.median(off) < 1e-5
            assert off.max() < 0.05


MUTATIONS = {
    "step": ("_HIGHEST", 126),
    "axis": ("_AXES", {**pdmodel_qdq._AXES, "conv2d": 1}),
    "axis of products": ("_AXES", {**pdmodel_qdq._AXES, "matmul_v2": 0}),
    "highest": ("_FIXED", {**pdmodel_qdq._FIXED, "qmax": 63}),
    "dtype": ("_is_int8_cast", lambda graph, operator: False),
    "ends": ("_HALF_AWAY", 0),  # would let -128 through
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_is_seen(name, tmp_path, monkeypatch):
    x = 20 * Images(8).images - 10
    network = nn.Sequential(nn.Conv2D(3, 4, 3), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(4, 4))
    made = ptq_int8(network, [paddle.to_tensor(x)], activation_symmetric=True, alpha_percentile=60.0)
    variants = Variants(eval_copy(made, [paddle.to_tensor(x)]), [paddle.to_tensor(x)])
    graph = programs(variants.int8_network(), tmp_path, x.shape[1:], "int8")
    monkeypatch.setattr(pdmodel_qdq, *MUTATIONS[name])
    expected = variants.references["int8"].outputs[0]
    try:
        rewrite_program_as_qdq(graph)
        (got,) = answers(graph.write(tmp_path / "qdq"), x)
    except (AssertionError, ExportError):
        return
    assert np.median(np.abs(got - expected).max(axis=1)) > 1e-3 * np.abs(expected).max()


def test_other_grids_and_float_programs_are_refused(tmp_path):
    x = Images(4).images
    made = ptq_int8(TinyNet(), [paddle.to_tensor(x)])
    variants = Variants(eval_copy(made, [paddle.to_tensor(x)]), [paddle.to_tensor(x)])
    graph = programs(variants.int8_network(), tmp_path / "other", x.shape[1:], "int8")
    with pytest.raises(ExportError, match=r"not symmetric.*train with activation_symmetric=True"):
        rewrite_program_as_qdq(graph)
    with pytest.raises(ExportError, match="holds no quantizer"):
        rewrite_program_as_qdq(programs(TinyNet(), tmp_path / "float", x.shape[1:]))


class Constants(nn.Layer):
    """Subgraphs that no input reaches: a table, weights that are computed, a mask; and one that the batch size does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 6, 3, padding=1)
        self.up = nn.Conv2DTranspose(6, 6, 2, stride=2, groups=6)
        self.scale = self.create_parameter([6])

    def forward(self, x):
        table = paddle.arange(0, 16, dtype="float32").reshape([1, 1, 1, 16]).abs() * 0.1
        mask = (paddle.arange(0, 16).unsqueeze(0) > 3).astype("float32")
        weight = nn.functional.sigmoid(self.scale).reshape([1, 6, 1, 1])
        rows = paddle.ones([x.shape[0], 1, 1, 1])
        return self.up(self.conv(x)) * weight + table * mask * rows


def test_constants_are_computed_and_forms_fit(tmp_path):
    network = Constants()
    network.eval()
    graph = programs(network, tmp_path, (3, 8, 8))
    before = len(graph.operators)
    prepare_for_lite_(graph)
    pair = graph.write(tmp_path / "lite")
    kinds = [operator.type for operator in graph.operators]
    assert len(kinds) < before - 6
    assert not {"range", "sigmoid", "abs", "greater_than", "depthwise_conv2d_transpose"} & set(kinds)
    for operator in graph.operators:
        name = graph.inputs(operator, "Y")[0] if operator.type == "elementwise_add" else None
        if name in graph.parameters and graph.producer(graph.inputs(operator, "X")[0]).type.startswith("conv2d"):
            assert (graph.parameters[name].ndim, graph.attribute(operator, "axis")) == (1, 1)
    for rows in (1, 3):
        x = RANDOM.rand(rows, 3, 8, 8).astype("float32")
        with paddle.no_grad():
            expected = network(paddle.to_tensor(x)).numpy()
        for python in PYTHONS:
            np.testing.assert_allclose(answers(pair, x, python)[0], expected, atol=1e-5)


class Enlarged(nn.Layer):
    """Transposed convolutions that repeat values, and some that nearly do; poolings with and without defaults."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 3, 1)

    def forward(self, x):
        x = self.conv(x)

        def up(x, value, k, **options):
            weight = paddle.full([3, 1, k, k], value)
            return nn.functional.conv2d_transpose(x, weight, stride=k, groups=3, **options)

        small = nn.functional.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True, exclusive=False)
        plain = nn.functional.max_pool2d(x, 2)
        return up(small, 1.0, 2), up(plain, 1.0, 4), up(plain, 0.5, 2), up(plain, 1.0, 3), up(plain, 1.0, 2, padding=1)


def test_maps_are_enlarged_by_interpolation_where_that_is_the_same(tmp_path):
    network = Enlarged()
    network.eval()
    graph = programs(network, tmp_path, (3, 9, 9))
    fed = [graph.outputs(one, "Out") for one in graph.operators if one.type == "feed"]
    fetched = [graph.inputs(one, "X") for one in graph.operators if one.type == "fetch"]
    prepare_for_lite_(graph)
    pair = graph.write(tmp_path / "lite")
    kinds = [operator.type for operator in graph.operators]
    assert (kinds.count("nearest_interp_v2"), kinds.count("conv2d_transpose")) == (2, 3)
    assert [graph.outputs(one, "Out") for one in graph.operators if one.type == "feed"] == fed
    assert [graph.inputs(one, "X") for one in graph.operators if one.type == "fetch"] == fetched
    kept = {name for names in (*fed, *fetched) for name in names} | {"feed", "fetch"}
    used = {name for one in graph.operators for name in (*graph.read_by(one), *graph.written_by(one))}
    assert max(map(len, used - kept)) <= 2
    assert set(graph.parameters) & used <= graph.variables.keys()
    told = {one.name for operator in graph.operators for one in operator.attrs if operator.type == "conv2d_transpose"}
    assert told == {"strides", "paddings", "dilations", "groups"}
    pools = [{one.name for one in operator.attrs} for operator in graph.operators if operator.type == "pool2d"]
    assert sorted(len(one & {"ceil_mode", "exclusive"}) for one in pools) == [0, 2]
    x = RANDOM.randn(2, 3, 9, 9).astype("float32")
    with paddle.no_grad():
        expected = [item.numpy() for item in network(paddle.to_tensor(x))]
    for python in PYTHONS:
        for got, wanted in zip(answers(pair, x, python), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-6)


class Orders(nn.Layer):
    """Convolutions and ``gather`` that put channels in another order, and convolutions that only look like it."""

    def __init__(self):
        super().__init__()
        self.scale = self.create_parameter([4, 1, 1])
        self.orders = [[3, 0, 2, 1], [1, 1, 3], [3, 0, 2, 1]]
        self.weights = [paddle.eye(4).numpy()[order] for order in self.orders]
        self.weights += [2 * self.weights[0], self.weights[0][:, :2], self.weights[0] + np.eye(4, dtype="float32")]

    def forward(self, x):
        weights = [paddle.to_tensor(one.reshape(*one.shape, 1, 1)) for one in self.weights]
        made = [nn.functional.conv2d(x, one, groups=1 + (one.shape[1] == 2)) for one in weights]
        made += [nn.functional.conv2d(x, weights[0], stride=2), nn.functional.conv2d(x, weights[0], padding=1)]
        x = x + self.scale
        return made + [paddle.gather(x, paddle.to_tensor(order, "int64"), axis=1) for order in self.orders]


def test_orders_of_channels_are_gathered_with_small_indices_stored_once(tmp_path):
    network = Orders()
    network.eval()
    graph = programs(network, tmp_path, (4, 6, 6))
    before = [operator.type for operator in graph.operators]
    prepare_for_lite_(graph)
    pair = graph.write(tmp_path / "lite")
    kinds = [operator.type for operator in graph.operators]
    assert kinds.count("gather") == before.count("gather") + 3
    assert kinds.count("conv2d") == 5
    indices = {graph.inputs(one, "Index")[0] for one in graph.operators if one.type == "gather"}
    stored = [graph.parameters[name] for name in indices]
    assert {value.dtype for value in stored} == {np.dtype("int32")}
    assert sorted(value.tolist() for value in stored) == [[1, 1, 3], [3, 0, 2, 1]]
    x = RANDOM.randn(2, 4, 6, 6).astype("float32")
    expected = [item.numpy() for item in network(paddle.to_tensor(x))]
    for python in PYTHONS:
        for got, wanted in zip(answers(pair, x, python), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("wrong", ["constants", "axis", "groups"])
def test_a_wrong_form_is_seen(wrong, tmp_path, monkeypatch):
    network = Constants()
    network.eval()
    graph = programs(network, tmp_path, (3, 8, 8))
    if wrong == "constants":
        right = lite_program._computed
        monkeypatch.setattr(lite_program, "_computed", lambda *given: [2 * value for value in right(*given)])
    else:
        name, value = {"axis": ("axis", 2), "groups": ("axis", 1)}[wrong]
        change = ProgramGraph.set_attribute
        monkeypatch.setattr(ProgramGraph, "set_attribute", lambda *given: change(*given[:2], name, value))
    prepare_for_lite_(graph)
    if wrong == "groups":
        (transposed,) = [one for one in graph.operators if one.type == "conv2d_transpose"]
        change(graph, transposed, "groups", 1)
    x = RANDOM.rand(2, 3, 8, 8).astype("float32")
    expected = network(paddle.to_tensor(x)).numpy()
    try:
        (got,) = answers(graph.write(tmp_path / "lite"), x)
    except AssertionError:
        return
    assert np.median(np.abs(got - expected)) > 1e-3


def test_parameters_are_read_and_written_as_paddle_does(tmp_path):
    graph = programs(TinyNet(), tmp_path, (3, 8, 8))
    original = (tmp_path / "model.pdiparams").read_bytes()
    write_tensors(tmp_path / "again", graph.parameters)
    assert (tmp_path / "again").read_bytes() == original
    kinds = ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]
    tensors = {kind: RANDOM.randint(0, 2, [2, 300, 1]).astype(kind) for kind in kinds} | {"none": np.zeros([], "int64")}
    write_tensors(tmp_path / "kinds", tensors)
    found = read_tensors(tmp_path / "kinds", list(tensors))
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(ValueError, match="holds 10 tensors, its program has 9"):
        read_tensors(tmp_path / "kinds", kinds)
    with pytest.raises(ValueError, match="complex64, which Paddle does not have"):
        write_tensors(tmp_path / "no", {"x": np.zeros(2, "complex64")})


@pytest.mark.parametrize("damage", ["program", "parameters", "other", "foreign", "missing"])
def test_damaged_and_foreign_files_are_refused_by_name(damage, tmp_path):
    programs(TinyNet(), tmp_path, (3, 8, 8))
    program, parameters = tmp_path / "model.pdmodel", tmp_path / "model.pdiparams"
    if damage == "other":
        programs(Zoo(), tmp_path / "zoo", (3, 8, 8))
        parameters = tmp_path / "zoo/model.pdiparams"
    elif damage == "foreign":
        program.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif damage == "missing":
        parameters.unlink()
    else:
        file = program if damage == "program" else parameters
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    name = "pdiparams" if damage in ("parameters", "other", "missing") else "model.pdmodel"
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        ProgramGraph(program, parameters)


# Paddle Lite's tool


def fake(folder, text, name="opt"):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def without_lite(monkeypatch, tmp_path):
    monkeypatch.delenv("PADDLE_LITE_OPT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_what_is_not_there_is_said_with_the_remedy(without_lite, tmp_path, monkeypatch):
    with pytest.raises(MissingDependencyError, match=r"not installed.*paddlelite==2.13rc0.*--opt.*PADDLE_LITE_OPT"):
        find_opt()
    with pytest.raises(MissingDependencyError, match="opt names 'nowhere', which is not executable"):
        find_opt("nowhere")
    with pytest.raises(MissingDependencyError, match=r"has no Paddle Lite that works: .*No module named 'paddlelite'"):
        find_opt(sys.executable)
    monkeypatch.setenv("PADDLE_LITE_OPT", str(tmp_path / "gone"))
    with pytest.raises(MissingDependencyError, match="PADDLE_LITE_OPT names"):
        find_opt()


def test_a_binary_is_taken_and_its_failures_are_said(without_lite, tmp_path, monkeypatch):
    files = tmp_path / "a.pdmodel", tmp_path / "a.pdiparams"
    target = tmp_path / "out/model.arm.nb"
    target.parent.mkdir()
    target.write_bytes(b"former")
    write = '#!/bin/sh\nfor a in "$@"; do case $a in --optimize_out=*) o=${a#*=};; esac; done\necho "$@" > $o.nb\n'
    tool = find_opt(fake(tmp_path, write))
    assert tool.python is None
    assert tool.write(*files, target, target="arm") == target
    assert f"--model_file={files[0]} --param_file={files[1]} --valid_targets=arm" in target.read_text()
    with pytest.raises(ExportError, match="binary opt cannot run files"):
        tool.run(target, [])
    for text, said in (
        ("#!/bin/sh\nkill -11 $$\n", "killed by SIGSEGV"),
        ("#!/bin/sh\necho 'x.cc:3 Check failed: bad operator' >&2\nexit 1\n", "Check failed: bad operator"),
        ("#!/bin/sh\nexit 0\n", "wrote no file"),
        ("#!/bin/sh\nexec sleep 60\n", "did not finish in 1 s"),
    ):
        monkeypatch.setattr(lite, "_SECONDS", 1 if "sleep" in text else 600)
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        kept = target.read_bytes()
        with pytest.raises(ExportError, match=said):
            find_opt(fake(tmp_path, text)).write(*files, target, target="arm")
        assert target.read_bytes() == kept
        assert [file.name for file in target.parent.iterdir()] == ["model.arm.nb"]


KILLED = """
import sys
from pathlib import Path
from paddlelite_callbacks.export import lite
def slow(*files):
    Path(files[1]).write_bytes(b"half")
    print("copying", flush=True)
    import time; time.sleep(60)
lite.shutil.copyfile = slow
folder = Path(sys.argv[1])
lite.find_opt(folder / "opt").write(folder / "a", folder / "b", folder / "out/model.arm.nb", target="arm")
"""


def test_a_kill_while_writing_leaves_the_former_file(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.arm.nb").write_bytes(b"former")
    fake(tmp_path, '#!/bin/sh\nfor a in "$@"; do case $a in --optimize_out=*) o=${a#*=};; esac; done\necho x > $o.nb\n')
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert "copying" in child.stdout.readline()
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    assert (tmp_path / "out/model.arm.nb").read_bytes() == b"former"


FLOATS = {
    "resnet18": lambda: build("resnet18", num_classes=10),
    "PPLCNet_x0_25": lambda: build("PPLCNet_x0_25", num_classes=10),
    "MobileNetV1_x0_25": lambda: build("MobileNetV1_x0_25", num_classes=10),
    "MobileNetV2_x0_25": lambda: build("MobileNetV2_x0_25", num_classes=10),
    "MobileNetV3_small_x0_35": lambda: build("MobileNetV3_small_x0_35", num_classes=10),
    "MobileNetV3_large_x0_35": lambda: build("MobileNetV3_large_x0_35", num_classes=10),
    "lite_hrnet_18": lite_hrnet_18,
    "Constants": Constants,
    "Enlarged": Enlarged,
    "Orders": Orders,
}


@pytest.mark.slow
@needs_lite
@pytest.mark.parametrize("name", FLOATS)
def test_lite_gives_on_x86_what_the_network_does(name, tmp_path):
    network, size = FLOATS[name](), {"Constants": 8, "Enlarged": 9, "Orders": 6}.get(name, 64)
    x = RANDOM.randn(2, 4 if name == "Orders" else 3, size, size).astype("float32")
    settle_(network, paddle.to_tensor(x))
    network.eval()
    with paddle.no_grad():
        expected = [item.numpy() for item in flat_outputs(network(paddle.to_tensor(x)))]
    variants = Variants(eval_copy(network, [paddle.to_tensor(x)]), [paddle.to_tensor(x)])
    graph = programs(variants.float_network(), tmp_path, x.shape[1:])
    prepare_for_lite_(graph)
    pair, tool = graph.write(tmp_path / "lite"), find_opt()
    for target in lite.LITE_TARGETS:
        tool.write(*pair, tmp_path / f"model.{target}.nb", target=target)
    got = tool.run(tmp_path / "model.x86.nb", [x])
    found = compare_outputs(expected, got, engine="lite")
    assert found.passed, found


SIZES = {
    "MobileNetV3_small_x1_0": lambda: build("MobileNetV3_small_x1_0"),
    "PPLCNet_x2_5": lambda: build("PPLCNet_x2_5"),
    "lite_hrnet_30": lite_hrnet_30,
}
# opt takes minutes for the thousands of operators of a quantised LiteHRNet-30
LARGE = pytest.mark.skipif("PADDLE_LITE_LARGE" not in os.environ, reason="takes minutes: set PADDLE_LITE_LARGE=1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_lite
@pytest.mark.parametrize("name", [*list(SIZES)[:2], pytest.param("lite_hrnet_30", marks=LARGE)])
def test_int8_files_for_arm_are_a_quarter(name, tmp_path):
    x = RANDOM.randn(2 if name == "lite_hrnet_30" else 4, 3, 64, 64).astype("float32")
    variants, reference = quantised(SIZES[name](), x)
    graph = programs(variants.int8_network(), tmp_path / "int8", x.shape[1:], "int8")
    weights = rewrite_program_as_qdq(graph)
    prepare_for_lite_(graph)
    pair, tool = graph.write(tmp_path / "int8/lite"), find_opt()
    for python in PYTHONS:
        found = check(reference, answers(pair, x, python))
        assert found.passed, found
    small = tool.write(*pair, tmp_path / "int8.arm.nb", target="arm")
    block = dict(dict(program_of_nb(small.read_bytes()))[0][0])
    operators = [dict(operator) for operator in block[3]]
    told = [{dict(attribute)[0] for attribute in operator.get(3, ())} for operator in operators]
    assert sum(b"enable_int8" in names for names in told) == weights
    assert not any(b"quantize_linear" in operator[0] for operator in operators)
    plain = programs(variants.float_network(), tmp_path / "float", x.shape[1:])
    prepare_for_lite_(plain)
    large = tool.write(*plain.write(tmp_path / "float/lite"), tmp_path / "float.arm.nb", target="arm")
    # Of a quantised LiteHRNet-30, 0.32 of 2.28 MB describe operators and parameters, 0.25 are biases and scales.
    share = 0.32 if name == "lite_hrnet_30" else 0.30
    assert small.stat().st_size <= share * large.stat().st_size
    assert Path(small).stat().st_size < 3.4e6 or name != "MobileNetV3_small_x1_0"
