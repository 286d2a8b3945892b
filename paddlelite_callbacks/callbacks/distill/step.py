"""Distillation step of each batch: teachers, objective, projections, schedules."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor

from paddlelite_callbacks.callbacks.batch_state import BatchState
from paddlelite_callbacks.callbacks.distill.teachers import Source, layers_to_tap
from paddlelite_callbacks.callbacks.session import FitSession
from paddlelite_callbacks.distill.forward import TeacherForward
from paddlelite_callbacks.distill.load_teacher import load_weights_
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.distill.schedules import Weight, value_at
from paddlelite_callbacks.hapi import (
    LossFunction,
    optimizer_state_of,
    prepared_optimizer,
    set_optimizer_state_of,
    trained_also,
)
from paddlelite_callbacks.nn.nested import Seen, Taps, summed
from paddlelite_callbacks.utils.distributed import mean_over_ranks
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = ["BridgeTrainer", "DistillStep", "Position"]

_NEVER = float("inf")
_SAME = "Give the features= and the teacher that it was written with, or leave resume= out."


class Position:
    """Count trained epochs, with fractions where the loader's length is known.

    Attributes:
        offset: Number of epochs trained before this ``fit``, in the run that it resumes.
    """

    def __init__(self) -> None:
        self.offset = 0.0
        self._epochs: float = 1
        self._steps: int | None = None
        self._counted = False  # steps are counted here, in each epoch
        self._epoch, self._batch = 0, 0
        self._absolute = False  # the user's own loop counts epochs over the whole training

    def begin(self, params: dict[str, Any]) -> None:
        """Start a ``fit`` with hapi's ``Callback.params``."""
        self._epochs = params.get("epochs") or 1
        self._absolute = bool(params.get("own_loop"))
        self._steps = params.get("steps")
        self._counted = self._steps is None
        self._epoch, self._batch = 0, 0

    @property
    def steps(self) -> int | None:
        """Number of batches per epoch; ``None`` until known."""
        return self._steps

    def at_epoch(self, epoch: int) -> None:
        """Set the position to ``epoch`` epochs of this ``fit``."""
        if self._counted and self._batch:
            self._steps = self._batch
        self._epoch, self._batch = epoch, 0
        if self._absolute:
            self.offset = 0.0

    def after_batch(self) -> None:
        """Advance by one batch."""
        self._batch += 1

    @property
    def epoch(self) -> float:
        """Return the number of epochs trained so far."""
        return self.offset + self._epoch + (min(1.0, self._batch / self._steps) if self._steps else 0.0)

    @property
    def epochs(self) -> float:
        """Return the total number of epochs."""
        return self._epochs if self._absolute else self.offset + self._epochs

    def value_of(self, weight: Weight) -> float:
        """Return a weight, or a schedule's value, at this position."""
        return value_at(weight, self.epoch, self.epochs) if callable(weight) else weight


