"""Session of one ``fit``: run the callbacks' steps in order, and undo them.

`FitSession` creates a `BatchState` per batch. Its members are `ScopedCallback` instances; those that add to the loss
register a `LossStep`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.batch_state import BatchState, LossStep
from paddlelite_callbacks.callbacks.nan_guard.guard import FIGURE, NaNGuard, agreed_policy
from paddlelite_callbacks.hapi import (
    LoopModel,
    LossFunction,
    around_train_batch,
    calling_list,
    check_optimizer_parameters,
    guard_fit,
    prepared_optimizer,
    replaced_loss,
    shown_metrics,
    training_data,
    whole_checkpoints,
)
from paddlelite_callbacks.nn.nested import Seen, listed, summed
from paddlelite_callbacks.utils.cpu import log_mkl_hint
from paddlelite_callbacks.utils.signals import uninterrupted

if TYPE_CHECKING:
    from paddle.hapi.callbacks import CallbackList

__all__ = ["FitSession", "ScopedCallback"]


class FitSession:
    """Edits and metrics of one ``fit`` call.

    The result does not depend on the order of the callbacks in hapi's list, because each step runs for all members
    before the next one: check, convert, dry run, attach, train, undo, finish.

    Args:
        model: Model that is trained.
        hooks_only: Whether the user's own loop calls the hooks of one callback, instead of ``fit``.

    Attributes:
        data: Loader of the training data, until the dry runs have finished; ``None`` in the user's own loop.
        eval_loader: Loader of the latest evaluation inside this ``fit``; ``None`` before the first.
        guard: Guard against non-finite losses.
        batch: State of the current batch.
        candidates: Metrics and ``state_dict`` (NumPy arrays) of networks that are no epoch's, for ``which="best"``.
        late: Scope of edits that must last until hapi's ``final`` checkpoint, which is written after
            ``on_train_end``.
    """

    def __init__(self, model: paddle.Model, *, hooks_only: bool = False) -> None:
        self.model = model
        self.hooks_only = hooks_only
        self.members: list[ScopedCallback] = []
        self.started = False
        self.logs: dict[str, Any] | None = None
        self.data: Any = None
        self.eval_loader: Any = None
        self.batch = BatchState()
        self.candidates: list[tuple[dict[str, float], dict[str, Any]]] = []
        self.guard = NaNGuard(model, "ignore")
        self._steps: list[LossStep] = []
        self._figures: dict[str, Tensor | float | None] = {}
        self.late = ExitStack()
        self._scope = ExitStack()
        self._failed = False

    @property
    def own_loop(self) -> bool:
        """Return whether the user's own loop trains, instead of ``fit``."""
        return self.hooks_only or isinstance(self.model, LoopModel)

    def join(self, member: ScopedCallback) -> None:
        """Add ``member``, unless the session has started or has it."""
        if not self.started and all(member is not other for other in self.members):
            self.members.append(member)

    def start(self, params: dict[str, Any]) -> None:
        """Run check, convert and attach of all members, once.

        Args:
            params: ``Callback.params`` of hapi.
        """
        if self.started:
            return
        self.started = True
        if paddle.get_device() == "cpu":
            log_mkl_hint()
        try:
            wishes = {type(member).__name__: member.on_nan for member in self.members if member.guards_loss}
            self.guard = NaNGuard(self.model, agreed_policy(wishes))
            for member in self.members:
                member.check()
            with uninterrupted():
                for member in self.members:
                    member.convert(self._scope)
            for member in self.members:
                member.dry_run()
            self.data = None
            with uninterrupted():
                self._attach(params)
        except BaseException:
            self._failed = True
            self.close()
            raise

    def _attach(self, params: dict[str, Any]) -> None:
        for member in self.members:
            member.attach(self._scope)
        if self.guard.policy == "skip":
            self.declare_figure(FIGURE)
        if isinstance(self.model, LoopModel):  # TrainingLoop calls the hooks itself, no wrapping needed
            self._scope.callback(self._forget_batch)
            self.guard.begin()
        else:
            self.late.enter_context(whole_checkpoints(self.model))
            self._scope.enter_context(self._computed_loss())
            self._scope.enter_context(around_train_batch(self.model, self.end_batch, before=self.begin_batch))
            self._scope.enter_context(self.guard.watching(self.end_skipped_batch))  # outermost
        self._scope.enter_context(shown_metrics(params, list(self._figures)))

    def add_step(self, step: LossStep) -> None:
        """Register ``step`` with each batch's forward pass and loss, while attaching."""
        self._steps.append(step)

    @contextmanager
    def _computed_loss(self) -> Iterator[None]:
        """Wrap the model's forward pass and loss inside the block, if needed."""
        if not self._steps and self.guard.policy == "ignore":
            yield
            return
        with ExitStack() as scope:
            scope.callback(self._forget_batch)
            if self._steps:
                network = self.model.network
                scope.callback(network.register_forward_pre_hook(self.before_forward).remove)
                scope.callback(network.register_forward_post_hook(self.after_forward).remove)
            scope.enter_context(replaced_loss(self.model, self._loss_of))
            yield

    def begin_batch(self, inputs: Any, labels: Any) -> None:
        """Begin a training batch."""
        self.batch = BatchState(inputs=inputs, labels=labels)

    def _forget_batch(self) -> None:
        self.batch = BatchState()

    def before_forward(self, network: Layer, inputs: tuple[Tensor, ...]) -> None:
        """Run the steps' part before the network's forward pass."""
        if not paddle.in_dynamic_mode():  # paddle.jit is tracing: a user's callback may export during fit
            return
        self.batch.student = self.batch.teachers = None
        for step in self._steps:
            step.before_forward(self.batch, inputs)

    def after_forward(self, network: Layer, inputs: tuple[Tensor, ...], outputs: Any) -> None:
        """Keep the network's outputs."""
        if paddle.in_dynamic_mode():
            self.batch.student = Seen(outputs)

    def _loss_of(self, task_loss: LossFunction) -> LossFunction:
        """Return the loss for hapi: ``task_loss``, the steps' terms, and the guard."""

        def loss(*outputs_and_labels: Any) -> Any:
            result = task_loss(*outputs_and_labels)
            outputs, labels = _split(outputs_and_labels, self.batch)
            if not self.model.network.training:
                for step in self._steps:
                    step.evaluated(task_loss, outputs, labels)
                self.batch.student = None
                return result
            return self.training_loss(task_loss, result, outputs, labels)

        return loss

    def training_loss(self, task_loss: LossFunction, task: Any, outputs: Sequence[Any], labels: Sequence[Any]) -> Any:
        """Return the loss of a batch: the task's and the steps' terms, guarded.

        Args:
            task_loss: Function that computed ``task``, for a peer.
            task: Task loss, in one or several parts.
            outputs: Outputs of the network.
            labels: Labels of the batch.

        Raises:
            NonFiniteLossError: The loss is not finite and ``on_nan="raise"``, see `NaNGuard`.
            SkipBatch: The loss is not finite and ``on_nan="skip"``.
        """
        batch, result = self.batch, task
        for step in self._steps:
            result = step.loss(task_loss, summed(result), batch, labels)
        if self.model.mode == "train":
            self.guard.examine(listed(result), batch, outputs)
        self.batch = BatchState()  # frees the tensors
        return result

    def declare_figure(self, name: str) -> None:
        """Declare the metric ``name`` of ``logs``; called while attaching."""
        self._figures[name] = None

    def put_figure(self, name: str, value: Tensor | float) -> None:
        """Set a metric to the scalar ``value``, which is read after the batch."""
        self._figures[name] = value.detach() if isinstance(value, Tensor) else value

    def drop_figure(self, name: str) -> None:
        """Remove the metric ``name`` from ``logs``; `put_figure` restores it."""
        self._figures[name] = None
        if self.logs is not None:
            self.logs.pop(name, None)

    def close(self, *, late: bool = True) -> None:
        """Undo all edits in reverse order; idempotent, and Ctrl-C is deferred.

        Args:
            late: Whether to undo the edits on `late` too.
        """
        with uninterrupted():
            try:
                self._scope.close()
            finally:
                self._steps.clear()
                if late:
                    self.late.close()
            for name in self._figures:
                if self.logs is not None:  # hapi shares this dictionary among all models of the process
                    self.logs.pop(name, None)
            self._figures.clear()

    def finish(self) -> None:
        """Close, then let every member finish."""
        self.close()
        if self.started and not self._failed:
            for member in self.members:
                member.finish()

    def evaluates_on(self, data_loader: Any) -> None:
        """Keep the loader of the evaluation that begins."""
        self.eval_loader = data_loader

    def end_batch(self, updated: bool) -> None:
        """End a batch; ``updated`` says whether the optimizer took a step."""
        for step in self._steps:
            step.after_batch(updated)
        for member in self.members:
            member.after_batch(updated)
        self._batch_done()

    def end_skipped_batch(self, updated: bool) -> None:
        """End a skipped batch; ``updated`` says whether the optimizer took a step."""
        for step in self._steps:
            step.skipped()
            step.after_batch(updated)
        for member in self.members:
            member.after_skipped(updated)
        self._batch_done()

    def _batch_done(self) -> None:
        self.guard.batch += 1
        if self.guard.policy == "skip":
            self.put_figure(FIGURE, len(self.guard.skipped))
        if self.logs is not None:
            self.logs.update(self.figures())

    def figures(self) -> dict[str, float]:
        """Return the metrics of the latest batch as numbers; waits for the device."""
        return {name: float(value) for name, value in self._figures.items() if value is not None}


