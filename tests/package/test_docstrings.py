"""``help()`` of every public name is enough to use it: each parameter, each error, and an example of each callback."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import pydoc
import re

import pytest
from paddle.nn import Layer

import paddlelite_callbacks
from paddlelite_callbacks import models

SECTIONS = ("Args:", "Returns:", "Yields:", "Raises:", "Attributes:", "Example:", "Note:")


def modules():
    """Modules of the package; `models` lies in a folder of its own in a checkout."""
    names = [
        m.name
        for package in (paddlelite_callbacks, models)
        for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return [paddlelite_callbacks, models, *(importlib.import_module(name) for name in dict.fromkeys(names))]


def public():
    """``(dotted name, object)`` of what a module lists in ``__all__`` and defines itself."""
    found = {}
    for module in modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if callable(value) and getattr(value, "__module__", "").startswith("paddlelite_callbacks"):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


def methods(value):
    """Public methods and properties that a class itself defines."""
    for name, member in vars(value).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


PUBLIC = public()
CALLABLES = {**PUBLIC, **{f"{n}.{m}": f for n, c in PUBLIC.items() if inspect.isclass(c) for m, f in methods(c)}}


def own_parameters(value):
    if getattr(value, "_is_protocol", False):
        return []
    if inspect.isclass(value) and issubclass(value, (BaseException, Layer)) and "__init__" not in vars(value):
        return []
    return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]


def raised_by(value):
    """Names of exceptions that the body itself raises by contract; for a class, in the checks when it is made."""
    functions = [vars(value).get("__init__"), vars(value).get("__post_init__")] if inspect.isclass(value) else [value]
    functions = [inspect.unwrap(f) if inspect.isfunction(f) else f for f in functions]
    written = [
        f for f in functions if inspect.isfunction(f) and "paddlelite_callbacks" in inspect.getmodule(f).__name__
    ]
    source = "".join(inspect.getsource(f) for f in written if f.__code__.co_filename.endswith(".py"))
    raised = set(re.findall(r"^\s+raise (\w+Error)\(", source, re.MULTILINE)) - {"NotImplementedError"}
    return {error for error in raised if f"except {error}" not in source}


def inherited_docs(name):
    """Docstrings of the method that ``name`` overrides: its contract holds for the override."""
    owner, _, method = name.rpartition(".")
    bases = PUBLIC[owner].__mro__[1:] if inspect.isclass(PUBLIC.get(owner)) else ()
    return "".join(inspect.getdoc(vars(base)[method]) or "" for base in bases if method in vars(base))


def test_all_lists_what_there_is():
    for module in modules():
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.__all__ lists {name}, which is not there"
    assert len(PUBLIC) > 150


def test_every_parameter_is_explained():
    wrong = {}
    for name, value in PUBLIC.items():
        doc, parameters = inspect.getdoc(value) or "", own_parameters(value)
        missing = [parameter for parameter in parameters if not re.search(rf"\b{parameter}\b", doc)]
        if not doc or missing or (len(parameters) > 2 and "Args:" not in doc):
            wrong[name] = missing or "no docstring, or no section Args"
    assert not wrong


def test_every_error_is_named():
    wrong = {}
    for name, value in CALLABLES.items():
        doc = (inspect.getdoc(value) or "") + inherited_docs(name)
        if re.match(r"See `\w+\.\w+`\.$", doc):  # of the protocol that it fulfils
            doc = inspect.getdoc(CALLABLES[next(n for n in CALLABLES if n.endswith(f".{doc[5:-2]}"))])
        silent = {error for error in raised_by(value) if "Raises:" not in doc or error not in doc}
        if silent:
            wrong[name] = silent
    assert not wrong


def test_a_docstring_says_each_paragraph_once():
    wrong = {}
    for name, value in CALLABLES.items():
        paragraphs = [part.strip() for part in (inspect.getdoc(value) or "").split("\n\n")]
        if twice := {part for part in paragraphs if paragraphs.count(part) > 1}:
            wrong[name] = twice
    assert not wrong


def test_the_docstrings_render():
    wrong = {}
    for name, value in CALLABLES.items():
        doc = inspect.getdoc(value) or ""
        problems = ["no docstring"] * (not doc) + ["an odd number of double backticks"] * (doc.count("``") % 2)
        lines = doc.splitlines()
        for number, line in enumerate(lines):
            if line.strip() in SECTIONS:
                problems += [f"{line.strip()} is indented"] * (line != line.strip())
                problems += [f"no empty line before {line}"] * bool(lines[number - 1].strip())
                problems += [f"nothing under {line}"] * (not "".join(lines[number + 1 : number + 2]).startswith("    "))
        if problems:
            wrong[name] = problems
    assert not wrong


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_help_shows_what_a_module_lists(module):
    text = pydoc.plain(pydoc.render_doc(module))
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}" in PUBLIC:
            assert inspect.getdoc(value).splitlines()[0][:60] in text, f"help({module.__name__}) lacks {name}"


@pytest.mark.parametrize(
    "name",
    ["DistillCallback", "PACTQuantCallback", "ExportBenchCallback", "BackboneSwap", "MutualPeer", "cache_teacher"],
)
def test_what_one_begins_with_has_an_example(name):
    assert "Example:" in inspect.getdoc(getattr(paddlelite_callbacks, name))
    assert ">>> " in inspect.getdoc(getattr(paddlelite_callbacks, name))


def known_names():
    names = {name.rpartition(".")[2] for name in CALLABLES} | {name for m in modules() for name in vars(m)}
    for module in modules():
        names |= {module.__name__.rpartition(".")[2], *re.findall(r"self\.(\w+)", inspect.getsource(module))}
    for value in PUBLIC.values():
        names |= set(dir(value)) | set(getattr(value, "__annotations__", {}))
    return names


def test_references_point_at_something():
    known = known_names()
    dangling = {}
    for name, value in CALLABLES.items():
        for reference in re.findall(r"(?<![`\w])`([A-Za-z_][\w.]*)`(?!`)", inspect.getdoc(value) or ""):
            if reference.rpartition(".")[2] not in known:
                dangling.setdefault(name, []).append(reference)
    assert not dangling


def test_names_that_help_mentions_can_be_imported_from_the_top():
    """A name in single quotes is the class's own, or ``from paddlelite_callbacks import name`` gives it."""
    docs = {"paddlelite_callbacks": paddlelite_callbacks.__doc__}
    own = {}
    for public_name in paddlelite_callbacks.__all__:
        value = getattr(paddlelite_callbacks, public_name)
        if callable(value):
            members = [function for _, function in methods(value)] if inspect.isclass(value) else []
            docs[public_name] = "\n".join(filter(None, (inspect.getdoc(each) for each in (value, *members))))
            own[public_name] = set(dir(value)) if inspect.isclass(value) else set()
    assert re.findall(r"(?<!`)`([\w.]+)`(?!`)", docs["paddlelite_callbacks"])
    lost = {}
    for public_name, text in docs.items():
        for name in re.findall(r"(?<!`)`([\w.]+)`(?!`)", text):
            known = name in own.get(public_name, ()) or name == "InputSpec"  # Paddle's
            if not known and not hasattr(paddlelite_callbacks, name):
                lost.setdefault(public_name, []).append(name)
    assert not lost


@pytest.mark.parametrize("name", sorted(paddlelite_callbacks._HOMES))
def test_a_name_of_the_top_is_its_homes(name):
    home = importlib.import_module(f"paddlelite_callbacks.{paddlelite_callbacks._HOMES[name]}")
    assert getattr(paddlelite_callbacks, name) is getattr(home, name)


def test_every_public_name_has_an_example():
    without = [
        name
        for name in paddlelite_callbacks.__all__
        if name not in ("__version__", "ExportError", "LOSSES", "MissingDependencyError", "schedules")
        and "Example:" not in (inspect.getdoc(getattr(paddlelite_callbacks, name)) or "")
    ]
    assert not without


def test_the_help_on_losses_names_every_loss():
    from paddlelite_callbacks.distill.losses import registry as catalogue

    table = pydoc.render_doc(catalogue, renderer=pydoc.plaintext).split("CLASSES")[0]
    for name in catalogue.LOSSES:
        assert re.search(rf"\b{name}\b", table), name
