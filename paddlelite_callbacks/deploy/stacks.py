"""Programs traced without the Python call stack of every operation, which Paddle never frees."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["without_call_stacks"]

_EMPTY = traceback.StackSummary()


@contextmanager
def without_call_stacks() -> Iterator[None]:
    """Let Paddle see an empty stack where it asks for one, in this thread, inside the block.

    While it traces a network, Paddle 3.3 calls ``traceback.extract_stack()`` for each operation (to name lines should
    the program fail when it runs) and keeps the result for good: 0.1 MB for each ``paddle.jit.save`` of a network of 38
    operations. An exception in ``forward`` carries its own traceback as ever; the saved files are the same.
    """
    real, owner = traceback.extract_stack, threading.get_ident()

    def extract_stack(*args: Any, **options: Any) -> traceback.StackSummary:
        if threading.get_ident() == owner and not args and not options:
            return _EMPTY
        return real(*args, **options)

    traceback.extract_stack = extract_stack
    try:
        yield
    finally:
        traceback.extract_stack = real
