"""Keep the better of the quantised network before and after training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from paddle.nn import Layer

from paddlelite_callbacks.quant.prepare import activation_quantizers
from paddlelite_callbacks.quant.switch import refresh_quantizers_
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = ["Choice", "StartingPoint", "better_of"]

State = dict[str, np.ndarray]
_CALIBRATED = tuple(f".{kind}_quanter.{key}" for kind in ("activation", "output") for key in ("alpha", "grid"))


class StartingPoint:
    """The quantised network before its first step, calibrated by its first batch.

    Attributes:
        state: ``state_dict`` as NumPy arrays; ``None`` before the first quantised batch.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self._whole = False

    def attach(self, network: Layer, scope: ExitStack) -> None:
        """Record the state when ``network`` first trains with its quantizers enabled."""

        def before(*_: Any) -> None:
            if self._begins(network):
                self.state = state_of(network)

        def after(*_: Any) -> None:
            if self._begins(network) and self.state is not None:
                now = state_of(network)  # calibrated, but with statistics that the batch has changed
                self.state |= {key: value for key, value in now.items() if f".{key}".endswith(_CALIBRATED)}
                self._whole = True

        scope.callback(network.register_forward_pre_hook(before).remove)
        scope.callback(network.register_forward_post_hook(after).remove)

    def _begins(self, network: Layer) -> bool:
        if self._whole or not network.training:
            return False
        return all(quantizer.enabled for quantizer in activation_quantizers(network).values())


@dataclass(frozen=True)
class Choice:
    """Metric of a network before and after training, and which was kept.

    Args:
        metric: Name of the metric.
        start: Its value for the quantised network before training.
        end: Its value after training.
        kept: ``"start"`` or ``"end"``.
    """

    metric: str
    start: float
    end: float
    kept: str

    def line(self) -> str:
        """Return the choice as a sentence."""
        text = f"{self.metric}: {self.start:.4f} quantised before training, {self.end:.4f} after"
        if self.kept == "end":
            return f"{text}: the trained weights are kept."
        return f"{text}: training lost, the weights from before it are kept (the last checkpoint has the trained ones)."


def better_of(
    network: Layer,
    start: State,
    evaluate: Callable[[], tuple[str, float]],
    is_better: Callable[[float, float, str], bool],
) -> Choice:
    """Load the better of the trained weights and ``start`` into ``network``.

    Args:
        network: Trained network.
        start: State before training, see `StartingPoint`.
        evaluate: Returns name and value of the metric.
        is_better: Whether the first value of a named metric is better than the second.
    """
    name, end = evaluate()
    trained, kept = state_of(network), "end"
    try:
        load_(network, start)
        value = evaluate()[1]
        kept = "start" if is_better(value, end, name) else "end"
    finally:
        if kept == "end":
            with uninterrupted():
                load_(network, trained)
    return Choice(metric=name, start=value, end=end, kept=kept)


def state_of(network: Layer) -> State:
    """Return a copy of the ``state_dict`` as NumPy arrays."""
    return {key: value.numpy().copy() for key, value in network.state_dict().items()}


def load_(network: Layer, state: State) -> None:
    """Load the result of `state_of`."""
    network.set_state_dict(state)
    refresh_quantizers_(network)
