"""Shared by the benchmarks: contestants take turns in one process, ratios are of neighbours, figures go to a file."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import paddle
import pytest

from paddlelite_callbacks.utils.atomic_files import staged_file


class Interleaved:
    """Times contestants in turns, so that the machine's moods hit all of them alike."""

    @staticmethod
    def run(units: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 3) -> dict[str, list[float]]:
        """Call every unit ``warmup + repeats`` times, in rotating order; return the seconds of the counted calls."""
        names, seconds = list(units), {name: [] for name in units}
        for turn in range(warmup + repeats):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                start = time.perf_counter()
                units[name]()
                if turn >= warmup:
                    seconds[name].append(time.perf_counter() - start)
        return seconds

    @staticmethod
    def fit_against(
        fit: Callable[[Iterator], object],
        by_hand: Callable[[int], object],
        batch: Callable[[int], object],
        *,
        repeats: int,
        warmup: int = 3,
    ) -> dict[str, list[float]]:
        """Alternate steps of ``fit`` with steps of a loop: the loader that ``fit`` reads runs the other in between.

        Args:
            fit: receives the loader, an iterable with a length.
            by_hand: runs one whole step of the other loop, its batch included.
            batch: makes batch ``i`` of ``fit``; counted as part of its step.
            repeats: counted steps of each.
            warmup: steps before.
        """
        seconds: dict[str, list[float]] = {"fit": [], "by hand": []}

        class Loader:
            def __len__(self):
                return warmup + repeats

            def __iter__(self):
                for step in range(warmup + repeats):
                    start = time.perf_counter()
                    by_hand(step)
                    middle = time.perf_counter()
                    yield batch(step)
                    end = time.perf_counter()  # the rest of fit's step lies between the yield and here
                    if step >= warmup:
                        seconds["by hand"].append(middle - start)
                        seconds["fit"].append(end - middle)

        fit(Loader())
        return seconds

    @staticmethod
    def summary(seconds: Mapping[str, list[float]], over: str) -> dict[str, dict[str, float]]:
        """Return medians in ms, and the ratio to ``over``: median and quartiles of the ratios of neighbouring calls."""
        figures = {}
        for name, values in seconds.items():
            ratios = np.array(values) / np.array(seconds[over])
            figures[name] = {
                "p50_ms": 1e3 * median(values),
                "ratio": float(np.median(ratios)),
                "ratio_p25": float(np.percentile(ratios, 25)),
                "ratio_p75": float(np.percentile(ratios, 75)),
                "repeats": len(values),
            }
        return figures


class Report:
    """Prints figures and writes them to ``build/benchmarks/<name>.json``."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, name: str, figures: Mapping[str, object]) -> None:
        machine = {"cpu": _cpu_name(), "paddle": paddle.__version__, "python": platform.python_version()}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{name}.json"
        with staged_file(file) as partial:
            partial.write_text(json.dumps({"figures": figures, "machine": machine}, indent=1), encoding="utf-8")
        print(f"\n{name}: {json.dumps(figures, indent=1)}\n-> {file}")  # noqa: T201


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@pytest.fixture
def interleaved() -> Interleaved:
    return Interleaved()


@pytest.fixture
def report(pytestconfig) -> Report:
    return Report(pytestconfig.rootpath / "build" / "benchmarks")
