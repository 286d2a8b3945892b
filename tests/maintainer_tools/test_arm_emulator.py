"""Files on an emulated ARM processor: the trained network's outputs are the truth."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from installed import needs
from paddle.static import InputSpec
from toy import TinyNet

from paddlelite_callbacks import ptq_int8
from paddlelite_callbacks.benchmark.engines import native_file
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.maintainer_tools import arm_emulator
from paddlelite_callbacks.maintainer_tools.arm_emulator import build_arm_root, missing_for_arm


@pytest.mark.parametrize(
    ("system", "machine", "programs", "said"),
    [
        ("darwin", "arm64", ["apt-get", "dpkg-deb"], "Linux for x86-64, this is darwin on arm64"),
        ("linux", "x86_64", ["dpkg-deb"], "apt-get not found: a Debian or Ubuntu is needed"),
        ("linux", "x86_64", [], "apt-get and dpkg-deb not found"),
    ],
)
def test_what_a_machine_lacks_is_said(system, machine, programs, said, monkeypatch, tmp_path):
    monkeypatch.setattr(arm_emulator.sys, "platform", system)
    monkeypatch.setattr(arm_emulator.platform, "machine", lambda: machine)
    monkeypatch.setattr(arm_emulator.shutil, "which", lambda name: name if name in programs else None)
    assert said in missing_for_arm()
    with pytest.raises(RuntimeError, match=r"No ARM root can be built: "):
        build_arm_root(tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_the_counter_compiles(tmp_path):
    arm_emulator._build_counter(tmp_path)
    (made,) = tmp_path.iterdir()
    names = subprocess.run(["nm", "-D", str(made)], capture_output=True, text=True, check=True).stdout
    assert {"qemu_plugin_install", "qemu_plugin_version"} <= set(names.split())


def test_a_failing_download_says_what_it_said():
    with pytest.raises(RuntimeError, match=r"^sh -c .* ended with 7: no such mirror$"):
        arm_emulator._checked(["sh", "-c", "echo no such mirror >&2; exit 7"], dict(os.environ))


@pytest.fixture(scope="module")
def emulator():
    if "ARM_ROOT" not in os.environ:
        pytest.skip("ARM_ROOT names no folder to build the emulator in (140 MB of downloads, once)")
    if missing := missing_for_arm():
        pytest.skip(missing)
    try:
        return build_arm_root(Path(os.environ["ARM_ROOT"]))
    except RuntimeError as error:
        pytest.skip(f"no emulator: {error}")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs("paddle2onnx")
def test_arm_gives_what_the_network_gives(emulator, tmp_path):
    paddle.seed(3)
    network = TinyNet()
    network.eval()
    x = np.random.RandomState(0).randn(2, 3, 16, 16).astype("float32")
    quantised = ptq_int8(network, [paddle.to_tensor(x)])
    spec = [InputSpec([None, 3, 16, 16], name="x")]
    for name, one in (("float", network), ("int8", quantised)):
        (tmp_path / name).mkdir()
        export_forms(one, tmp_path / name, input_spec=spec, sample=[x])
    expected = network(paddle.to_tensor(x)).numpy()
    done = emulator.run("onnxruntime", [tmp_path / "float" / "model.onnx"], [x], count=True)
    np.testing.assert_allclose(done.outputs[0], expected, atol=1e-5)
    (got,) = emulator.run("onnxruntime", [tmp_path / "int8" / "model.int8.onnx"], [x]).outputs
    simulated = quantised(paddle.to_tensor(x)).numpy()
    assert np.abs(got - simulated).max() <= (np.ptp(simulated) + 1e-3) / 20  # a rounding flip or two of 255 steps
    wide = np.concatenate([x, x, x, x])
    more = emulator.run("onnxruntime", [tmp_path / "float" / "model.onnx"], [wide], count=True)
    if done.instructions_m is not None:
        assert 0 < done.instructions_m < more.instructions_m < 6 * done.instructions_m


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs("paddle2onnx")
def test_a_count_is_the_same_each_time(emulator, tmp_path):
    """A tiny network takes fewer instructions than one start of Python differs from another."""
    x = np.random.RandomState(0).randn(1, 3, 8, 8).astype("float32")
    export_forms(TinyNet(), tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")], sample=[x])
    counts = [emulator.run("onnxruntime", [tmp_path / "model.onnx"], [x], count=True).instructions_m for _ in range(3)]
    if counts[0] is not None:
        assert max(counts) < 1.01 * min(counts)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "engine",
    [pytest.param("mnn", marks=needs("MNN")), pytest.param("ncnn", marks=needs("ncnn", "pnnx"))],
)
def test_engines_of_phones_on_arm(engine, emulator, tmp_path):
    network = TinyNet()
    network.eval()
    x = np.random.RandomState(0).randn(1, 3, 16, 16).astype("float32")
    forms = export_forms(network, tmp_path, input_spec=[InputSpec([None, 3, 16, 16], name="x")], sample=[x])
    artefact = next(one for one in forms.artefacts if one.kind == "onnx")
    (got,) = emulator.run(engine, native_file(engine, artefact).files, [x]).outputs
    np.testing.assert_allclose(got, network(paddle.to_tensor(x)).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_failure_on_arm_is_an_error(emulator, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"onnxruntime on the emulated cortex-a76 ended with 1: .*Protobuf"):
        emulator.run("onnxruntime", [path], [np.zeros([1], "float32")])
