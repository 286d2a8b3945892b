"""The package without the private names of Paddle that its workarounds need: all works, or the feature says what is."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hidden_names import FEATURES, WORKAROUNDS
from places import HELPERS, ROOT

PRIVATE = ("paddle.base", "paddle.io.dataloader", "paddle.io.multiprocess_utils", "paddle.jit.dy2static", *FEATURES)


def run(mode: str, folder: Path) -> dict:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, HELPERS / "hidden_names.py", mode, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)])},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    cached = {path.name: np.load(path) for path in sorted((folder / "cache").rglob("*.npy"))}
    assert cached
    return {**np.load(folder / "weights.npz"), **cached}


@pytest.mark.slow
def test_all_parts_give_the_same_without_the_private_names(tmp_path):
    """The fit in which nothing is hidden is the truth; engines judge the files."""
    told = {mode: run(mode, tmp_path / mode) for mode in ("nothing", "names", "modules")}
    assert {mode: one["found"] for mode, one in told.items()} == {"nothing": 10, "names": 0, "modules": 0}
    converts = all(map(importlib.util.find_spec, ("paddle2onnx", "onnx", "onnxruntime")))
    checks = [["paddle", "int8", True], *([["onnxruntime", kind, True] for kind in ("fp32", "int8")] * converts)]
    expected = arrays_of(tmp_path / "nothing")
    for mode, one in told.items():
        assert one["modules"] > 150
        assert one["swapped"] == [1, 4]
        assert one["checks"] == checks
        found = arrays_of(tmp_path / mode)
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6, err_msg=f"{mode}: {name}")


@pytest.mark.slow
def test_what_a_feature_is_made_of_is_named_when_it_is_used(tmp_path):
    """Importing and swapping work; nothing has been converted where the message comes."""
    told = run("features", tmp_path / "features")
    assert told["swapped"] == [1, 4]
    for feature, missing in (
        ("pact", "paddle.quantization.config"),
        ("quanted", "paddle.nn.quant.qat"),
        ("fit", "paddle.hapi.callbacks"),
        ("program", "paddle.base.proto.framework_pb2"),
    ):
        assert f"needs {missing}, which paddlepaddle " in told[feature]
        assert "pip install 'paddlepaddle>=3.3.1,<3.4'" in told[feature]
    assert told["layers"] == ["Conv2D", "BatchNorm2D", "ReLU", "Conv2D", "Dropout", "Linear"]


def test_no_private_name_is_imported_without_a_guard():
    """A statement stands in a ``try`` that expects an ImportError; the rest goes through `private_module`."""
    asked: dict[str, set[str]] = {}
    for path in sorted((ROOT / "paddlelite_callbacks").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = {
            id(inner)
            for node in ast.walk(tree)
            if (
                isinstance(node, ast.Try)
                and any("ImportError" in ast.unparse(handler.type) for handler in node.handlers if handler.type)
            )
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
            for statement in node.body
            for inner in ast.walk(statement)
        }
        for node in ast.walk(tree):
            for name in modules_of(node):
                if is_private(name):
                    assert id(node) in guarded, f"{path}:{node.lineno}: {name}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("private_module", "require_private"):
                module = ast.unparse(node.args[0]).strip("f'\"").replace("{_DY2STATIC}", "paddle.jit.dy2static")
                names = {str(ast.literal_eval(one)).partition(".")[0] for one in node.args[1:]}
                asked.setdefault(module, set()).update(names)
    asked.pop("paddle.hapi.model", None)  # `_run_one_epoch` is looked up in the class: see `guard_fit`
    hidden = WORKAROUNDS | FEATURES
    assert {module: names - hidden.get(module, set()) for module, names in asked.items()} == {
        module: set() for module in asked
    }, "hide them in hidden_names.py too"


def modules_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def is_private(name: str) -> bool:
    hooks = name.startswith("paddle.nn.utils.") and "_hook" in name
    return hooks or name == "paddle._C_ops" or any(name == one or name.startswith(f"{one}.") for one in PRIVATE)
