"""Read and write ``.pdiparams`` files, and detect truncated ones."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["check_not_truncated", "read_tensors", "stored_tensors", "write_tensors"]

# Bytes per value by type number of Paddle's VarType.
_BYTES = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 19: 8, 20: 1, 21: 1, 22: 2, 23: 8, 24: 16, 32: 1, 33: 1}
_NUMPY = {
    **{0: "bool", 1: "int16", 2: "int32", 3: "int64", 4: "float16", 5: "float32", 6: "float64"},
    **{20: "uint8", 21: "int8"},
}
_TYPE, _DIM, _DIMS = 0x08, 0x10, 0x12  # fields of the description of a tensor: a varint, a varint, packed varints


def check_not_truncated(path: str | Path) -> None:
    """Check that a parameter file is not truncated, by its tensor headers alone.

    A file in another format is left to Paddle.

    Args:
        path: A ``.pdiparams`` file of ``paddle.jit.save`` or ``save_inference_model``.

    Raises:
        ValueError: The file is truncated; says where it ends.
    """
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        try:
            while file.tell() < size:
                _pass_tensor(file)
        except (EOFError, struct.error):
            missing = "within the description of a tensor"
        except LookupError:
            return
        else:
            missing = f"{file.tell() - size} bytes too early" if file.tell() > size else ""
    if missing:
        raise ValueError(
            f"{path} is truncated: it ends after {size} bytes, {missing}. Copy or export it again with paddle.jit.save."
        )


def stored_tensors(path: str | Path) -> list[tuple[int, tuple[int, ...]]]:
    """Return type and shape of each tensor in a parameter file, in its order.

    Types are numbers of Paddle's ``VarType``.

    Args:
        path: A complete ``.pdiparams`` file.

    Raises:
        ValueError: The file has another format.
    """
    found = []
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        try:
            while file.tell() < size:
                found.append(_pass_tensor(file))
        except (EOFError, struct.error, LookupError) as error:
            raise ValueError(
                f"{path} holds no parameters of Paddle, or is truncated: export the network again."
            ) from error
    return found


def read_tensors(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the tensors of a parameters file by name.

    Args:
        path: Path of a complete ``.pdiparams`` file.
        names: Names of its tensors; the file holds them in alphabetical order.

    Raises:
        ValueError: The number of tensors differs, or NumPy does not have the type of one.
    """
    held = stored_tensors(path)
    if len(held) != len(names):
        raise ValueError(f"{path} holds {len(held)} tensors, its program has {len(names)} parameters: export it again.")
    found = {}
    with Path(path).open("rb") as file:
        for name, (kind, shape) in zip(sorted(names), held, strict=True):
            if kind not in _NUMPY:
                raise ValueError(f"{path} holds {name!r} as a type of number {kind}, which NumPy does not have.")
            _pass_tensor(file)
            count = math.prod(shape)
            file.seek(-count * _BYTES[kind], os.SEEK_CUR)
            found[name] = np.fromfile(file, _NUMPY[kind], count).reshape(shape)
    return found


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a parameters file as Paddle does, in the alphabetical order of the names.

    Args:
        path: Path of the file; give a temporary one.
        tensors: Arrays by name.

    Raises:
        ValueError: Paddle does not have the type of an array.
    """
    numbers = {kind: number for number, kind in _NUMPY.items()}
    with Path(path).open("wb") as file:
        for name in sorted(tensors):
            value = np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape)
            if str(value.dtype) not in numbers:
                raise ValueError(f"{name!r} is of the type {value.dtype}, which Paddle does not have.")
            fields = [bytes([_TYPE]) + _as_varint(numbers[str(value.dtype)])]
            fields += [bytes([_DIM]) + _as_varint(size) for size in value.shape]
            description = b"".join(fields)
            file.write(struct.pack("<IQIi", 0, 0, 0, len(description)) + description + value.tobytes())


def _as_varint(value: int) -> bytes:
    made = b""
    while value > 0x7F:
        made += bytes([value & 0x7F | 0x80])
        value >>= 7
    return made + bytes([value])


def _pass_tensor(file: BinaryIO) -> tuple[int, tuple[int, ...]]:
    """Skip one tensor: versions, header, values."""
    (_, levels) = struct.unpack("<IQ", file.read(12))
    for _ in range(levels):
        file.seek(struct.unpack("<Q", file.read(8))[0], os.SEEK_CUR)
    _, length = struct.unpack("<Ii", file.read(8))
    description = file.read(length)
    if len(description) < length:
        raise EOFError
    shape, kind = [], -1
    for field, value in _fields(description):
        if field == _TYPE:
            kind = value
        else:
            shape.append(value)
    file.seek(math.prod(shape) * _BYTES[kind], os.SEEK_CUR)
    return kind, tuple(shape)


def _fields(description: bytes) -> Iterator[tuple[int, int]]:
    """Yield the fields of a serialised ``VarType.TensorDesc``."""
    at, packed = 0, 0
    while at < len(description):
        if at < packed:
            field = _DIM
        else:
            field, at = _varint(description, at)
        if field == _DIMS:
            length, at = _varint(description, at)
            packed = at + length
            continue
        if field not in (_TYPE, _DIM):
            raise LookupError(field)
        value, at = _varint(description, at)
        yield field, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
