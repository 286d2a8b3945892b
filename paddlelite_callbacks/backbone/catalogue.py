"""The backbones that can be swapped in, with figures measured by `measure`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from paddlelite_callbacks.backbone.strides import Stride, checked_stride
from paddlelite_callbacks.errors import near_names

__all__ = ["DATA", "Backbone", "BackboneMap", "list_backbones", "render_table", "why_left_out"]

DATA = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True, kw_only=True)
class BackboneMap:
    """A feature map that a backbone returns: name, channels, stride.

    Args:
        name: of the tap, as `BackboneSwap` takes it.
        channels: of the map.
        stride: input size over map size; a pair ``(height, width)`` where the axes differ.
    """

    name: str
    channels: int
    stride: Stride


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A catalogue entry; all measurements were made by building the network.

    Args:
        name: as `BackboneSwap` takes it.
        source: ``"paddleclas"``, ``"paddle.vision"``, or ``"models"`` for this package's own.
        parameters: weights of the whole network, for 1,000 classes where it is a classifier.
        macs: multiply-accumulates of one image of 3x224x224 through the whole network.
        trunk_parameters: weights up to its last map, which is what stands inside a detector.
        trunk_macs: multiply-accumulates up to its last map.
        taps: the map taken for each stride.
        licence: of code and weights, an SPDX identifier.
        weights: where the makers offer ImageNet weights; ``None`` if they do not.
        checks: by name ``True``, or what went wrong: ``train`` (one step), ``paddle`` (``jit.save``, reload, equal),
            ``paddle-onednn``, ``onnx`` (ONNX Runtime), ``pact`` (all convolutions quantised, int8 program equal).
    """

    name: str
    source: str
    parameters: int
    macs: int
    trunk_parameters: int
    trunk_macs: int
    taps: tuple[BackboneMap, ...]
    licence: str
    weights: str | None
    checks: dict[str, bool | str] = field(default_factory=dict)


def list_backbones(pattern: str = "*", *, source: str | None = None) -> list[Backbone]:
    """List the backbones of the catalogue; `render_table` formats them.

    Reads the measured figures only; it imports no network library.

    Args:
        pattern: of names, for instance ``"PPLCNet_*"``; in any case where none matches as it stands.
        source: ``"paddleclas"``, ``"paddle.vision"`` or ``"models"``; ``None`` for all.

    Raises:
        ValueError: nothing matches; the message lists the names that look alike.

    Example:
        >>> light = list_backbones("PPLCNet_x0_25")[0]
        >>> light.source, {tap.stride: tap.channels for tap in light.taps}
        ('paddleclas', {2: 8, 4: 16, 8: 32, 16: 64, 32: 128})
    """
    entries = [_backbone(entry) for entry in _data()["backbones"]]
    source = None if source is None else source.casefold()
    offered = [b for b in entries if source in (None, b.source)]
    found = [b for b in offered if fnmatchcase(b.name, pattern)]
    found = found or [b for b in offered if fnmatchcase(b.name.casefold(), pattern.casefold())]
    if not found:
        sources = sorted({b.source for b in entries})
        if source not in (None, *sources):
            raise ValueError(f"Unknown source {source!r}; available: {sources}. Leave it out for all.")
        raise ValueError(
            f"No backbone matches {pattern!r}{'' if source is None else f' from {source!r}'}; near names: "
            f"{near_names(pattern, [b.name for b in entries])}; sources: {sources}. See list_backbones() for all."
        )
    return found


def why_left_out() -> dict[str, str]:
    """Return networks that are not in the catalogue, by name, with the reason."""
    return dict(_data()["left_out"])


def render_table(backbones: Iterable[Backbone]) -> str:
    """Format ``backbones`` as a Markdown table.

    Parameters and MACs are in millions, the trunk's in brackets.
    """
    rows = [
        "| name | params M (trunk) | MACs M (trunk) | maps: stride x channels | licence | weights |",
        "|" + "---|" * 6,
    ]
    for b in backbones:
        taps = ", ".join(f"{tap.name} {tap.stride}x{tap.channels}" for tap in b.taps)
        rows.append(
            f"| {b.name} | {b.parameters / 1e6:.2f} ({b.trunk_parameters / 1e6:.2f}) "
            f"| {b.macs / 1e6:.0f} ({b.trunk_macs / 1e6:.0f}) | {taps} | {b.licence} "
            f"| {f'{b.source}: {b.weights}' if b.weights else f'{b.source}: none'} |"
        )
    return "\n".join(rows)


@cache
def _data() -> dict[str, Any]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def _backbone(entry: dict[str, Any]) -> Backbone:
    taps = ({**tap, "stride": checked_stride(tap["stride"])} for tap in entry["taps"])  # JSON has lists for pairs
    return Backbone(**{**entry, "taps": tuple(BackboneMap(**tap) for tap in taps)})
