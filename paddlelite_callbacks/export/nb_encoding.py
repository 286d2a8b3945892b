"""Encode the program inside a ``.nb`` file compactly.

A ``.nb`` (meta version 2) holds the program as a FlatBuffer (Paddle Lite's ``framework.fbs``), then the parameters.
``opt`` writes names and attributes each time they occur, with eight empty lists in each attribute: 1 KB an operator,
half of a quantised Lite-HRNet. FlatBuffers lets tables, lists and strings be shared, and empty ones be left out: equal
parts are stored once here. The program that is read from them is the same.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["compact_nb", "program_of_nb"]

_HEADER = struct.Struct("<H16sQ")  # meta version, version of opt, bytes of the program
_META_VERSION = 2
_SIZES = {"bool": 1, "int": 4, "float": 4, "long": 8, "double": 8}  # of scalars, in bytes


@dataclass(frozen=True, eq=False)
class _Table:
    """Fields of a table in ``framework.fbs``, in their order.

    Args:
        fields: A scalar's name, ``"string"``, ``"[int]"`` (lists), or a table (``[table]`` for a list of them).
        defaults: Values of scalars that are not zero by default, by index.
        kind: Index of the scalar that tells which other field is used, and that field by its value.
    """

    fields: tuple[Any, ...]
    defaults: Mapping[int, bytes] = field(default_factory=dict)
    kind: tuple[int, Mapping[int, int]] | None = None


_ATTRIBUTE = _Table(
    (
        *("string", "int", "int", "float", "string", "[int]", "[float]", "[string]", "bool", "[bool]", "int", "long"),
        *("[int]", "[long]", "double", "[double]"),
    ),
    kind=(1, {**{number: number + 2 for number in range(12)}, 12: 15, 15: 14}),
)
_SLOT = _Table(("string", "[string]"))
_OPERATOR = _Table(("string", [_SLOT], [_SLOT], [_ATTRIBUTE], "bool"))
_TENSOR = _Table(("int", "[long]"))
_LOD_TENSOR = _Table((_TENSOR, "int"))
_TYPE = _Table(("int", _TENSOR, _LOD_TENSOR, _LOD_TENSOR, _Table(([_LOD_TENSOR],)), _Table(("[int]",))))
_VARIABLE = _Table(("string", _TYPE, "bool", "bool"))
_BLOCK = _Table(("int", "int", [_VARIABLE], [_OPERATOR], "int"), defaults={4: struct.pack("<i", -1)})
_VERSIONS = _Table(([_Table(("string", _Table(("int",))))],))
_PROGRAM = _Table(([_BLOCK], _Table(("long",)), _VERSIONS))

_Value = Any  # bytes of a scalar, string or list of scalars; a tuple of values; a tuple of (index, value) for a table


def compact_nb(content: bytes) -> bytes:
    """Return the ``.nb`` with a compact encoding of the same program.

    Args:
        content: What ``opt`` wrote. Another format, or a field that is unknown here, is returned unchanged.

    Example:
        >>> compact_nb(b"no .nb")
        b'no .nb'
    """
    try:
        program, end = _read(content)
    except (struct.error, ValueError, IndexError):
        return content
    encoded = _Writer().file(program)
    made = _HEADER.pack(*_HEADER.unpack_from(content)[:2], len(encoded)) + encoded + content[end:]
    if len(made) >= len(content) or program_of_nb(made) != program:
        return content
    return made


def program_of_nb(content: bytes) -> _Value:
    """Return the program of a ``.nb`` as nested tuples; equal programs are equal.

    Args:
        content: Bytes of the file.

    Raises:
        ValueError: Another format, or a field that is unknown here.
    """
    try:
        return _read(content)[0]
    except (struct.error, IndexError) as error:
        raise ValueError(f"not a .nb of meta version {_META_VERSION}: {error}") from error


def _read(content: bytes) -> tuple[_Value, int]:
    version, _, size = _HEADER.unpack_from(content)
    end = _HEADER.size + size
    if version != _META_VERSION or end > len(content):
        raise ValueError(f"not a .nb of meta version {_META_VERSION}")
    reader = _Reader(content[_HEADER.size : end])
    return reader.table(reader.follow(0), _PROGRAM), end


class _Reader:
    """Reads a FlatBuffer into nested tuples, without what is empty or a default."""

    def __init__(self, content: bytes) -> None:
        self._bytes = content

    def number(self, place: int, form: str = "<I") -> int:
        return int(struct.unpack_from(form, self._bytes, place)[0])

    def follow(self, place: int) -> int:
        return place + self.number(place)

    def table(self, place: int, schema: _Table) -> _Value:
        index = place - self.number(place, "<i")
        count = (self.number(index, "<H") - 4) // 2
        found = {}
        for number in range(count):
            if not (offset := self.number(index + 4 + 2 * number, "<H")):
                continue
            if number >= len(schema.fields):
                raise ValueError("a field that is not known")
            value = self.value(place + offset, schema.fields[number])
            if isinstance(schema.fields[number], str) and schema.fields[number] in _SIZES:
                if value != schema.defaults.get(number, bytes(len(value))):
                    found[number] = value
            else:
                found[number] = value
        return _without_unused(found, schema)

    def value(self, place: int, form: Any) -> _Value:
        if isinstance(form, _Table):
            return self.table(self.follow(place), form)
        if isinstance(form, str) and form in _SIZES:
            return self._bytes[place : place + _SIZES[form]]
        place = self.follow(place)
        count, first = self.number(place), place + 4
        if form == "string":
            return self._bytes[first : first + count]
        if isinstance(form, str) and form != "[string]":
            return self._bytes[first : first + count * _SIZES[form[1:-1]]]
        item = "string" if form == "[string]" else form[0]
        return tuple(self.value(first + 4 * number, item) for number in range(count))


def _without_unused(found: dict[int, _Value], schema: _Table) -> _Value:
    """Leave out the empty fields of an attribute that are not of its type."""
    if schema.kind is not None:
        number, used = schema.kind
        kind = int.from_bytes(found.get(number, b""), "little")
        if kind not in used:
            raise ValueError("a type of attributes that is not known")
        found = {index: value for index, value in found.items() if value or index == used[kind]}
    return tuple(sorted(found.items()))


class _Writer:
    """Writes nested tuples as a FlatBuffer, from its end to its start.

    Equal parts become one. Places are counted from the end.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._known: dict[Any, int] = {}

    def file(self, program: _Value) -> bytes:
        root = self.table(program, _PROGRAM)
        start = self._room(4, 8)
        self._put(struct.pack("<I", start - root))
        return b"".join(reversed(self._parts))

    def _room(self, length: int, align: int, *, head: int = 0) -> int:
        """Pad so that the byte after ``head`` is aligned; return the next part's place."""
        padding = -(self._size + length - head) % align
        self._put(bytes(padding))
        return self._size + length

    def _put(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)

    def string(self, text: bytes) -> int:
        if (key := ("string", text)) not in self._known:
            part = struct.pack("<I", len(text)) + text + b"\0"
            self._known[key] = self._room(len(part), 4)
            self._put(part)
        return self._known[key]

    def scalars(self, values: bytes, size: int) -> int:
        if (key := ("scalars", size, values)) not in self._known:
            self._known[key] = self._room(4 + len(values), max(size, 4), head=4)
            self._put(struct.pack("<I", len(values) // size) + values)
        return self._known[key]

    def offsets(self, places: tuple[int, ...]) -> int:
        if (key := ("offsets", places)) not in self._known:
            start = self._room(4 + 4 * len(places), 4)
            items = [start - 4 - 4 * number - place for number, place in enumerate(places)]
            self._put(struct.pack(f"<{1 + len(items)}I", len(items), *items))
            self._known[key] = start
        return self._known[key]

    def value(self, value: _Value, form: Any) -> int:
        """Write what a field points to; return its place."""
        if isinstance(form, _Table):
            return self.table(value, form)
        if form == "string":
            return self.string(value)
        if isinstance(form, str) and form != "[string]":
            return self.scalars(value, _SIZES[form[1:-1]])
        item = "string" if form == "[string]" else form[0]
        return self.offsets(tuple(self.value(one, item) for one in value))

    def table(self, fields: _Value, schema: _Table) -> int:
        key = (id(schema), fields)
        if key in self._known:
            return self._known[key]
        parts: list[tuple[int, int, bytes | int]] = []  # size, index, bytes or the place that is pointed to
        for index, value in fields:
            form = schema.fields[index]
            scalar = isinstance(form, str) and form in _SIZES
            parts.append((_SIZES[form], index, value) if scalar else (4, index, self.value(value, form)))
        parts.sort(key=lambda part: (-part[0], part[1]))  # the widest first: no padding between
        wide = bool(parts) and parts[0][0] == 8
        length = (8 if wide else 4) + sum(size for size, _, _ in parts)
        slots = [0] * (1 + max((index for _, index, _ in parts), default=-1))
        at = 8 if wide else 4
        for size, index, _ in parts:
            slots[index] = at
            at += size
        vtable = self._vtable(struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), length, *slots))
        start = self._room(length, 8 if wide else 4)
        content = struct.pack("<i", vtable - start) + (bytes(4) if wide else b"")
        for _, index, item in parts:
            content += item if isinstance(item, bytes) else struct.pack("<I", start - slots[index] - item)
        self._put(content)
        self._known[key] = start
        return start

    def _vtable(self, content: bytes) -> int:
        if (key := ("vtable", content)) not in self._known:
            self._known[key] = self._room(len(content), 2)
            self._put(content)
        return self._known[key]