class BridgeTrainer:
    """Train an objective's projections with the user's optimizer, for one ``fit``."""

    def __init__(self) -> None:
        self._model: Any = None
        self._scope: ExitStack | None = None
        self._accumulators: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}
        self._parameters: list[Tensor] | None = None
        self._objective: Objective | None = None

    def attach(self, model: paddle.Model, objective: Objective, scope: ExitStack) -> None:
        """Begin a ``fit``; projections are created and registered in its first batch."""
        self._model, self._scope, self._objective, self._parameters = model, scope, objective, None
        scope.callback(self._end)

    def build(self, student: Seen, teachers: Sequence[Seen]) -> None:
        """Create the projections in the first batch; register them with the optimizer.

        Raises:
            ValueError: The outputs or features cannot be compared, see `Objective.check_fit`.
        """
        if self._parameters is not None:
            return
        objective, scope = self._ready()
        objective.check_fit(student, teachers)
        parameters = self._parameters = objective.build(student, teachers)
        if not parameters:
            return
        if self._weights:
            load_weights_(objective.bridges, self._weights, "The saved projections", cure=_SAME)
            self._weights = {}
        optimizer = prepared_optimizer(self._model)
        with uninterrupted():
            scope.callback(objective.bridges.clear_gradients)
            scope.enter_context(trained_also(optimizer, parameters, keep=lambda: False))
            set_optimizer_state_of(optimizer, self._named(objective), self._accumulators)
            scope.callback(self._keep_accumulators)  # before the optimizer drops them
        if paddle.distributed.get_world_size() > 1:
            for parameter in parameters:  # created after hapi's DataParallel, which ignores them
                paddle.distributed.broadcast(parameter, src=0)
                scope.callback(parameter.register_hook(mean_over_ranks).remove)

    def after_batch(self, updated: bool) -> None:
        """Clear the projections' gradients; hapi clears only the network's."""
        if updated and self._parameters:
            for parameter in self._parameters:
                parameter.clear_gradient()

    def state_dict(self, objective: Objective) -> dict[str, Any]:
        """Return weights and accumulators, by names stable across processes."""
        if self._parameters:
            self._keep_accumulators()
        return {"weights": dict(objective.bridges.state_dict()), "accumulators": self._accumulators}

    def take_up(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict` when the projections are created."""
        self._weights, self._accumulators = state.get("weights", {}), state.get("accumulators", {})

    def _keep_accumulators(self) -> None:
        objective, _ = self._ready()
        self._accumulators = optimizer_state_of(prepared_optimizer(self._model), self._named(objective))

    def _ready(self) -> tuple[Objective, ExitStack]:
        if self._objective is None or self._scope is None:
            raise RuntimeError("The projections are created in training: call model.fit first.")
        return self._objective, self._scope

    @staticmethod
    def _named(objective: Objective) -> dict[str, Tensor]:
        return dict(objective.bridges.named_parameters())

    def _end(self) -> None:
        self._scope, self._parameters = None, None


class DistillStep:
    """Run the teachers before the student, and add the objective to its loss.

    Args:
        source: Teacher source.
        objective: Distillation objective.
        bridges: Trainer of the objective's projections.
        position: Position in the schedules.
        weight: Weight of the objective, a number or schedule.
        task_weight: Weight of the task loss, a number or schedule.
        session: Session that receives the metrics.
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
        self._run_teachers: TeacherForward | None = None
        self._watched = False

    def attach(self, model: paddle.Model, scope: ExitStack) -> None:
        """Freeze the teachers, register hooks, extend the loss and declare metrics."""
        mine, theirs = layers_to_tap(self._objective, len(self._objective.teacher_weights))
        self._run_teachers = self._source.attach(model, theirs, scope)
        self._bridges.attach(model, self._objective, scope)
        self._taps = Taps(mine)
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
        elif self._run_teachers is not None and (self._source.learns or not self._silent()):
            seen = self._run_teachers(inputs, batch.label_tensors)
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
        if self._source.learns:
            self._learn(task_loss, labels, batch)
        return total

    def _learn(self, task_loss: LossFunction, labels: Sequence[Any], batch: BatchState) -> None:
        """Let a peer learn from the student in turn."""
        peers = self._source.learn(task_loss, labels, batch, self._combined)
        if peers is not None:
            self._session.put_figure("peer_loss", peers)
            batch.terms["peer_loss"] = (peers, "")
            batch.other_losses.append(peers)

    def after_batch(self, updated: bool) -> None:
        """Update projections, EMA or peer; advance the schedules."""
        self._bridges.after_batch(updated)
        if self._source.has_state:  # an EMA or a peer
            self._source.after_batch(updated)
        self._position.after_batch()

    def skipped(self) -> None:
        """Discard what was computed for a skipped batch."""
        self._source.skipped()

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

        With ``batch`` (for the student, not a peer), the terms are logged and stored in it.
        """
        epoch, epochs = self._position.epoch, self._position.epochs
        result = self._objective(student, teachers, labels, epoch=epoch, epochs=epochs)
        weight = self._position.value_of(self._weight)
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
        weight = self._position.value_of(self._task_weight)
        if callable(self._task_weight):
            self._session.put_figure("task_weight", weight)
        return task if weight == 1 else weight * task
