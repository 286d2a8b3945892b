"""Which room of the package imports which: from the top down, lazy imports too, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "paddlelite_callbacks"
ROOMS = {  # floor by floor; a room imports those below, and none of its own floor
    "maintainer_tools": 11,
    "__main__": 11,
    "cli": 10,
    "recipes": 9,
    "callbacks": 8,
    "report": 7,
    "backbone": 7,
    "benchmark": 6,
    "export": 5,
    "distill": 5,
    "quant": 4,
    "hapi": 3,
    "nn": 2,
    "workarounds": 1,
    "errors": 0,
    "utils": 0,
    "_version": 0,
}
BESIDE = {("utils", "errors"), ("errors", "utils")}
OLD_PATHS = "paddlelite_callbacks.utils.deprecation"  # who imports this alone forwards to where its names are now


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("paddlelite_callbacks"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            files = [name for name in names if is_module(name)]
            found.update(files if len(files) == len(names) else [*files, node.module])
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.startswith("paddlelite_callbacks"))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
    return found


def is_module(name: str) -> bool:
    place = PACKAGE.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def room_of(module: str) -> str:
    return module.split(".")[1]


def modules() -> dict[str, set[str]]:
    """Return what each module of the package imports; forwarding ones left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        imported = imports_of(path)
        if name != "paddlelite_callbacks" and imported != {OLD_PATHS}:
            found[name] = imported
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_rooms_below(module):
    room = room_of(module)
    if room == "deploy":
        assert not MODULES[module]  # its `__init__`: all else there forwards
        return
    for name in MODULES[module] - {"paddlelite_callbacks"}:
        other = room_of(name)
        if other == "models":
            assert room == "backbone", f"{name}: only the look-up by name imports models"
        elif other != room and (room, other) not in BESIDE:
            assert ROOMS[other] < ROOMS[room], f"{module} imports {name}"


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({name: imported & MODULES.keys() for name, imported in MODULES.items()}).prepare()


def test_only_callbacks_and_hapi_drive_hapis_model():
    """The others ask at most whether they were given one."""
    knowing = set()
    for name in MODULES:
        path = PACKAGE.parent.joinpath(*name.split("."))
        source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        tree = ast.parse(source.read_text(encoding="utf-8"))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "isinstance"]
        asked = {id(n) for call in calls for n in ast.walk(call)}
        for node in ast.walk(tree):
            if (
                id(node) not in asked
                and isinstance(node, ast.Attribute)
                and ast.unparse(node) in ("paddle.Model", "paddle.callbacks.Callback")
            ):
                knowing.add(room_of(name))
            if isinstance(node, ast.ImportFrom) and node.module == "paddle.hapi":
                knowing.add(room_of(name))
    assert knowing <= {"callbacks", "hapi", "recipes"}  # recipes train, as a user's script does
