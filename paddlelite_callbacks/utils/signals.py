"""Delay signals while the model is edited or restored."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["same_signal_stack", "uninterrupted"]

# Ctrl-C; job ended by a cluster; terminal lost; Paddle raises SystemError when a worker dies; time limits
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGALRM", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals inside the block; deliver them at its end.

    For short blocks that would leave the model half edited: a second Ctrl-C must not interrupt the clean-up after the
    first, nor an exception in a handler of another signal. Signals reach only the main thread; elsewhere the block runs
    as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    holders = [_Holder(number, handler) for number in _SIGNALS if callable(handler := signal.getsignal(number))]
    try:
        for holder in holders:
            holder.begin()
        yield
    finally:
        for holder in holders:
            holder.end()
        _tell(holders)


class _Holder:
    """Temporary handler of one signal."""

    def __init__(self, number: int, handler: Callable[..., Any]) -> None:
        self._number, self._handler = number, handler
        self._holds, self._held = True, list[tuple[Any, ...]]()
        self._own = self._hear  # one bound method, to compare with

    def begin(self) -> None:
        signal.signal(self._number, self._own)

    def end(self) -> None:
        """Restore the handler, unless the block has set another."""
        self._holds = False
        if signal.getsignal(self._number) is self._own:
            signal.signal(self._number, self._handler)

    def tell(self) -> None:
        """Deliver the delayed signal, if any."""
        if self._held:
            self._handler(*self._held[-1])

    def _hear(self, *arguments: Any) -> Any:
        return self._held.append(arguments) if self._holds else self._handler(*arguments)


def _tell(holders: Sequence[_Holder]) -> None:
    """Deliver all delayed signals, also if a handler raises."""
    if holders:
        try:
            holders[0].tell()
        finally:
            _tell(holders[1:])


class _Stack(ctypes.Structure):  # stack_t of Linux
    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def same_signal_stack() -> Iterator[None]:
    """Restore the calling thread's alternate signal stack at the end of the block.

    OpenVINO 2026.4 leaves an unusable one behind (seen on a processor with AVX-512). Python's handlers run on it, so
    that the next signal, such as the end of a child process or Ctrl-C, causes a segmentation fault. Linux only;
    elsewhere the block runs as it is.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    set_stack, before = ctypes.CDLL(None).sigaltstack, _Stack()
    known = set_stack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            set_stack(ctypes.byref(before), None)
