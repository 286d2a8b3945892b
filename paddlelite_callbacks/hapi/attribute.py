"""Temporary instance attributes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["instance_attribute"]


@contextmanager
def instance_attribute(instance: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of ``instance`` inside the block.

    Args:
        instance: Object to change inside the block.
        name: Name of the attribute.
        value: Its value inside the block.
    """
    had = name in vars(instance)
    before = vars(instance).get(name)
    setattr(instance, name, value)
    try:
        yield
    finally:
        if had:
            setattr(instance, name, before)
        else:
            vars(instance).pop(name, None)
