"""Old import paths that keep working, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["forwarded"]


def forwarded(old: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a module whose names have moved.

    Args:
        old: name of the module.
        homes: the new module of each name, below the package.

    Raises:
        AttributeError: by the returned function, for other names.
    """
    package = old.partition(".")[0]

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        home = f"{package}.{homes[name]}"
        warnings.warn(
            f"{old}.{name} has moved to {home}.{name}; the old path goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(home), name)

    return get, lambda: sorted(homes)
