"""Capture outputs of inner layers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.nn.surgery import find_sublayer

__all__ = ["Taps"]


class Taps:
    """Capture the outputs of named layers, from `start` to `take`.

    Args:
        names: as in ``named_sublayers()``.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        self._kept: dict[str, list[Any]] | None = None

    def attach(self, network: Layer, scope: ExitStack) -> None:
        """Register the hooks; ``scope`` removes them.

        Raises:
            ValueError: no such layer.
        """
        for name in self.names:
            hook = find_sublayer(network, name).register_forward_post_hook(self._keep(name))
            scope.callback(hook.remove)
        scope.callback(self.forget)

    def start(self) -> None:
        """Start capturing; earlier captures are dropped."""
        self._kept = {name: [] for name in self.names}

    def forget(self) -> None:
        """Stop capturing."""
        self._kept = None

    def take(self) -> dict[str, Any]:
        """Return the captured outputs by name, and drop them.

        Raises:
            ValueError: a layer did not run, or ran several times, so that its output is not one.
        """
        kept, self._kept = self._kept or {}, None
        wrong = {name: len(found) for name, found in kept.items() if len(found) != 1}
        if wrong:
            raise ValueError(
                f"These layers did not run exactly once in the forward pass, so their feature is not one: {wrong} "
                "(name: times). Choose the layer around them, or one behind them."
            )
        return {name: found[0] for name, found in kept.items()}

    def _keep(self, name: str) -> Callable[[Layer, Any, Any], None]:
        def hook(layer: Layer, inputs: Any, output: Any) -> None:
            if self._kept is not None:
                self._kept[name].append(output)

        return hook
