"""`DistillCallback`: the shell around the distillation losses."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.base import ScopedCallback
from paddlelite_callbacks.distill.losses import DistillLoss, loss_for_task, named_loss, sum_over_outputs
from paddlelite_callbacks.hapi import LossFunction, replaced_loss, task_loss_of
from paddlelite_callbacks.surgery import frozen

__all__ = ["DistillCallback"]


class DistillCallback(ScopedCallback):
    """Let a frozen big network teach the one in training (knowledge distillation, Hinton 2015, arXiv:1503.02531).

    Each training batch minimises ``task_weight * task_loss + weight * distill_loss``. The teacher runs once a batch,
    on the student's very inputs, under ``no_grad`` and the student's ``auto_cast``; it is held in eval mode with
    ``stop_gradient`` everywhere for the time of ``fit`` and gets its flags back afterwards. It enters nobody's
    ``state_dict``, optimizer or checkpoint. ``evaluate`` and ``predict`` are untouched. ``loss``, ``task_loss`` and
    ``distill_loss`` stand in ``logs`` and on the progress bar. Nothing outlives ``fit``.

    Args:
        teacher: a network, or a ``paddle.Model`` holding one; same inputs and same shapes of outputs as the student.
        loss: ``"kl"`` or ``"jsdiv"`` for class scores, ``"mse"`` (``"l2"``), ``"l1"`` or ``"smooth_l1"`` for
            regressions, or a callable ``(student, teacher) -> scalar``. ``None`` chooses by the task loss:
            ``kl`` with ``CrossEntropyLoss``; ``mse`` with ``MSELoss``, ``L1Loss`` and ``SmoothL1Loss``.
            With several outputs the losses of the pairs are summed.
        temperature: of ``kl`` (4 where not given) and ``jsdiv`` (1 where not given).
        weight: of the distillation loss, at least 0; with 0 the weights become bit for bit those of plain training.
        task_weight: of the loss given to ``model.prepare``, at least 0.

    Raises:
        TypeError: ``teacher`` or ``loss`` is of another type.
        ValueError: a weight or temperature out of range, an unknown loss; at train begin: a teacher that is, or
            shares parameters with, the student, or a task loss from which ``loss=None`` cannot choose.

    Example:
        >>> model.fit(train_data, epochs=10, callbacks=[DistillCallback(teacher)])  # doctest: +SKIP
    """

    def __init__(
        self,
        teacher: Layer | paddle.Model,
        *,
        loss: str | DistillLoss | None = None,
        temperature: float | None = None,
        weight: float = 1.0,
        task_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.teacher = _network_of(teacher)
        self.loss, self.temperature = loss, temperature
        self.weight, self.task_weight = _weight("weight", weight), _weight("task_weight", task_weight)
        self._loss = None if loss is None else _resolved(loss, temperature)
        self._teacher_outputs: list[Tensor] | None = None

    def check(self) -> None:
        """Refuse a teacher that is the student, and settle the loss."""
        super().check()
        task_loss = task_loss_of(self.model)
        if self.loss is None:
            self._loss = _resolved(loss_for_task(task_loss), self.temperature)
        student = {id(parameter) for parameter in self.model.network.parameters()}
        shared = [name for name, parameter in self.teacher.named_parameters() if id(parameter) in student]
        if shared:
            raise ValueError(
                f"The teacher shares {len(shared)} parameters with the student ({shared[:3]} ...): it would be frozen "
                "with it. Pass a network of its own, for instance copy.deepcopy(network)."
            )

    def attach(self, scope: ExitStack) -> None:
        """Freeze the teacher, let it run before the student, and add its loss."""
        scope.callback(self._forget)
        scope.enter_context(frozen(self.teacher))
        hook = self.model.network.register_forward_pre_hook(self._run_teacher)
        scope.callback(hook.remove)
        scope.enter_context(replaced_loss(self.model, self._with_distillation))
        self.session.declare_figure("task_loss")
        self.session.declare_figure("distill_loss")

    def _run_teacher(self, network: Layer, inputs: tuple[Tensor, ...]) -> None:
        if not network.training:
            return
        with paddle.no_grad():
            self._teacher_outputs = _as_list(self.teacher(*inputs))

    def _with_distillation(self, task_loss: LossFunction) -> LossFunction:
        def loss(*outputs_and_labels: Tensor) -> Any:
            teacher, self._teacher_outputs = self._teacher_outputs, None
            if teacher is None:  # evaluation
                return task_loss(*outputs_and_labels)
            return self._total(task_loss(*outputs_and_labels), outputs_and_labels, teacher)

        return loss

    def _total(self, task: Any, outputs_and_labels: tuple[Tensor, ...], teacher: list[Tensor]) -> Tensor:
        if self._loss is None:
            raise RuntimeError("The distillation loss is chosen at train begin, which has not happened.")
        task_terms = _as_list(task)
        task_total = task_terms[0] if len(task_terms) == 1 else paddle.add_n(task_terms)
        distilled = sum_over_outputs(self._loss, outputs_and_labels[: len(teacher)], teacher)
        self.session.put_figure("task_loss", task_total)
        self.session.put_figure("distill_loss", distilled)
        total = task_total if self.task_weight == 1 else self.task_weight * task_total
        return total if self.weight == 0 else total + self.weight * distilled

    def _forget(self) -> None:
        self._teacher_outputs = None


def _network_of(teacher: Layer | paddle.Model) -> Layer:
    network = teacher.network if isinstance(teacher, paddle.Model) else teacher
    if not isinstance(network, Layer):
        raise TypeError(f"teacher must be a paddle.nn.Layer or a paddle.Model, got {type(teacher).__name__}.")
    return network


def _resolved(loss: str | DistillLoss, temperature: float | None) -> DistillLoss:
    if isinstance(loss, str):
        return named_loss(loss, temperature=temperature)
    if not callable(loss):
        raise TypeError(f"loss must be a name or a callable (student, teacher) -> scalar, got {type(loss).__name__}.")
    if temperature is not None:
        raise ValueError("temperature goes with a named loss; give it to your own loss function yourself.")
    return loss


def _weight(name: str, value: float) -> float:
    if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")
    return float(value)


def _as_list(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
