"""The outputs' shapes of a network, found on zeros without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.distill.outputs import Seen
from paddlelite_callbacks.distill.random_streams import same_random_streams
from paddlelite_callbacks.distill.taps import Taps
from paddlelite_callbacks.surgery import same_modes

__all__ = ["seen_on_zeros"]

_BATCH = 2


def seen_on_zeros(
    network: Layer, specs: Sequence[tuple[list[int | None], str]], features: Sequence[str], *, training: bool
) -> Seen | None:
    """Return what ``network`` gives for a batch of two zero inputs.

    Buffers (batch-norm statistics), modes and random streams are as before afterwards.

    Args:
        network: run once, without gradients.
        specs: shape and type of each input; the first size is the batch.
        features: layers to tap.
        training: in train mode, where some networks give other outputs.

    Returns:
        ``None`` where an input's size is free (but the batch), so that nothing can be said.
    """
    if any(size is None for shape, _ in specs for size in shape[1:]):
        return None
    inputs = [paddle.zeros([_BATCH, *shape[1:]], dtype=dtype.removeprefix("paddle.")) for shape, dtype in specs]
    taps = Taps(features)
    with ExitStack() as scope, paddle.no_grad():
        scope.enter_context(same_modes(network))
        scope.enter_context(_same_state(network))
        taps.attach(network, scope)
        network.train() if training else network.eval()
        taps.start()
        outputs = network(*inputs)
        return Seen(outputs, taps.take())


@contextmanager
def _same_state(network: Layer) -> Iterator[None]:
    still = [parameter for parameter in network.parameters() if not parameter.trainable]  # batch-norm statistics
    buffers = [(buffer, buffer.clone()) for buffer in [*network.buffers(), *still]]
    with same_random_streams():
        try:
            yield
        finally:
            for buffer, value in buffers:
                paddle.assign(value, buffer)
