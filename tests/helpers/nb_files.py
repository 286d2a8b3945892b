"""Programs in the FlatBuffer of Paddle Lite, written and read by Google's ``flatbuffers`` package.

A table is a dictionary of values by field number. Everything is written anew at each place, as ``opt`` does.
"""

from __future__ import annotations

import struct

import flatbuffers
from flatbuffers import encode, number_types, packer
from flatbuffers.table import Table

N = number_types
SCALARS = {"int": N.Int32Flags, "float": N.Float32Flags, "bool": N.BoolFlags, "long": N.Int64Flags}
SCALARS["double"] = N.Float64Flags
ATTRIBUTE = ["str", "int", "int", "float", "str", ["int"], ["float"], ["str"], "bool", ["bool"], "int", "long"]
ATTRIBUTE += [["int"], ["long"], "double", ["double"]]
SLOT = ["str", ["str"]]
OPERATOR = ["str", [("table", SLOT)], [("table", SLOT)], [("table", ATTRIBUTE)], "bool"]
TENSOR = ["int", ["long"]]
VARIABLE = ["str", ("table", ["int", ("table", TENSOR), ("table", [("table", TENSOR), "int"])]), "bool", "bool"]
BLOCK = ["int", "int", [("table", VARIABLE)], [("table", OPERATOR)], "int"]
PROGRAM = [[("table", BLOCK)], ("table", ["long"])]


def scalar(kind):
    return isinstance(kind, str) and kind in SCALARS


def written(program):
    """Return the bytes of a program."""
    builder = flatbuffers.Builder(0)
    builder.Finish(_table(builder, program, PROGRAM))
    return bytes(builder.Output())


def read(content):
    """Return the program in these bytes."""
    place = encode.Get(packer.uoffset, content, 0)
    return _read(Table(bytearray(content), place), PROGRAM)


def nb(program, parameters=b"weights", version=2):
    """Return a ``.nb`` file of the bytes of a program."""
    return struct.pack("<H16sQ", version, b"v2.13-rc", len(program)) + program + parameters


def _value(builder, value, kind):
    if kind == "str":
        return builder.CreateString(value)
    if isinstance(kind, tuple):
        return _table(builder, value, kind[1])
    (item,) = kind
    if scalar(item):
        flags = SCALARS[item]
        builder.StartVector(flags.bytewidth, len(value), flags.bytewidth)
        for one in reversed(value):
            builder.Prepend(flags, one)
        return builder.EndVector()
    places = [_value(builder, one, item) for one in value]
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return builder.EndVector()


def _table(builder, fields, kinds):
    ready = {i: value if scalar(kinds[i]) else _value(builder, value, kinds[i]) for i, value in fields.items()}
    builder.StartObject(max(len(kinds), *(i + 1 for i in fields), 1))
    for i, value in ready.items():
        if scalar(kinds[i]):
            builder.Prepend(SCALARS[kinds[i]], value)
        else:
            builder.PrependUOffsetTRelative(value)
        builder.Slot(i)
    return builder.EndObject()


def _read(table, kinds):
    found = {}
    for i, kind in enumerate(kinds):
        if offset := table.Offset(4 + 2 * i):
            found[i] = _read_value(table, offset, kind)
    return found


def _read_value(table, offset, kind):
    if kind == "str":
        return table.String(offset + table.Pos).decode()
    if scalar(kind):
        return table.Get(SCALARS[kind], offset + table.Pos)
    if isinstance(kind, tuple):
        return _read(Table(table.Bytes, table.Indirect(offset + table.Pos)), kind[1])
    (item,), start, count = kind, table.Vector(offset), table.VectorLen(offset)
    if scalar(item):
        width = SCALARS[item].bytewidth
        assert start % width == 0, "not aligned"
        return [table.Get(SCALARS[item], start + width * i) for i in range(count)]
    if item == "str":
        return [table.String(start + 4 * i).decode() for i in range(count)]
    return [_read(Table(table.Bytes, table.Indirect(start + 4 * i)), item[1]) for i in range(count)]
