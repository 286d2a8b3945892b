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
    """Raise an error in place of a task loss that was not given to `training_loop`.

    Args:
        outputs_and_labels: Outputs of the network and labels.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        "A callback computes the task's loss itself (MutualPeer and eval_data do), and training_loop does not know it: "
        "give training_loop(..., loss=criterion), a function of the network's outputs and the labels."
    )


class LoopModel(paddle.Model):
    """``paddle.Model`` that gives callbacks network and optimizer of a custom loop.

    ``train_batch`` returns the batch as the callbacks changed it, without a step; ``save`` only triggers the callbacks
    that write files beside a checkpoint. The training loop takes the step and saves the checkpoint. Across processes,
    the ``DataParallel`` of the loop averages the gradients.

    Args:
        network: Network without ``DataParallel``.
        optimizer: Optimizer of the network; parameter groups are allowed.
        loss: Task loss, a function of outputs and labels; ``None`` if not known.
        metrics: Metrics of evaluations by callbacks.
        scaler: Gradient scaler of the loop, if training is in mixed precision.
        inputs: Input specs of the network, as for ``paddle.Model``.

    Attributes:
        figures: Metrics of the latest evaluation by the loop.
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
        with instance_attribute(paddle, "DataParallel", _bare):  # the loop wraps the network itself if needed
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
        """Do nothing: the training loop saves the network."""


def _bare(layers: Layer, *options: Any, **more: Any) -> Layer:
    return layers


def _options_of(scaler: paddle.amp.GradScaler) -> dict[str, Any]:
    """Return the constructor arguments for an equal scaler."""
    state = dict(scaler.state_dict())
    if not state:
        return {"enable": False}
    known = ("incr_ratio", "decr_ratio", "incr_every_n_steps", "decr_every_n_nan_or_inf", "use_dynamic_loss_scaling")
    return {"init_loss_scaling": float(state["scale"]), **{name: state[name] for name in known}}
