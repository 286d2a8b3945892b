"""Compute the distillation objective: a weighted sum of terms, with projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer, LayerDict

from paddlelite_callbacks.distill.losses.features import check_projectable, projection_for, resized
from paddlelite_callbacks.distill.losses.logits import class_axis
from paddlelite_callbacks.distill.losses.registry import LossSpec
from paddlelite_callbacks.distill.resize import differ_in_size, resized_like
from paddlelite_callbacks.distill.schedules import value_at
from paddlelite_callbacks.distill.terms import FeatureTerm, OutputTerm, Term
from paddlelite_callbacks.nn.dtypes import cast_to_, default_dtype, parameter_dtype
from paddlelite_callbacks.nn.nested import Seen, full_precision, mean_of, paired, picked
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = ["Objective", "Result"]


@dataclass
class Result:
    """Loss terms of one batch.

    Args:
        total: Weighted sum; ``None`` if all weights are 0 at this time and nothing was computed.
        terms: Value of each term before its weight, by name in ``logs``.
    """

    total: Tensor | None
    terms: dict[str, Tensor] = field(default_factory=dict)


class Objective:
    """Weighted sum ``Σ weight_i(epoch) loss_i`` of distillation terms.

    Args:
        terms: `OutputTerm` and `FeatureTerm` without globs.
        teacher_weights: Weights of the mean over several teachers, with sum 1.
        class_axis: Class axis of the outputs, for losses on class scores; ``None`` for the losses' own choice.
        ignore_index: Class of unlabelled positions; ``None`` for the losses' own choice.

    Attributes:
        bridges: Trainable projections and trainable losses by the term's name; built on the first batch.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        teacher_weights: Sequence[float],
        *,
        class_axis: int | None = None,
        ignore_index: int | None = None,
    ) -> None:
        self.terms = dict(zip(_names(terms), terms, strict=True))
        self.specs = {name: term.spec() for name, term in self.terms.items()}
        outputs = {name: term for name, term in self.terms.items() if isinstance(term, OutputTerm)}
        features = {name: term for name, term in self.terms.items() if isinstance(term, FeatureTerm)}
        self._pairs_of = {name: term.pairs() for name, term in outputs.items()}
        self._sides_of = {name: (*term.layers(), *term.keys()) for name, term in features.items()}
        self._grouped = {name for name, term in features.items() if term.grouped}
        self._described = {name: _described(term) for name, term in self.terms.items()}
        self.teacher_weights = list(teacher_weights)
        self.class_axis, self.ignore_index = class_axis, ignore_index
        self.bridges = LayerDict()

    def feature_terms(self) -> list[FeatureTerm]:
        """Return the feature terms."""
        return [term for term in self.terms.values() if isinstance(term, FeatureTerm)]

    def silent(self, epoch: float) -> bool:
        """Whether all weights are 0 from ``epoch`` on."""
        return all(epoch >= getattr(term.weight, "silent_from", float("inf")) for term in self.terms.values())

    def describe(self, name: str) -> str:
        """Describe what a term compares, for messages."""
        return self._described[name]

    def build(self, student: Seen, teachers: Sequence[Seen]) -> list[Tensor]:
        """Build the projections that these features need.

        Returns:
            Parameters of the projections and of losses that are layers.

        Raises:
            ValueError: A pair that cannot be compared; names both shapes.
        """
        with same_random_streams():  # dropout continues as without projections
            for name, term in self.terms.items():
                if isinstance(term, FeatureTerm):
                    ours, theirs = self._features(name, term, student, teachers)
                    if not term.grouped:
                        self._build_bridge(name, term, ours[0], theirs[0])
                    if hasattr(term.loss, "prepare_for"):
                        with default_dtype(parameter_dtype(ours[0])):
                            term.loss.prepare_for([list(x.shape) for x in ours], [list(x.shape) for x in theirs])
                        if isinstance(term.loss, Layer):
                            cast_to_(term.loss, parameter_dtype(ours[0]))
                if isinstance(term.loss, Layer) and _key(name, "loss") not in self.bridges:
                    self.bridges[_key(name, "loss")] = term.loss
        return list(self.bridges.parameters())

    def check_fit(self, student: Seen, teachers: Sequence[Seen]) -> None:
        """Check that all outputs and features can be compared, without computing losses.

        Raises:
            ValueError: A pair that cannot be compared; names both shapes.
        """
        for name, term in self.terms.items():
            if isinstance(term, OutputTerm):
                for path, a, b in self._outputs(name, term, student, teachers):
                    channels = self.class_axis if self.specs[name].classes else None
                    _check_shapes(self.specs[name], path, list(a.shape), list(b.shape), channels)
                    if self.specs[name].classes:
                        class_axis(a.shape, self.class_axis)
            elif not term.grouped:
                (a,), (b,) = self._features(name, term, student, teachers)
                if self._needs_bridge(term, self.specs[name], a, b) and not isinstance(term.project, Layer):
                    check_projectable(list(a.shape), list(b.shape), _pair(term))

    def __call__(
        self, student: Seen, teachers: Sequence[Seen], labels: Sequence[Tensor], *, epoch: float, epochs: float
    ) -> Result:
        """Compute the terms of one batch.

        Args:
            student: Outputs and tapped features of the student, with gradients.
            teachers: The same of each teacher; detached here.
            labels: Labels of the batch.
            epoch: Current epoch with fraction, for schedules.
            epochs: Number of epochs of the training.

        Raises:
            ValueError: Shapes that do not match, or a missing label.
        """
        values: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        for name, term in self.terms.items():
            weight = value_at(term.weight, epoch, epochs) if callable(term.weight) else term.weight
            if weight == 0 and callable(term.weight):
                continue
            value = values[name] = self._value(name, term, student, teachers, labels)
            weighted.append(value if weight == 1 else weight * value)
        if not weighted:
            return Result(None)
        return Result(weighted[0] if len(weighted) == 1 else paddle.add_n(weighted), values)

    def _value(
        self, name: str, term: Term, student: Seen, teachers: Sequence[Seen], labels: Sequence[Tensor]
    ) -> Tensor:
        spec = self.specs[name]
        extra = [] if spec.label is None else [_label(labels, spec)]
        if isinstance(term, FeatureTerm) and name in self._grouped:
            sides = self._features(name, term, student, teachers)
            ours, theirs = ([full_precision(x) for x in side] for side in sides)
            return spec.function(ours, [x.detach() for x in theirs], *extra)
        if isinstance(term, OutputTerm):
            pairs = [(a, b) for _, a, b in self._outputs(name, term, student, teachers)]
        else:
            (one,), (other,) = self._features(name, term, student, teachers)
            pairs = [self._bridged(name, spec, one, other)]
        options = self._class_options(spec) if isinstance(term, OutputTerm) else {}
        values = [spec.function(full_precision(a), full_precision(b).detach(), *extra, **options) for a, b in pairs]
        return values[0] if len(values) == 1 else paddle.add_n(values)

    def _class_options(self, spec: LossSpec) -> dict[str, int]:
        """Return the class options of the task loss, for losses that take them."""
        given = {"axis": (spec.classes, self.class_axis), "ignore_index": (spec.ignores, self.ignore_index)}
        return {name: value for name, (taken, value) in given.items() if taken and value is not None}

    def _outputs(
        self, name: str, term: OutputTerm, student: Seen, teachers: Sequence[Seen]
    ) -> list[tuple[str, Tensor, Tensor]]:
        if term.teacher is not None or len(teachers) == 1:
            return self._pairs(name, term, student.outputs, teachers[term.teacher or 0].outputs)
        if term.resize is None:
            outputs = mean_of([teacher.outputs for teacher in teachers], self.teacher_weights)
            return self._pairs(name, term, student.outputs, outputs)
        each = [self._pairs(name, term, student.outputs, teacher.outputs) for teacher in teachers]
        means = mean_of([[b for _, _, b in pairs] for pairs in each], self.teacher_weights)
        return [(path, a, mean) for (path, a, _), mean in zip(each[0], means, strict=True)]

    def _pairs(self, name: str, term: OutputTerm, ours: Any, theirs: Any) -> list[tuple[str, Tensor, Tensor]]:
        """Return the tensors that ``term`` compares, the teacher's resized if requested."""
        found = [
            (_spelled(a), picked(ours, a, "The student's output"), picked(theirs, b, "The teacher's output"))
            for a, b in self._pairs_of[name]
        ] or paired(ours, theirs)
        if term.resize is None:
            return found
        channels = self.class_axis if self.specs[name].classes else None
        return [(path, a, resized_like(b, a, term.resize, channels=channels)) for path, a, b in found]

    def _features(
        self, name: str, term: FeatureTerm, student: Seen, teachers: Sequence[Seen]
    ) -> tuple[list[Tensor], list[Tensor]]:
        mine, theirs, ours, others = self._sides_of[name]
        given = teachers[term.of].features
        features = [picked(student.features[layer], ours, f"The student's feature {layer!r}") for layer in mine]
        targets = [picked(given[layer], others, f"The teacher's feature {layer!r}") for layer in theirs]
        if term.resize is not None:
            targets = [self._fitted(term, *pair) for pair in zip(targets, features, strict=True)]
        return features, targets

    @staticmethod
    def _fitted(term: FeatureTerm, target: Tensor, feature: Tensor) -> Tensor:
        """Resize the teacher's feature to the student's spatial size."""
        if target.ndim != feature.ndim or target.ndim not in (3, 4):
            return target
        axis = 1 if target.ndim == 4 else 2
        shape = list(feature.shape)
        shape[axis] = int(target.shape[axis])
        return resized_like(target, shape, term.resize)

    def _build_bridge(self, name: str, term: FeatureTerm, student: Tensor, teacher: Tensor) -> None:
        key, shapes = _key(name, "project"), (list(student.shape), list(teacher.shape))
        if isinstance(term.project, Layer):
            self.bridges[key] = term.project
        elif self._needs_bridge(term, self.specs[name], student, teacher):
            with default_dtype(parameter_dtype(student)):
                fresh = projection_for(*shapes, _pair(term))
            had: Any = self.bridges[key] if key in self.bridges else None  # noqa: SIM401  LayerDict has no get
            if had is not None and had.channels == fresh.channels and type(had.layer) is type(fresh.layer):
                had.size = fresh.size
            else:
                self.bridges[key] = fresh

    @staticmethod
    def _needs_bridge(term: FeatureTerm, spec: LossSpec, student: Tensor, teacher: Tensor) -> bool:
        if isinstance(term.project, bool):
            return term.project
        if isinstance(term.project, Layer):
            return True
        return spec.same in ("shape", "any") and student.shape[1:] != teacher.shape[1:]

    def _bridged(self, name: str, spec: LossSpec, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, key = full_precision(student), _key(name, "project")
        if key in self.bridges:
            student = self.bridges[key](student)
        elif spec.same == "positions" and student.ndim == 4:
            student = resized(student, list(teacher.shape[2:]))
        return student, teacher


def _check_shapes(spec: LossSpec, path: str, student: list[int], teacher: list[int], channels: int | None) -> None:
    differ = {"shape": student != teacher, "positions": student[2:] != teacher[2:]}.get(spec.same, False)
    if differ:
        which = f" {path!r}" if path else ""
        remedy = (
            "use resize='bilinear' to bring the teacher's to the student's size"
            if differ_in_size(teacher, student, channels)
            else "give both the same number of classes or outputs, name the outputs to distil with output=, use "
            "teacher_mode='train' for the teacher's outputs of training"
        )
        raise ValueError(
            f"The student's output{which} {student} and the teacher's {teacher} must have the same shape for the loss "
            f"{spec.name!r}: {remedy}, or distil with a callable that bridges them."
        )


def _described(term: Term) -> str:
    if isinstance(term, FeatureTerm):
        return _pair(term)
    pairs = [tuple(_spelled(key) if callable(key) else repr(key) for key in pair) for pair in term.pairs()]
    named = ", ".join(a if a == b else f"{a} -> {b}" for a, b in pairs)
    return f"output {named}" if named else "outputs"


def _spelled(key: Any) -> str:
    return getattr(key, "__name__", type(key).__name__) if callable(key) else str(key)


def _label(labels: Sequence[Tensor], spec: LossSpec) -> Tensor:
    index = spec.label or 0
    if not -len(labels) <= index < len(labels):
        raise ValueError(
            f"The loss {spec.name!r} needs label {index} of each batch, which has {len(labels)}: choose another "
            "with OutputTerm(..., label=...); in a training_loop, give the labels: loop.loss(loss, labels)."
        )
    return labels[index]


def _names(terms: Sequence[Term]) -> list[str]:
    """Return unique names of terms, from the term, its loss or its layer."""
    names: list[str] = []
    for term in terms:
        base = term.name or term.spec().name
        if isinstance(term, FeatureTerm) and term.name is None:
            base += f":{'+'.join(term.layers()[0])}"
        name, number = base, 2
        while name in names:
            name, number = f"{base}#{number}", number + 1
        names.append(name)
    return names


def _key(name: str, part: str) -> str:
    return f"{name}/{part}".replace(".", "_")


def _pair(term: FeatureTerm) -> str:
    return f"features {term.student!r} -> {term.teacher!r}"
