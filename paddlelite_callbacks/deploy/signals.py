"""Give the user's process its signal handling back after a library changed it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["same_signal_stack"]


class _Stack(ctypes.Structure):  # stack_t of Linux
    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def same_signal_stack() -> Iterator[None]:
    """Restore the calling thread's alternate signal stack at the end of the block.

    OpenVINO 2026.4 leaves one behind that cannot be used (seen on a processor with AVX-512). Python's handlers run on
    it, so that the next signal, a child process that ends or Ctrl-C, kills the process with a segmentation fault.
    Linux only; elsewhere the block runs as it is.
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
