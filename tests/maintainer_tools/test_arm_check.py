"""A finished export folder on the emulated ARM processor; here the references alone run, without the emulator."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import paddle
import pytest
from installed import needs
from paddle.static import InputSpec
from toy import Images, TinyNet

from paddlelite_callbacks import ptq_int8
from paddlelite_callbacks.export.eval_copy import eval_copy
from paddlelite_callbacks.export.variants import Variants, export_forms
from paddlelite_callbacks.maintainer_tools import arm_check
from paddlelite_callbacks.maintainer_tools.arm_check import check_folder, folder_references, main
from paddlelite_callbacks.maintainer_tools.arm_emulator import ArmRun, build_arm_root, missing_for_arm

X = Images(8).images
SPEC = [InputSpec([None, 3, 8, 8], name="x")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a float and of a quantised network, with what the networks give."""
    home, given = tmp_path_factory.mktemp("exports"), [paddle.to_tensor(X)]
    paddle.seed(3)
    network = TinyNet()
    network.eval()
    found = {}
    for name, one in (("float", network), ("int8", ptq_int8(network, given))):
        (home / name).mkdir()
        export_forms(one, home / name, input_spec=SPEC, sample=[X])
        found[name] = home / name, Variants(eval_copy(one, given), given).references
    return found


class X86:
    """ONNX Runtime on this machine, in the place of the emulated one; ``factor`` spoils its outputs."""

    version = "none"

    def __init__(self, factor=1.0):
        self.factor = factor

    def run(self, engine, files, inputs, *, count=False):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(files[0]), providers=["CPUExecutionProvider"])
        got = session.run(None, dict(zip([item.name for item in session.get_inputs()], inputs, strict=True)))
        return ArmRun(outputs=[self.factor * item for item in got], instructions_m=1.5 if count else None)


@pytest.mark.parametrize("name", ["float", "int8"])
@needs("paddle2onnx")
def test_the_folder_gives_the_network_s_own_references(name, folders):
    folder, expected = folders[name]
    found = folder_references(folder, [X])
    assert found.keys() == expected.keys()
    for precision, reference in found.items():
        largest = np.abs(expected[precision].outputs[0]).max()
        np.testing.assert_allclose(reference.outputs[0], expected[precision].outputs[0], atol=1e-4 * largest)
    if name == "int8":
        assert not np.array_equal(found["fp32"].outputs[0], found["int8"].outputs[0])
        own, measured = expected["int8"], found["int8"]
        assert 0 < measured.flips[0] < 4 * own.flips[0] + 1e-6
        assert measured.noise[0] < 4 * own.flips[0] + 1e-6


@needs("paddle2onnx", "onnxruntime")
@pytest.mark.parametrize("name", ["float", "int8"])
def test_every_file_is_run_and_a_wrong_one_is_seen(name, folders):
    folder, _ = folders[name]
    good = check_folder(folder, X86(), inputs=[X], count=True)
    assert {one.file for one in good} == {file.name for file in folder.glob("*.onnx")}
    assert [one.check.passed for one in good] == [True] * len(good)
    assert {one.instructions_m for one in good} == {1.5}
    bad = check_folder(folder, X86(factor=1.2))
    assert not any(one.check.passed for one in bad)


@needs("paddle2onnx", "onnxruntime")
def test_the_command_says_what_came_out(folders, monkeypatch, capsys, tmp_path):
    folder, _ = folders["int8"]
    monkeypatch.setattr(arm_check, "build_arm_root", lambda root: X86())
    assert main([str(folder), "--count"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("model.int8.onnx in onnxruntime on an emulated cortex-a76: agrees, largest difference ")
    assert all(line.endswith("M instructions a call") for line in said)
    monkeypatch.setattr(arm_check, "build_arm_root", lambda root: X86(factor=2.0))
    assert main([str(folder), "--json", "--input", "4x3x8x8"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [one["precision"] for one in checks] == ["int8", "fp32"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.onnx file: give the folder of an export"):
        check_folder(tmp_path / "empty", X86())
    (tmp_path / "empty/model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(ValueError, match="holds no Paddle program to compare with"):
        check_folder(tmp_path / "empty", X86(), inputs=[X])
    with pytest.raises(ValueError, match=r"Unknown engines \['tvm'\]; available: onnxruntime, mnn, ncnn"):
        check_folder(folder, X86(), engines=["tvm"])


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs("paddle2onnx")
def test_a_finished_folder_on_arm(folders, capsys):
    if "ARM_ROOT" not in os.environ:
        pytest.skip("ARM_ROOT names no folder to build the emulator in (140 MB of downloads, once)")
    if missing := missing_for_arm():
        pytest.skip(missing)
    try:
        emulator = build_arm_root(Path(os.environ["ARM_ROOT"]))
    except RuntimeError as error:
        pytest.skip(f"no emulator: {error}")
    for name in ("float", "int8"):
        found = check_folder(folders[name][0], emulator, inputs=[X])
        assert [one.check.verdict for one in found] == ["agrees"] * (1 if name == "float" else 2)
