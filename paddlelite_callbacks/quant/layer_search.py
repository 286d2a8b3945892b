"""Find the fewest layers to put back, so that a quantised file keeps a limit.

Each evaluation exports, runs and times a file, so few are made: the shortest sufficient beginning of a ranking is found
by doubling and bisection; then layers that turn out not to be needed are taken out again, in halves first (Zeller and
Hildebrandt 2002, "Simplifying and Isolating Failure-Inducing Input"), and a smaller set is tried greedily by measured
gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["FoundLayers", "SearchPoint", "search_layers"]

_TRIED = 4  # layers measured for each step of the greedy search
_GREEDY = 6  # largest set that it tries to beat


@dataclass(frozen=True, kw_only=True)
class SearchPoint:
    """One evaluated file.

    Args:
        layers: Layers that were put back.
        metric: Metric of the file.
        latency_ms: Its latency, milliseconds; ``None`` if it was not timed.
    """

    layers: frozenset[str]
    metric: float
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class FoundLayers:
    """Result of `search_layers`.

    Args:
        best: File with the fewest layers put back that keeps the limit; ``None`` if none keeps it.
        points: All evaluated files, in order.
        complete: Whether the search ended before ``most`` evaluations were spent.
    """

    best: SearchPoint | None
    points: tuple[SearchPoint, ...]
    complete: bool = True

    def passing(self, keeps: Callable[[float], bool]) -> list[SearchPoint]:
        """Return the points that keep the limit, fewest layers first.

        Args:
            keeps: Whether a metric keeps the limit.
        """
        return sorted((point for point in self.points if keeps(point.metric)), key=lambda point: len(point.layers))


class _SpentError(Exception):
    """All evaluations are spent."""


class _Evaluations:
    """Evaluated sets, each evaluated once."""

    def __init__(
        self,
        evaluate: Callable[[frozenset[str]], SearchPoint],
        keeps: Callable[[float], bool],
        most: int,
    ) -> None:
        self._evaluate, self._keeps, self._most = evaluate, keeps, most
        self.points: dict[frozenset[str], SearchPoint] = {}

    def metric(self, layers: frozenset[str]) -> float:
        if layers not in self.points:
            if len(self.points) >= self._most:
                raise _SpentError
            self.points[layers] = self._evaluate(layers)
        return self.points[layers].metric

    def passes(self, layers: frozenset[str]) -> bool:
        return self._keeps(self.metric(layers))


def search_layers(
    ranked: Sequence[str],
    evaluate: Callable[[frozenset[str]], SearchPoint],
    keeps: Callable[[float], bool],
    *,
    higher_is_better: bool = True,
    most: int = 60,
) -> FoundLayers:
    """Find the fewest layers to put back, so that the file keeps a limit.

    None of the layers found can be left out alone. Where the losses of layers add up and the ranking is right, no
    smaller set keeps the limit.

    Args:
        ranked: Layers that can be put back, the most sensitive first.
        evaluate: Measures the file with these layers put back.
        keeps: Whether a metric keeps the limit.
        higher_is_better: Direction of the metric.
        most: Largest number of evaluations.

    Returns:
        The smallest set that was found, with everything that was measured.

    Raises:
        ValueError: A layer is ranked twice, or ``most`` is below 2.
    """
    if len(set(ranked)) != len(ranked):
        twice = sorted({name for name in ranked if list(ranked).count(name) > 1})
        raise ValueError(f"Every layer must be ranked once, got {twice} twice: leave the repetitions out.")
    if most < 2:
        raise ValueError(f"most must be at least 2 evaluations, got {most}: 60 is usual.")
    tried = _Evaluations(evaluate, keeps, most)
    complete = True
    try:
        _search(list(ranked), tried, higher_is_better)
    except _SpentError:
        complete = False
    passing = [point for point in tried.points.values() if keeps(point.metric)]
    best = min(passing, key=lambda point: len(point.layers), default=None)
    return FoundLayers(best=best, points=tuple(tried.points.values()), complete=complete)


def _search(ranked: list[str], tried: _Evaluations, higher_is_better: bool) -> None:
    if tried.passes(frozenset()) or not ranked or not tried.passes(frozenset(ranked)):
        return
    kept = _without_needless(_beginning(ranked, tried), tried)
    if 2 <= len(kept) <= _GREEDY:
        _greedy(ranked, len(kept), tried, 1.0 if higher_is_better else -1.0)


def _beginning(ranked: list[str], tried: _Evaluations) -> list[str]:
    """Return a beginning of the ranking that passes, where one layer less fails."""
    low, high, size = 0, len(ranked), 1
    while size < high:
        if tried.passes(frozenset(ranked[:size])):
            high = size
        else:
            low, size = size, 2 * size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tried.passes(frozenset(ranked[:middle])) else (middle, high)
    return ranked[:high]


def _without_needless(kept: list[str], tried: _Evaluations) -> list[str]:
    """Take out layers, in ever smaller parts, as long as the rest passes."""
    size = len(kept) // 2
    while size >= 1:
        shrunk = False
        for start in reversed(range(0, len(kept), size)):  # the least sensitive first
            rest = kept[:start] + kept[start + size :]
            if len(rest) < len(kept) and tried.passes(frozenset(rest)):
                kept, shrunk = rest, True
        size = min(size, len(kept)) if shrunk and size == 1 else size // 2
    return kept


def _greedy(ranked: list[str], beat: int, tried: _Evaluations, sign: float) -> None:
    """Put back the layer with the largest measured gain, one after the other."""
    chosen: frozenset[str] = frozenset()
    while len(chosen) + 1 < beat:
        candidates = [chosen | {name} for name in [name for name in ranked if name not in chosen][:_TRIED]]
        if not candidates:
            return
        chosen = max(candidates, key=lambda one: sign * tried.metric(one))
        if tried.passes(chosen):
            _without_needless([name for name in ranked if name in chosen], tried)
            return
