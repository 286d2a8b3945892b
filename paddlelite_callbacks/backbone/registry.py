"""Build backbones by name, and locate their weights."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import paddle
from paddle.nn import Layer
from paddle.utils import unique_name

from paddlelite_callbacks.backbone.catalogue import list_backbones, why_left_out
from paddlelite_callbacks.errors import near_names, require
from paddlelite_callbacks.workarounds.paddleclas_layers import cure_

__all__ = [
    "SOURCES",
    "Source",
    "build",
    "known_names",
    "source_of",
    "spelled_name",
    "trunk_end",
    "weights_file",
    "weights_url",
]

_PADDLECLAS = "paddleclas.ppcls.arch.backbone"
# The package's own networks: name -> module of paddlelite_callbacks.models; the factory has the same name.
_OURS = {
    "lite_hrnet_18": "lite_hrnet",
    "lite_hrnet_30": "lite_hrnet",
    "hrnet_w32": "hrnet",
    "hrnet_w48": "hrnet",
}
_AUTOMATIC_NAME = re.compile(r".+_\d+\.[wb]_\d+")


@dataclass(frozen=True)
class Source:
    """A package that builds backbones.

    Args:
        name: Name in `list_backbones`.
        classes: Factory argument for the number of classes; ``None`` without a classifier.
        licence: Licence of code and weights, an SPDX identifier.
        cache: Folder where the package's own loader keeps weights.
    """

    name: str
    classes: str | None
    licence: str
    cache: Path | None


SOURCES = {
    "paddleclas": Source("paddleclas", "class_num", "Apache-2.0", Path("~/.paddleclas/weights")),
    "paddle.vision": Source("paddle.vision", "num_classes", "Apache-2.0", Path("~/.cache/paddle/hapi/weights")),
    "models": Source("models", None, "Apache-2.0", None),
}


def source_of(name: str) -> Source:
    """Return the package that builds the network ``name``.

    Raises:
        MissingDependencyError: It is paddleclas, which is not installed.
        ValueError: Unknown name; the message lists similar ones.
    """
    for key in ("models", "paddle.vision"):
        if name in _names_of(key):
            return SOURCES[key]
    asked = _is_there("paddleclas") or name in _of_paddleclas()
    if asked and name in _names_of("paddleclas", needed_for=f"BackboneSwap({name!r})"):
        return SOURCES["paddleclas"]
    near = near_names(name, known_names())
    raise ValueError(f"Unknown backbone {name!r}; near names: {near}. See list_backbones() for all.")


def spelled_name(name: str) -> str:
    """Return the network's name in its package's spelling.

    Args:
        name: Given name; an unknown one is returned as it is.

    Raises:
        ValueError: Several names differ from it only in case.
    """
    own = [*_names_of("models"), *_names_of("paddle.vision")]
    if name in own:
        return name
    known = {*own, *_of_paddleclas()}
    if name in known:
        return name
    found = sorted(other for other in known if other.casefold() == name.casefold())
    if len(found) > 1:
        raise ValueError(f"{name!r} may be any of {found}, which differ only in case: write one of them exactly.")
    return found[0] if found else name


def known_names() -> list[str]:
    """Return the names of all networks that can be built, in the catalogue or not."""
    names = [*_names_of("models"), *_names_of("paddle.vision")]
    if _is_there("paddleclas"):
        names += _names_of("paddleclas")
    return names


def build(name: str, *, num_classes: int = 1000, options: Mapping[str, Any] | None = None) -> Layer:
    """Build the network ``name`` with random weights; input ``[N, 3, H, W]``.

    Args:
        name: Name in `known_names`, in any case.
        num_classes: Number of classes; this package's networks have no classifier.
        options: Further arguments of its factory, for instance ``{"stride_list": [2, 2, 2, 2, 1]}``.

    Raises:
        MissingDependencyError: The package that builds it is not installed.
        ValueError: Unknown network, or an option that it does not take.
    """
    name = spelled_name(name)
    source, factory = source_of(name), _factory(name)
    arguments = dict(options or {})
    if source.classes is not None:
        arguments[source.classes] = num_classes
    if "pretrained" in inspect.signature(factory).parameters:
        arguments.setdefault("pretrained", False)  # some of paddleclas's networks download by default
    try:
        with _own_parameter_names():
            network = factory(**arguments)
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"{name} cannot be built with options {dict(options or {})}: {error}. See help() of its factory for its "
            "options."
        ) from error
    for parameter in network.parameters():
        if not _AUTOMATIC_NAME.fullmatch(parameter.name):
            parameter.name = unique_name.generate(parameter.name)
    cure_(network)
    return network


def trunk_end(name: str) -> str | None:
    """Return the last stage of ``name`` before its classifier, where known."""
    patterns = getattr(_module_of(name), "MODEL_STAGES_PATTERN", {})
    fitting = [key for key in patterns if key in name]
    return patterns[max(fitting, key=len)][-1] if fitting else None


def weights_url(name: str) -> str | None:
    """Return the URL of ImageNet weights of ``name``; ``None`` without."""
    module = _module_of(name)
    for table in ("MODEL_URLS", "model_urls"):
        found = getattr(module, table, {}).get(name)
        if found:
            return str(found[0] if isinstance(found, (list, tuple)) else found)
    # Paddle spells names in its tables differently: mobilenet_v1 is "mobilenetv1_1.0".
    spelled = {_plain(key): found for key, found in getattr(module, "model_urls", {}).items()}
    return str(spelled[_plain(name)][0]) if _plain(name) in spelled else None


def weights_file(name: str, url: str) -> Path | None:
    """Return the cache path that the package's own loader uses for ``url``.

    Args:
        name: Name of the network.
        url: Address of its weights.
    """
    cache = source_of(name).cache
    return None if cache is None else cache.expanduser() / url.rsplit("/", 1)[-1]


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _of_paddleclas() -> set[str]:
    """Return all paddleclas networks of the catalogue, offered or not."""
    return {backbone.name for backbone in list_backbones(source="paddleclas")} | why_left_out().keys()


def _names_of(key: str, *, needed_for: str = "the list of paddleclas's backbones") -> list[str]:
    if key == "models":
        return list(_OURS)
    module: ModuleType = paddle.vision.models if key == "paddle.vision" else require(_PADDLECLAS, needed_for=needed_for)
    return [name for name, value in vars(module).items() if inspect.isfunction(value) and name != "get_apis"]


def _plain(key: str) -> str:
    return re.sub(r"_?x?1\.0$", "", key).replace("_", "")


def _factory(name: str) -> Callable[..., Layer]:
    return getattr(_module_of(name), name)


def _module_of(name: str) -> ModuleType:
    """Return the module that defines the factory ``name``."""
    source = source_of(name)
    if source.name == "models":
        try:
            return importlib.import_module(f"paddlelite_callbacks.models.{_OURS[name]}")
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{name} needs paddlelite_callbacks.models.{_OURS[name]}, which is missing here: reinstall the package."
            ) from error
    module = paddle.vision.models if source.name == "paddle.vision" else require(_PADDLECLAS, needed_for=name)
    return require(inspect.unwrap(getattr(module, name)).__module__, needed_for=name)


@contextmanager
def _own_parameter_names() -> Iterator[None]:
    """Allow building networks with fixed parameter names twice."""
    generator, checker = unique_name.switch()
    unique_name.switch(generator)  # the same counters, with a checker without names
    try:
        yield
    finally:
        unique_name.switch(generator, checker)
