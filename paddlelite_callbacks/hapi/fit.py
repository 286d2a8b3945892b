"""Observe the begin, the batches and the end of one ``fit`` call."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import paddle
from paddle import Tensor

from paddlelite_callbacks.hapi.attribute import instance_attribute
from paddlelite_callbacks.utils.private_names import require_private
from paddlelite_callbacks.workarounds.data_loader import ended_with_the_epoch

__all__ = [
    "FitGuard",
    "SkipBatch",
    "around_train_batch",
    "calling_list",
    "guard_fit",
    "in_use_by",
    "shown_metrics",
    "skippable_batches",
    "training_data",
]


if TYPE_CHECKING:
    from paddle.hapi.callbacks import CallbackList

_BEGINS = ("on_train_begin", "on_eval_begin", "on_predict_begin")
_NEEDED_FOR = "A callback in Model.fit"


class FitGuard(Protocol):
    """Receives the end of a ``fit``."""

    def close(self) -> None:
        """Undo all edits, also after an exception or Ctrl-C; may be called twice."""

    def finish(self) -> None:
        """Run after ``on_train_end`` of all callbacks and hapi's last checkpoint."""

    def evaluates_on(self, data_loader: Any) -> None:
        """Receive the loader of an evaluation inside ``fit``."""


def calling_list() -> CallbackList | None:
    """Return the ``CallbackList`` of the ``fit`` that calls ``set_model``.

    ``None`` outside ``fit``.

    hapi passes a callback the model but not the list that it belongs to, so this looks one frame up.
    """
    frame = sys._getframe(2)
    if frame.f_code.co_name != "set_model":
        return None
    hapi = require_private("paddle.hapi.callbacks", "CallbackList._call", needed_for=_NEEDED_FOR)
    owner = frame.f_locals.get("self")
    return owner if isinstance(owner, hapi.CallbackList) else None


def training_data() -> Any:
    """Return the training loader of the ``fit`` that calls ``set_model``.

    ``None`` outside ``fit``.

    hapi passes callbacks no data before the first batch, so this looks up the frames like `calling_list`.
    """
    frame = sys._getframe(2)
    for name in ("set_model", "config_callbacks", "fit"):
        if frame is None or frame.f_code.co_name != name:
            return None
        found, frame = frame.f_locals.get("train_loader"), frame.f_back  # type: ignore[assignment]
    return found


def guard_fit(model: paddle.Model, callbacks: CallbackList, guard: FitGuard) -> None:
    """Notify ``guard`` however ``fit`` ends: hapi has no ``try/finally`` around it.

    After an exception or Ctrl-C in any hook, batch or data loader, ``guard.close()`` runs before the exception is
    raised further, and worker processes and threads of data loaders are shut down (see `ended_with_the_epoch`), in
    ``evaluate`` and ``predict`` too. The guard is attached to ``callbacks``, which hapi creates for each ``fit``; if a
    fit ends between two calls of hapi's own (Ctrl-C there), the guard is closed when ``callbacks`` is freed, which the
    traceback holds.

    Args:
        model: Model whose ``fit`` runs.
        callbacks: hapi's list of this ``fit``.
        guard: Object to notify.
    """
    require_private("paddle.hapi.model", "Model._run_one_epoch", needed_for=_NEEDED_FOR)
    call_hooks, run_epoch, ours = type(callbacks)._call, type(model)._run_one_epoch, weakref.ref(callbacks)
    # not callbacks._call: a bound method would keep the list alive in a cycle
    begun: list[str] = []  # outermost of train, eval, predict

    def left() -> None:
        if vars(model).get("_run_one_epoch") is run_one_epoch:
            del model._run_one_epoch
        guard.close()

    def call(name: str, *args: Any) -> None:
        try:
            if name in _BEGINS and (name == "on_train_begin" or "_run_one_epoch" not in vars(model)):
                model._run_one_epoch, begun[:] = run_one_epoch, [name.replace("begin", "end")]
            call_hooks(ours(), name, *args)
            if name in begun:
                model.__dict__.pop("_run_one_epoch", None)
            if name == "on_train_end":
                guard.finish()
                finalizer.detach()  # Python ignores exceptions in finalizers, Ctrl-C too
        except BaseException:
            left()
            raise

    def run_one_epoch(data_loader: Any, callbacks: CallbackList, *args: Any, **kwargs: Any) -> Any:
        if callbacks is not ours():
            return run_epoch(model, data_loader, callbacks, *args, **kwargs)
        try:
            if (args[0] if args else kwargs.get("mode")) == "eval":
                guard.evaluates_on(data_loader)
            with ended_with_the_epoch(data_loader) as loader:
                return run_epoch(model, loader, callbacks, *args, **kwargs)
        except BaseException:
            left()
            raise

    callbacks._call = call
    finalizer = weakref.finalize(callbacks, left)


