"""Find layers whose weight ``forward`` also uses outside of their calls."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.nested import tensors_in
from paddlelite_callbacks.nn.surgery import copy_network, unwrapped
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = ["check_no_direct_use"]

_log = logging.getLogger(__name__)


def check_no_direct_use(network: Layer, names: Collection[str], inputs: Sequence[Tensor] | None) -> None:
    """Check that no converted layer's weight is used outside of its calls.

    There it would not be quantised, and the int8 layer has no such weight. Reading its dtype or shape does not count:
    the outputs must depend on its values.

    Args:
        network: Network before the conversion; not changed.
        names: Names of the layers to convert.
        inputs: Inputs to run a copy on; without them nothing is checked.

    Raises:
        ValueError: Such layers exist; names them.
    """
    if inputs is None or unwrapped(network) is not network:
        return
    try:
        used = _used(copy_network(network), names, inputs)
    except Exception as error:
        _log.debug("%s could not be run on random inputs: %s", type(network).__name__, error)
        return
    if used:
        raise ValueError(
            f"{type(network).__name__}'s forward calls {used} and also uses their weight itself (layer.weight), "
            f"which would not be quantised there and does not exist in the int8 network: leave them in float with "
            f"skip={used}."
        )


def _used(network: Layer, names: Collection[str], inputs: Sequence[Tensor]) -> list[str]:
    layers = {name: layer for name, layer in network.named_sublayers() if name in set(names)}
    read: set[str] = set()
    called: set[str] = set()
    running: list[str] = []
    moved: set[str] = set()  # layers whose weight is perturbed for other readers

    def watched(name: str, plain: type) -> type:
        def get(self: Any, key: str) -> Any:
            value = plain.__getattr__(self, key)  # type: ignore[attr-defined]
            if key == "weight" and name not in running:
                read.add(name)
                return value * 0.5 + 0.25 if name in moved else value
            return value

        return type(plain.__name__, (plain,), {"__getattr__": get})

    def begin(name: str) -> Any:
        def note(*_: Any) -> None:
            running.append(name)
            called.add(name)

        return note

    for name, layer in layers.items():
        layer.__class__ = watched(name, type(layer))
        layer.register_forward_pre_hook(begin(name))
        layer.register_forward_post_hook(lambda *_: running.pop() and None)

    def outputs() -> list[Tensor]:
        with paddle.no_grad(), same_random_streams():
            return [item.detach() for item in tensors_in(network(*inputs))]

    plain = outputs()

    def changes(name: str) -> bool:
        moved.clear()
        moved.add(name)
        return any(not bool(paddle.equal_all(a, b)) for a, b in zip(plain, outputs(), strict=True))

    return [name for name in layers if name in read and name in called and changes(name)]
