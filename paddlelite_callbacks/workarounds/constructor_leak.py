"""Avoid a leak of Paddle's tensor constructor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle

__all__ = ["without_argument_lists"]

_KEYWORDS = ("value", "place", "persistable", "zero_copy", "name", "stop_gradient")  # as `paddle.to_tensor` passes them


@contextmanager
def without_argument_lists() -> Iterator[None]:
    """Call Paddle's constructor without keywords inside the block.

    Paddle 3.3 allocates a list of the keywords of each tensor and parameter that is built from a value, even an empty
    one, and never frees it: 70 to 180 bytes for every ``paddle.to_tensor`` and every parameter of a ``copy.deepcopy``.
    The same arguments given by position leak nothing. With another constructor nothing is done. No upstream report is
    known; a test in ``tests/workarounds`` fails once Paddle fixes it.
    """
    wrapper: Any = paddle.Tensor.__init__
    construct: Any = getattr(paddle, "original_init", None)
    if construct is None or getattr(paddle, "new_init", None) != wrapper:
        yield
        return

    def by_position(self: Any, *args: Any, **keywords: Any) -> None:
        if not args and tuple(keywords) == _KEYWORDS:
            construct(self, *keywords.values())
        elif not args and not keywords:
            construct(self, paddle.empty([0], "float32", device="cpu"), paddle.CPUPlace())
        elif keywords or _a_shape_or_list(args):
            wrapper(self, *args, **keywords)
        else:
            construct(self, *args)

    paddle.Tensor.__init__ = by_position
    try:
        yield
    finally:
        paddle.Tensor.__init__ = wrapper


def _a_shape_or_list(args: tuple[Any, ...]) -> bool:
    """Whether Paddle's Python constructor interprets ``args``."""
    return all(isinstance(arg, int) for arg in args) or (len(args) == 1 and isinstance(args[0], (list, tuple)))
