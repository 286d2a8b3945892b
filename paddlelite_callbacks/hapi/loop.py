"""Provide a ``paddle.Model`` for a training loop without ``fit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.hapi.attribute import instance_attribute

__all__ = ["LoopModel", "unknown_loss"]


def unknown_loss(*outputs_and_labels: Any) -> Any:
    """Stand in for a task loss that `training_loop` was not given.

    Args:
        outputs_and_labels: what hapi gives a loss.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "A callback computes the task's loss itself (MutualPeer and eval_data do), and training_loop does not know it: "
        "give training_loop(..., loss=criterion), a function of the network's outputs and the labels."
    )


class LoopModel(paddle.Model):
    """Hold network and optimizer of a loop that is not ``fit``.

    ``train_batch`` returns the batch as the callbacks leave it, and ``save`` writes what they put beside a checkpoint:
    the step and the checkpoint are the user's. Several processes share gradients by the user's ``DataParallel``.

    Args:
        network: not wrapped.
        optimizer: its optimizer; parameter groups are allowed.
        loss: the task's; ``None`` where it is not known.
        metrics: for evaluations by callbacks.
        scaler: the user's, which says that training is in mixed precision.
        inputs: of the network, as ``paddle.Model`` takes them.

    Attributes:
        figures: of the user's latest evaluation.
    """

    def __init__(
        self,
        network: Layer,
        optimizer: paddle.optimizer.Optimizer,
        *,
        loss: Any,
        metrics: Any,
        scaler: paddle.amp.GradScaler | None,
        inputs: Sequence[InputSpec] | None,
    ) -> None:
        with instance_attribute(paddle, "DataParallel", _bare):  # the user has one, or none
            super().__init__(network, inputs)
        self.prepare(optimizer, unknown_loss if loss is None else loss, metrics)
        self.figures: dict[str, float] = {}
        self._scaler = scaler
        if scaler is not None:
            self._adapter._amp_level, self._adapter._amp_configs = "O1", _options_of(scaler)

    def train_batch(self, inputs: Any, labels: Any = None, update: bool = True) -> list[Any]:
        """Return inputs and labels; nothing is trained."""
        return [*inputs, *labels]

    def save(self, path: str, training: bool = True) -> None:
        """Write nothing of the network: that checkpoint is the user's."""


def _bare(layers: Layer, *options: Any, **more: Any) -> Layer:
    return layers


def _options_of(scaler: paddle.amp.GradScaler) -> dict[str, Any]:
    """Return the constructor's arguments of a scaler like this one."""
    state = dict(scaler.state_dict())
    if not state:
        return {"enable": False}
    known = ("incr_ratio", "decr_ratio", "incr_every_n_steps", "decr_every_n_nan_or_inf", "use_dynamic_loss_scaling")
    return {"init_loss_scaling": float(state["scale"]), **{name: state[name] for name in known}}
