"""Read a dataclass from JSON, field by field: a value of another type is refused, and the field is named."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union

__all__ = ["FieldError", "parsed"]

T = TypeVar("T")
_Reader = Callable[[Any, str], Any]
_LARGEST_INT = 2**63 - 1
_DEEPEST = 64  # lists and objects in each other


class FieldError(ValueError):
    """A field is missing or of another type."""


def parsed(kind: type[T], data: Any, where: str = "") -> T:
    """Parse ``data`` into a dataclass; unknown fields are dropped.

    Texts, numbers, booleans, tuples, dictionaries and dataclasses of such are read. ``null`` in the place of a number
    is NaN where the field must have one.

    Args:
        kind: a dataclass.
        data: of ``json.loads``.
        where: in front of the names of fields in errors.

    Raises:
        FieldError: names the field, what stands there and what should.
    """
    return _of_dataclass(typing.cast(Any, kind))(data, where)


@functools.cache
def _reader(hint: Any) -> _Reader:
    if dataclasses.is_dataclass(hint):
        return _of_dataclass(typing.cast(Any, hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [_reader(argument) for argument in arguments if argument is not type(None)]
        return lambda value, where: None if value is None else inner[0](value, where)
    if origin is tuple:
        one = _reader(arguments[0])
        return lambda value, where: tuple(one(item, f"{where}[{i}]") for i, item in enumerate(_list(value, where)))
    if origin is dict:
        of = _reader(arguments[1])
        return lambda value, where: {key: of(item, f"{where}.{key}") for key, item in _mapping(value, where).items()}
    return {str: _text, bool: _bool, int: _int, float: _float}.get(hint, _anything)


@functools.cache
def _of_dataclass(kind: Any) -> _Reader:
    hints = typing.get_type_hints(kind)
    known = [(field.name, _reader(hints[field.name]), _has_default(field)) for field in dataclasses.fields(kind)]

    def read(data: Any, where: str) -> Any:
        given, values = _mapping(data, where), {}
        for name, reader, optional in known:
            place = f"{where}.{name}" if where else name
            if name in given:
                values[name] = reader(given[name], place)
            elif not optional:
                raise FieldError(f"{place} is missing")
        return kind(**values)

    return read


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _list(value: Any, where: str) -> list[Any]:
    return value if isinstance(value, list) else _refuse(value, where, "a list")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _refuse(value, where or "it", "an object")


def _text(value: Any, where: str) -> str:
    return value if isinstance(value, str) else _refuse(value, where, "a text")


def _bool(value: Any, where: str) -> bool:
    return value if isinstance(value, bool) else _refuse(value, where, "true or false")


def _int(value: Any, where: str) -> int:
    number = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not number or abs(value) > _LARGEST_INT:
        return _refuse(value, where, "a whole number")
    return int(value)


def _float(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _refuse(value, where, "a number")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return _refuse(value, where, "a number that a float can hold")
    return value


def _anything(value: Any, where: str) -> Any:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return value
    raise FieldError(f"{where[:80]} is nested more than {_DEEPEST} deep")


def _inside(value: Any) -> list[Any]:
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in found if isinstance(item, (dict, list))]


def _refuse(value: Any, where: str, wanted: str) -> Any:
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        shown = "a number of too many digits"  # Python would not even print some
    else:
        shown = repr(value if not isinstance(value, (list, dict)) else type(value)())[:60] + (
            " with content" if isinstance(value, (list, dict)) and value else ""
        )
    raise FieldError(f"{where[:80]} is {shown}, not {wanted}")
