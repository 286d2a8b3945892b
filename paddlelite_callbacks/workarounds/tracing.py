"""Trace programs without Paddle's permanent records and repeated conversions.

Each function works around one defect of paddlepaddle 3.3.1 (no upstream report is known, unless one is named) and has a
test in ``tests/workarounds`` that fails once Paddle fixes it. Where a later Paddle lacks the private names that it
needs, it does nothing.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import inspect
import linecache
import os
import shutil
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paddle

from paddlelite_callbacks.utils.private_names import private_module

__all__ = [
    "clean_trace",
    "source_folder",
    "with_own_source_folder",
    "without_call_stacks",
    "without_failed_traces",
    "without_generated_sources",
    "without_repeated_conversions",
    "without_scope_names",
]

_DY2STATIC = "paddle.jit.dy2static"
_framework = private_module("paddle.base.framework", "_name_struct", "NameStruct")
_origin_info = private_module(f"{_DY2STATIC}.origin_info", "global_origin_info_map")
_recorders = private_module(
    f"{_DY2STATIC}.parameter_recorder",
    "_global_parameter_recorder.params_dict",
    "_global_parameter_recorder.tensor2value",
    "_global_inplace_map.params_dict",
)
_sources = private_module(f"{_DY2STATIC}.utils", "get_temp_dir", "DEL_TEMP_DIR")
_translator = private_module(f"{_DY2STATIC}.program_translator", "ast_to_func")
_cache = private_module(f"{_DY2STATIC}.program_translator", "_FUNCTION_CACHE.convert_with_cache")
_calls = private_module(f"{_DY2STATIC}.convert_call_func", "is_unsupported")

_generated: list[tuple[weakref.ref[Any], str]] = []  # functions that Paddle generated inside the blocks, their files
_lock = threading.Lock()
_converting = threading.local()  # whether this thread is inside a block of `without_repeated_conversions`


@contextmanager
def clean_trace() -> Iterator[None]:
    """Trace inside the block with all workarounds of this module."""
    with (
        without_call_stacks(),
        without_failed_traces(),
        without_scope_names(),
        with_own_source_folder(),
        without_generated_sources(),
        without_repeated_conversions(),
    ):
        yield


@contextmanager
def with_own_source_folder() -> Iterator[None]:
    """Make Paddle write generated source files to a temporary folder of this process.

    Paddle 3.3 writes them to ``~/.cache/paddle/to_static_tmp/PID``: a HOME that is not writable ends the trace, and of
    two containers that share one, and have the same PID, the first to end deletes the other's files.
    """
    if _sources is None:
        yield
        return
    real, remove_at_exit = _sources.get_temp_dir, _sources.DEL_TEMP_DIR
    _sources.get_temp_dir = lambda: source_folder(os.getpid())
    _sources.DEL_TEMP_DIR = False
    try:
        yield
    finally:
        _sources.get_temp_dir, _sources.DEL_TEMP_DIR = real, remove_at_exit


@functools.cache
def source_folder(process: int) -> str:
    """Return the temporary folder for generated source files, one per process.

    Args:
        process: Number of the process, which deletes the folder at its end.
    """
    folder = tempfile.mkdtemp(prefix="paddlelite_traces_")

    def remove() -> None:
        if os.getpid() == process:  # not in a fork
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@contextmanager
def without_scope_names() -> Iterator[None]:
    """Number scopes inside the block from zero, and forget them at its end.

    Paddle 3.3 keeps a node for each call of each layer that it ever traced (``paddle.base.framework._name_struct``) and
    continues its numbers: every program has other names (``TinyNet_7/Conv2D_3/``) in its operations, each of which
    PIR's context keeps as well. Numbered from zero they are the same in every program of a network.
    """
    if _framework is None:
        yield
        return
    outer = _framework._name_struct
    _framework._name_struct = _framework.NameStruct()
    try:
        yield
    finally:
        _framework._name_struct = outer


@contextmanager
def without_generated_sources() -> Iterator[None]:
    """Delete source files that Paddle generates inside the block once unused.

    Paddle 3.3 writes a Python file for every function that it traces, reads it back, and keeps file, text
    (``linecache``) and a map of its lines until the process ends: 3 KB per function. Files of functions that are still
    in use, Paddle's own cache of converted functions among them, stay. In this thread only.
    """
    if _translator is None:
        yield
        return
    real, owner = _translator.ast_to_func, threading.get_ident()

    def ast_to_func(*args: Any, **options: Any) -> tuple[Callable[..., Any], str]:
        function, file = real(*args, **options)
        if threading.get_ident() == owner:
            with _lock:
                _generated.append((weakref.ref(function), file))
        return function, file

    _translator.ast_to_func = ast_to_func
    try:
        yield
    finally:
        _translator.ast_to_func = real
        _forget_dead()


def _forget_dead() -> None:
    with _lock:
        dead = {file for function, file in _generated if function() is None}
        _generated[:] = [pair for pair in _generated if pair[1] not in dead]
    if not dead:
        return
    lines = {} if _origin_info is None else _origin_info.global_origin_info_map
    for place in [place for place in list(lines) if place[0] in dead]:
        lines.pop(place, None)
    for file in dead:
        linecache.cache.pop(file, None)
        for path in (file, importlib.util.cache_from_source(file)):
            with suppress(OSError):
                Path(path).unlink()


@contextmanager
def without_repeated_conversions() -> Iterator[None]:
    """Convert each method once inside the block; an inner block shares the cache.

    Paddle 3.3 caches converted functions under weak references to their sources. A bound method is freed at once, so
    ``forward`` is parsed, rewritten, written to a file, imported and parsed again for each layer of the same class and
    for each program; and whether a callee is built in is searched in a list of thousands at each call. Together these
    take three quarters of the time of a trace of MobileNetV3. Nothing is kept between two blocks, since a conversion
    captures the values of globals and closures at that moment. In this thread only.
    """
    if getattr(_converting, "active", False):
        yield
        return
    _converting.active = True
    with _converted_once(), _looked_up_once():
        try:
            yield
        finally:
            _converting.active = False
    _forget_dead()


class _OncePerFunction:
    """Call ``real`` once per function; return the same result again in its thread.

    Args:
        real: Function of Paddle.
        plain: Returns the plain function that decides the result; ``None`` for a call that is not to be remembered.
    """

    def __init__(self, real: Callable[[Any], Any], plain: Callable[[Any], Any]) -> None:
        self._real, self._plain, self._owner = real, plain, [threading.get_ident()]
        self._known: dict[int, tuple[Any, Any]] = {}  # by the id of the plain function, which is kept alive

    def __call__(self, function: Any) -> Any:
        plain = self._plain(function) if threading.get_ident() in self._owner else None
        if plain is None:
            return self._real(function)
        if id(plain) not in self._known:
            self._known[id(plain)] = plain, self._real(function)
        return self._known[id(plain)][1]

    def end(self) -> None:
        """Only call ``real`` from now on.

        Another thread's block may restore this object later.
        """
        self._owner.clear()
        self._known.clear()


@contextmanager
def _converted_once() -> Iterator[None]:
    if _cache is None:
        yield
        return
    cache = _cache._FUNCTION_CACHE
    before = vars(cache).get("convert_with_cache")
    once = _OncePerFunction(cache.convert_with_cache, lambda call: call.__func__ if inspect.ismethod(call) else None)
    cache.convert_with_cache = once
    try:
        yield
    finally:
        once.end()
        if before is not None:
            cache.convert_with_cache = before
        else:
            vars(cache).pop("convert_with_cache", None)


@contextmanager
def _looked_up_once() -> Iterator[None]:
    if _calls is None:
        yield
        return
    real = _calls.is_unsupported
    once = _calls.is_unsupported = _OncePerFunction(real, _plain_function)
    try:
        yield
    finally:
        once.end()
        _calls.is_unsupported = real


def _plain_function(function: Any) -> Any:
    """Return what is called: the ``forward`` of a layer, the function of a method."""
    what = getattr(function, "forward", function) if isinstance(function, paddle.nn.Layer) else function
    return what.__func__ if inspect.ismethod(what) else what


_EMPTY = traceback.StackSummary()


@contextmanager
def without_call_stacks() -> Iterator[None]:
    """Give Paddle an empty call stack inside the block, in this thread.

    While it traces a network, Paddle 3.3 calls ``traceback.extract_stack()`` for each operation (to name lines if the
    program fails at run time) and keeps the result permanently: 0.1 MB for each ``paddle.jit.save`` of a network of 38
    operations. An exception in ``forward`` has its usual traceback; the saved files are the same.
    """
    real, owner = traceback.extract_stack, threading.get_ident()

    def extract_stack(*args: Any, **options: Any) -> traceback.StackSummary:
        if threading.get_ident() == owner and not args and not options:
            return _EMPTY
        return real(*args, **options)

    traceback.extract_stack = extract_stack
    try:
        yield
    finally:
        traceback.extract_stack = real


@contextmanager
def without_failed_traces() -> Iterator[None]:
    """Forget the parameters of traces that failed, before the block and if it fails.

    Paddle 3.3 records the parameters of a program that it traces under the program's address, and removes them after
    the trace. If ``forward`` raises they stay, and a later program at the same address gets them: ``paddle.jit.save``
    then ends in a KeyError. Inside a trace nothing is done. Paddle fixed it for traces that succeed:
    https://github.com/PaddlePaddle/Paddle/pull/71503.
    """
    if paddle.in_dynamic_mode():
        _forget()
    try:
        yield
    except BaseException:
        if paddle.in_dynamic_mode():
            _forget()
        raise


def _forget() -> None:
    if _recorders is None:
        return
    parameters = _recorders._global_parameter_recorder
    for table in (parameters.params_dict, parameters.tensor2value, _recorders._global_inplace_map.params_dict):
        table.clear()
