"""A forward() whose arguments ``paddle.jit`` can read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer

__all__ = ["has_plain_signature", "plain_signature_"]


def plain_signature_(
    network: Layer, count: int, *, places: Sequence[int] | None = None, others: Sequence[Any] = ()
) -> None:
    """Give ``network`` a forward() of exactly ``count`` inputs, in place: give it a copy.

    ``paddle.jit`` reads the names of the arguments: it takes no ``*inputs``, and the first has to be called ``self``.

    Args:
        network: whose class is replaced by one of the same name.
        count: of the inputs, at most six; with more nothing is done.
        places: where each stands among the arguments of the old forward(); ``None`` for their order.
        others: all arguments of the old one, arrays or ``None``, of which those at ``places`` are replaced.
    """
    if count not in _FORWARDS:
        return
    plain = type(network)
    network._all_arguments = list(others) or [None] * count
    network._places = list(range(count) if places is None else places)
    network.__class__ = type(
        plain.__name__,
        (_PlainSignature, plain),
        {"plain_forward": plain.forward, "forward": _FORWARDS[count], "__module__": plain.__module__},
    )


def has_plain_signature(network: Layer, count: int) -> bool:
    """Whether ``paddle.jit`` can read the arguments of the forward() of ``network``.

    Args:
        network: looked at.
        count: of the inputs that it is called with.
    """
    try:
        names = inspect.getfullargspec(type(network).forward)
    except TypeError:  # decorated with to_static
        return True
    return names.args[:1] == ["self"] and (names.varargs is None or len(names.args) > count)


class _PlainSignature:
    """Mixed into the class of a network, see `plain_signature_`."""

    plain_forward: Callable[..., Any]
    _all_arguments: list[Any]
    _places: list[int]

    @paddle.jit.not_to_static
    def arguments(self, *given: Any) -> list[Any]:
        """Return the arguments of the old forward()."""
        arguments = [paddle.to_tensor(item) if isinstance(item, np.ndarray) else item for item in self._all_arguments]
        for place, value in zip(self._places, given, strict=True):
            arguments[place] = value
        return arguments


def _one(self: Any, a: Any) -> Any:
    return self.plain_forward(*self.arguments(a))


def _two(self: Any, a: Any, b: Any) -> Any:
    return self.plain_forward(*self.arguments(a, b))


def _three(self: Any, a: Any, b: Any, c: Any) -> Any:
    return self.plain_forward(*self.arguments(a, b, c))


def _four(self: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    return self.plain_forward(*self.arguments(a, b, c, d))


def _five(self: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    return self.plain_forward(*self.arguments(a, b, c, d, e))


def _six(self: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    return self.plain_forward(*self.arguments(a, b, c, d, e, f))


_FORWARDS = {1: _one, 2: _two, 3: _three, 4: _four, 5: _five, 6: _six}  # paddle.jit reads the source of each
