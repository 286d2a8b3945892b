"""The search for layers to put back, against brute force over all sets."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from paddlelite_callbacks.quant.layer_search import SearchPoint, search_layers

NAMES = [f"layer{i}" for i in range(8)]


def fewest(metric, keeps):
    """Return the size of the smallest set of layers that keeps the limit, by trying all."""
    for count in range(len(NAMES) + 1):
        if any(keeps(metric(frozenset(one))) for one in itertools.combinations(NAMES, count)):
            return count
    return None


def searched(metric, keeps, ranked, **options):
    seen = []

    def evaluate(layers):
        assert layers not in seen  # a file is made once
        seen.append(layers)
        return SearchPoint(layers=layers, metric=metric(layers), latency_ms=1.0)

    found = search_layers(ranked, evaluate, keeps, **options)
    assert [point.layers for point in found.points] == seen
    return found


def is_minimal(layers, metric, keeps):
    return keeps(metric(layers)) and not any(keeps(metric(layers - {name})) for name in layers)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [0.01, 0.05, 0.2])
def test_additive_losses_in_the_right_order_give_the_fewest(seed, limit):
    losses = dict(zip(NAMES, np.random.RandomState(seed).exponential(0.02, len(NAMES)), strict=True))

    def metric(layers):
        return 0.9 - sum(loss for name, loss in losses.items() if name not in layers)

    def keeps(value):
        return value >= 0.9 - limit

    found = searched(metric, keeps, sorted(NAMES, key=lambda name: -losses[name]))
    assert found.complete
    assert len(found.best.layers) == fewest(metric, keeps)
    assert is_minimal(found.best.layers, metric, keeps)


@pytest.mark.parametrize("seed", range(20))
def test_a_wrong_order_still_gives_no_layer_too_many(seed):
    random = np.random.RandomState(seed)
    losses = dict(zip(NAMES, random.exponential(0.02, len(NAMES)), strict=True))

    def metric(layers):
        return -sum(loss for name, loss in losses.items() if name not in layers)

    def keeps(value):
        return value >= -0.05

    found = searched(metric, keeps, list(random.permutation(NAMES)))
    assert is_minimal(found.best.layers, metric, keeps)
    assert len(found.best.layers) <= fewest(metric, keeps) + 2


@pytest.mark.parametrize("seed", range(20))
def test_layers_that_help_only_together(seed):
    random = np.random.RandomState(seed)
    pair = set(random.choice(NAMES, 2, replace=False))

    def metric(layers):
        return 0.0 if pair <= layers else -1.0

    found = searched(metric, lambda value: value >= -0.5, list(random.permutation(NAMES)))
    assert found.best.layers == pair


def test_an_error_is_searched_downwards():
    found = searched(
        lambda layers: 0.3 - 0.1 * len(layers & {"layer5"}), lambda value: value <= 0.25, NAMES, higher_is_better=False
    )
    assert found.best.layers == {"layer5"}


def test_nothing_is_put_back_where_nothing_is_lost():
    found = searched(lambda layers: 1.0, lambda value: value >= 1, NAMES)
    assert (found.best.layers, len(found.points)) == (frozenset(), 1)


def test_where_even_all_layers_do_not_suffice_nothing_is_found():
    found = searched(lambda layers: 0.0, lambda value: value >= 1, NAMES)
    assert (found.best, len(found.points), found.complete) == (None, 2, True)


def test_one_broken_layer_of_a_hundred_costs_few_evaluations():
    names = [f"l{i}" for i in range(100)]
    found = searched(lambda layers: float("l0" in layers), lambda value: value == 1, names)
    assert found.best.layers == {"l0"}
    assert len(found.points) == 3
    last = searched(lambda layers: float("l99" in layers), lambda value: value == 1, names)
    assert last.best.layers == {"l99"}
    assert len(last.points) < 40


def test_when_the_evaluations_are_spent_the_best_so_far_stands():
    found = searched(lambda layers: len(layers) / 8, lambda value: value >= 0.75, NAMES, most=5)
    assert not found.complete
    assert len(found.points) == 5
    assert found.best.layers == set(NAMES)
    assert [len(point.layers) for point in found.passing(lambda value: value >= 0.75)] == [8]


@pytest.mark.parametrize(
    ("ranked", "most", "said"),
    [(["a", "a"], 9, "got ['a'] twice"), (["a"], 1, "at least 2 evaluations, got 1")],
    ids=["twice", "too few"],
)
def test_bad_input(ranked, most, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        search_layers(ranked, lambda layers: SearchPoint(layers=layers, metric=0.0), bool, most=most)
