"""From the ``teacher`` that `DistillCallback` is given to the source that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddlelite_callbacks.callbacks.distill_cache import CacheSource
from paddlelite_callbacks.callbacks.distill_mutual import MutualSource
from paddlelite_callbacks.callbacks.distill_sources import EMASource, FrozenSource, Source
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.distill.ema import EMATeacher
from paddlelite_callbacks.distill.mutual import MutualPeer

__all__ = ["source_of"]


def source_of(teacher: Any) -> tuple[Source, int]:
    """Return the source and the number of teachers in it.

    Raises:
        TypeError: ``teacher`` is none of what `DistillCallback` takes.
        ValueError: an empty list.
        FileNotFoundError: a path to nothing.
    """
    if isinstance(teacher, MutualPeer):
        return MutualSource(teacher), 1
    if isinstance(teacher, EMATeacher):
        return EMASource(teacher), 1
    if isinstance(teacher, CachedTeacher):
        return CacheSource(teacher), 1
    is_checkpoint = isinstance(teacher, tuple) and len(teacher) == 2 and isinstance(teacher[0], (str, Path))
    teachers = list(teacher) if isinstance(teacher, (list, tuple)) and not is_checkpoint else [teacher]
    if not teachers:
        raise ValueError("teacher is an empty list, []: give at least one network, or leave the callback out.")
    return FrozenSource(teachers), len(teachers)
