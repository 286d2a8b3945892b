"""The arguments of `BackboneSwap`, checked when they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.backbone.sources import source_of
from paddlelite_callbacks.backbone.strides import Stride, checked_stride
from paddlelite_callbacks.backbone.weights import is_url, local_weights

__all__ = ["Rebuild", "check_options", "own_layer"]

Rebuild = Callable[[Layer, list[int]], "Layer | None"]


def check_options(
    at: str | None,
    taps: Sequence[str | Stride] | None,
    adapt: str,
    rebuild: Rebuild | None,
    freeze_stages: int,
    image: str | int | None,
) -> None:
    """Refuse options of `BackboneSwap` that do not go together.

    Args:
        at: the sublayer to replace, or ``None``.
        taps: names or strides, which may be pairs.
        adapt: ``"project"`` or ``"rebuild"``.
        rebuild: the function that goes with ``"rebuild"``.
        freeze_stages: how many first stages stand still.
        image: key, keyword or position of the image.

    Raises:
        TypeError: ``taps`` is no list, or ``image`` no key, keyword or position.
        ValueError: says what is allowed.
    """
    if isinstance(taps, (str, int)):
        raise TypeError(f"taps must be a list, got {taps!r}: write taps=[{taps!r}].")
    for tap in taps or ():
        if not isinstance(tap, str):
            checked_stride(tap)
    if image is not None and type(image) not in (str, int):
        raise TypeError(
            f"image must be the key, keyword or position of the image, got {image!r}: 'image' or 0, or leave it out."
        )
    if at is None and (taps is not None or adapt != "project"):
        raise ValueError(
            f"taps and adapt go with at='...': a whole classifier has no maps to hand on, got taps={taps!r}, "
            f"adapt={adapt!r}. Name the backbone with at, or leave them out."
        )
    if adapt not in ("project", "rebuild") or (adapt == "rebuild") != (rebuild is not None):
        raise ValueError(
            f"adapt must be 'project', or 'rebuild' together with rebuild=function(network, channels); got "
            f"adapt={adapt!r}, rebuild={rebuild!r}."
        )
    if not isinstance(freeze_stages, int) or freeze_stages < 0:
        raise ValueError(f"freeze_stages must be a whole number of at least 0, got {freeze_stages!r}: 0 freezes none.")


def own_layer(backbone: str | Layer, pretrained: bool | str | Path, options: Mapping[str, Any]) -> Layer | None:
    """Return ``backbone`` if it is a network; check what can be checked of a name before anything is built.

    Args:
        backbone: a name, or a network.
        pretrained: as `BackboneSwap` takes it.
        options: of the factory.

    Raises:
        TypeError: it is neither.
        ValueError: no such name or file, or options that go with a name alone.
    """
    if isinstance(backbone, str):
        source_of(backbone)
        if isinstance(pretrained, (str, Path)) and not is_url(pretrained):
            local_weights(pretrained)
        return None
    if not isinstance(backbone, Layer) or isinstance(backbone, paddle.DataParallel):
        raise TypeError(
            f"backbone must be a name or a paddle.nn.Layer, got {type(backbone).__name__}: see list_backbones()."
        )
    if options or pretrained is True:
        raise ValueError("options and pretrained=True go with a name; build your own layer as you want it.")
    return backbone
