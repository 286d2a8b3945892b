"""Programs traced without what Paddle leaves behind: call stacks of operations, parameters of traces that failed."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle.jit.dy2static.parameter_recorder import _global_inplace_map, _global_parameter_recorder

__all__ = ["without_call_stacks", "without_failed_traces"]

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


@contextmanager
def without_failed_traces() -> Iterator[None]:
    """Forget the parameters of traces that failed, before the block and if it fails.

    Paddle 3.3 notes the parameters of a program that it traces under the program's address, and takes them back when
    the trace is done. Where ``forward`` raises they stay, and a later program that happens to get the same address is
    given them: ``paddle.jit.save`` then ends in a KeyError. Inside a trace nothing is done.
    """
    if paddle.in_dynamic_mode():
        _forget()
    try:
        yield
    except BaseException:
        if paddle.in_dynamic_mode():
            _forget()
        raise


def _forget() -> None:
    for table in (_global_parameter_recorder.params_dict, _global_parameter_recorder.tensor2value):
        table.clear()
    _global_inplace_map.params_dict.clear()
