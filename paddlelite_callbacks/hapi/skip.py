"""Skip training batches once their loss is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from paddlelite_callbacks.hapi.attribute import instance_attribute

__all__ = ["SkipBatch", "skippable_batches"]


class SkipBatch(Exception):
    """Raised inside the loss to skip a batch: no backward pass, no metrics.

    Args:
        losses: what hapi shall show.
    """

    def __init__(self, losses: list[Tensor]) -> None:
        super().__init__("The loss function asks for this batch to be left out.")
        self.losses = losses


@contextmanager
def skippable_batches(
    model: paddle.Model, *, before: Callable[[Any, Any], None], skipped: Callable[[bool], None]
) -> Iterator[None]:
    """Let the loss skip a batch by raising `SkipBatch`, inside the block.

    Gradients that earlier batches accumulated are kept, and the optimizer's step with them is taken where it was due.
    The loss scaling of mixed precision does not hear of a batch that is left out.

    Args:
        model: the hapi model.
        before: receives the inputs and labels of each batch.
        skipped: receives whether the optimizer took a step with the gradients of earlier batches.
    """
    original, waiting = model.train_batch, False

    def train_batch(inputs: Any, labels: Any = None, update: bool = True) -> Any:
        nonlocal waiting
        before(inputs, labels)
        try:
            result = original(inputs, labels, update)
        except SkipBatch as left_out:
            steps = update and waiting
            if steps:
                _step(model)
            waiting = waiting and not update
            skipped(steps)
            return _shown(model, left_out.losses)
        waiting = not update
        return result

    with instance_attribute(model, "train_batch", train_batch):
        yield


def _step(model: paddle.Model) -> None:
    """Apply accumulated gradients as hapi does after a backward pass."""
    unused = paddle.zeros([1], dtype="float32")  # minimize() wants a loss, whose gradients are there already
    if model._adapter._amp_level != "O0" and model._scaler is not None:
        model._scaler.minimize(model._optimizer, unused)
    else:
        model._optimizer.minimize(unused)
    model.network.clear_gradients()


def _shown(model: paddle.Model, losses: list[Tensor]) -> Any:
    values = [np.asarray(loss.detach().astype("float32").numpy()) for loss in losses]
    return (values, [metric.accumulate() for metric in model._metrics]) if model._metrics else values
