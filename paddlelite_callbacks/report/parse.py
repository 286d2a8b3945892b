"""Parse dataclasses from JSON, with errors that name the field."""

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
_Reader = Callable[[Any], Any]
_LARGEST_INT = 2**63 - 1
_DEEPEST = 64  # levels of nested lists and objects


class FieldError(ValueError):
    """A field is missing or has the wrong type.

    Args:
        said: Reason, for the message.
        path: Path of the field; completed while the error propagates.
    """

    def __init__(self, said: str, path: str = "") -> None:
        super().__init__(said)
        self.said, self.path = said, path

    def __str__(self) -> str:
        return f"{self.path[:80] or 'it'} {self.said}"

    def inside(self, step: str) -> FieldError:
        """Return the error with ``step`` before its path.

        Args:
            step: Name of a field, or ``"[2]"``.
        """
        rest = self.path if not self.path or self.path.startswith("[") else f".{self.path}"
        return FieldError(self.said, f"{step}{rest}")


def parsed(kind: type[T], data: Any, where: str = "") -> T:
    """Parse ``data`` into a dataclass; unknown fields are dropped.

    Supported are strings, numbers, booleans, tuples, dictionaries and dataclasses of these. ``null`` for a required
    number is NaN.

    Args:
        kind: Dataclass to build.
        data: Result of ``json.loads``.
        where: Prefix of field names in errors.

    Raises:
        FieldError: A field has the wrong type; names it, its value and the expected type.
    """
    try:
        return _of_dataclass(typing.cast(Any, kind))(data)
    except FieldError as error:
        raise (error.inside(where) if where else error) from None


@functools.cache
def _reader(hint: Any) -> _Reader:
    if dataclasses.is_dataclass(hint):
        return _of_dataclass(typing.cast(Any, hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [_reader(argument) for argument in arguments if argument is not type(None)]
        return lambda value: None if value is None else inner[0](value)
    if origin is tuple:
        return functools.partial(_tuple, _reader(arguments[0]))
    if origin is dict:
        return functools.partial(_dict, _reader(arguments[1]))
    return {str: _text, bool: _bool, int: _int, float: _float}.get(hint, _anything)


@functools.cache
def _of_dataclass(kind: Any) -> _Reader:
    hints = typing.get_type_hints(kind)
    known = [(field.name, _reader(hints[field.name]), _has_default(field)) for field in dataclasses.fields(kind)]

    def read(data: Any) -> Any:
        given, values, name = _mapping(data), {}, ""
        try:  # outside the loop: most of the time of a report of many runs is spent here
            for name, reader, optional in known:
                if name in given:
                    values[name] = reader(given[name])
                elif not optional:
                    raise FieldError("is missing")
        except FieldError as error:
            raise error.inside(name) from None
        return kind(**values)

    return read


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _tuple(one: _Reader, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        return _refuse(value, "a list")
    read: list[Any] = []
    try:
        for item in value:
            read.append(one(item))
    except FieldError as error:
        raise error.inside(f"[{len(read)}]") from None
    return tuple(read)


def _dict(one: _Reader, value: Any) -> dict[str, Any]:
    given, read, key = _mapping(value), {}, ""
    try:
        for key, item in given.items():
            read[key] = one(item)
    except FieldError as error:
        raise error.inside(key) from None
    return read


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _refuse(value, "an object")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _refuse(value, "a text")


def _bool(value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse(value, "true or false")


def _int(value: Any) -> int:
    number = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not number or abs(value) > _LARGEST_INT:
        return _refuse(value, "a whole number")
    return int(value)


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _refuse(value, "a number")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return _refuse(value, "a number that a float can hold")
    return value


def _anything(value: Any) -> Any:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return value
    raise FieldError(f"is nested more than {_DEEPEST} deep")


def _inside(value: Any) -> list[Any]:
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in found if isinstance(item, (dict, list))]


def _refuse(value: Any, wanted: str) -> Any:
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        shown = "a number of too many digits"  # Python would not even print some
    else:
        shown = repr(value if not isinstance(value, (list, dict)) else type(value)())[:60] + (
            " with content" if isinstance(value, (list, dict)) and value else ""
        )
    raise FieldError(f"is {shown}, not {wanted}")
