"""Resolve the options of `DistillCallback` to terms of an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paddle.nn import CrossEntropyLoss, Layer

from paddlelite_callbacks.distill.losses.logits import check_temperature, loss_for_task
from paddlelite_callbacks.distill.losses.registry import AnyLoss, spec_of
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.distill.schedules import Schedule, Weight, value_at
from paddlelite_callbacks.distill.terms import FeatureTerm, OutputTerm
from paddlelite_callbacks.nn.surgery import find_sublayer, match_sublayers
from paddlelite_callbacks.utils.numbers import is_finite

__all__ = ["Features", "Loss", "expanded", "feature_terms", "normalised", "objective_for", "output_terms"]

Loss = str | AnyLoss | OutputTerm | Mapping[str, Weight] | Sequence[Any] | None
Features = Mapping[str, str] | FeatureTerm | Sequence[FeatureTerm] | None


def output_terms(loss: Loss, *, temperature: float | None) -> list[OutputTerm] | None:
    """Return the output terms; ``None`` if the task loss chooses them.

    Args:
        loss: Argument of `DistillCallback`.
        temperature: Temperature of its tempered losses, unless a term has its own.

    Raises:
        TypeError: ``loss`` has another type.
        ValueError: Unknown loss, or a temperature for losses without one.
    """
    if temperature is not None:
        check_temperature(temperature)
    if loss is None:
        return None
    if isinstance(loss, Mapping):
        tempered = [name for name in loss if spec_of(name).tempered]
        if temperature is not None and not tempered:
            raise ValueError(f"None of the losses {list(loss)} has a temperature. Leave it out.")
        return [
            OutputTerm(name, weight, temperature=temperature if name in tempered else None)
            for name, weight in loss.items()
        ]
    entries: list[Any] = list(loss) if isinstance(loss, (list, tuple)) else [loss]
    terms = [
        _with_temperature(entry, temperature)
        if isinstance(entry, OutputTerm)
        else OutputTerm(entry, temperature=temperature)
        for entry in entries
    ]
    if temperature is not None and terms and all(term.temperature is None for term in terms):
        raise ValueError(f"None of the losses {[term.loss for term in terms]} has a temperature. Leave it out.")
    return terms


def _with_temperature(term: OutputTerm, temperature: float | None) -> OutputTerm:
    """Set the callback's temperature in a tempered ``term`` without its own."""
    if temperature is None or term.temperature is not None or (term.loss is not None and not term.spec().tempered):
        return term
    return replace(term, temperature=temperature)


def feature_terms(features: Features) -> list[FeatureTerm]:
    """Return the feature terms.

    Args:
        features: Argument of `DistillCallback`.

    Raises:
        TypeError: ``features`` has another type.
    """
    if features is None:
        return []
    if isinstance(features, FeatureTerm):
        return [features]
    if isinstance(features, Mapping):
        return [FeatureTerm(student, teacher) for student, teacher in features.items()]
    terms: list[Any] = list(features) if isinstance(features, (list, tuple)) else [features]
    if not all(isinstance(term, FeatureTerm) for term in terms):
        raise TypeError(
            f"features must be a mapping of the student's layer names to the teacher's, or a list of FeatureTerm, got "
            f"{features!r}: write {{'student.layer': 'teacher.layer'}}."
        )
    return terms


def normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return ``weights`` normalised to a sum of 1.

    Args:
        weights: One per teacher.
        count: Number of teachers.

    Raises:
        ValueError: Not one non-negative weight per teacher, or all are 0.
    """
    given = [1.0] * count if weights is None else list(weights)
    numbers = all(is_finite(weight) and weight >= 0 for weight in given)
    if len(given) != count or not numbers or not sum(given):
        raise ValueError(
            f"teacher_weights must be {count} numbers of at least 0, not all 0, got {weights!r}: one for each teacher, "
            "or leave it out for equal ones."
        )
    return [weight / sum(given) for weight in given]


def objective_for(
    outputs: list[OutputTerm] | None,
    features: Sequence[FeatureTerm],
    *,
    temperature: float | None,
    task_loss: Any,
    student: Layer,
    teachers: Sequence[Layer | None],
    weights: Sequence[float],
    each: bool,
) -> Objective:
    """Resolve names and choices against the networks.

    Args:
        outputs: Result of `output_terms`.
        features: Result of `feature_terms`.
        temperature: As given to `output_terms`.
        task_loss: Chooses the loss where ``outputs`` is ``None`` and there are no features, and for a term without a
            loss; gives the class axis.
        student: Network of the student's layer names.
        teachers: Networks of the teachers' layer names; ``None`` for one without accessible layers.
        weights: Weights of the teachers, with sum 1.
        each: Whether every teacher gets terms of its own instead of their mean.

    Raises:
        ValueError: Unknown layer (near names are listed) or teacher.
    """
    if outputs is None:
        outputs = [] if features else [OutputTerm(temperature=temperature)]
    outputs = [term if term.loss is not None else replace(term, loss=loss_for_task(task_loss)) for term in outputs]
    if each and len(teachers) > 1:
        outputs = [part for term in outputs for part in _for_each(term, weights)]
    found: list[FeatureTerm] = []
    for term in features:
        found += expanded(term, student, _teacher(teachers, term.of))
    for index in (term.teacher for term in outputs):
        if index is not None and not 0 <= index < len(teachers):
            raise ValueError(
                f"OutputTerm(teacher={index}) must be below {len(teachers)}, the number of teachers. Leave teacher= "
                "out for the mean of all."
            )
    if not outputs and not found:
        raise ValueError(
            "loss=[] and features=None leave nothing to distil. Give loss='kl' or another name, or features."
        )
    known = task_loss if isinstance(task_loss, CrossEntropyLoss) else None
    axis, ignored = (None, None) if known is None else (known.axis, known.ignore_index)
    return Objective([*outputs, *found], weights, class_axis=axis, ignore_index=ignored)


def _for_each(term: OutputTerm, weights: Sequence[float]) -> list[OutputTerm]:
    if term.teacher is not None:
        return [term]
    return [
        replace(
            term, teacher=index, weight=_scaled(term.weight, share), name=f"{term.name or term.spec().name}@{index}"
        )
        for index, share in enumerate(weights)
    ]


def _scaled(weight: Weight, share: float) -> Weight:
    if not callable(weight):
        return weight * share
    silent_from = getattr(weight, "silent_from", float("inf"))
    return Schedule(lambda now, total: share * value_at(weight, now, total), f"{share} * {weight!r}", silent_from)


def _teacher(teachers: Sequence[Layer | None], index: int) -> Layer:
    if not 0 <= index < len(teachers):
        raise ValueError(
            f"FeatureTerm(of={index}) must be below {len(teachers)}, the number of teachers. Give the index of the "
            "one that has the layer."
        )
    teacher = teachers[index]
    if teacher is None:
        raise ValueError(
            "features need a teacher that runs, stored outputs have none of its inner layers: give the network."
        )
    return teacher


def expanded(term: FeatureTerm, student: Layer, teacher: Layer) -> Sequence[FeatureTerm]:
    """Return one term per pair of layers that the globs of ``term`` match.

    Args:
        term: Term with names or globs.
        student: Network of the student's layer names.
        teacher: Network of the teacher's layer names.

    Raises:
        ValueError: A name matches nothing (near names are listed), or the sides match different numbers.
    """
    if isinstance(term.student, tuple) or isinstance(term.teacher, tuple):
        for network, names in zip((student, teacher), term.layers(), strict=True):
            for name in names:
                find_sublayer(network, name)
        return [term]
    ours, theirs = _on_one_level(student, term.student), _on_one_level(teacher, term.teacher)
    if len(ours) != len(theirs):
        raise ValueError(
            f"features pairs layers in order, but {term.student!r} matches {len(ours)} of the student ({ours[:8]}) and "
            f"{term.teacher!r} matches {len(theirs)} of the teacher ({theirs[:8]}). Write the pairs one by one: "
            f"features={{'student.layer': 'teacher.layer'}}."
        )
    if len(ours) > 1 and isinstance(term.project, Layer):
        raise ValueError(f"project= is one layer, but {term.student!r} matches {len(ours)}: give one term per pair.")
    return [replace(term, student=a, teacher=b) for a, b in zip(ours, theirs, strict=True)]


def _on_one_level(network: Layer, pattern: str) -> list[str]:
    """Match ``pattern`` with layer names of its own depth."""
    names = match_sublayers(network, pattern)
    return [name for name in names if name.count(".") == pattern.count(".")] or names
