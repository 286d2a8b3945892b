"""Bridge to hapi: all accesses to private attributes of model and optimizer.

Every edit is a context manager that undoes itself, or (`guard_fit`) ends with the ``fit`` call it serves.
"""

from __future__ import annotations

from paddlelite_callbacks.hapi.attribute import instance_attribute
from paddlelite_callbacks.hapi.checkpoints import WEIGHTS, alongside_checkpoints, whole_checkpoints
from paddlelite_callbacks.hapi.fit import (
    FitGuard,
    SkipBatch,
    around_train_batch,
    calling_list,
    guard_fit,
    in_use_by,
    shown_metrics,
    skippable_batches,
    training_data,
)
from paddlelite_callbacks.hapi.loop import LoopModel, unknown_loss
from paddlelite_callbacks.hapi.model import (
    LossFunction,
    amp_level,
    amp_options,
    check_data,
    evaluates_in_fit,
    input_count,
    input_specs,
    labels_through,
    metric_names,
    metrics_of,
    prepared_optimizer,
    replaced_loss,
    sample_inputs,
    task_loss_of,
)
from paddlelite_callbacks.hapi.optimizer import (
    check_optimizer_parameters,
    normalizes_gradients,
    optimizer_state_of,
    rate_scheduler_of,
    scaled_learning_rate,
    set_optimizer_state_of,
    trained_also,
    undecayed,
)

__all__ = [
    "WEIGHTS",
    "FitGuard",
    "LoopModel",
    "LossFunction",
    "SkipBatch",
    "alongside_checkpoints",
    "amp_level",
    "amp_options",
    "around_train_batch",
    "calling_list",
    "check_data",
    "check_optimizer_parameters",
    "evaluates_in_fit",
    "guard_fit",
    "in_use_by",
    "input_count",
    "input_specs",
    "instance_attribute",
    "labels_through",
    "metric_names",
    "metrics_of",
    "normalizes_gradients",
    "optimizer_state_of",
    "prepared_optimizer",
    "rate_scheduler_of",
    "replaced_loss",
    "sample_inputs",
    "scaled_learning_rate",
    "set_optimizer_state_of",
    "shown_metrics",
    "skippable_batches",
    "task_loss_of",
    "trained_also",
    "training_data",
    "undecayed",
    "unknown_loss",
    "whole_checkpoints",
]
