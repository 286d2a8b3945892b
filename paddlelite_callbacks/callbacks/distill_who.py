"""From the ``teacher`` that `DistillCallback` is given to the source that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddlelite_callbacks.callbacks.distill_cache import CacheSource, refuse_other_options
from paddlelite_callbacks.callbacks.distill_mutual import MutualSource
from paddlelite_callbacks.callbacks.distill_sources import EMASource, FrozenSource, Source
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.distill.ema import EMATeacher
from paddlelite_callbacks.distill.forward import checked_inputs, checked_modes
from paddlelite_callbacks.distill.mutual import MutualPeer

__all__ = ["source_of"]


def source_of(teacher: Any, *, mode: Any = "eval", inputs: Any = None) -> tuple[Source, int]:
    """Return the source and the number of teachers in it.

    Args:
        teacher: as `DistillCallback` takes it.
        mode: its ``teacher_mode``.
        inputs: its ``teacher_inputs``.

    Raises:
        TypeError: ``teacher`` is none of what `DistillCallback` takes, or ``inputs`` no function.
        ValueError: an empty list, or options that this kind of teacher does not have.
        FileNotFoundError: a path to nothing.
    """
    if isinstance(teacher, MutualPeer):
        _refuse_for_a_peer(mode, inputs)
        return MutualSource(teacher), 1
    if isinstance(teacher, CachedTeacher):
        (one,), (function,) = checked_modes(mode, 1), checked_inputs(inputs, 1)
        refuse_other_options(teacher, one, function)
        return CacheSource(teacher), 1
    if isinstance(teacher, EMATeacher):
        (one,), (function,) = checked_modes(mode, 1), checked_inputs(inputs, 1)
        return EMASource(teacher, mode=one, inputs=function), 1
    is_checkpoint = isinstance(teacher, tuple) and len(teacher) == 2 and isinstance(teacher[0], (str, Path))
    teachers = list(teacher) if isinstance(teacher, (list, tuple)) and not is_checkpoint else [teacher]
    if not teachers:
        raise ValueError("teacher is an empty list, []: give at least one network, or leave the callback out.")
    modes, functions = checked_modes(mode, len(teachers)), checked_inputs(inputs, len(teachers))
    return FrozenSource(teachers, modes=modes, inputs=functions), len(teachers)


def _refuse_for_a_peer(mode: Any, inputs: Any) -> None:
    given = [
        name for name, value in (("teacher_mode", mode != "eval"), ("teacher_inputs", inputs is not None)) if value
    ]
    if given:
        raise ValueError(
            f"{' and '.join(given)}: a MutualPeer trains on the student's own inputs, in train mode. Leave it out, or "
            "give a frozen network as teacher."
        )
