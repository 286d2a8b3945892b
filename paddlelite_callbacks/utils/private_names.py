"""Look up private names of Paddle, which a later release may move or drop."""

from __future__ import annotations

import importlib
import operator
from typing import Any

__all__ = ["private_module", "require_private"]


def private_module(module: str, *names: str) -> Any:
    """Return a private module of Paddle, or ``None`` where a name is missing.

    Args:
        module: Dotted name, such as ``"paddle.base.framework"``.
        names: Names that are used of it; dotted for attributes of a class or an object.
    """
    return _found(module, names)[0]


def require_private(module: str, *names: str, needed_for: str) -> Any:
    """Return a private module of Paddle that a feature requires.

    Args:
        module: Dotted name.
        names: Names that are used of it; dotted for attributes of a class or an object.
        needed_for: Feature, for the message.

    Raises:
        RuntimeError: The installed Paddle lacks the module or a name.
    """
    found, missing = _found(module, names)
    if missing is not None:
        version = importlib.import_module("paddle").__version__  # not at the top: engines run without Paddle
        raise RuntimeError(
            f"{needed_for} needs {missing}, which paddlepaddle {version} does not have: "
            "pip install 'paddlepaddle>=3.3.1,<3.4'."
        )
    return found


def _found(module: str, names: tuple[str, ...]) -> tuple[Any, str | None]:
    """Return the module and ``None``, or ``None`` and what is missing."""
    try:
        found = importlib.import_module(module)
    except (ImportError, AttributeError):
        return None, module
    for name in names:
        try:
            operator.attrgetter(name)(found)
        except AttributeError:
            return None, f"{module}.{name}"
    return found, None
