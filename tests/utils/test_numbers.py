"""The one validator of numbers: what is a number, in which range, and what the message says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paddlelite_callbacks.utils.numbers import check_number, check_whole, is_finite, is_whole


@pytest.mark.parametrize("value", [0, 1, -3, 10**400])
def test_ints_are_whole(value):
    assert is_whole(value)
    assert is_whole(value, value, value)
    assert not is_whole(value, value + 1)
    assert not is_whole(value, most=value - 1)


@pytest.mark.parametrize("value", [True, False, 1.0, math.nan, "1", None, [1], np.float64(1)])
def test_others_are_not_whole(value):
    assert not is_whole(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, True) for value in (0, -1.5, np.float64(2))),
        *((value, False) for value in (math.nan, math.inf, -math.inf, 10**400, True, "1", None)),
    ],
)
def test_finite_numbers(value, expected):
    assert is_finite(value) is expected


def test_messages_say_what_was_given_what_is_allowed_and_what_to_do():
    with pytest.raises(ValueError, match=r"^epochs must be a whole number of at least 1, got True: leave it out\.$"):
        check_whole("epochs", True, 1, remedy="leave it out")
    with pytest.raises(ValueError, match=r"^bits must be a whole number in \[2, 8\], got 9: give 8\.$"):
        check_whole("bits", 9, 2, 8, remedy="give 8")
    with pytest.raises(ValueError, match=r"^rate must be a finite number above 0, got nan: give 0\.1\.$"):
        check_number("rate", math.nan, lambda value: value > 0, "a finite number above 0", remedy="give 0.1")
    check_whole("bits", 8, 2, 8, remedy="")
    check_number("rate", 0.1, lambda value: value > 0, "", remedy="")


def test_no_other_module_has_a_validator_of_its_own():
    from places import ROOT

    package = ROOT / "paddlelite_callbacks"
    allowed = {package / "utils" / "numbers.py", package / "report" / "parse.py"}  # the parser of JSON's types
    for path in package.rglob("*.py"):
        if path not in allowed:
            assert "isinstance(value, (int, float))" not in path.read_text(encoding="utf-8"), path
            assert "must be a whole number {" not in path.read_text(encoding="utf-8"), path
