"""Many fits in one process, and what grows."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import paddle
from paddle.jit.dy2static.utils import get_temp_dir
from toy import TinyNet, fingerprint, fit, hapi_model

from paddlelite_callbacks import (
    BackboneSwap,
    BenchOptions,
    DistillCallback,
    ExportBenchCallback,
    ExportOptions,
    PACTQuantCallback,
)
from paddlelite_callbacks.workarounds.tracing import source_folder

__all__ = ["Soak", "slope"]


def slope(values: list[float]) -> float:
    """Growth per fit: the slope of a line through the second half, when caches are filled."""
    rest = values[len(values) // 2 :]
    return float(np.polyfit(range(len(rest)), rest, 1)[0])


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class _Mallinfo2(ctypes.Structure):  # of glibc 2.33 and newer
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


def heap_in_use_mb() -> float:
    """What ``malloc`` has handed out, holes left out; the free end of the heap goes back to the system first.

    Python's small objects are not in it (see ``sys.getallocatedblocks``). NaN without glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return float("nan")
    libc.malloc_trim(0)
    libc.mallinfo2.restype = _Mallinfo2
    info = libc.mallinfo2()
    return (info.uordblks + info.hblkhd) / 1e6


def _count(path: str) -> int:
    return len(list(Path(path).iterdir()))


class Soak:
    """Fits of the four parts together, by turns with the same model and with a new one; `figures` has a row a fit.

    Args:
        folder: of the exports.
    """

    def __init__(self, folder: Path):
        self.folder, self.figures = folder, []
        self.before = {*threading.enumerate()}  # those of the test runner never end
        self.model, self.teacher = hapi_model(), TinyNet(width=8)
        self.hooks = []

    def callbacks(self, *, onnx: bool = False):
        export = ExportBenchCallback(
            self.folder,
            name="n",
            engines=["paddle", "onnxruntime", "openvino"] if onnx else ["paddle"],
            verbose=0,
            export=ExportOptions(report=False),
            benchmark=BenchOptions(warmup=0, repeats=1, peak_memory=False, roofline=False),
        )
        features = {"conv*": "conv*"}
        others = [] if onnx else [PACTQuantCallback()]
        return [DistillCallback(self.teacher, loss="kl", features=features), *others, export]

    def step(self, number: int, *, onnx: bool = False) -> None:
        model = self.model if number % 2 and not onnx else hapi_model()
        fit(model, self.callbacks(onnx=onnx), num_workers=1 if number % 10 == 0 else 0)
        if number % 10 == 5:  # a fit that fails
            with contextlib.suppress(ZeroDivisionError):
                fit(model, [*self.callbacks(), _Fails()])
        if number % 10 == 7:
            BackboneSwap(TinyNet(width=2))(TinyNet(), input_spec=[paddle.static.InputSpec([1, 3, 8, 8])])
        print_of = fingerprint(model, self.teacher)
        self.hooks.append(sum(sum(pair) for net in print_of["hooks"] for pair in net))
        del model
        self.figures.append(self.measured())

    def measured(self) -> dict[str, float]:
        gc.collect()
        for thread in threading.enumerate():
            if thread not in self.before:
                thread.join(6)  # of a loader whose data have just run out
        time.sleep(0.05)  # those of Paddle's C++ side
        homes = ((o, type(o).__module__) for o in gc.get_objects())  # of some C types it is no string
        ours = [o for o, home in homes if isinstance(home, str) and home.partition(".")[0] == "paddlelite_callbacks"]
        heap = heap_in_use_mb()  # first, since it gives memory back
        return {
            "resident MB": resident_mb(),
            "heap in use MB": heap,
            "Python's memory blocks": sys.getallocatedblocks(),
            "objects": len(gc.get_objects()),
            "objects of ours": len(ours),
            "tensors": sum(isinstance(o, paddle.Tensor) for o in gc.get_objects()),
            "threads of Python": threading.active_count(),
            "threads": _count("/proc/self/task"),
            "child processes": len(multiprocessing.active_children()),
            "open files": _count("/proc/self/fd"),
            "hooks": self.hooks[-1],
            "files": sum(1 for _ in self.folder.rglob("*")),
            "source files of Paddle": _count(get_temp_dir()) + _count(source_folder(os.getpid())),
        }


class _Fails(paddle.callbacks.Callback):
    def on_train_batch_end(self, step, logs=None):
        raise ZeroDivisionError
