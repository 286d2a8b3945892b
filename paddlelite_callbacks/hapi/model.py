"""Read what ``paddle.Model`` was prepared with, and its input data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from paddlelite_callbacks.hapi.attribute import instance_attribute
from paddlelite_callbacks.hapi.loop import LoopModel
from paddlelite_callbacks.nn.attributes import same_attributes
from paddlelite_callbacks.nn.nested import listed
from paddlelite_callbacks.utils.isolation import same_generators
from paddlelite_callbacks.workarounds.data_loader import default_collate, known_length

__all__ = [
    "LossFunction",
    "amp_level",
    "amp_options",
    "check_data",
    "evaluates_in_fit",
    "input_count",
    "input_specs",
    "labels_through",
    "metrics_of",
    "prepared_optimizer",
    "replaced_loss",
    "sample_inputs",
    "task_loss_of",
]


LossFunction = Callable[..., Any]


def task_loss_of(model: paddle.Model) -> LossFunction:
    """Return the loss given to ``model.prepare``.

    Raises:
        RuntimeError: The model has no loss.
    """
    if model._loss is None:
        raise RuntimeError(
            "The model has no loss, so there is nothing to train on: call model.prepare(optimizer, loss) before fit()."
        )
    return model._loss


def prepared_optimizer(model: paddle.Model) -> paddle.optimizer.Optimizer:
    """Return the optimizer given to ``model.prepare``.

    Raises:
        RuntimeError: The model has no optimizer.
        ValueError: The optimizer has parameter groups (dicts), which hapi's ``fit`` cannot use.
    """
    optimizer = model._optimizer
    if optimizer is None:
        raise RuntimeError("The model has no optimizer: call model.prepare(optimizer, loss) before fit().")
    parameters = optimizer._parameter_list or []
    if any(isinstance(group, dict) for group in parameters) and not isinstance(model, LoopModel):
        raise ValueError(
            f"The optimizer {type(optimizer).__name__} was made with {len(parameters)} parameter groups, which "
            "paddle.Model.fit cannot use: pass parameters=network.parameters() and give single parameters their own "
            "rate with paddle.ParamAttr(learning_rate=...)."
        )
    return optimizer


def amp_level(model: paddle.Model) -> str:
    """Return the AMP level of ``model.prepare``: ``"O0"``, ``"O1"`` or ``"O2"``."""
    return str(getattr(model._adapter, "_amp_level", "O0"))


def amp_options(model: paddle.Model) -> dict[str, Any]:
    """Return the options of the ``GradScaler`` given to ``model.prepare``."""
    return dict(getattr(model._adapter, "_amp_configs", {}))


def input_specs(model: paddle.Model, loader: Any = None) -> list[tuple[list[int | None], str]] | None:
    """Return shapes and dtypes of the inputs, where known before the first batch.

    Known are those given to ``paddle.Model`` as ``InputSpec``, those of an earlier batch, and, with a loader that
    stacks the samples of a map-style data set, those of its first sample. Dynamic sizes are ``None``.

    Args:
        model: hapi model.
        loader: Loader of the training data. Its sample 0 is read, so protect the random generators.

    Returns:
        ``(shape, dtype)`` per input, batch included, or ``None`` if only their number is known.
    """
    specs = list(model._inputs or [])
    if not specs or any(len(spec.shape) < 2 for spec in specs):
        return _specs_of_sample(loader, len(specs))
    return [([None if size in (None, -1) else int(size) for size in spec.shape], str(spec.dtype)) for spec in specs]


def _specs_of_sample(loader: Any, inputs: int) -> list[tuple[list[int | None], str]] | None:
    fields = _fields_of_sample(loader, inputs)
    size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if fields is None or not all(isinstance(field, (np.ndarray, Tensor)) for field in fields):
        return None
    return [([size, *field.shape], str(field.dtype)) for field in fields]


def sample_inputs(model: paddle.Model, loader: Any) -> list[np.ndarray] | None:
    """Return a batch of two copies of the first training sample's inputs.

    Args:
        model: hapi model.
        loader: Loader of the training data. Its sample 0 is read, as in `input_specs`.

    Returns:
        One array per input, or ``None`` where no sample can be read without advancing the data.
    """
    fields = _fields_of_sample(loader, input_count(model))
    if fields is None:
        return None
    arrays = [field.numpy() if isinstance(field, Tensor) else np.asarray(field) for field in fields]
    return [np.stack([array, array]) for array in arrays]


def _fields_of_sample(loader: Any, inputs: int) -> list[Any] | None:
    """Return the inputs in sample 0, without side effects on the data set.

    Its random generators and open files are restored.
    """
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "batch_sampler", None)
    stacks = sampler is not None and getattr(loader, "collate_fn", None) in (None, default_collate())
    if dataset is None or not stacks or isinstance(dataset, paddle.io.IterableDataset):
        return None
    try:
        with same_generators(dataset), same_attributes(dataset, getattr(dataset, "dataset", None)):
            sample = dataset[0]
    except Exception:  # the loader will raise it, too
        return None
    fields = list(sample)[:inputs] if isinstance(sample, (list, tuple)) else [sample]
    stacked = all(isinstance(field, (np.ndarray, Tensor, Number)) for field in fields)
    return fields if len(fields) == inputs and stacked else None


def check_data(name: str, data: Any) -> None:
    """Check that ``model.evaluate`` can read batches from the data.

    Args:
        name: Name of the argument, for the message.
        data: Data to check.

    Raises:
        TypeError: Neither a data set nor a loader nor another iterable of batches.
        ValueError: The data set is empty.
    """
    if not isinstance(data, paddle.io.Dataset) and not hasattr(data, "__iter__"):
        raise TypeError(
            f"{name} must be a paddle.io.Dataset, a DataLoader or another iterable of batches, got "
            f"{type(data).__name__}: give the evaluation data, or leave it out."
        )
    if known_length(data) == 0:
        raise ValueError(
            f"{name} is an empty {type(data).__name__} of length 0: it must hold at least one sample. Give the "
            "evaluation data, or leave it out."
        )


def input_count(model: paddle.Model) -> int:
    """Return the number of inputs in a batch; the other items are labels.

    Args:
        model: hapi model.
    """
    return len(model._inputs or [None])


def evaluates_in_fit(model: paddle.Model) -> bool:
    """Whether the running ``fit`` was given evaluation data.

    Args:
        model: hapi model, inside ``fit``.
    """
    return getattr(model, "_test_dataloader", None) is not None


def metrics_of(model: paddle.Model) -> list[paddle.metric.Metric]:
    """Return the metrics given to ``model.prepare``."""
    return list(getattr(model, "_metrics", None) or [])  # missing before prepare()


def metric_names(model: paddle.Model) -> list[str]:
    """Return the names of all metrics of ``model``."""
    names = [metric.name() for metric in metrics_of(model)]
    known = [name for entry in names for name in ([entry] if isinstance(entry, str) else entry)]
    reported = model.figures if isinstance(model, LoopModel) else ()
    return known + [name for name in reported if name not in known]


@contextmanager
def labels_through(model: paddle.Model, through: Callable[[list[Any], list[Any]], list[Any]]) -> Iterator[None]:
    """Pass the labels of ``model.train_batch`` through a function, inside the block.

    Args:
        model: hapi model.
        through: Receives inputs and labels of the batch; its result is passed to the loss and the metrics.
    """
    original = model.train_batch

    def train_batch(inputs: Any, labels: Any = None, update: bool = True) -> Any:
        return original(inputs, through(_listed(inputs), _listed(labels)), update)

    with instance_attribute(model, "train_batch", train_batch):
        yield


def _listed(value: Any) -> list[Any]:
    return [] if value is None else listed(value)


@contextmanager
def replaced_loss(model: paddle.Model, wrap: Callable[[LossFunction], LossFunction]) -> Iterator[None]:
    """Replace the model's loss by ``wrap(loss)`` inside the block.

    hapi calls the loss with ``*outputs, *labels``, in training outside ``auto_cast``, and in evaluation too.
    """
    original = task_loss_of(model)
    model._loss = wrap(original)
    try:
        yield
    finally:
        model._loss = original
