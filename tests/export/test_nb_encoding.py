"""The compact encoding of a ``.nb``: Google's FlatBuffers package reads the same program from it."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from paddlelite_callbacks.export.nb_encoding import compact_nb, program_of_nb

pytest.importorskip("flatbuffers")

from nb_files import PROGRAM, nb, read, written

EMPTY = {4: "", 5: [], 6: [], 7: [], 9: [], 12: [], 13: [], 15: []}
OWN = {0: (2, 7), 1: (3, 0.5), 2: (4, "text"), 3: (5, [1, -2]), 4: (6, [0.5, 2.0, 3.5]), 5: (7, ["a", ""])}
OWN |= {6: (8, True), 7: (9, [True, False, True]), 8: (10, 3), 9: (11, -(2**40)), 10: (12, [4]), 11: (13, [2**40, 1])}
OWN |= {12: (15, [0.1, 0.2]), 15: (14, 0.25)}


def attribute(name, kind, value):
    return {0: name, 1: kind, **EMPTY, OWN[kind][0]: value}


def operator(kind, inputs, outputs, attributes):
    slots = [[{0: name, 1: arguments} for name, arguments in given.items()] for given in (inputs, outputs)]
    return {0: kind, 1: slots[0], 2: slots[1], 3: sorted(attributes, key=lambda one: one[0])}


def variable(name, shape, persistable):
    tensor = {0: {0: 5, 1: shape}, 1: 1}
    return {0: name, 1: {0: 7, 2: tensor}, 2: persistable}


def program():
    every = [attribute(f"of_{kind}", kind, value) for kind, (_, value) in OWN.items()]
    nothing = [attribute("no_ints", 3, []), attribute("no_text", 2, ""), attribute("zero", 0, 0)]
    both = [attribute("padding_algorithm", 2, "EXPLICIT"), attribute("strides", 3, [1, 1])]
    operators = [
        operator("feed", {"X": ["feed"]}, {"Out": ["x"]}, [attribute("col", 0, 0)]),
        *(operator("conv2d", {"Filter": ["w"], "Input": ["x"]}, {"Output": [f"y{i}"]}, both) for i in range(20)),
        operator("strange", {"A": [], "B": ["y1", "y2"]}, {"Out": ["z"]}, [*every, *nothing]),
        operator("nothing", {}, {}, []),
    ]
    variables = [variable("w", [8, 3, 3, 3], True), variable("x", [-1, 3, 8, 8], False), variable("z", [], False)]
    return {0: [{0: 0, 1: -1, 2: variables, 3: operators, 4: -1}], 1: {0: 1}}


def without_unused(value):
    """Drop what a reader of an attribute of that type does not look at, and zeros."""
    if isinstance(value, list):
        return [without_unused(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {number: without_unused(one) for number, one in value.items()}
    if set(EMPTY) <= set(value):  # an attribute as opt writes it
        own = OWN[value.get(1, 0)][0]
        found = {number: one for number, one in found.items() if number not in EMPTY or one or number == own}
    return {number: one for number, one in found.items() if one not in (0, False) or isinstance(one, (list, dict, str))}


def test_the_same_program_is_read_from_fewer_bytes():
    plain = nb(written(program()), parameters=bytes(range(256)))
    compact = compact_nb(plain)
    assert len(compact) < 0.4 * len(plain)
    assert compact[:18] == plain[:18]
    assert compact.endswith(bytes(range(256)))
    size = int.from_bytes(compact[18:26], "little")
    assert size % 8 == 0
    assert len(compact) == 26 + size + 256
    expected = program()
    assert expected[0][0].pop(4) == -1  # the default of that field
    assert without_unused(read(compact[26 : 26 + size])) == without_unused(expected)
    assert program_of_nb(compact) == program_of_nb(plain)
    assert compact_nb(compact) == compact


def test_lists_of_an_attribute_s_own_type_stay_even_if_empty():
    compact = compact_nb(nb(written(program())))
    operators = read(compact[26:-7])[0][0][3]
    found = {one[0]: one for one in operators[-2][3]}
    assert found["no_ints"][5] == []
    assert found["no_text"][4] == ""
    assert found["of_3"].keys() == {0, 1, 5}
    assert [item[0] for item in operators[-2][3]] == sorted(found)  # readers search them by halves
    assert operators[-1][1] == []


@pytest.mark.parametrize("number", [3, 11, 12, 15])
def test_other_values_are_other_programs(number):
    changed = program()
    one = next(one for one in changed[0][0][3][-2][3] if one[0] == f"of_{number}")
    field, value = OWN[number]
    one[field] = [*value[:-1], value[-1] + 1] if isinstance(value, list) else value + 1
    assert program_of_nb(nb(written(changed))) != program_of_nb(nb(written(program())))


def test_what_is_not_known_stays_as_it_is():
    plain = nb(written(program()))
    for other in (b"", b"text", plain[:60], plain[:-20], nb(written(program()), version=1)):
        assert compact_nb(other) == other
        with pytest.raises(ValueError, match=r"not a \.nb of meta version 2"):
            program_of_nb(other)
    newer = program()
    newer[2] = {0: [], 1: 5}  # a field that this schema has not
    kinds = [*PROGRAM, ("table", [[("table", ["str"])], "int"])]
    builder = copy.copy(PROGRAM)
    try:
        PROGRAM[:] = kinds
        content = nb(written(newer))
    finally:
        PROGRAM[:] = builder
    assert compact_nb(content) == content


def test_random_bytes_never_raise():
    plain, random = bytearray(nb(written(program()))), np.random.RandomState(0)
    for _ in range(60):
        broken = bytearray(plain)
        for place in random.randint(26, len(broken) - 7, 3):
            broken[place] = random.randint(256)
        made = compact_nb(bytes(broken))
        assert made == broken or program_of_nb(made) == program_of_nb(bytes(broken))
