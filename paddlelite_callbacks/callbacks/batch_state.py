"""State of the batch being trained on: inputs, labels, outputs, loss terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import paddle
from paddle import Tensor

from paddlelite_callbacks.hapi import LossFunction
from paddlelite_callbacks.nn.nested import Seen, listed

__all__ = ["BatchState", "LossStep"]


@dataclass
class BatchState:
    """State of one training batch, from ``train_batch`` to its loss.

    Args:
        inputs: Inputs of the network, as passed to ``train_batch``.
        labels: Labels, as passed to ``train_batch``.
        student: Outputs of the network, nested as forward() returned them, and its tapped features.
        teachers: Outputs and tapped features of each teacher, by display name; ``None`` if none ran.
        terms: Loss terms by metric name, each with a description of what it compares.
        other_losses: Losses minimised in addition to the model's own, such as a peer's.
    """

    inputs: Any = None
    labels: Any = None
    student: Seen | None = None
    teachers: dict[str, Seen] | None = None
    terms: dict[str, tuple[Tensor, str]] = field(default_factory=dict)
    other_losses: list[Tensor] = field(default_factory=list)

    def clear(self) -> None:
        """Drop all references, so that tensors are freed with the batch."""
        self.inputs = self.labels = self.student = self.teachers = None
        self.terms, self.other_losses = {}, []

    def label_list(self) -> list[Any]:
        """Return the labels as a list."""
        return [] if self.labels is None else listed(self.labels)

    def label_tensors(self) -> list[Tensor]:
        """Return the labels as tensors."""
        return [x if isinstance(x, Tensor) else paddle.to_tensor(x) for x in self.label_list()]

    def sources(self) -> dict[str, Any]:
        """Return the tensors that the loss was computed from, by display name."""
        found = {"input": self.inputs, "label": self.labels}
        if self.student is not None:
            found["the network's output"] = self.student.outputs
        for name, seen in (self.teachers or {}).items():
            found |= {f"{name}'s output": seen.outputs, f"{name}'s layer": seen.features}
        if self.student is not None:
            found["the network's layer"] = self.student.features
        return found


class LossStep(Protocol):
    """Interface of a step in each batch's forward pass and loss."""

    def before_forward(self, batch: BatchState, inputs: Sequence[Tensor]) -> None:
        """Run before the network's forward pass, inside its ``auto_cast``."""

    def loss(self, task_loss: LossFunction, task: Tensor, batch: BatchState, labels: Sequence[Any]) -> Tensor:
        """Return the loss to minimise instead of ``task``."""

    def evaluated(self, task_loss: LossFunction, outputs: Sequence[Any], labels: Sequence[Any]) -> None:
        """Receive the network's outputs of an evaluation batch."""

    def after_batch(self, updated: bool) -> None:
        """Run after the batch; ``updated`` says whether the optimizer took a step."""

    def skipped(self) -> None:
        """Discard what was computed for a batch that is skipped; `after_batch` follows."""