def in_use_by(parameters: Sequence[Tensor]) -> str | None:
    """Return the optimizer or ``DataParallel`` that holds a parameter, or ``None``.

    Such a holder would continue with the old parameters when layers are replaced. It is searched among all objects of
    the process, since a network does not know its optimizer.
    """
    wanted = {id(parameter) for parameter in parameters}
    gc.collect()  # an unused optimizer may wait in a cycle
    for holder in gc.get_objects():
        kind = type(holder)  # isinstance would import lazy modules
        if issubclass(kind, paddle.optimizer.Optimizer):
            groups = getattr(holder, "_parameter_list", None) or []
            held = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
        elif issubclass(kind, paddle.DataParallel):
            held = holder.parameters()
        else:
            continue
        if any(id(parameter) in wanted for parameter in held):
            return kind.__name__
    return None


@contextmanager
def around_train_batch(
    model: paddle.Model, after: Callable[[bool], None], *, before: Callable[[Any, Any], None]
) -> Iterator[None]:
    """Call functions before and after every ``model.train_batch`` in the block.

    ``after`` runs before any ``on_train_batch_end``.

    Args:
        model: hapi model.
        before: Receives inputs and labels of the batch.
        after: Receives whether the optimizer took a step (``False`` while gradients are accumulated).
    """
    original = model.train_batch

    def train_batch(inputs: Any, labels: Any = None, update: bool = True) -> Any:
        before(inputs, labels)
        result = original(inputs, labels, update)
        after(update)
        return result

    with instance_attribute(model, "train_batch", train_batch):
        yield


class SkipBatch(Exception):
    """Raised inside the loss to skip a batch: no backward pass, no metrics.

    Args:
        losses: Losses that hapi shows.
    """

    def __init__(self, losses: list[Tensor]) -> None:
        super().__init__("The loss function asks to skip this batch.")
        self.losses = losses


@contextmanager
def skippable_batches(
    model: paddle.Model, *, before: Callable[[Any, Any], None], skipped: Callable[[bool], None]
) -> Iterator[None]:
    """Let the loss skip a batch by raising `SkipBatch`, inside the block.

    Gradients accumulated by earlier batches are kept, and the optimizer steps with them when due. The loss scaling of
    mixed precision ignores a skipped batch.

    Args:
        model: hapi model.
        before: Receives inputs and labels of each batch.
        skipped: Receives whether the optimizer took a step with the gradients of earlier batches.
    """
    original, waiting = model.train_batch, False

    def train_batch(inputs: Any, labels: Any = None, update: bool = True) -> Any:
        nonlocal waiting
        before(inputs, labels)
        try:
            result = original(inputs, labels, update)
        except SkipBatch as left_out:
            steps = update and waiting
            if steps:
                _step(model)
            waiting = waiting and not update
            skipped(steps)
            return _shown(model, left_out.losses)
        waiting = not update
        return result

    with instance_attribute(model, "train_batch", train_batch):
        yield


def _step(model: paddle.Model) -> None:
    """Apply accumulated gradients as hapi does after a backward pass."""
    unused = paddle.zeros([1], dtype="float32")  # minimize() requires a loss; its gradients exist already
    if model._adapter._amp_level != "O0" and model._scaler is not None:
        model._scaler.minimize(model._optimizer, unused)
    else:
        model._optimizer.minimize(unused)
    model.network.clear_gradients()


def _shown(model: paddle.Model, losses: list[Tensor]) -> Any:
    values = [np.asarray(loss.detach().astype("float32").numpy()) for loss in losses]
    return (values, [metric.accumulate() for metric in model._metrics]) if model._metrics else values


@contextmanager
def shown_metrics(params: dict[str, Any], names: Sequence[str]) -> Iterator[None]:
    """Show metrics of ``logs`` in hapi's progress bar and VisualDL inside the block.

    Args:
        params: Dictionary of ``Callback.params``; hapi shares its ``"metrics"`` list among all callbacks.
        names: Keys of ``logs``.
    """
    metrics: list[str] = params.get("metrics", [])
    added = [name for name in names if name not in metrics]
    metrics.extend(added)
    try:
        yield
    finally:
        for name in added:
            metrics.remove(name)
