"""Find a network's output shapes by running zeros, without side effects."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.nn.nested import Seen, Taps
from paddlelite_callbacks.nn.surgery import HOOK_TABLES, computes_weight, copy_network, same_modes
from paddlelite_callbacks.utils.isolation import same_random_streams
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = ["UNKNOWN_BATCH", "Forward", "InputSpecs", "NoInputsError", "seen_on_zeros"]

InputSpecs = Sequence[tuple[list[int | None], str]]

UNKNOWN_BATCH = 2
_log = logging.getLogger(__name__)


class NoInputsError(TypeError):
    """The inputs of a forward are unusable for any batch."""


class Forward(Protocol):
    """Runs a network in its own mode and on its own inputs."""

    def attach(self, scope: ExitStack) -> None:
        """Prepare the network; ``scope`` undoes the changes."""

    def __call__(self, inputs: Sequence[Any]) -> Any:
        """Return the outputs for a batch of the student's inputs."""


def seen_on_zeros(
    network: Layer,
    specs: InputSpecs,
    features: Sequence[str],
    *,
    training: bool,
    hooks: bool,
    forward: Forward | None = None,
) -> Seen | None:
    """Return the outputs for zero inputs, with batch size 2 where it is dynamic.

    In train mode a copy is run, so that batch-norm statistics, uncalibrated quantizers and the like do not change;
    modes and random generators are restored in any case.

    Args:
        network: Network, run once without gradients.
        specs: Shape and dtype of each input, batch first.
        features: Layers to tap.
        training: Whether to run in train mode, where some networks have other outputs.
        hooks: Whether to run the network's own hooks.
        forward: Runs it as a frozen teacher, in its own mode and on its own inputs.

    Returns:
        ``None`` where a size besides the batch is dynamic, or the network fails on zeros.

    Raises:
        ValueError: A layer of ``features`` did not run exactly once.
        NoInputsError: Raised by ``forward``.
    """
    if any(size is None for shape, _ in specs for size in shape[1:]):
        return None
    inputs = [
        paddle.zeros([shape[0] or UNKNOWN_BATCH, *shape[1:]], dtype=dtype.removeprefix("paddle."))
        for shape, dtype in specs
    ]
    taps = Taps(features)
    with ExitStack() as last, paddle.no_grad():
        scope = ExitStack()
        last.callback(scope.close)  # in case Ctrl-C comes before the next one has begun
        last.callback(_closed, scope)
        scope.enter_context(same_random_streams())
        try:
            if training:
                network = copy_network(network, keep_hook=lambda hook: hooks or computes_weight(hook), keep_modes=True)
        except Exception as error:
            _log.debug("Shapes are not checked ahead, %s cannot be copied: %s", type(network).__name__, error)
            return None
        with uninterrupted():
            scope.enter_context(same_modes(network))
            if not hooks:
                scope.enter_context(_without_hooks(network))
            taps.attach(network, scope)
            network.train() if training else network.eval()
            if forward is not None:
                forward.attach(scope)
        taps.start()
        try:
            outputs = network(*inputs) if forward is None else forward(inputs)
        except NoInputsError:
            raise
        except Exception as error:  # the first batch will show whether the network works
            _log.debug("Shapes are not checked ahead, %s does not accept zeros: %s", type(network).__name__, error)
            return None
        return Seen(outputs, taps.take())


def _closed(scope: ExitStack) -> None:
    """Undo all edits without interruption by Ctrl-C."""
    with uninterrupted():
        scope.close()


@contextmanager
def _without_hooks(network: Layer) -> Iterator[None]:
    layers = network.sublayers(include_self=True)
    tables = [getattr(layer, table) for layer in layers for table in HOOK_TABLES]
    kept = [(table, list(table.items())) for table in tables]
    for table, hooks in kept:
        for number, hook in hooks:
            if not computes_weight(hook):
                del table[number]
    try:
        yield
    finally:
        for table, hooks in kept:
            table.clear()
            table.update(hooks)
