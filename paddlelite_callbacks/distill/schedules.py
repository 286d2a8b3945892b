"""Define schedules of loss weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from paddlelite_callbacks.utils.numbers import check_number, is_finite

__all__ = ["Schedule", "Weight", "checked_weight", "constant", "cosine", "linear", "stop_at", "value_at", "warm_up"]

Weight = float | Callable[[float, float], float]
_WORDS = "a finite number of at least 0"


@dataclass(frozen=True)
class Schedule:
    """Weight over time: ``schedule(epoch, epochs)``.

    Args:
        function: Receives the number of trained epochs, with fractions between batches (0.5 in the middle of the first
            epoch; whole ones where the loader has no length), and the number of epochs of ``fit``.
        text: Text for ``repr``.
        silent_from: Epoch from which on the weight stays 0, so that the teacher need not run.
    """

    function: Callable[[float, float], float]
    text: str
    silent_from: float = math.inf

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return the weight at ``epoch`` of ``epochs``."""
        return 0.0 if epoch >= self.silent_from else float(self.function(epoch, epochs))

    def __repr__(self) -> str:
        return self.text


def constant(value: float) -> Schedule:
    """Keep a constant ``value``."""
    _check(value=value)
    return Schedule(lambda epoch, epochs: value, f"constant({value})")


def linear(start: float, end: float, *, epochs: float | None = None) -> Schedule:
    """Change linearly from ``start`` to ``end``, reached after ``epochs`` and kept.

    Args:
        start: Initial weight, at least 0.
        end: Final weight, at least 0.
        epochs: Length of the change; ``None`` for all epochs of ``fit``.
    """
    _check(start=start, end=end, epochs=epochs)
    return Schedule(
        lambda epoch, total: start + (end - start) * _share(epoch, epochs, total),
        f"linear({start}, {end}{_named(epochs)})",
    )


def cosine(start: float, end: float, *, epochs: float | None = None) -> Schedule:
    """Change from ``start`` to ``end`` on a cosine (Loshchilov 2017).

    ``end + (start - end) (1 + cos(π share)) / 2``: like `linear`, slow at both ends.

    Args:
        start: Initial weight, at least 0.
        end: Final weight, at least 0.
        epochs: Length of the change; ``None`` for all epochs of ``fit``.
    """
    _check(start=start, end=end, epochs=epochs)
    return Schedule(
        lambda epoch, total: end + (start - end) * (1 + math.cos(math.pi * _share(epoch, epochs, total))) / 2,
        f"cosine({start}, {end}{_named(epochs)})",
    )


def warm_up(epochs: float, weight: Weight = 1.0) -> Schedule:
    """Multiply ``weight`` by a factor that rises from 0 to 1 over ``epochs``."""
    _check(epochs=epochs)
    inner = checked_weight("weight", weight)
    return Schedule(
        lambda epoch, total: min(epoch / epochs, 1.0) * value_at(inner, epoch, total),
        f"warm_up({epochs}, {weight!r})",
        getattr(inner, "silent_from", math.inf),
    )


def stop_at(epoch: float, weight: Weight = 1.0) -> Schedule:
    """Use ``weight`` until ``epoch``, then 0, when the teacher stops running."""
    _check(epoch=epoch)
    inner = checked_weight("weight", weight)
    return Schedule(lambda now, total: value_at(inner, now, total), f"stop_at({epoch}, {weight!r})", epoch)


def _named(epochs: float | None) -> str:
    return "" if epochs is None else f", epochs={epochs}"


def value_at(weight: Weight, epoch: float, epochs: float) -> float:
    """Return the value of a weight or schedule at ``epoch`` of ``epochs``.

    Args:
        weight: Result of `checked_weight`.
        epoch: Number of trained epochs, with fractions.
        epochs: Number of epochs of the training.

    Raises:
        ValueError: A custom schedule did not return a finite number of at least 0.
    """
    if not callable(weight):
        return weight
    value = weight(epoch, epochs)
    if not is_finite(value) or value < 0:
        raise ValueError(
            f"The schedule {weight!r} returned {value!r} at epoch {epoch:g}, a weight must be finite and at least "
            "0: return such a number, or use one of paddlelite_callbacks.distill.schedules."
        )
    return float(value)


def checked_weight(name: str, weight: Weight) -> Weight:
    """Validate a weight: a finite number of at least 0, or a schedule.

    Args:
        name: Name of the argument, for the message.
        weight: Value to check.

    Raises:
        ValueError: It is neither.
    """
    if callable(weight):
        return weight
    remedy = "give one, or a schedule of paddlelite_callbacks.distill.schedules; 0 disables the term"
    check_number(name, weight, lambda number: number >= 0, _WORDS, remedy=remedy)
    return float(weight)


def _share(epoch: float, epochs: float | None, total: float) -> float:
    length = total if epochs is None else epochs
    return min(epoch / length, 1.0) if length > 0 else 1.0


def _check(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is None:
            continue
        remedy = "give a weight (0 disables a term) or an epoch counted from the start of training"
        check_number(name, number, lambda value: value >= 0, _WORDS, remedy=remedy)
        if number == 0 and name == "epochs":
            raise ValueError(
                "epochs must be positive, got 0: give the length of the change in epochs, or None for all."
            )
