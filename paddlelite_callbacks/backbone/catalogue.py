"""Light backbones of paddleclas by name: how to build them, and where their maps can be tapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.errors import near_names, require

__all__ = ["TRUNKS", "build_classifier", "load_weights", "trunk_sections"]

# Families whose trunk is a plain chain: the sections in order. A section that is a Sequential named here with a star
# can be tapped behind each of its items, the others behind their last layer only.
TRUNKS: dict[str, tuple[str, ...]] = {
    "PPLCNet_": ("conv1", "blocks2", "blocks3", "blocks4", "blocks5", "blocks6"),
    "MobileNetV3_": ("conv", "blocks*"),
}

_NOT_NETWORKS = ("BaseNet", "Model")


def build_classifier(
    name: str,
    *,
    num_classes: int,
    pretrained: bool | str | Path = False,
    options: Mapping[str, Any] | None = None,
) -> Layer:
    """Build the paddleclas network ``name`` with a head for ``num_classes`` classes; input ``[N, 3, H, W]``.

    Args:
        name: for instance ``"PPLCNet_x2_5"``, ``"MobileNetV3_large_x1_0"``, ``"MobileNetV3_small_x1_0"``.
        num_classes: of the head, at least 1.
        pretrained: ``True`` downloads paddleclas's ImageNet weights; a path loads a ``.pdparams`` file. The head's
            weights are left out where the number of classes differs.
        options: further arguments of the paddleclas factory, for instance ``{"stride_list": [2, 2, 2, 2, 1]}``.

    Raises:
        MissingDependencyError: paddleclas is not installed.
        ValueError: no such network, an option it does not take, or weights that are not its own.
        RuntimeError: the weights cannot be downloaded.
    """
    factory = _factory(name)
    try:
        network = factory(class_num=num_classes, **(options or {}))
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name} cannot be built with options {dict(options or {})}: {error}.") from error
    if pretrained is True:
        _download_weights(network, name)
    elif pretrained:
        load_weights(network, Path(pretrained))
    return network


def trunk_sections(name: str) -> tuple[str, ...]:
    """Return the sections of the trunk of ``name``, see `TRUNKS`.

    Raises:
        ValueError: its trunk is not a plain chain, so that only whole classifiers can be swapped for it.
    """
    for prefix, sections in TRUNKS.items():
        if name.startswith(prefix):
            return sections
    raise ValueError(
        f"{name!r} cannot take the place of a backbone inside a network; those that can begin with {list(TRUNKS)}. "
        "A whole classifier can be swapped for it with at=None."
    )


def load_weights(network: Layer, path: Path, *, head: tuple[str, ...] = ("fc.", "head.", "classifier.")) -> list[str]:
    """Load a ``.pdparams`` file into ``network``; only keys of the head may be missing or have another shape.

    Args:
        network: changed only if the file fits.
        path: the file; a missing suffix is added.
        head: beginnings of the keys that may differ.

    Returns:
        The keys that were not loaded.

    Raises:
        ValueError: no such file, or it is another network's; the message names the keys.
    """
    file = path if path.suffix == ".pdparams" else path.with_name(path.name + ".pdparams")
    if not file.is_file():
        raise ValueError(f"No weights file {file}: give the path of a .pdparams file, or pretrained=True to download.")
    given, wanted = paddle.load(str(file)), network.state_dict()
    fits = {key: given[key] for key in wanted if key in given and list(given[key].shape) == list(wanted[key].shape)}
    left = [key for key in wanted if key not in fits]
    wrong = [key for key in left if not key.startswith(head)]
    if wrong:
        unexpected = [key for key in given if key not in wanted]
        raise ValueError(
            f"{file} does not fit {type(network).__name__}: of {len(wanted)} keys {len(wrong)} outside the head are "
            f"missing or differ in shape, e.g. {wrong[:3]}; {len(unexpected)} keys of the file are unknown, e.g. "
            f"{unexpected[:3]}."
        )
    network.set_state_dict({**wanted, **fits})
    return left


def _factory(name: str) -> Any:
    module = require("paddleclas.ppcls.arch.backbone", needed_for=f"BackboneSwap({name!r})")
    known = [key for key in vars(module) if key[:1].isupper() and not key.endswith(_NOT_NETWORKS)]
    if name not in known:
        raise ValueError(f"paddleclas has no backbone {name!r}; near names: {near_names(name, known)}.")
    return getattr(module, name)


def _download_weights(network: Layer, name: str) -> None:
    """Fetch paddleclas's own file, then load it: a network that is half loaded is never handed out."""
    module = require(type(network).__module__, needed_for=f"pretrained weights of {name}")
    url = getattr(module, "MODEL_URLS", {}).get(name)
    if not url:
        raise ValueError(f"paddleclas offers no pretrained weights for {name}: give a path, or pretrained=False.")
    download = require("paddleclas.ppcls.utils.download", needed_for=f"pretrained weights of {name}")
    try:
        file = download.get_weights_path_from_url(url)
    except Exception as error:
        raise RuntimeError(
            f"The weights of {name} could not be downloaded from {url} ({type(error).__name__}: {error}). "
            "Download the file elsewhere and pass pretrained='file.pdparams'."
        ) from error
    load_weights(network, Path(file))
