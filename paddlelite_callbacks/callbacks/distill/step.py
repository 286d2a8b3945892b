"""One training step with distillation: the teacher's pass, the objective, the figures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.distill.checkpoint import BridgeTrainer, Position
from paddlelite_callbacks.callbacks.distill.teachers import Source
from paddlelite_callbacks.callbacks.session import FitSession
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.distill.schedules import Weight, value_at
from paddlelite_callbacks.hapi import LossFunction, replaced_loss
from paddlelite_callbacks.nn.hooks import Taps
from paddlelite_callbacks.nn.nested import Seen

__all__ = ["DistillStep"]

_NEVER = float("inf")


class DistillStep:
    """The hooks of one ``fit``. hapi runs the network (hooks before and behind), then the loss, then the backward pass.

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
        self._outputs: Any = None
        self._watched = False

    def attach(self, model: paddle.Model, features: Sequence[str], scope: ExitStack) -> None:
        """Set the hooks, wrap the loss, announce the figures."""
        network = model.network
        self._taps = Taps(features)
        self._taps.attach(network, scope)
        scope.callback(self._forget)
        scope.callback(network.register_forward_pre_hook(self._before_forward).remove)
        scope.callback(network.register_forward_post_hook(self._behind_forward).remove)
        scope.enter_context(replaced_loss(model, lambda task_loss: self._wrapped(task_loss, network)))
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

    def _before_forward(self, network: Layer, inputs: tuple[Tensor, ...]) -> None:
        if not paddle.in_dynamic_mode():  # paddle.jit traces: a callback of the user's exports an epoch's network
            return
        self._outputs = None
        if not network.training:
            if self._session.model.mode == "eval":
                self._source.watch(inputs)
        elif self._source.learns or not self._silent():
            self._source.run(inputs)
            self._taps.start()

    def _behind_forward(self, network: Layer, inputs: tuple[Tensor, ...], outputs: Any) -> None:
        if paddle.in_dynamic_mode():
            self._outputs = outputs

    def _silent(self) -> bool:
        """Whether no distillation is left to come: the teacher need not run any more."""
        epoch = self._position.epoch
        return epoch >= getattr(self._weight, "silent_from", _NEVER) or self._objective.silent(epoch)

    def _wrapped(self, task_loss: LossFunction, network: Layer) -> LossFunction:
        def loss(*outputs_and_labels: Any) -> Any:
            outputs, self._outputs = self._outputs, None
            count = len(outputs) if isinstance(outputs, (list, tuple)) else 1
            given, labels = outputs_and_labels[:count], outputs_and_labels[count:]
            task = task_loss(*outputs_and_labels)
            if not network.training:
                self._source.evaluated(task_loss, given, labels)
                return task
            return self._trained(task_loss, _summed(task), outputs, labels)

        return loss

    def _trained(self, task_loss: LossFunction, task: Tensor, outputs: Any, labels: Sequence[Any]) -> Tensor:
        teachers, guard = self._source.take(), self._session.guard
        self._session.put_figure("task_loss", task)
        guard.note_term("task_loss", task)
        guard.note_cause("the network's output", outputs)
        if teachers is None:
            for name in self._figures():
                if name.startswith("distill_"):
                    self._session.drop_figure(name)
            return self._weighted_task(task)
        student = Seen(outputs, self._taps.take())
        self._note(student, teachers)
        self._bridges.build(student, teachers)
        if not self._watched:
            self._watched = True
            guard.watch("the projections", self._objective.bridges)
        total = self._combined(task, student, teachers, labels, show=True)
        peers = self._source.learn(task_loss, labels, student, self._combined)
        if peers is not None:
            self._session.put_figure("peer_loss", peers)
            guard.note_loss("peer_loss", peers)
        return total

    def _note(self, student: Seen, teachers: Sequence[Seen]) -> None:
        """Let the guard know what the terms are made from."""
        guard = self._session.guard
        for index, seen in enumerate(teachers):
            guard.note_cause(f"{self._who(index)}'s output", seen.outputs)
            guard.note_cause(f"{self._who(index)}'s layer", seen.features)
        guard.note_cause("the network's layer", student.features)

    def _combined(
        self, task: Any, student: Seen, teachers: Sequence[Seen], labels: Sequence[Any], *, show: bool = False
    ) -> Tensor:
        epoch, epochs = self._position.epoch, self._position.epochs
        result = self._objective(student, teachers, labels, epoch=epoch, epochs=epochs)
        weight = value_at(self._weight, epoch, epochs)
        if show:
            self._show(result.total, result.terms, weight)
            self._note_terms(result.terms)
        total = self._weighted_task(_summed(task))
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

    def _note_terms(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._session.guard.note_term(f"distill_{name}", value, self._objective.describe(name))

    def _weighted_task(self, task: Tensor) -> Tensor:
        weight = value_at(self._task_weight, self._position.epoch, self._position.epochs)
        if callable(self._task_weight):
            self._session.put_figure("task_weight", weight)
        return task if weight == 1 else weight * task

    def _forget(self) -> None:
        self._outputs = None


def _summed(loss: Any) -> Tensor:
    terms = list(loss) if isinstance(loss, (list, tuple)) else [loss]
    return terms[0] if len(terms) == 1 else paddle.add_n(terms)
