"""Attributes of an instance that last for a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["instance_attribute"]


@contextmanager
def instance_attribute(instance: Any, name: str, value: Any) -> Iterator[None]:
    """Let ``instance`` have its own attribute ``name`` inside the block; what it had of its own comes back.

    Args:
        instance: changed inside the block.
        name: of the attribute.
        value: that it has inside the block.
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
