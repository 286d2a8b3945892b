"""One ``fit`` call: who takes part, in which order their edits are made, and that all of them are undone."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Any, Protocol

import paddle
from paddle import Tensor
from paddle.hapi.callbacks import CallbackList

from paddlelite_callbacks.callbacks.nan_guard.guard import FIGURE, NaNGuard, agreed_policy
from paddlelite_callbacks.hapi import around_train_batch, guard_fit, shown_metrics, whole_checkpoints
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = ["FitSession", "Member", "joined_session"]


class Member(Protocol):
    """What a session asks of a callback; each step runs for all members before the next step begins.

    Attributes:
        on_nan: what it wants done with a batch whose loss is not finite; ``None`` for no wish.
        guards_loss: whether it wants such batches looked for.
    """

    on_nan: str | None
    guards_loss: bool

    def check(self) -> None:
        """Refuse what cannot work; changes nothing."""

    def convert(self, scope: ExitStack) -> None:
        """Replace layers and tell the optimizer."""

    def dry_run(self) -> None:
        """Try on a copy of the converted network what comes after training; changes nothing, and may be interrupted."""

    def attach(self, scope: ExitStack) -> None:
        """Set hooks and wrap the loss."""

    def after_batch(self, updated: bool) -> None:
        """One training batch is done; ``updated`` says whether the optimizer took a step."""

    def after_skipped(self, updated: bool) -> None:
        """One training batch was left out; ``updated`` as above, with the gradients of earlier batches."""

    def finish(self) -> None:
        """Training came to its end, hapi's last checkpoint is written, and every scoped edit is undone."""


class FitSession:
    """The edits and the figures of one ``fit`` call.

    The result is the same for every order of the callbacks in hapi's list, because each step is run for all
    members before the next one: check, convert, dry run, attach, train, undo, finish.

    Args:
        model: in training.
        own_loop: whether a loop of the user's own calls the hooks, instead of ``fit``.

    Attributes:
        data: the loader of the training data, until the members have looked ahead; ``None`` in a loop of the user's
            own.
        eval_loader: that the latest evaluation inside this ``fit`` ran over; ``None`` before one.
        guard: against losses that are not finite.
        late: for edits that must last until hapi's ``final`` checkpoint is written, which is behind ``on_train_end``.
    """

    def __init__(self, model: paddle.Model, *, own_loop: bool = False) -> None:
        self.model = model
        self.own_loop = own_loop
        self.members: list[Member] = []
        self.started = False
        self.logs: dict[str, Any] | None = None
        self.data: Any = None
        self.eval_loader: Any = None
        self.guard = NaNGuard(model, "ignore")
        self._figures: dict[str, Tensor | float | None] = {}
        self.late = ExitStack()
        self._scope = ExitStack()
        self._failed = False

    def join(self, member: Member) -> None:
        """Take ``member`` in; ignored once the session has started, or when it is in already."""
        if not self.started and all(member is not other for other in self.members):
            self.members.append(member)

    def start(self, params: dict[str, Any]) -> None:
        """Run check, convert, dry run and attach of all members; only the first call does anything.

        Args:
            params: hapi's ``Callback.params``.
        """
        if self.started:
            return
        self.started = True
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
        self.late.enter_context(whole_checkpoints(self.model))
        self._scope.enter_context(around_train_batch(self.model, self._after_batch))
        self._scope.enter_context(self.guard.watching(self._after_skipped))  # outermost
        self._scope.enter_context(shown_metrics(params, list(self._figures)))

    def declare_figure(self, name: str) -> None:
        """Announce, while attaching, that ``logs`` will hold the figure ``name``."""
        self._figures[name] = None

    def put_figure(self, name: str, value: Tensor | float) -> None:
        """Keep the scalar ``value``; it is read (and the device waited for) behind the batch, as hapi's own are."""
        self._figures[name] = value.detach() if isinstance(value, Tensor) else value

    def drop_figure(self, name: str) -> None:
        """Take the figure ``name``, which has no value now, out of ``logs``; `put_figure` brings it back."""
        self._figures[name] = None
        if self.logs is not None:
            self.logs.pop(name, None)

    def close(self, *, late: bool = True) -> None:
        """Undo every edit, the last one first; safe to call twice. Ctrl-C waits meanwhile.

        Args:
            late: those on `late` too.
        """
        with uninterrupted():
            try:
                self._scope.close()
            finally:
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

    def _after_batch(self, updated: bool) -> None:
        for member in self.members:
            member.after_batch(updated)
        self._batch_done()

    def _after_skipped(self, updated: bool) -> None:
        for member in self.members:
            member.after_skipped(updated)
        self._batch_done()

    def _batch_done(self) -> None:
        self.guard.batch += 1
        if self.guard.policy == "skip":
            self.put_figure(FIGURE, len(self.guard.skipped))
        if self.logs is not None:
            self.logs.update({name: float(value) for name, value in self._figures.items() if value is not None})


_sessions: weakref.WeakKeyDictionary[CallbackList, FitSession] = weakref.WeakKeyDictionary()


def joined_session(member: Member, model: paddle.Model, callbacks: CallbackList | None) -> FitSession:
    """Return the session of the ``fit`` that uses ``callbacks``, with ``member`` in it; one of its own without a list.

    Args:
        member: joins, unless the session has started.
        model: in training.
        callbacks: hapi's list of this ``fit``; ``None`` in a training loop of the user's own.
    """
    session = None if callbacks is None else _sessions.get(callbacks)
    if session is None:
        session = FitSession(model, own_loop=callbacks is None)
        if callbacks is not None:
            _sessions[callbacks] = session
            guard_fit(model, callbacks, session)
    session.join(member)
    return session
