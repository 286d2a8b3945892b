"""Base class of all callbacks of this package."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import paddle

from paddlelite_callbacks.callbacks.session import FitSession, joined_session
from paddlelite_callbacks.hapi import calling_list, check_optimizer_parameters, prepared_optimizer, training_data

__all__ = ["ScopedCallback"]


class ScopedCallback(paddle.callbacks.Callback):
    """A hapi callback whose edits last for one ``fit`` and are always undone.

    Subclasses override the steps of `Member`: `check`, `convert`, `dry_run`, `attach`, `after_batch`, `finish`. An
    edit goes on the ``scope`` that a step is given, as a context manager or an undo function. A subclass that keeps an
    edit says in its docstring which.

    Outside ``paddle.Model.fit`` (a training loop of one's own that calls the hooks) the edits last from
    ``on_train_begin`` to ``on_train_end`` or `close`.
    """

    model: paddle.Model
    params: dict[str, Any]
    on_nan: str | None = None
    guards_loss = False

    def __init__(self) -> None:
        super().__init__()
        self._session: FitSession | None = None

    def check(self) -> None:
        """Validate model and options before anything is changed.

        Raises:
            RuntimeError: ``model.prepare`` was not called.
            ValueError: the optimizer has parameter groups, or none of the network's parameters.
        """
        check_optimizer_parameters(prepared_optimizer(self.model), self.model.network, "The optimizer")

    def convert(self, scope: ExitStack) -> None:
        """Replace layers and register new parameters with the optimizer."""

    def dry_run(self) -> None:
        """Try on a copy of the converted network what comes after training."""

    def attach(self, scope: ExitStack) -> None:
        """Register hooks and wrap the loss."""

    def after_batch(self, updated: bool) -> None:
        """Run after each training batch.

        ``updated`` says whether the optimizer took a step.
        """

    def after_skipped(self, updated: bool) -> None:
        """Run after a batch that was skipped for a non-finite loss; `after_batch` by default."""
        self.after_batch(updated)

    def finish(self) -> None:
        """Run once ``fit`` has ended well and every scoped edit is undone."""

    @property
    def session(self) -> FitSession:
        """Return the session of the running ``fit``.

        Raises:
            RuntimeError: no training is under way.
        """
        if self._session is None:
            raise RuntimeError(f"{type(self).__name__} is not in training: pass it to model.fit(callbacks=[...]).")
        return self._session

    def close(self) -> None:
        """Undo the edits of a training that was left without ``on_train_end``."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def set_model(self, model: paddle.Model) -> None:
        """Join the session of the calling ``fit`` (called by hapi)."""
        super().set_model(model)
        self.close()  # heals a training that was left without a word
        self._session = joined_session(self, model, calling_list())
        self._session.data = training_data()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start the session: check, convert and attach (called by hapi)."""
        if self._session is None:
            self._session = joined_session(self, self.model, None)
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
        if session.own_loop:
            self._session = None
            session.finish()
