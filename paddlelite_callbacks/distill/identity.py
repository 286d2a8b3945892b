"""Identify the user's functions across processes."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.distill.load_teacher import digest_of

__all__ = ["function_digest", "function_name", "function_names"]


def function_name(function: Callable[..., Any] | None) -> str | None:
    """Return ``module.name`` of a function or a callable's class; ``None`` for none.

    Args:
        function: Any callable, or ``None``.
    """
    if function is None:
        return None
    if isinstance(function, functools.partial):
        return f"partial of {function_name(function.func)}"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def function_names(functions: Any) -> Any:
    """Return the names of functions, for storage in a file.

    Args:
        functions: One, or a list of them; ``None`` for none.
    """
    if isinstance(functions, (list, tuple)):
        return [function_name(one) for one in functions]
    return function_name(functions)


def function_digest(function: Callable[..., Any]) -> str:
    """Return a SHA-256 of what a function computes, as far as it can be inspected.

    It covers the compiled code (which depends on the Python version), defaults, the values that it closes over or reads
    from its module, and the functions that it calls there; for an object its class and attributes, for a ``Layer`` its
    weights.

    Args:
        function: Any callable.
    """
    digest = hashlib.sha256()
    for piece in _pieces(function, set()):
        digest.update(piece + b"\0")
    return digest.hexdigest()


def _pieces(value: Any, seen: set[int]) -> Iterator[bytes]:
    if isinstance(value, (type(None), bool, int, float, complex, str, bytes)):
        yield repr(value).encode()
    elif isinstance(value, (np.ndarray, np.generic, Tensor)):
        array = np.ascontiguousarray(value.numpy() if isinstance(value, Tensor) else value)
        yield f"{array.dtype}{array.shape}".encode() + array.tobytes()
    elif id(value) in seen:
        yield b"again"
    else:
        seen.add(id(value))
        yield type(value).__qualname__.encode()
        for part in _parts(value):
            yield from _pieces(part, seen)


def _parts(value: Any) -> list[Any]:
    """Return the parts of ``value`` that its digest covers."""
    if isinstance(value, Layer):
        return [digest_of(value)]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        found = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
        return [value.__code__, value.__defaults__, value.__kwdefaults__, _closed_over(value), found]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_consts, value.co_names]
    if isinstance(value, types.ModuleType):
        return [value.__name__]
    if isinstance(value, Mapping):
        return [item for key in sorted(value, key=repr) for item in (repr(key), value[key])]
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, type) or inspect.isbuiltin(value):
        return [value.__module__, value.__qualname__]
    call = [vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind)][:1]
    return [type(value).__module__, call, vars(value) if hasattr(value, "__dict__") else None]


def _names(code: types.CodeType) -> list[str]:
    """Return the names that ``code`` and the functions defined in it look up."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return sorted({*code.co_names, *(name for one in inner for name in _names(one))})


def _closed_over(function: types.FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name without a value yet
            found.append(cell.cell_contents)
    return found