def _split(outputs_and_labels: tuple[Any, ...], batch: BatchState) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split the arguments that hapi passes to a loss into outputs and labels."""
    if batch.student is not None:
        count = len(listed(batch.student.outputs))
    else:
        count = max(1, len(outputs_and_labels) - len(batch.label_list()))
    return outputs_and_labels[:count], outputs_and_labels[count:]


_sessions: weakref.WeakKeyDictionary[CallbackList, FitSession] = weakref.WeakKeyDictionary()


def _joined_session(member: ScopedCallback, model: paddle.Model, callbacks: CallbackList | None) -> FitSession:
    """Return the session of the ``fit`` of ``callbacks``, and add ``member``.

    Args:
        member: Callback to add, unless the session has started.
        model: Model that is trained.
        callbacks: ``CallbackList`` of this ``fit``; ``None`` in the user's own training loop.
    """
    session = None if callbacks is None else _sessions.get(callbacks)
    if session is None:
        session = FitSession(model, hooks_only=callbacks is None)
        if callbacks is not None:
            _sessions[callbacks] = session
            guard_fit(model, callbacks, session)
    session.join(member)
    return session


class ScopedCallback(paddle.callbacks.Callback):
    """Base of callbacks whose edits last for one ``fit`` and are always undone.

    Subclasses override the steps `check`, `convert`, `dry_run`, `attach`, `after_batch` and `finish`; each runs for all
    callbacks before the next begins. Edits are registered on the ``scope`` that a step receives, as context managers or
    undo functions. A subclass that keeps an edit documents it.

    Outside ``paddle.Model.fit`` (the user's own loop calls the hooks) the edits last from
    ``on_train_begin`` to ``on_train_end`` or `close`.

    Attributes:
        on_nan: Policy for a batch with a non-finite loss; ``None`` for no preference.
        guards_loss: Whether to check for such batches.
        follows_epochs: Whether it has schedules over the number of epochs.
        needs_fp32: Whether the network must not run in mixed precision.
    """

    model: paddle.Model
    params: dict[str, Any]
    on_nan: str | None = None
    guards_loss = False
    follows_epochs = False
    needs_fp32 = False

    def __init__(self) -> None:
        super().__init__()
        self._session: FitSession | None = None

    def joined(self, session: FitSession) -> None:
        """Run after joining a session, which further members may join."""

    def check(self) -> None:
        """Validate model and options before anything is changed.

        Raises:
            RuntimeError: ``model.prepare`` was not called.
            ValueError: The optimizer has parameter groups, or none of the network's parameters.
        """
        check_optimizer_parameters(prepared_optimizer(self.model), self.model.network, "The optimizer")

    def convert(self, scope: ExitStack) -> None:
        """Replace layers and register new parameters with the optimizer."""

    def dry_run(self) -> None:
        """Try later steps on a copy of the converted network, without side effects."""

    def attach(self, scope: ExitStack) -> None:
        """Register hooks and wrap the loss."""

    def after_batch(self, updated: bool) -> None:
        """Run after each training batch; ``updated``: whether the optimizer stepped."""

    def after_skipped(self, updated: bool) -> None:
        """Run after a batch skipped for a non-finite loss; `after_batch` by default."""
        self.after_batch(updated)

    def finish(self) -> None:
        """Run after ``fit`` and hapi's last checkpoint, with all edits undone."""

    @property
    def session(self) -> FitSession:
        """Return the session of the running ``fit``.

        Raises:
            RuntimeError: No training is running.
        """
        if self._session is None:
            raise RuntimeError(f"{type(self).__name__} is not in training: pass it to model.fit(callbacks=[...]).")
        return self._session

    def join(self, session: FitSession, params: dict[str, Any]) -> None:
        """Join the session of a `training_loop`, instead of hapi's setters."""
        super().set_model(session.model)
        super().set_params(params)
        self.close()
        self._session = session
        session.join(self)
        self.joined(session)

    @property
    def in_training(self) -> bool:
        """Return whether the callback is in a training that has started."""
        return self._session is not None and self._session.started

    def on_evaluated(self, epoch: int, logs: dict[str, Any], figures: dict[str, float]) -> None:
        """Receive the metrics of an evaluation in the user's own loop.

        Args:
            epoch: Current epoch, counted from 0.
            logs: Metrics of its latest batch.
            figures: Metrics of the evaluation, by name.
        """

    def leave(self) -> None:
        """Drop the reference to a closed session."""
        self._session = None

    def close(self) -> None:
        """Undo the edits of a training that was left without ``on_train_end``."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def set_model(self, model: paddle.Model) -> None:
        """Join the session of the calling ``fit`` (called by hapi)."""
        super().set_model(model)
        self.close()  # an earlier training may have ended without on_train_end
        self._session = _joined_session(self, model, calling_list())
        self._session.data = training_data()
        self.joined(self._session)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start the session: check, convert and attach (called by hapi)."""
        if self._session is None:
            self._session = _joined_session(self, self.model, None)
            self.joined(self._session)
        self._session.start(self.params)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the epoch (called by hapi)."""
        self.session.guard.epoch, self.session.guard.batch = epoch, 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the weights before hapi saves them (called by hapi)."""
        if self.guards_loss:
            self.session.guard.check_weights()

    def on_train_batch_begin(self, step: int, logs: dict[str, Any] | None = None) -> None:
        """Keep ``logs``, which the batch's metrics are written to (called by hapi)."""
        self.session.logs, self.session.guard.batch = logs, step

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Undo the edits (called by hapi).

        Inside ``fit``, `finish` follows hapi's own last checkpoint.
        """
        session = self.session
        session.close(late=False)
        if session.hooks_only:
            self._session = None
            session.finish()
