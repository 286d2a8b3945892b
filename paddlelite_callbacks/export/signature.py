"""Give networks a forward() whose arguments ``paddle.jit`` can read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

__all__ = ["has_plain_signature", "named_specs", "plain_signature_"]


def plain_signature_(
    network: Layer, count: int, *, places: Sequence[int] | None = None, others: Sequence[Any] = ()
) -> None:
    """Give ``network`` a forward() of ``count`` inputs, in place; pass a copy.

    ``paddle.jit`` reads the names of the arguments: it does not support ``*inputs``, and needs the first to be
    ``self``.

    Args:
        network: Network whose class is replaced by one of the same name.
        count: Number of inputs, at most six; with more, nothing is changed.
        places: Position of each among the arguments of the old forward(); ``None`` for their order.
        others: All arguments of the old forward(), arrays or ``None``; those at ``places`` are replaced.
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
        network: Network to inspect.
        count: Number of inputs that it is called with.
    """
    try:
        names = inspect.getfullargspec(type(network).forward)
    except TypeError:  # decorated with to_static
        return True
    return names.args[:1] == ["self"] and (names.varargs is None or len(names.args) > count)


def named_specs(network: Layer, input_spec: Sequence[InputSpec]) -> list[InputSpec]:
    """Return ``input_spec`` with a name for each.

    Its own, that of the argument of forward(), or ``x``, ``x1``, ``x2``.

    Args:
        network: Network that takes the inputs.
        input_spec: One per input; nested ones stay as they are.
    """
    arguments, others = _argument_names(network), network.state_dict()
    taken = {spec.name for spec in input_spec if isinstance(spec, InputSpec)}
    named = []
    for i, spec in enumerate(input_spec):
        if isinstance(spec, InputSpec) and spec.name is None:
            name = arguments[i] if i < len(arguments) else f"x{i}" if i else "x"
            while name in taken or name in others:
                name = f"{name}_in"
            taken.add(name)
            spec = InputSpec(spec.shape, dtype=spec.dtype, name=name)
        named.append(spec)
    return named


def _argument_names(network: Layer) -> list[str]:
    """Return the positional argument names of the network's original forward()."""
    forward = network.plain_forward if isinstance(network, _PlainSignature) else network.forward
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return []
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if isinstance(network, _PlainSignature):
        return [names[place] if place < len(names) else f"x{place}" for place in network._places]
    return names


class _PlainSignature:
    """Mixin for the class of a network, see `plain_signature_`."""

    plain_forward: Callable[..., Any]
    _all_arguments: list[Any]
    _places: list[int]

    @paddle.jit.not_to_static
    def arguments(self, *given: Any) -> list[Any]:
        """Return the arguments for the old forward()."""
        arguments = [paddle.to_tensor(item) if isinstance(item, np.ndarray) else item for item in self._all_arguments]
        for place, value in zip(self._places, given, strict=True):
            arguments[place] = value
        return arguments


class _One:
    def forward(self: Any, a: Any) -> Any:
        return self.plain_forward(*self.arguments(a))


class _Two:
    def forward(self: Any, a: Any, b: Any) -> Any:
        return self.plain_forward(*self.arguments(a, b))


class _Three:
    def forward(self: Any, a: Any, b: Any, c: Any) -> Any:
        return self.plain_forward(*self.arguments(a, b, c))


class _Four:
    def forward(self: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return self.plain_forward(*self.arguments(a, b, c, d))


class _Five:
    def forward(self: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        return self.plain_forward(*self.arguments(a, b, c, d, e))


class _Six:
    def forward(self: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        return self.plain_forward(*self.arguments(a, b, c, d, e, f))


# paddle.jit reads the source of each, and runs a network's hooks only if the method is called "forward".
_FORWARDS: dict[int, Callable[..., Any]] = {
    1: _One.forward,
    2: _Two.forward,
    3: _Three.forward,
    4: _Four.forward,
    5: _Five.forward,
    6: _Six.forward,
}
