"""What is imported, what is printed, what is installed, and which way the arrows of the design point."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from installed import needs
from places import ROOT

import paddlelite_callbacks

PACKAGE = ROOT / "paddlelite_callbacks"
HEAVY = ("paddleclas", "paddleslim", "onnx", "onnxruntime", "openvino", "paddle2onnx", "matplotlib", "cv2", "sklearn")


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_import_is_light_and_silent():
    done = run(f"import sys, paddlelite_callbacks\nprint([m for m in {(*HEAVY, 'paddle')} if m in sys.modules])")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_public_names_load_nothing_heavy():
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); import paddle; before = set(sys.modules)\n"
        "import paddlelite_callbacks as p\n"
        "for name in p.__all__: getattr(p, name)\n"
        f"print([m for m in {HEAVY} if m in sys.modules and m not in before])"  # paddle itself imports cv2 where it is
    )
    done = run(code)
    assert done.stdout == "[]\n", done.stderr


@needs("paddleclas", "paddleslim")
def test_paddleclas_and_paddleslim_do_not_talk():
    code = (
        "import warnings, logging; warnings.simplefilter('ignore'); import paddle; warnings.resetwarnings()\n"
        "handlers = logging.getLogger().handlers[:]\n"
        "from paddlelite_callbacks.errors import require\n"
        "for name in ('paddleclas.ppcls.arch.backbone', 'paddleslim.quant.quanters'):\n"
        "    require(name, needed_for='test')\n"
        "assert logging.getLogger().handlers == handlers\n"
        "warnings.warn('still heard')"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "ccache" not in line and "warnings.warn" not in line] == [
        "<string>:7: UserWarning: still heard"
    ]


@pytest.mark.parametrize("missing", ["paddleclas", "paddleslim", "matplotlib"])
def test_a_missing_package_is_named_with_its_remedy_in_one_line(missing):
    uses = {
        "paddleclas": "p.BackboneSwap('PPLCNet_x1_0')(paddle.nn.Linear(2, 2))",
        "paddleslim": "p.prepare_pact_(paddle.nn.Sequential(paddle.nn.ReLU(), paddle.nn.Linear(2, 2)), SLIM)".replace(
            "SLIM", "p.PACTConfig(activation='paddleslim')"
        ),
        "matplotlib": "from paddlelite_callbacks.report.pareto import ladder_png; ladder_png([], None, metric='acc')",
    }
    done = run(
        f"import sys; sys.modules[{missing!r}] = None\nimport paddle, paddlelite_callbacks as p\n{uses[missing]}"
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("paddlelite_callbacks.errors.MissingDependencyError: ")
    assert f"needs {missing}" in last
    assert "Remedy: " in last


def test_a_misspelt_backbone_is_not_taken_for_a_missing_package():
    done = run(
        "import sys; sys.modules['paddleclas'] = None\nimport paddle, paddlelite_callbacks as p\n"
        "p.BackboneSwap('mobilenet_v3_smal')"
    )
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"ValueError: .*'mobilenet_v3_smal'.*\['mobilenet_v3_small'", last)


def test_a_fault_inside_a_module_is_not_hidden_behind_an_unknown_name():
    """Python takes an AttributeError of a lazy import for "there is no such name" and drops its message."""
    done = run(
        "import sys, types; sys.modules['paddlelite_callbacks.report.gate'] = types.ModuleType('broken')\n"
        "from paddlelite_callbacks import Budget"
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: paddlelite_callbacks.Budget cannot be imported: module 'broken' has no ")


def test_an_unknown_public_name():
    with pytest.raises(AttributeError, match="no attribute 'Distill'; the public names are"):
        _ = paddlelite_callbacks.Distill
    assert dir(paddlelite_callbacks) == sorted(paddlelite_callbacks.__all__)


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=lambda path: path.name)
def test_models_import_none_of_ours(path):
    ours = [name for name in imports_of(path) if name.startswith("paddlelite_callbacks")]
    assert all(name.startswith("paddlelite_callbacks.models") for name in ours)


PRIVATE = ("_loss", "_optimizer", "_parameter_list", "_run_one_epoch", "_adapter", "_accumulators", "_param_groups")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_bridge_touches_hapis_private_attributes(path):
    if path.relative_to(PACKAGE).parts[0] == "hapi":
        return
    touched = [
        f"{path.name}:{node.lineno} {node.attr}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in PRIVATE
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]
    assert not touched


def test_nothing_stands_in_both_configuration_files():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "[project]" not in pyproject
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert {name.partition(":")[0].partition(".")[0] for name in setup.sections()} == {"metadata", "options"}
    packages = set(setup["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert packages == found - {"paddlelite_callbacks.maintainer_tools"} | {"paddlelite_callbacks.models"}
