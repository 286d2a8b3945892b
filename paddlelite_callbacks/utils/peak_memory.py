"""Measure peak memory of this process and its child processes."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["MemoryMeter", "PeakMemory", "high_water", "release_free_memory"]

_SECONDS = 0.005  # between two samples
_CHILDREN = 10  # samples between two queries of the child processes, which take a few milliseconds


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Peak resident memory of an export, above that before it, in MB (1e6 bytes).

    Args:
        network_mb: Size of the network's parameters and buffers.
        writing_mb: Peak while weights and files were written: copies of the network, conversions.
        engines_mb: Peak with the files loaded on all engines, for checks and accuracy (before timing): each engine has
            weights of its own. ``None`` where none was loaded.
        children_mb: Peak of the child processes (converters) together.
    """

    network_mb: float
    writing_mb: float
    engines_mb: float | None = None
    children_mb: float = 0.0

    def times(self, megabytes: float) -> float | None:
        """Return ``megabytes`` as a multiple of the network's size.

        ``None`` for a network without weights.

        Args:
            megabytes: One of the other fields.
        """
        return megabytes / self.network_mb if self.network_mb else None


class MemoryMeter:
    """Context manager that measures the growth of resident memory by stage.

    A thread samples it every 5 ms. Where the kernel's high-water mark of the process rises in a stage, it gives the
    exact peak; it is not reset, since others may read it.

    Args:
        stage: Name of the first stage.

    Attributes:
        peaks: Peak by stage so far, in MB; empty before the meter is entered.
        children: Peak of the child processes together so far, in MB.
    """

    def __init__(self, stage: str) -> None:
        self.peaks: dict[str, float] = {}
        self.children = 0.0
        self._process, self._stage, self._ended = psutil.Process(), stage, threading.Event()
        self._begin = self._mark = 0
        self._watch: threading.Thread | None = None

    def __enter__(self) -> MemoryMeter:
        """Begin to measure."""
        release_free_memory()  # otherwise freed memory is reused first, which would hide growth
        self._begin, self._mark = self._process.memory_info().rss, high_water()
        self._look()
        self._watch = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop measuring; further calls do nothing."""
        if self._watch is not None:
            self._ended.set()
            self._watch.join()
            self._watch = None
            self._close()

    def stage(self, name: str) -> None:
        """Begin the next stage; does nothing unless measuring.

        Args:
            name: Name of the stage.
        """
        if self._watch is not None:
            self._close()
            self._stage = name
            self._look()

    def _close(self) -> None:
        now = high_water()
        self._look(now if now > self._mark else 0)
        self._mark = now

    def _look(self, known: int = 0) -> None:
        with contextlib.suppress(psutil.Error, OSError):
            grown = (max(known, self._process.memory_info().rss) - self._begin) / 1e6
            self.peaks[self._stage] = max(self.peaks.get(self._stage, 0.0), grown)

    def _sample(self) -> None:
        number = 0
        while not self._ended.wait(_SECONDS):
            self._look()
            if number % _CHILDREN == 0:
                with contextlib.suppress(psutil.Error, OSError):
                    found = self._process.children(recursive=True)
                    self.children = max(self.children, _rss_of(found, self._process.cmdline()) / 1e6)
            number += 1


def high_water() -> int:
    """Return the peak resident memory of this process, in bytes."""
    with contextlib.suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    information = psutil.Process().memory_info()
    if hasattr(information, "peak_wset"):  # Windows
        return int(information.peak_wset)
    with contextlib.suppress(ImportError):
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS: in bytes
    return int(information.rss)


def release_free_memory() -> None:
    """Return freed memory to the system; glibc keeps it, 2.6 times a network's size."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _rss_of(children: list[psutil.Process], command: list[str]) -> int:
    """Sum the resident memory of ``children``.

    One that still runs ``command``, the parent's, shares its memory.
    """
    total = 0
    for one in children:
        with contextlib.suppress(psutil.Error, OSError):  # it has ended
            total += one.memory_info().rss if one.cmdline() != command else 0
    return total
