"""Latency by interleaved runs: engines take turns, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = ["Latency", "measure_latency", "summarise"]

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The time of one call, and how it was got; ``error`` says why there is none.

    Args:
        engine: its name.
        precision: of the file that ran.
        threads: CPU threads it was given.
        batch_size: images a call.
        warmup: calls not counted.
        repeats: calls counted.
        p50_ms: median, milliseconds a call.
        p90_ms: 90th percentile.
        min_ms: fastest.
        mean_ms: mean.
        error: the reason where the figures are ``None``.
    """

    engine: str
    precision: str
    threads: int
    batch_size: int
    warmup: int
    repeats: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    min_ms: float | None = None
    mean_ms: float | None = None
    error: str | None = None


def measure_latency(
    calls: Mapping[Key, Callable[[], object]],
    *,
    warmup: int = 10,
    repeats: int = 50,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[], object] = lambda: None,
) -> dict[Key, list[float]]:
    """Time ``calls`` in turn: a, b, c, a, b, c, ...

    Args:
        calls: what to run, by name.
        warmup: rounds that are not counted, at least 0.
        repeats: rounds that are counted, at least 1.
        clock: seconds.
        progress: called behind every round.

    Returns:
        By name the ``repeats`` durations in milliseconds.

    Raises:
        ValueError: ``warmup`` or ``repeats`` out of range.
    """
    if warmup < 0 or repeats < 1:
        raise ValueError(f"warmup must be at least 0 and repeats at least 1, got {warmup} and {repeats}.")
    durations: dict[Key, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            begin = clock()
            call()
            taken = (clock() - begin) * 1e3
            if turn >= warmup:
                durations[name].append(taken)
        progress()
    return durations


def summarise(durations_ms: Sequence[float]) -> dict[str, float]:
    """Return the median, 90th percentile, minimum and mean of ``durations_ms``, keyed as in `Latency`."""
    values = np.asarray(durations_ms, dtype=float)
    return {
        "p50_ms": float(np.median(values)),
        "p90_ms": float(np.percentile(values, 90)),
        "min_ms": float(values.min()),
        "mean_ms": float(values.mean()),
    }
