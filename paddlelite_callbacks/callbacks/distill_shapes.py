"""Outputs and features that do not fit, found before training begins: the networks are run on zeros."""

from __future__ import annotations

from typing import Any

import paddle

from paddlelite_callbacks.callbacks.distill_sources import Source, layers_to_tap
from paddlelite_callbacks.distill.dry_run import InputSpecs, seen_on_zeros
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.hapi import input_specs
from paddlelite_callbacks.random_streams import same_random_streams

__all__ = ["refuse_misfits"]


def refuse_misfits(model: paddle.Model, objective: Objective, source: Source, data: Any) -> None:
    """Refuse what ``objective`` cannot compare, if the inputs' sizes are known.

    Args:
        model: holds the student.
        objective: names outputs and features.
        source: of the teachers.
        data: the loader of the training data, if known.

    Raises:
        ValueError: names both shapes, and the terms.
    """
    with same_random_streams():
        specs = input_specs(model, data)
    if specs is None:
        return
    try:
        _refuse(model, objective, source, specs, hooks=False)
    except ValueError:
        _refuse(model, objective, source, specs, hooks=True)  # a hook of the user's may be what makes it fit


def _refuse(model: paddle.Model, objective: Objective, source: Source, specs: InputSpecs, *, hooks: bool) -> None:
    mine, theirs = layers_to_tap(objective, len(objective.teacher_weights))
    student = seen_on_zeros(model.network, specs, mine, training=True, hooks=hooks)
    teachers = source.seen_on_zeros(specs, theirs, hooks)
    if student is not None and teachers is not None:
        objective.refuse_misfits(student, teachers)
