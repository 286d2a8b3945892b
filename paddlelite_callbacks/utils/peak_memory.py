"""Peak memory of a piece of work in this process, and of the child processes that it starts."""

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
_CHILDREN = 10  # samples between two looks at the child processes: each takes a few milliseconds


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Most resident memory that an export took, over what the process had before it, in MB (1e6 bytes).

    Args:
        network_mb: of the network's parameters and buffers, once.
        writing_mb: while weights and files were written: copies of the network, conversions.
        engines_mb: with every engine's files loaded, for checks and accuracy (timing in turn comes after): each engine
            has weights of its own. ``None`` where none was loaded.
        children_mb: of the child processes (converters), together.
    """

    network_mb: float
    writing_mb: float
    engines_mb: float | None = None
    children_mb: float = 0.0

    def times(self, megabytes: float) -> float | None:
        """Return ``megabytes`` as a multiple of the network; ``None`` for a network without weights.

        Args:
            megabytes: one of the other fields.
        """
        return megabytes / self.network_mb if self.network_mb else None


class MemoryMeter:
    """Measures by how much the resident memory grows, stage by stage, over what it was at the begin: a context manager.

    A thread samples it every 5 ms. Where the kernel's own high-water mark of the process rises in a stage, it tells the
    peak to the page; it is not reset, since others may read it.

    Args:
        stage: name of the first stage.

    Attributes:
        peaks: by stage, the most so far, in MB; no entry before the meter was entered.
        children: the most that child processes had together so far, in MB.
    """

    def __init__(self, stage: str) -> None:
        self.peaks: dict[str, float] = {}
        self.children = 0.0
        self._process, self._stage, self._ended = psutil.Process(), stage, threading.Event()
        self._begin = self._mark = 0
        self._watch: threading.Thread | None = None

    def __enter__(self) -> MemoryMeter:
        """Begin to measure."""
        release_free_memory()  # else what was freed before is used first, and not seen
        self._begin, self._mark = self._process.memory_info().rss, high_water()
        self._look()
        self._watch = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End it; a second end does nothing."""
        if self._watch is not None:
            self._ended.set()
            self._watch.join()
            self._watch = None
            self._close()

    def stage(self, name: str) -> None:
        """End a stage and begin the next one; does nothing where nothing is measured.

        Args:
            name: of the next one.
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
    """Return the most resident memory that this process ever had, in bytes."""
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
    """Give memory that the process has freed back to the system: glibc keeps it, 2.6 times a network's size here."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _rss_of(children: list[psutil.Process], command: list[str]) -> int:
    """Return what ``children`` have together; one that still runs ``command``, the parent's, shares its memory."""
    total = 0
    for one in children:
        with contextlib.suppress(psutil.Error, OSError):  # ended since
            total += one.memory_info().rss if one.cmdline() != command else 0
    return total
