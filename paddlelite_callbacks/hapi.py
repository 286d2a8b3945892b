"""The bridge to hapi: the only module that touches private attributes of ``paddle.Model`` or of an optimizer.

Every edit is a context manager that undoes itself, or (`guard_fit`) ends with the ``fit`` call it serves.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor
from paddle.hapi.callbacks import CallbackList
from paddle.io.dataloader.collate import default_collate_fn

__all__ = [
    "FitGuard",
    "alongside_checkpoints",
    "amp_level",
    "amp_options",
    "around_train_batch",
    "calling_list",
    "guard_fit",
    "in_use_by",
    "input_count",
    "input_specs",
    "labels_through",
    "metrics_of",
    "optimizer_state_of",
    "prepared_optimizer",
    "rate_scheduler_of",
    "replaced_loss",
    "scaled_learning_rate",
    "set_optimizer_state_of",
    "shown_metrics",
    "task_loss_of",
    "trained_also",
    "training_data",
]

LossFunction = Callable[..., Any]


class FitGuard(Protocol):
    """What `guard_fit` tells its owner."""

    def close(self) -> None:
        """``fit`` was left by an exception or Ctrl-C: undo all edits. Also called on an already closed one."""

    def finish(self) -> None:
        """``on_train_end`` of all callbacks is done, hapi's last checkpoint is written."""

    def evaluates_on(self, data_loader: Any) -> None:
        """An evaluation inside ``fit`` begins, over the batches of ``data_loader``."""


def calling_list() -> CallbackList | None:
    """Return the ``CallbackList`` of the ``fit`` that is calling the caller's ``set_model``; ``None`` elsewhere.

    hapi hands a callback the model but not the list that it belongs to, so this looks one frame up.
    """
    frame = sys._getframe(2)
    owner = frame.f_locals.get("self")
    return owner if isinstance(owner, CallbackList) and frame.f_code.co_name == "set_model" else None


def training_data() -> Any:
    """Return the loader that the ``fit`` calling the caller's ``set_model`` reads; ``None`` elsewhere.

    hapi tells callbacks nothing of the data before the first batch, so this looks up the frames like `calling_list`.
    """
    frame = sys._getframe(2)
    for name in ("set_model", "config_callbacks", "fit"):
        if frame is None or frame.f_code.co_name != name:
            return None
        found, frame = frame.f_locals.get("train_loader"), frame.f_back  # type: ignore[assignment]
    return found


def guard_fit(model: paddle.Model, callbacks: CallbackList, guard: FitGuard) -> None:
    """Tell ``guard`` how the ``fit`` that uses ``callbacks`` ends: hapi has no ``try/finally`` around it.

    After an exception or Ctrl-C in any hook, batch or data loader, ``guard.close()`` runs before the exception goes on.
    What is put in place ends with ``callbacks``, which hapi makes anew for each ``fit``; should one end between two
    calls of hapi's own, the guard is closed when ``callbacks`` is freed.
    """
    call_hooks, run_epoch, ours = callbacks._call, type(model)._run_one_epoch, weakref.ref(callbacks)

    @contextmanager
    def closing() -> Iterator[None]:
        try:
            yield
        except BaseException:
            model.__dict__.pop("_run_one_epoch", None)
            guard.close()
            raise

    def call(name: str, *args: Any) -> None:
        if name == "on_train_begin":
            model._run_one_epoch = run_one_epoch
        with closing():
            call_hooks(name, *args)
        if name == "on_train_end":
            model.__dict__.pop("_run_one_epoch", None)
            guard.finish()

    def run_one_epoch(data_loader: Any, callbacks: CallbackList, *args: Any, **kwargs: Any) -> Any:
        with closing() if callbacks is ours() else nullcontext():
            if callbacks is ours() and (args[0] if args else kwargs.get("mode")) == "eval":
                guard.evaluates_on(data_loader)
            return run_epoch(model, data_loader, callbacks, *args, **kwargs)

    callbacks._call = call
    weakref.finalize(callbacks, guard.close)


def in_use_by(parameters: Sequence[Tensor]) -> str | None:
    """Say which living optimizer or ``DataParallel`` holds one of ``parameters``; ``None`` if none does.

    Such a holder would go on with the old parameters when layers are swapped. It is looked for among all objects of
    the process, since a network does not know who trains it.
    """
    wanted = {id(parameter) for parameter in parameters}
    gc.collect()  # an optimizer that nobody has any more may wait in a cycle
    for holder in gc.get_objects():
        kind = type(holder)  # isinstance would wake lazily imported modules
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


