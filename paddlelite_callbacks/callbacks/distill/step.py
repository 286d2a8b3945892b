"""The distillation step of a batch: teachers, objective, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor

from paddlelite_callbacks.callbacks.batch_state import BatchState
from paddlelite_callbacks.callbacks.distill.checkpoint import BridgeTrainer, Position
from paddlelite_callbacks.callbacks.distill.teachers import Source
from paddlelite_callbacks.callbacks.session import FitSession
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.distill.schedules import Weight, value_at
from paddlelite_callbacks.hapi import LossFunction
from paddlelite_callbacks.nn.hooks import Taps
from paddlelite_callbacks.nn.nested import Seen, summed

__all__ = ["DistillStep"]

_NEVER = float("inf")


class DistillStep:
    """Run the teachers before the student, and add the objective to its loss.

    Args:
        source: says what to learn.
        objective: compares.
        bridges: trained along.
        position: where the schedules stand.
        weight: of the objective.
        task_weight: of the task's loss.
        session: takes the figures.
    """

    def __init__(
        self,
        *,
        source: Source,
        objective: Objective,
        bridges: BridgeTrainer,
        position: Position,
        weight: Weight,
        task_weight: Weight,
        session: FitSession,
    ) -> None:
        self._source, self._objective, self._bridges, self._position = source, objective, bridges, position
        self._weight, self._task_weight, self._session = weight, task_weight, session
        self._taps = Taps([])
        self._watched = False

    def attach(self, model: paddle.Model, features: Sequence[str], scope: ExitStack) -> None:
        """Register the taps' hooks, join the loss and declare the metrics."""
        self._taps = Taps(features)
        self._taps.attach(model.network, scope)
        self._session.add_step(self)
        for figure in self._figures():
            self._session.declare_figure(figure)
        for index, teacher in enumerate(self._source.networks):
            if teacher is not None:
                self._session.guard.watch(self._who(index), teacher, trained=self._source.learns)

    def _figures(self) -> list[str]:
        terms = list(self._objective.terms)
        weights = {"distill_weight": self._weight, "task_weight": self._task_weight}
        return [
            "task_loss",
            "distill_loss",
            *(f"distill_{name}" for name in terms if len(terms) > 1),
            *(name for name, weight in weights.items() if callable(weight)),
            *self._source.figures,
        ]

    def before_forward(self, batch: BatchState, inputs: Sequence[Tensor]) -> None:
        """Run the teachers, unless every remaining weight is 0."""
        model = self._session.model
        if not model.network.training:
            if model.mode == "eval":
                self._source.watch(inputs)
        elif self._source.learns or not self._silent():
            seen = self._source.run(inputs, batch)
            batch.teachers = None if seen is None else {self._who(i): one for i, one in enumerate(seen)}
            self._taps.start()

    def _silent(self) -> bool:
        """Return whether every remaining weight is 0."""
        epoch = self._position.epoch
        return epoch >= getattr(self._weight, "silent_from", _NEVER) or self._objective.silent(epoch)

    def evaluated(self, task_loss: LossFunction, outputs: Sequence[Any], labels: Sequence[Any]) -> None:
        """Let a peer be evaluated on the same batch."""
        self._source.evaluated(task_loss, outputs, labels)

    def loss(self, task_loss: LossFunction, task: Tensor, batch: BatchState, labels: Sequence[Any]) -> Tensor:
        """Return the weighted sum of task loss and objective; let a peer learn."""
        self._session.put_figure("task_loss", task)
        batch.terms["task_loss"] = (task, "")
        if batch.teachers is None or batch.student is None:
            for name in self._figures():
                if name.startswith("distill_"):
                    self._session.drop_figure(name)
            return self._weighted_task(task)
        student = batch.student = Seen(batch.student.outputs, self._taps.take())
        teachers = list(batch.teachers.values())
        self._bridges.build(student, teachers)
        if not self._watched:
            self._watched = True
            self._session.guard.watch("the projections", self._objective.bridges)
        total = self._combined(task, student, teachers, labels, batch=batch)
        peers = self._source.learn(task_loss, labels, batch, self._combined)
        if peers is not None:
            self._session.put_figure("peer_loss", peers)
            batch.terms["peer_loss"] = (peers, "")
            batch.other_losses.append(peers)
        return total

    def _combined(
        self,
        task: Any,
        student: Seen,
        teachers: Sequence[Seen],
        labels: Sequence[Any],
        *,
        batch: BatchState | None = None,
    ) -> Tensor:
        """Return the weighted sum of task loss and objective.

        With ``batch``, the student's own, its terms are shown and kept in it.
        """
        epoch, epochs = self._position.epoch, self._position.epochs
        result = self._objective(student, teachers, labels, epoch=epoch, epochs=epochs)
        weight = value_at(self._weight, epoch, epochs)
        if batch is not None:
            self._show(result.total, result.terms, weight)
            batch.terms |= {f"distill_{name}": (v, self._objective.describe(name)) for name, v in result.terms.items()}
        total = self._weighted_task(summed(task))
        return total if weight == 0 or result.total is None else total + weight * result.total

    def _show(self, total: Tensor | None, terms: dict[str, Tensor], weight: float) -> None:
        put = self._session.put_figure
        put("distill_loss", 0.0 if total is None else total)
        if len(self._objective.terms) > 1:
            for name in self._objective.terms:
                if name in terms:
                    put(f"distill_{name}", terms[name])
                else:
                    self._session.drop_figure(f"distill_{name}")
        if callable(self._weight):
            put("distill_weight", weight)

    def _who(self, index: int) -> str:
        several = len(self._source.networks)
        return f"the {self._source.called}" + (f" {index} of {several}" if several > 1 else "")

    def _weighted_task(self, task: Tensor) -> Tensor:
        weight = value_at(self._task_weight, self._position.epoch, self._position.epochs)
        if callable(self._task_weight):
            self._session.put_figure("task_weight", weight)
        return task if weight == 1 else weight * task
