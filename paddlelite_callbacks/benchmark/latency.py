"""Latency by interleaved runs: engines take turns, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = ["Latency", "WarmUp", "measure_latency", "summarise"]

Key = TypeVar("Key")
_WINDOW = 5  # rounds whose median is compared with that of as many before


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
        p25_ms: first quartile.
        p75_ms: third quartile.
        images_per_s: ``1000 batch_size / p50_ms``.
        load_ms: time from the files to an engine that is ready, in a process of its own.
        peak_mb: memory that loading and running added at its highest, MB (1e6 bytes), in a process of its own.
        roofline: share of this machine's fastest measured matrix product at as many threads that the network's
            multiply-accumulates reached; algorithms that need fewer of them (Winograd) can exceed 1.
        error: the reason where the figures are ``None``.
        joint: the joint timing that the row is of, see `timed_together`: rows of one can be compared across runs.
            ``None`` where the files of one run were timed by themselves.
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
        """Distance of the quartiles as a share of the median: how noisy the machine was."""
        if self.p25_ms is None or self.p75_ms is None or not self.p50_ms:
            return None
        return (self.p75_ms - self.p25_ms) / self.p50_ms


@dataclass
class WarmUp:
    """How the calls were warmed up.

    Args:
        rounds: that were not counted.
        unsteady: calls whose time was still changing when they began to count.
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

    Two things make the turns fair. In a fixed order a call would always find the caches as its neighbour, perhaps the
    same library, leaves them: ``shuffle`` changes the order every round. And a call that runs for itself finds its own
    weights there: ``settle`` lets it run before it is timed, so that figures agree with those of a plain loop.

    Args:
        calls: what to run, by name.
        warmup: rounds that are not counted, at least 0.
        repeats: rounds that are counted, at least 1.
        max_warmup: warming up goes on, up to so many rounds, until the median of the last five rounds of every call
            lies within ``tolerance`` of that of the five before; ``None`` stops at ``warmup`` as it is.
        tolerance: share of the earlier median.
        settle: untimed calls in front of each timed one.
        shuffle: whether to change the order every round (by a random stream of its own).
        clock: seconds.
        progress: called behind every round.
        warmed: called with how the warming up went, before the first round that counts.

    Returns:
        By name the ``repeats`` durations in milliseconds.

    Raises:
        ValueError: ``warmup`` or ``repeats`` out of range.
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
    """Return median, quartiles, 90th percentile, minimum and mean of ``durations_ms``, keyed as in `Latency`.

    Args:
        durations_ms: of single calls, milliseconds.

    Raises:
        ValueError: there are none.
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