def task_loss_of(model: paddle.Model) -> LossFunction:
    """Return the loss given to ``model.prepare``.

    Raises:
        RuntimeError: there is none.
    """
    if model._loss is None:
        raise RuntimeError(
            "The model has no loss, so there is nothing to train on: call model.prepare(optimizer, loss) before fit()."
        )
    return model._loss


def prepared_optimizer(model: paddle.Model) -> paddle.optimizer.Optimizer:
    """Return the optimizer given to ``model.prepare``.

    Raises:
        RuntimeError: there is none.
        ValueError: it was made with parameter groups (dicts), which hapi's ``fit`` cannot use.
    """
    optimizer = model._optimizer
    if optimizer is None:
        raise RuntimeError("The model has no optimizer: call model.prepare(optimizer, loss) before fit().")
    parameters = optimizer._parameter_list or []
    if any(isinstance(group, dict) for group in parameters):
        raise ValueError(
            f"The optimizer {type(optimizer).__name__} was made with {len(parameters)} parameter groups, which "
            "paddle.Model.fit cannot use: pass parameters=network.parameters() and give single parameters their own "
            "rate with paddle.ParamAttr(learning_rate=...)."
        )
    return optimizer


def amp_level(model: paddle.Model) -> str:
    """Return the level of mixed precision given to ``model.prepare``: ``"O0"`` (none), ``"O1"`` or ``"O2"``."""
    return str(getattr(model._adapter, "_amp_level", "O0"))


def amp_options(model: paddle.Model) -> dict[str, Any]:
    """Return the options of the ``GradScaler`` given to ``model.prepare``."""
    return dict(getattr(model._adapter, "_amp_configs", {}))


def input_specs(model: paddle.Model, loader: Any = None) -> list[tuple[list[int | None], str]] | None:
    """Return the shapes and types of the network's inputs, where they are known before a batch is seen.

    Known are those given to ``paddle.Model`` as ``InputSpec``, those of an earlier batch, and, with a loader that
    stacks the samples of a map-style data set, those of its first sample. Free sizes are ``None``.

    Args:
        model: the hapi model.
        loader: of the training data. Its data set is asked for sample 0: guard the random streams.

    Returns:
        ``(shape, dtype)`` per input, batch included, or ``None`` if nothing but their number is known.
    """
    specs = list(model._inputs or [])
    if not specs or any(len(spec.shape) < 2 for spec in specs):
        return _specs_of_sample(loader, len(specs))
    return [([None if size in (None, -1) else int(size) for size in spec.shape], str(spec.dtype)) for spec in specs]


def _specs_of_sample(loader: Any, inputs: int) -> list[tuple[list[int | None], str]] | None:
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "batch_sampler", None)
    stacks = sampler is not None and getattr(loader, "collate_fn", None) in (None, default_collate_fn)
    if dataset is None or not stacks or isinstance(dataset, paddle.io.IterableDataset):
        return None
    try:
        sample = dataset[0]
    except Exception:  # the loader will meet it, and say so
        return None
    fields = list(sample)[:inputs] if isinstance(sample, (list, tuple)) else [sample]
    if len(fields) != inputs or not all(isinstance(field, (np.ndarray, Tensor)) for field in fields):
        return None
    return [([getattr(sampler, "batch_size", None), *field.shape], str(field.dtype)) for field in fields]


def input_count(model: paddle.Model) -> int:
    """Return how many items of a batch go to the network; the others are labels."""
    return len(model._inputs or [None])


def metrics_of(model: paddle.Model) -> list[paddle.metric.Metric]:
    """Return the metrics given to ``model.prepare``."""
    return list(model._metrics or [])


