"""Validate numbers that a user gives, and write counts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["check_number", "check_whole", "counted", "is_finite", "is_whole"]


def is_whole(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether ``value`` is an ``int`` in ``[least, most]``; a ``bool`` is not one.

    Args:
        value: Value to check.
        least: Smallest allowed number.
        most: Largest allowed number.
    """
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_finite(value: Any) -> bool:
    """Whether ``value`` is a finite ``int`` or ``float``; a ``bool`` is not one.

    Args:
        value: Value to check.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max and math.isfinite(value)  # math.isfinite raises for a larger int


def check_whole(name: str, value: Any, least: int, most: int | None = None, *, remedy: str) -> None:
    """Check that an argument is a whole number in ``[least, most]``.

    Args:
        name: Name of the argument, for the message.
        value: Value to check.
        least: Smallest allowed number.
        most: Largest allowed number; ``None`` for no limit.
        remedy: End of the message: what to do.

    Raises:
        ValueError: It is not.
    """
    if not is_whole(value, least, math.inf if most is None else most):
        allowed = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}: {remedy}.")


def check_number(name: str, value: Any, allowed: Callable[[float], bool], words: str, *, remedy: str) -> None:
    """Check that an argument is a finite number in an allowed range.

    Args:
        name: Name of the argument, for the message.
        value: Value to check.
        allowed: Whether a finite number is in range.
        words: Description of the range, such as ``"a finite number above 0"``.
        remedy: End of the message: what to do.

    Raises:
        ValueError: It is not.
    """
    if not is_finite(value) or not allowed(value):
        raise ValueError(f"{name} must be {words}, got {value!r}: {remedy}.")


def counted(count: int, noun: str) -> str:
    """Return ``1 thread``, ``2 threads``, ...

    Args:
        count: Number of things.
        noun: Their name in the singular, with a regular plural.
    """
    return f"{count} {noun}{'s' * (count != 1)}"
