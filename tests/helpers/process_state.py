"""What belongs to the user's process, and a watch on calls that must leave it as they found it."""

from __future__ import annotations

import importlib
import inspect
import logging
import multiprocessing
import os
import pkgutil
import random
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import paddle
from paddle.base import core

import paddlelite_callbacks
from paddlelite_callbacks.utils.isolation import openmp_libraries

__all__ = ["Watch", "differences", "public_functions", "snapshot"]

PARTS = (
    "backbone",
    "benchmark",
    "cli",
    "distill",
    "distill.losses",
    "export",
    "maintainer_tools",
    "quant",
    "report",
)
_FLAGS = list(core.globals().keys())


def _next_numbers() -> tuple:
    """What Paddle's generator would give next; it is put back."""
    state, gradients = paddle.get_rng_state(), paddle.is_grad_enabled()
    numbers = tuple(paddle.rand([3]).numpy().tolist()) if paddle.in_dynamic_mode() else ()
    paddle.set_rng_state(state)
    return (*numbers, gradients)


def _logging() -> dict:
    loggers = {"": logging.getLogger()} | dict(logging.Logger.manager.loggerDict)
    return {
        name: (logger.level, tuple(map(id, logger.handlers)), logger.propagate, logger.disabled)
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger)
    }


def snapshot() -> dict:
    matplotlib = sys.modules.get("matplotlib")
    return {
        "threads": set(threading.enumerate()),
        "child processes": set(multiprocessing.active_children()),
        "random": random.getstate(),
        "numpy.random": [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()],
        "paddle's generator and gradient mode": _next_numbers(),
        "paddle's flags": {name: core.globals()[name] for name in _FLAGS},
        "dynamic mode": paddle.in_dynamic_mode(),
        "default dtype, device": (paddle.get_default_dtype(), paddle.get_device()),
        "openmp threads": {library._name: library.omp_get_max_threads() for library in openmp_libraries()},
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "logging": _logging(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "cwd and sys.path": (str(Path.cwd()), list(sys.path)),
        "streams and hooks": (id(sys.stdout), id(sys.stderr), id(sys.excepthook), id(warnings.showwarning)),
        "numpy's errors": np.geterr(),
        "matplotlib": dict(dict.items(matplotlib.rcParams)) if matplotlib else {},
        "pyplot": "matplotlib.pyplot" in sys.modules,
        "temporary files": sorted(  # but for the one folder of traced sources a process, which goes at its end
            name
            for name in os.listdir(tempfile.gettempdir())  # noqa: PTH208
            if not name.startswith("paddlelite_traces_")
        ),
    }


def differences(before: dict, after: dict) -> list[str]:
    """Name what is not as found. What was not there before (loggers, libraries) may be as it likes."""
    found = []
    for name, was in before.items():
        now = after[name]
        if name in ("logging", "openmp threads", "matplotlib"):
            now = {key: value for key, value in now.items() if key in was}
        if name in ("threads", "child processes"):
            now = was | {one for one in now - was if not _ends(one)}
        if now != was:
            found.append(f"{name}: {_what(was, now)}")
    return found


def _ends(one) -> bool:
    """Whether a thread or process that is there now is about to end."""
    one.join(0.5)
    return not one.is_alive()


def _what(was, now) -> str:
    if isinstance(was, dict):
        keys = [key for key in {**was, **now} if was.get(key, None) != now.get(key, None)]
        return ", ".join(f"{key} {was.get(key)!r} -> {now.get(key)!r}"[:200] for key in keys[:4])
    if isinstance(was, list) and isinstance(now, list):
        return f"{[x for x in now if x not in was][:3]} added, {[x for x in was if x not in now][:3]} gone"[:300]
    return f"{was!r} -> {now!r}"[:200]


def public_functions() -> dict[str, object]:
    """Functions that the modules of the package name in ``__all__``, context managers aside, and the public classes."""
    functions = {}
    for part in PARTS:
        package = importlib.import_module(f"paddlelite_callbacks.{part}")
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for name in getattr(module, "__all__", []):
                value = getattr(module, name)
                if not inspect.isfunction(value) or value.__module__ != module.__name__:
                    continue
                if not inspect.isgeneratorfunction(inspect.unwrap(value)):
                    functions[f"{part}.{info.name}.{name}"] = value
    for name in paddlelite_callbacks.__all__:
        value = getattr(paddlelite_callbacks, name)
        if inspect.isclass(value) and "__init__" in vars(value):
            functions[name] = value.__init__
    return functions


class Watch:
    """Compares the process before and behind the first calls of every public function, nested ones too."""

    def __init__(self, calls: int = 2):
        # by identity: the hash of a code object is that of all its instructions, and every call of all is looked up
        self.codes = {id(inspect.unwrap(f).__code__): name for name, f in public_functions().items()}
        self.calls, self.seen, self.bad = calls, {}, {}
        self._open: list = []

    def __enter__(self):
        self.before = snapshot()
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        if bad := differences(self.before, snapshot()):
            self.bad["the scene as a whole"] = bad

    def _profile(self, frame, event, argument):
        if event not in ("call", "return"):  # of a function in C
            return
        name = self.codes.get(id(frame.f_code))
        if name is None:
            return
        if event == "call":
            self.seen[name] = self.seen.get(name, 0) + 1
            self._open.append((frame, snapshot() if self.seen[name] <= self.calls else None))
        elif event == "return" and self._open and self._open[-1][0] is frame:
            _, before = self._open.pop()
            if before is not None and (bad := differences(before, snapshot())):
                self.bad.setdefault(name, bad)
