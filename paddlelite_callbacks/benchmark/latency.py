"""Measure latency by interleaved runs, so that drift affects all engines alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = ["Latency", "WarmUp", "measure_latency", "summarise"]

Key = TypeVar("Key")
_WINDOW = 5  # rounds whose median is compared with that of the rounds before


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one engine and file, with its settings.

    Args:
        engine: Name of the engine.
        precision: Precision of the file.
        threads: Number of CPU threads.
        batch_size: Images per call.
        warmup: Number of uncounted calls.
        repeats: Number of counted calls.
        p50_ms: Median, milliseconds per call.
        p90_ms: 90th percentile, milliseconds per call.
        min_ms: Minimum, milliseconds per call.
        mean_ms: Mean, milliseconds per call.
        p25_ms: First quartile, milliseconds per call.
        p75_ms: Third quartile, milliseconds per call.
        images_per_s: Throughput, ``1000 batch_size / p50_ms``.
        load_ms: Load time in milliseconds, in a process of its own.
        peak_mb: Peak memory added by loading and running, MB (1e6 bytes), in a process of its own.
        roofline: Achieved share of this machine's fastest measured matrix product at as many threads, by the network's
            multiply-accumulates; algorithms that need fewer of them (Winograd) can exceed 1.
        error: Reason where the measurements are ``None``.
        joint: Joint timing of the row, see `timed_together`: its rows can be compared across runs. ``None`` where the
            files of one run were timed alone.
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
    p25_ms: float | None = None
    p75_ms: float | None = None
    images_per_s: float | None = None
    load_ms: float | None = None
    peak_mb: float | None = None
    roofline: float | None = None
    error: str | None = None
    joint: str | None = None

    @property
    def spread(self) -> float | None:
        """Interquartile range relative to the median: the noise of the measurement."""
        if self.p25_ms is None or self.p75_ms is None or not self.p50_ms:
            return None
        return (self.p75_ms - self.p25_ms) / self.p50_ms


@dataclass
class WarmUp:
    """Result of the warm-up.

    Args:
        rounds: Number of uncounted rounds.
        unsteady: Calls whose time was still changing at the end of the warm-up.
    """

    rounds: int
    unsteady: tuple[object, ...] = ()


def measure_latency(
    calls: Mapping[Key, Callable[[], object]],
    *,
    warmup: int = 10,
    repeats: int = 50,
    max_warmup: int | None = None,
    tolerance: float = 0.05,
    settle: int = 0,
    shuffle: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[], object] = lambda: None,
    warmed: Callable[[WarmUp], object] = lambda _: None,
) -> dict[Key, list[float]]:
    """Time ``calls`` in turn: a, b, c, a, b, c, ...

    Two options make the comparison fair. In a fixed order a call would always find the caches as its predecessor,
    perhaps of the same library, leaves them: ``shuffle`` changes the order every round. And a call that runs alone
    finds its own weights cached: ``settle`` runs it before it is timed, so that results agree with those of a plain
    loop.

    Args:
        calls: Functions by name.
        warmup: Number of uncounted rounds, at least 0.
        repeats: Number of counted rounds, at least 1.
        max_warmup: Largest number of warm-up rounds; they end when the median of the last five rounds of every call is
            within ``tolerance`` of that of the five before. ``None`` stops at ``warmup``.
        tolerance: Relative change of the median.
        settle: Number of untimed calls before each timed one.
        shuffle: Whether to change the order every round (with a random generator of its own).
        clock: Returns seconds.
        progress: Called after every round.
        warmed: Called with the result of the warm-up, before the first counted round.

    Returns:
        Durations in milliseconds by name, ``repeats`` each.

    Raises:
        ValueError: ``warmup`` or ``repeats`` is out of range.
    """
    if warmup < 0 or repeats < 1:
        raise ValueError(
            f"warmup must be at least 0 and repeats at least 1, got warmup={warmup}, repeats={repeats}: use 10 and 50."
        )
    durations: dict[Key, list[float]] = {name: [] for name in calls}

    order, stream = list(calls.items()), random.Random(0)

    def one_round() -> None:
        if shuffle:
            stream.shuffle(order)
        for name, call in order:
            for _ in range(settle):
                call()
            begin = clock()
            call()
            durations[name].append((clock() - begin) * 1e3)
        progress()

    rounds, unsteady = 0, tuple(calls)
    while rounds < warmup or (unsteady and rounds < (max_warmup or 0)):
        one_round()
        rounds += 1
        if rounds >= warmup:
            unsteady = tuple(name for name in calls if not _steady(durations[name], tolerance))
    warmed(WarmUp(rounds, unsteady if max_warmup else ()))
    for values in durations.values():
        values.clear()
    for _ in range(repeats):
        one_round()
    return durations


def _steady(durations_ms: Sequence[float], tolerance: float) -> bool:
    if len(durations_ms) < 2 * _WINDOW:
        return False
    before, now = np.median(durations_ms[-2 * _WINDOW : -_WINDOW]), np.median(durations_ms[-_WINDOW:])
    return bool(abs(now - before) <= tolerance * before)


def summarise(durations_ms: Sequence[float]) -> dict[str, float]:
    """Summarise durations: median, quartiles, 90th percentile, minimum and mean.

    The keys are fields of `Latency`.

    Args:
        durations_ms: Durations of single calls, milliseconds.

    Raises:
        ValueError: There are no durations.
    """
    values = np.asarray(durations_ms, dtype=float)
    if not values.size:
        raise ValueError("durations_ms is empty, got []: give the milliseconds of at least one call.")
    return {
        "p50_ms": float(np.median(values)),
        "p90_ms": float(np.percentile(values, 90)),
        "min_ms": float(values.min()),
        "mean_ms": float(values.mean()),
        "p25_ms": float(np.percentile(values, 25)),
        "p75_ms": float(np.percentile(values, 75)),
    }
