"""Load files of ``paddle.save`` without executing code.

Such a file is a pickle, and a pickle can call any function of the machine when it is opened: ``paddle.load`` calls
them. Weights need a few harmless ones, so here every other name is rejected.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

__all__ = ["check_no_code", "read_saved"]

_SLICES = "UnpackBigParamInfor@@"  # how Paddle splits arrays of more than 1 GB for old pickle protocols
_NAMES = "StructuredToParameterName@@"


class _Refused(Exception):
    """A pickle references something that weights do not need."""


def read_saved(path: str | Path) -> Any:
    """Load a file of ``paddle.save``: tensors, numbers, strings, nested.

    Like ``paddle.load``, but a pickle that references any other function or class is rejected before it is called.

    Args:
        path: A ``.pdparams``, ``.pdopt`` or ``.pddistill`` file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file would run code, is truncated, or is not a file of ``paddle.save``.

    Example:
        >>> network.set_state_dict(read_saved("downloaded.pdparams"))  # doctest: +SKIP
    """
    return _as_tensors(_joined(_unpickled(Path(path))))


def check_no_code(path: Path) -> None:
    """Check that a pickle at ``path`` executes no code, before Paddle opens it.

    Raises:
        ValueError: The file would run code, or is truncated.
    """
    if path.is_file():
        _unpickled(path)


def _unpickled(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}: give the path of a file of paddle.save, such as weights.pdparams."
        )
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise ValueError(
            f"{path} would call {error} when it is opened. A file of weights may only hold arrays, numbers and "
            "strings in dictionaries and lists; anything else can run any code on this machine, so it is not "
            "opened. If you trust its author, open it yourself with paddle.load and save only the weights: "
            "paddle.save(network.state_dict(), path)."
        ) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is truncated, or not a file of paddle.save ({type(error).__name__}: {str(error)[:120]}): give "
            "a complete one, written with paddle.save(network.state_dict(), path)."
        ) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _empty() -> bytes:
    """Replace ``bytes()``, the data of an empty array."""
    return b""


def _data_of(expression: str, names: Mapping[str, Any]) -> Any:
    """Replace ``eval("data", ...)``, which Paddle pickles for static tensors."""
    if expression != "data":
        raise _Refused("builtins.eval")
    return names["data"]


# _reconstruct and scalar move between NumPy's modules from version to version: arrays and numbers themselves name them
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "tuple"): tuple,
    ("builtins", "bytes"): _empty,
    ("builtins", "eval"): _data_of,
    ("_codecs", "encode"): _encode,
}


def _joined(value: Any) -> Any:
    """Join split arrays and drop Paddle's table of names."""
    if not isinstance(value, dict):
        return value
    for key, part in value.pop(_SLICES, {}).items():
        value[key] = np.concatenate([value.pop(name) for name in part["slices"]]).reshape(part["OriginShape"])
    value.pop(_NAMES, None)
    return value


def _as_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return paddle.to_tensor(value)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], np.ndarray):
        return paddle.to_tensor(value[1])  # without its automatic name, which another tensor may have
    if isinstance(value, dict):
        return type(value)((key, _as_tensors(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_as_tensors(item) for item in value)
    return value
