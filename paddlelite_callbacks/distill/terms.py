"""Define terms of a distillation objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.distill.losses.logits import check_temperature
from paddlelite_callbacks.distill.losses.registry import AnyLoss, LossSpec, spec_of
from paddlelite_callbacks.distill.resize import checked_resize
from paddlelite_callbacks.distill.schedules import Weight, checked_weight
from paddlelite_callbacks.nn.nested import Key
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["FeatureTerm", "Output", "OutputTerm", "Term", "checked_output"]

Output = Key | tuple[Key | None, Key | None] | Mapping[Any, Any] | None


def checked_output(output: Any) -> Output:
    """Validate ``output``.

    Args:
        output: Argument of `OutputTerm`.

    Raises:
        TypeError: It has another type.
        ValueError: A pair of another length, or an empty mapping.
    """
    if isinstance(output, tuple) and len(output) != 2:
        raise ValueError(
            f"A tuple in output= must be a pair (student's, teacher's), got {output!r}: give a mapping for several "
            "pairs."
        )
    if isinstance(output, Mapping) and not output:
        raise ValueError("output={} names no output: leave it out for all of them.")
    pairs = [output] if isinstance(output, tuple) else output.items() if isinstance(output, Mapping) else []
    keys = [key for pair in pairs for key in pair] if isinstance(output, (tuple, Mapping)) else [output]
    wrong = [key for key in keys if not (key is None or isinstance(key, (int, str)) or callable(key))]
    if wrong:
        raise TypeError(
            f"output must be an index, a dictionary key, a path such as 'aux.0' or a function, got {wrong[0]!r}: "
            f"give one, a pair (student's, teacher's), or a mapping {{student's: teacher's}}."
        )
    return output


@dataclass(frozen=True)
class OutputTerm:
    """Compare the student's output with the teacher's.

    Args:
        loss: Name in `LOSSES`, or a callable ``(student, teacher[, label]) -> scalar``;
            ``None`` chooses by the task loss, as `DistillCallback` does.
        weight: Weight inside ``distill_loss``; a number of at least 0 or a schedule.
        output: Tensor of the outputs: an index, a dictionary key, a path such as ``"aux.0"``, or a function of the
            outputs that returns it; a pair ``(student's, teacher's)`` of these, or a mapping ``{student's:
            teacher's}``, whose losses are summed; ``None`` sums over all outputs but losses.
        teacher: Index among several teachers; ``None`` for their (weighted) mean.
        temperature: Temperature of tempered losses; ``None`` for that of `DistillCallback`, else the loss's own
            default.
        label: Index of the batch's label that is the loss's third argument; ``None`` for the loss's own choice.
        name: Name in ``logs``, after ``distill_``; ``None`` derives it from the loss.
        resize: ``"bilinear"`` or ``"nearest"`` resizes the teacher's maps and sequences to the student's size; ``None``
            rejects other sizes.

    Raises:
        TypeError: A loss that is neither a name nor callable, or an ``output`` of another type.
        ValueError: A weight or temperature out of range, an unknown loss or ``resize``, a label for a loss without one.

    Example:
        >>> scores = OutputTerm("kl", output="logits", temperature=2.0)
        >>> boxes = OutputTerm("smooth_l1", weight=2.0, output="boxes")
        >>> DistillCallback(teacher, loss=[scores, boxes])  # doctest: +SKIP
    """

    loss: str | AnyLoss | None = None
    weight: Weight = 1.0
    output: Output = None
    teacher: int | None = None
    temperature: float | None = None
    label: int | None = None
    name: str | None = None
    resize: str | None = field(default=None, kw_only=True)

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        checked_weight("weight", self.weight)
        checked_output(self.output)
        checked_resize(self.resize)
        if self.temperature is not None:
            check_temperature(self.temperature)
        if self.loss is not None:
            self.spec()

    def spec(self) -> LossSpec:
        """Return the registry entry of the loss.

        Raises:
            ValueError: The task loss has not chosen it yet.
        """
        if self.loss is None:
            raise ValueError(
                "OutputTerm(loss=None) is chosen by the task loss at train begin: give a loss to read it before."
            )
        return spec_of(self.loss, temperature=self.temperature, label=self.label)

    def pairs(self) -> list[tuple[Key | None, Key | None]]:
        """Return the given pairs of keys; empty where all outputs are compared."""
        if isinstance(self.output, Mapping):
            return list(self.output.items())
        pair = self.output if isinstance(self.output, tuple) else (self.output, self.output)
        return [] if pair == (None, None) else [pair]


@dataclass(frozen=True)
class FeatureTerm:
    """Compare a layer's output inside the student with one inside the teacher.

    Args:
        student: Name of the layer in ``network.named_sublayers()``, or a glob; or a tuple of names for a loss that
            takes lists of features, such as `AttentionFeatureLoss`.
        teacher: The same in the teacher; globs must match as many layers, which are paired in order. A tuple may be of
            another length than the student's.
        loss: As in `OutputTerm`.
        weight: Weight (of each pair, with globs) inside ``distill_loss``.
        project: ``None`` adds a trainable `Projection` where the loss needs one shape and the
            shapes differ; ``True`` always; ``False`` never; or a layer ``student's feature -> teacher's``.
        of: Index among several teachers.
        pick: For layers with several output tensors: an index, key or function, or a pair ``(student's, teacher's)``.
        temperature: Temperature of tempered losses.
        label: As in `OutputTerm`.
        name: Name in ``logs``; ``None`` derives it from the loss and the layer.
        resize: As in `OutputTerm`, before any projection, which then fits only channels.

    Raises:
        TypeError: A ``project`` that is not a layer, a name on one side and a tuple on the other, a loss that is
            neither a name nor callable.
        ValueError: A weight or temperature out of range, an unknown loss, tuples of layers with a named loss.

    Example:
        >>> hint = FeatureTerm("backbone.blocks5", "backbone.layer3", weight=0.5)
        >>> maps = FeatureTerm("up1", "up1", loss="cwd")
        >>> DistillCallback(teacher, features=[hint, maps])  # doctest: +SKIP
    """

    student: str | tuple[str, ...]
    teacher: str | tuple[str, ...]
    loss: str | AnyLoss = "fitnet"
    weight: Weight = 1.0
    project: bool | Layer | None = None
    of: int = 0
    pick: Key | tuple[Key | None, Key | None] | None = None
    temperature: float | None = None
    label: int | None = None
    name: str | None = None
    resize: str | None = field(default=None, kw_only=True)

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        checked_weight("weight", self.weight)
        checked_resize(self.resize)
        self.spec()
        if not (self.project is None or isinstance(self.project, (bool, Layer))):
            raise TypeError(
                f"project must be True, False, None or a Layer, got {type(self.project).__name__}: leave it out for "
                "a projection where the shapes differ."
            )
        if isinstance(self.student, tuple) != isinstance(self.teacher, tuple):
            raise TypeError(
                f"student and teacher must both be a name or both a tuple, got {self.student!r} and "
                f"{self.teacher!r}: use tuples for a loss that takes lists, such as AttentionFeatureLoss."
            )
        if self.grouped and (self.project or self.pick is not None or self.resize or isinstance(self.loss, str)):
            raise ValueError(
                f"Tuples of layers need a loss that takes lists, without project, pick and resize, got "
                f"loss={self.loss!r}: pass loss=AttentionFeatureLoss() or a callable, or write one term per pair of "
                "layers."
            )

    @property
    def grouped(self) -> bool:
        """Whether the loss takes lists of features."""
        return isinstance(self.student, tuple)

    def layers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names on both sides."""
        return (
            self.student if isinstance(self.student, tuple) else (self.student,),
            self.teacher if isinstance(self.teacher, tuple) else (self.teacher,),
        )

    def spec(self) -> LossSpec:
        """Return the registry entry of the loss."""
        return spec_of(self.loss, temperature=self.temperature, label=self.label)

    def keys(self) -> tuple[Key | None, Key | None]:
        """Return the student's and the teacher's key."""
        return self.pick if isinstance(self.pick, tuple) else (self.pick, self.pick)


Term = OutputTerm | FeatureTerm
