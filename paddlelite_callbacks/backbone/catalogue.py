"""List the backbones that can be swapped in, with measured costs."""

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

__all__ = ["DATA", "Backbone", "BackboneMap", "list_backbones", "parsed_backbone", "render_table", "why_left_out"]

DATA = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True, kw_only=True)
class BackboneMap:
    """Feature map of a backbone: name, channels, stride.

    Args:
        name: Name of the tap, for `BackboneSwap`.
        channels: Number of channels.
        stride: Input size over map size; a pair ``(height, width)`` where the axes differ.
    """

    name: str
    channels: int
    stride: Stride


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Catalogue entry of a backbone; all values were measured on the built network.

    Args:
        name: Name, for `BackboneSwap`.
        source: Package: ``"paddleclas"``, ``"paddle.vision"``, or ``"models"`` for this one.
        parameters: Number of weights of the whole network, with 1,000 classes for a classifier.
        macs: Multiply-accumulates of the whole network for one image of 3x224x224.
        trunk_parameters: Number of weights up to its last map, the part used in a detector.
        trunk_macs: Multiply-accumulates up to its last map.
        taps: Default map of each stride.
        licence: Licence of code and weights, an SPDX identifier.
        weights: Origin of ImageNet weights; ``None`` if there are none.
        checks: ``True`` or the failure by name: ``train`` (one step), ``paddle`` (``jit.save``, reload, equal),
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

    Reads only the catalogue; no network library is imported.

    Args:
        pattern: Glob of names, for instance ``"PPLCNet_*"``; case is ignored if nothing matches exactly.
        source: ``"paddleclas"``, ``"paddle.vision"`` or ``"models"``; ``None`` for all.

    Raises:
        ValueError: Nothing matches; the message lists similar names.

    Example:
        >>> light = list_backbones("PPLCNet_x0_25")[0]
        >>> light.source, {tap.stride: tap.channels for tap in light.taps}
        ('paddleclas', {2: 8, 4: 16, 8: 32, 16: 64, 32: 128})
    """
    entries = [parsed_backbone(entry) for entry in _data()["backbones"]]
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
    """Return networks that are not in the catalogue, with the reason."""
    return dict(_data()["left_out"])


def render_table(backbones: Iterable[Backbone]) -> str:
    """Format ``backbones`` as a Markdown table.

    Parameters and MACs are in millions, with those of the trunk in brackets.
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


def parsed_backbone(entry: dict[str, Any]) -> Backbone:
    """Build a catalogue entry from JSON.

    Args:
        entry: Object of ``catalogue.json``.
    """
    taps = ({**tap, "stride": checked_stride(tap["stride"])} for tap in entry["taps"])  # JSON has lists for pairs
    return Backbone(**{**entry, "taps": tuple(BackboneMap(**tap) for tap in taps)})