def rate_scheduler_of(optimizer: paddle.optimizer.Optimizer) -> paddle.optimizer.lr.LRScheduler | None:
    """Return the learning rate scheduler of ``optimizer``, if it has one."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, paddle.optimizer.lr.LRScheduler) else None


def optimizer_state_of(
    optimizer: paddle.optimizer.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Return copies of the accumulators (moments, velocities) of single parameters, by names of the caller's own.

    ``optimizer.state_dict()`` is keyed by automatic parameter names, which another process may give to others.

    Args:
        optimizer: that trains them.
        parameters: by a name that is stable across processes.
    """
    by_name = {parameter.name: key for key, parameter in parameters.items()}
    state: dict[str, dict[str, Tensor]] = {}
    for accumulator, held in optimizer._accumulators.items():
        for name, value in held.items():
            if name in by_name:
                state.setdefault(by_name[name], {})[accumulator] = value.detach().clone()
    for name, value in optimizer._master_weights.items():
        if name in by_name:
            state.setdefault(by_name[name], {})["master_weight"] = value.detach().clone()
    return state


def set_optimizer_state_of(
    optimizer: paddle.optimizer.Optimizer, parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give single parameters the accumulators that `optimizer_state_of` returned; those without any are left.

    Args:
        optimizer: of the same class as then.
        parameters: as then.
        state: as returned.
    """
    chosen = {key: parameter for key, parameter in parameters.items() if key in state}
    _create_accumulators(optimizer, list(chosen.values()))
    for key, parameter in chosen.items():
        for accumulator, value in state[key].items():
            is_master = accumulator == "master_weight"
            held = optimizer._master_weights if is_master else optimizer._accumulators.get(accumulator, {})
            if parameter.name in held:
                held[parameter.name].set_value(value)


def _create_accumulators(optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Make the accumulators of ``parameters``, of those too that a loaded optimizer state does not know.

    A loaded state waits in the optimizer, which then refuses every parameter that is missing in it.
    """
    waiting, optimizer._accumulators_holder = optimizer._accumulators_holder, {}
    try:
        block = paddle.static.default_main_program().global_block()
        optimizer._create_accumulators(block, list(parameters))
    finally:
        optimizer._accumulators_holder = waiting
    names = {parameter.name for parameter in parameters}
    for held in optimizer._accumulators.values():
        for name in names & set(held):
            value = waiting.get(held[name].name)
            if value is not None and list(value.shape) == list(held[name].shape):
                held[name].set_value(waiting.pop(held[name].name))


def _drop_accumulators(optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        for held in optimizer._accumulators.values():
            held.pop(parameter.name, None)
        optimizer._master_weights.pop(parameter.name, None)
        optimizer._already_create_accumulator.discard(parameter.name)


@contextmanager
def alongside_checkpoints(model: paddle.Model, write: Callable[[str], None]) -> Iterator[None]:
    """Call ``write(path)`` behind every ``model.save(path)`` for training inside the block, on rank 0.

    Args:
        model: the hapi model.
        write: receives the prefix, to which hapi itself appends ``.pdparams`` and ``.pdopt``.
    """
    original = model.save

    def save(path: str, training: bool = True) -> None:
        original(path, training)
        if training and paddle.distributed.get_rank() == 0:
            write(path)

    with _instance_attribute(model, "save", save):
        yield


@contextmanager
def labels_through(model: paddle.Model, through: Callable[[list[Any], list[Any]], list[Any]]) -> Iterator[None]:
    """Let ``model.train_batch`` see ``through(inputs, labels)`` for its labels inside the block.

    Args:
        model: the hapi model.
        through: receives the batch's inputs and labels; what it returns reaches the loss and the metrics.
    """
    original = model.train_batch

    def train_batch(inputs: Any, labels: Any = None, update: bool = True) -> Any:
        return original(inputs, through(_listed(inputs), _listed(labels)), update)

    with _instance_attribute(model, "train_batch", train_batch):
        yield


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


@contextmanager
def replaced_loss(model: paddle.Model, wrap: Callable[[LossFunction], LossFunction]) -> Iterator[None]:
    """Let ``model`` use ``wrap(its loss)`` inside the block.

    hapi calls the loss with ``*outputs, *labels``, in training outside ``auto_cast``, and in evaluation too.
    """
    original = task_loss_of(model)
    model._loss = wrap(original)
    try:
        yield
    finally:
        model._loss = original


@contextmanager
def around_train_batch(model: paddle.Model, after: Callable[[bool], None]) -> Iterator[None]:
    """Call ``after(updated)`` behind every ``model.train_batch`` inside the block, before any ``on_train_batch_end``.

    Args:
        model: the hapi model.
        after: receives whether the optimizer took a step (``False`` while gradients are accumulated).
    """
    original = model.train_batch

    def train_batch(inputs: Any, labels: Any = None, update: bool = True) -> Any:
        result = original(inputs, labels, update)
        after(update)
        return result

    with _instance_attribute(model, "train_batch", train_batch):
        yield


@contextmanager
def trained_also(
    optimizer: paddle.optimizer.Optimizer, parameters: Sequence[Tensor], *, keep: Callable[[], bool]
) -> Iterator[None]:
    """Add ``parameters`` to those that ``optimizer`` updates; the accumulators of the others are kept.

    Taken out again, they leave no accumulators behind, so that later checkpoints do not hold any.

    Args:
        optimizer: not one with parameter groups, see `prepared_optimizer`.
        parameters: those not yet known to the optimizer are added.
        keep: asked at the end of the block; ``False`` takes the added ones out again.

    Raises:
        ValueError: a fused (``use_multi_tensor=True``) optimizer that has already taken steps cannot be extended.
    """
    known = optimizer._parameter_list
    if known is None:
        raise ValueError(
            f"The optimizer {type(optimizer).__name__} has no parameter list: pass parameters=network.parameters()."
        )
    held = {id(parameter) for parameter in known}
    added = [parameter for parameter in parameters if id(parameter) not in held]
    if added and getattr(optimizer, "_use_multi_tensor", False) and optimizer._accumulators:
        raise ValueError(
            f"{type(optimizer).__name__}(use_multi_tensor=True) has already taken steps and cannot take new "
            "parameters: make a new optimizer, or leave use_multi_tensor off."
        )
    known.extend(added)
    if added and optimizer._accumulators_holder:  # a loaded state, which would refuse what it does not know
        _create_accumulators(optimizer, added)
    try:
        yield
    finally:
        if not keep():
            gone = {id(parameter) for parameter in added}
            known[:] = [parameter for parameter in known if id(parameter) not in gone]
            _drop_accumulators(optimizer, added)


@contextmanager
def shown_metrics(params: dict[str, Any], names: Sequence[str]) -> Iterator[None]:
    """Let hapi's progress bar and VisualDL show the figures ``names`` of ``logs`` inside the block.

    Args:
        params: the dictionary of ``Callback.params``; hapi shares its ``"metrics"`` list among all callbacks.
        names: keys of ``logs``.
    """
    metrics: list[str] = params.get("metrics", [])
    added = [name for name in names if name not in metrics]
    metrics.extend(added)
    try:
        yield
    finally:
        for name in added:
            metrics.remove(name)


class _ScaledSchedule(paddle.optimizer.lr.LRScheduler):
    """Stands in for the user's scheduler: the same object in all but the rate that the optimizer reads."""

    def __init__(self, schedule: paddle.optimizer.lr.LRScheduler, factor: float) -> None:
        self.__dict__.update(schedule=schedule, factor=factor)  # no __init__ of the parent: it would take a step

    def __call__(self) -> float:
        return self.factor * self.schedule()

    def __getattribute__(self, name: str) -> Any:
        if name in ("__dict__", "__class__", "schedule", "factor"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "schedule"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.schedule, name, value)


@contextmanager
def scaled_learning_rate(optimizer: paddle.optimizer.Optimizer, factor: float) -> Iterator[None]:
    """Let ``optimizer`` use ``factor`` times its learning rate, or its scheduler's, inside the block.

    A scheduler goes on stepping as it would, by hapi or by the user, and is saved as it is. A rate that was changed
    with ``set_lr`` inside the block is divided by ``factor`` at its end.
    """
    before = optimizer._learning_rate
    if factor == 1:
        yield
        return
    scheduled = isinstance(before, paddle.optimizer.lr.LRScheduler)
    if scheduled:
        optimizer._learning_rate = _ScaledSchedule(before, factor)
    else:
        optimizer.set_lr(before * factor)
        scaled = optimizer._learning_rate
    try:
        yield
    finally:
        if scheduled:
            optimizer._learning_rate = before
        else:
            optimizer.set_lr(before if optimizer._learning_rate == scaled else optimizer.get_lr() / factor)


@contextmanager
def _instance_attribute(instance: Any, name: str, value: Any) -> Iterator[None]:
    had = name in vars(instance)
    before = vars(instance).get(name)
    setattr(instance, name, value)
    try:
        yield
    finally:
        if had:
            setattr(instance, name, before)
        else:
            vars(instance).pop(name, None)
