"""Stored outputs of a teacher inside one ``fit``: they come with the batch, behind the labels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.distill_sources import Source
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.distill.dry_run import UNKNOWN_BATCH, InputSpecs
from paddlelite_callbacks.distill.forward import TeacherInputs
from paddlelite_callbacks.distill.identity import function_digest, function_name
from paddlelite_callbacks.distill.outputs import Seen
from paddlelite_callbacks.hapi import labels_through

__all__ = ["CacheSource", "refuse_other_options"]


class CacheSource(Source):
    """Takes the stored outputs off each batch before the loss and the metrics see it.

    Args:
        cached: the data set that `cache_teacher` returned.
    """

    taps_features = False
    called = "stored teacher"

    def __init__(self, cached: CachedTeacher) -> None:
        self._cached = cached
        self.networks = [None]
        self._given: list[Tensor] | None = None
        self._ran = False

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """There is no network to look into."""
        return [None]

    def seen_on_zeros(self, specs: InputSpecs, features: Sequence[Sequence[str]], hooks: bool) -> list[Seen] | None:
        """Return zeros in the stored outputs' shapes."""
        shapes = [[specs[0][0][0] or UNKNOWN_BATCH, *array.shape[1:]] for array in self._cached.arrays()]
        return [Seen(self._cached.outputs_from([paddle.zeros(shape, dtype="float32") for shape in shapes]))]

    def attach(self, model: paddle.Model, features: Sequence[Sequence[str]], scope: ExitStack) -> None:
        """Stand between the loader and the loss."""
        scope.callback(self._forget)
        scope.enter_context(labels_through(model, self._without_outputs))

    def _without_outputs(self, inputs: list[Any], labels: list[Any]) -> list[Any]:
        cached = self._cached
        if len(inputs) + len(labels) != cached.fields + cached.added:
            raise ValueError(
                f"The batch has {len(inputs) + len(labels)} fields; the data set with stored outputs gives "
                f"{cached.fields} + {cached.added}. Train on what cache_teacher returned: "
                "model.fit(cached, callbacks=[DistillCallback(cached)])."
            )
        kept, added = labels[: -cached.added], [_tensor(label) for label in labels[-cached.added :]]
        check = int(added[-1].min())
        if check < 0:
            raise ValueError(
                f"Sample {-1 - check} is not the one that the teacher saw: the data set changed, or it augments at "
                "random. Store the outputs anew (overwrite=True), or see allow_random= of cache_teacher."
            )
        self._given = added[:-1]
        return kept

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Nothing runs: the outputs came with the batch."""
        self._ran = True

    def take(self) -> list[Seen] | None:
        """Return the batch's outputs."""
        given, ran, self._given, self._ran = self._given, self._ran, None, False
        return [Seen(self._cached.outputs_from(given))] if ran and given is not None else None

    def _forget(self) -> None:
        self._given, self._ran = None, False


def refuse_other_options(cached: CachedTeacher, mode: str, inputs: TeacherInputs | None) -> None:
    """Refuse options of a teacher that runs, unless the stored outputs were made with them.

    Args:
        cached: the stored outputs.
        mode: ``teacher_mode`` of `DistillCallback`.
        inputs: its ``teacher_inputs``.

    Raises:
        ValueError: names both.
    """
    if mode not in ("eval", cached.meta["teacher_mode"]):
        raise ValueError(
            f"The stored outputs were made with teacher_mode={cached.meta['teacher_mode']!r}, got {mode!r}: give it to "
            "cache_teacher, with overwrite=True."
        )
    if inputs is not None and function_digest(inputs) != cached.meta["teacher_inputs"]:
        raise ValueError(
            f"The stored outputs were made with {'another' if cached.meta['teacher_inputs'] else 'no'} teacher_inputs, "
            f"got {function_name(inputs)}: give it to cache_teacher, with overwrite=True."
        )


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else paddle.to_tensor(value)
