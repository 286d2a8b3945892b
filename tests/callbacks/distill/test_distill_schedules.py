"""Schedules of weights against hand-reckoned values."""

from __future__ import annotations

import pytest

from paddlelite_callbacks.distill.schedules import (
    checked_weight,
    constant,
    cosine,
    linear,
    stop_at,
    value_at,
    warm_up,
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(2.0), [2, 2, 2, 2, 2]),
        (linear(1.0, 0.0), [1, 0.875, 0.75, 0.5, 0]),
        (linear(1.0, 3.0, epochs=4), [1, 1.5, 2, 3, 3]),
        (cosine(1.0, 0.0), [1, 0.9619397662556434, 0.8535533905932737, 0.5, 0]),
        (cosine(0.0, 2.0, epochs=4), [0, 0.2928932188134524, 1, 2, 2]),
        (warm_up(2, 3.0), [0, 1.5, 3, 3, 3]),
        (stop_at(4, 0.5), [0.5, 0.5, 0.5, 0, 0]),
        (stop_at(4, linear(1.0, 0.0)), [1, 0.875, 0.75, 0, 0]),
        (warm_up(2, stop_at(4)), [0, 0.5, 1, 0, 0]),
        (lambda epoch, epochs: epoch / epochs, [0, 0.125, 0.25, 0.5, 1]),
        (0.3, [0.3] * 5),
    ],
    ids=lambda value: "own" if "lambda" in str(value) else str(value),
)
def test_values_over_eight_epochs(schedule, expected):
    assert [value_at(schedule, epoch, 8) for epoch in (0, 1, 2, 4, 8)] == pytest.approx(expected)


def test_silence_is_known_ahead():
    assert stop_at(3).silent_from == 3
    assert warm_up(1, stop_at(3)).silent_from == 3
    assert linear(1, 0).silent_from == float("inf")


def test_repr_says_what_it_is():
    assert repr(warm_up(2, stop_at(4, 0.5))) == "warm_up(2, stop_at(4, 0.5))"


def test_what_is_out_of_range():
    with pytest.raises(ValueError, match="start must be a finite number of at least 0, got -1"):
        linear(-1, 0)
    with pytest.raises(ValueError, match="epochs must be positive, got 0"):
        cosine(1, 0, epochs=0)
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0, got nan"):
        checked_weight("weight", float("nan"))
    with pytest.raises(ValueError, match=r"-1 at epoch 2.* at least 0"):
        value_at(lambda epoch, epochs: -1, 2, 4)
