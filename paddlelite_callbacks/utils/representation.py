"""Short ``repr`` of objects: the constructor call with what is not default."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Verbatim", "constructor_repr", "shown"]

_LONGEST = 100  # characters of a part that has a repr of its own
_MISSING = object()


def constructor_repr(instance: object, given: Mapping[str, Any] | None = None) -> str:
    """Return the constructor call of ``instance`` without default arguments.

    Args:
        instance: whose class names the arguments in its signature.
        given: values by argument, where they are not attributes of the same name; a `Verbatim` goes in as it is.
    """
    parts: list[str] = []
    positional = True
    for name, parameter in inspect.signature(type(instance)).parameters.items():
        value = (given or {}).get(name, _MISSING)
        if value is _MISSING:
            value = getattr(instance, name, _MISSING)
        is_first, is_required = not parts, parameter.default is parameter.empty
        if value is _MISSING or _same(value, parameter.default):
            positional = False
        elif positional and parameter.kind is parameter.POSITIONAL_OR_KEYWORD and (is_first or is_required):
            parts.append(shown(value))
            positional = is_required
        else:
            positional = False
            parts.append(f"{name}={shown(value)}")
    return f"{type(instance).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class Verbatim:
    """Text to insert into a ``repr`` unchanged.

    Args:
        text: Formatted text.
    """

    text: str


def shown(value: Any) -> str:
    """Format ``value`` for a ``repr``: functions by name, networks by class.

    Args:
        value: an argument of a constructor.
    """
    if isinstance(value, Verbatim):
        return value.text
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{shown(key)}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(shown, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, functools.partial):
        return f"partial of {shown(value.func)}"
    if inspect.isroutine(value) or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (str, int, float)) or value is None:
        return repr(value)
    text = repr(value)
    is_short = len(text) <= _LONGEST and "\n" not in text and " at 0x" not in text
    return text if is_short or _has_short_repr(value) else f"{type(value).__name__}()"


def _has_short_repr(value: Any) -> bool:
    """Whether the class of ``value`` has a ``repr`` of this module."""
    home = getattr(type(value).__repr__, "__module__", None) or ""
    return home.startswith(__name__.partition(".")[0])


def _same(value: Any, default: Any) -> bool:
    if default is inspect.Parameter.empty:
        return False
    try:
        return value is default or bool(value == default)
    except (TypeError, ValueError):  # tensors and arrays
        return False
