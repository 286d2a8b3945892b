"""Copy a backbone's descriptions of its maps, which necks and heads read.

Used by PaddleDetection, PaddleOCR and PaddleSeg.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from paddle.nn import Layer

__all__ = ["describe_"]

_NAMES = ("out_shape", "out_channels", "feat_channels")  # PaddleDetection's list of ShapeSpec; PaddleOCR; PaddleSeg


def describe_(new: Layer, old: Layer, channels: Sequence[tuple[int, int]], *, projected: bool) -> None:
    """Set the attributes on ``new`` with which ``old`` describes its feature maps.

    Args:
        new: New backbone; gets the attributes that the old one has.
        old: Old backbone; not changed.
        channels: Per map, channels of the new and of the old backbone.
        projected: Whether the new channels are projected to the old ones.
    """
    given = [(want, want if projected else have) for have, want in channels]
    for name in _NAMES:
        try:
            told = getattr(old, name, None)
        except Exception:  # a property that fails is skipped
            continue
        if told is not None and not callable(told):
            setattr(new, name, _told(told, given))


def _told(value: Any, channels: Sequence[tuple[int, int]]) -> Any:
    """Return ``value`` with old channels replaced by new ones, map by map."""
    if type(value) in (list, tuple) and len(value) == len(channels):
        return type(value)(_one(item, *pair) for item, pair in zip(value, channels, strict=True))
    return _one(value, *channels[-1]) if len(channels) == 1 else copy.copy(value)


def _one(value: Any, old: int, new: int) -> Any:
    if type(value) is int:
        return new if value == old else value
    if getattr(value, "channels", None) != old:
        return copy.copy(value)
    if hasattr(value, "_replace"):
        return value._replace(channels=new)
    changed = copy.copy(value)
    changed.channels = new
    return changed
