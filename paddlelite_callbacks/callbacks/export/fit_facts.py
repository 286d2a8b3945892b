"""Collect what the export needs of a finished ``fit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.static import InputSpec

from paddlelite_callbacks.callbacks.export.pipeline import Evaluation
from paddlelite_callbacks.callbacks.session import FitSession
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.hapi import input_count, metrics_of, prepared_optimizer, task_loss_of
from paddlelite_callbacks.nn.surgery import unwrapped
from paddlelite_callbacks.report.budget import Budget, stored_budget
from paddlelite_callbacks.report.provenance import plain_options, retraining_config
from paddlelite_callbacks.workarounds.data_loader import loader_of

__all__ = ["batch_specs", "file_evaluation", "fit_config"]


def batch_specs(
    given: Sequence[InputSpec] | None,
    sample: Sequence[np.ndarray],
    *,
    rows: int | None,
    used: Sequence[int] | None = None,
) -> Sequence[InputSpec]:
    """Return the specs of the files' inputs: the given ones, or those of ``sample``.

    Args:
        given: Specs of the user: one per input of the network, or per input that it uses in eval mode.
        sample: Batch of each input of the files.
        rows: Fixed batch size of the files; ``None`` keeps that of the specs.
        used: Indices of these among the network's inputs; ``None`` for all.

    Raises:
        ExportError: The number of specs differs from the number of inputs.
    """
    specs = given
    if specs is not None and len(specs) != len(sample):
        if used is None or len(specs) <= max(used):
            raise ExportError(
                f"input_spec has {len(specs)} specs, and the network uses {len(sample)} inputs in eval mode "
                f"({[list(item.shape) for item in sample]}): give one spec for each of these, or leave input_spec out."
            )
        specs = [specs[i] for i in used]
    if specs is None:
        specs = [InputSpec([None, *item.shape[1:]], dtype=str(item.dtype)) for item in sample]
    if rows is None:
        return specs
    return [InputSpec([rows, *spec.shape[1:]], dtype=spec.dtype, name=spec.name) for spec in specs]


def file_evaluation(
    model: paddle.Model, data: Any, *, batch_size: int, used: Sequence[int] | None = None
) -> Evaluation | None:
    """Return the evaluation of the files; ``None`` without data or metrics.

    Args:
        model: Prepared model.
        data: Data set, loader, or any iterable of batches; ``None`` or ``False`` for none.
        batch_size: Images per batch, for a data set.
        used: Indices of the network's inputs that the files take; ``None`` for all.
    """
    metrics = metrics_of(model)
    if data is None or data is False or not metrics:
        return None
    return Evaluation(
        metrics=metrics, batches=lambda: loader_of(data, batch_size=batch_size), inputs=input_count(model), used=used
    )


def fit_config(
    model: paddle.Model, params: Mapping[str, Any] | None, session: FitSession | None, budget: Budget | None
) -> dict[str, Any]:
    """Return the settings needed to train again, see `retraining_config`.

    For a network that was trained before, the settings needed to export it again.

    Args:
        model: Prepared model.
        params: ``Callback.params`` of hapi.
        session: Session of the ``fit``, with this package's callbacks; ``None`` without a ``fit``.
        budget: Budget of the gate.
    """
    network, held = type(unwrapped(model.network)).__name__, None if budget is None else stored_budget(budget)
    if session is None:
        return retraining_config(network=network, budget=held)
    optimizer, loss = prepared_optimizer(model), task_loss_of(model)
    return retraining_config(
        network=network,
        optimizer={"class": type(optimizer).__name__, "learning_rate": float(optimizer.get_lr())},
        loss=getattr(loss, "__name__", type(loss).__name__),
        fit={key: value for key, value in (params or {}).items() if key in ("epochs", "batch_size", "steps")},
        callbacks=[plain_options(member) for member in session.members],
        budget=held,
    )
