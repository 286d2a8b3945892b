"""The gate's arithmetic, sizes, latencies and checks, against formulas written here."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st
from records import record

from paddlelite_callbacks import Budget
from paddlelite_callbacks.benchmark.latency import measure_latency, summarise
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.report.gate import judge, most_accurate
from paddlelite_callbacks.report.record import Record

METRIC = st.floats(0.0, 1.0)
SIZE = st.floats(0.001, 1000.0)
MS = st.floats(0.001, 1000.0)
SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def budgets(draw):
    drop = draw(st.none() | st.floats(0.0, 1.0))
    baseline = st.floats(0.01, 1.0)  # without one a drop is refused
    return Budget(
        size_mb=draw(st.none() | SIZE),
        latency_ms=draw(st.none() | MS),
        metric_drop=drop,
        metric="acc",
        baseline=draw(st.none() | baseline if drop is None else baseline),
        metric_limit=draw(st.none() | METRIC),
        mode=draw(st.sampled_from(["auto", "max", "min"])),
        relative=draw(st.booleans()),
    )


def one(name="net", acc=0.9, size=10.0, ms=5.0):
    return record(name, acc=acc, size=size, ms=(("paddle", ms),), agree=("paddle",))


@st.composite
def runs(draw, name="net"):
    return one(name, draw(METRIC), draw(SIZE), draw(MS))


def keeps(acc, size, ms, budget):
    """The verdict, by hand."""
    lost = budget.baseline is not None and (acc - budget.baseline) * (1 if budget.mode == "min" else -1)
    if budget.baseline is not None and budget.relative:
        lost /= abs(budget.baseline)
    return (
        (budget.size_mb is None or size <= budget.size_mb + 1e-12)
        and (budget.latency_ms is None or ms <= budget.latency_ms + 1e-12)
        and (budget.metric_drop is None or budget.baseline is None or lost <= budget.metric_drop + 1e-12)
        and (
            budget.metric_limit is None
            or (acc <= budget.metric_limit + 1e-12 if budget.mode == "min" else acc >= budget.metric_limit - 1e-12)
        )
    )


@given(METRIC, SIZE, MS, budgets())
def test_the_verdict_is_the_three_comparisons(acc, size, ms, budget):
    verdict = judge(one(acc=acc, size=size, ms=ms), budget)
    assert verdict.passed == keeps(acc, size, ms, budget)
    assert str(verdict).startswith("pass" if verdict.passed else "fail")
    for criterion in verdict.criteria:
        sign = -1 if criterion.at_least else 1
        assert criterion.margin == sign * (criterion.limit - criterion.value)
        assert criterion.passed == (criterion.margin >= -1e-12)


@given(METRIC, SIZE, MS, budgets(), st.floats(0.0, 1.0), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_smaller_faster_better_never_fails_what_passed(acc, size, ms, budget, gain, less, faster):
    better = max(0.0, acc - gain) if budget.mode == "min" else min(1.0, acc + gain)
    plain, improved = one(acc=acc, size=size, ms=ms), one(acc=better, size=size * less, ms=ms * faster)
    assert judge(improved, budget).passed >= judge(plain, budget).passed


@given(runs(), budgets(), st.floats(1.0, 10.0))
def test_a_wider_budget_never_fails_what_a_narrow_one_passed(run, budget, wider):
    wide = replace(
        budget,
        size_mb=budget.size_mb and budget.size_mb * wider,
        latency_ms=budget.latency_ms and budget.latency_ms * wider,
        metric_drop=budget.metric_drop and budget.metric_drop * wider,
    )
    without = replace(budget, size_mb=None, latency_ms=None, metric_drop=None, metric_limit=None)
    assert judge(run, without).passed >= judge(run, wide).passed >= judge(run, budget).passed


@given(st.lists(runs(), max_size=6), budgets(), st.randoms(use_true_random=False))
def test_the_best_of_several_passes_and_none_that_passes_is_better(found, budget, random):
    found = [replace(run, name=str(i)) for i, run in enumerate(found)]
    best = most_accurate(found, budget)
    passing = [run for run in found if judge(run, budget).passed]
    assert (best is None) == (not passing)
    if best is None:
        return
    assert best in passing
    sign = -1 if budget.mode == "min" else 1

    def rank(run):
        return sign * run.metrics["acc"], -run.size_mb, -run.best_latency().p50_ms

    assert rank(best) == max(rank(run) for run in passing)
    random.shuffle(found)
    assert rank(most_accurate(found, budget)) == rank(best)  # whatever their order


@given(
    st.dictionaries(st.sampled_from(["paddle", "onnxruntime", "openvino"]), st.tuples(MS, st.booleans()), min_size=1)
)
def test_the_latency_is_of_the_fastest_engine_that_agrees(engines):
    run = record(
        ms=tuple((name, ms) for name, (ms, _) in engines.items()),
        agree=tuple(n for n, (_, ok) in engines.items() if ok),
    )
    agreeing = [ms for ms, agrees in engines.values() if agrees]
    best = run.best_latency()
    assert (best.p50_ms if best else None) == min(agreeing, default=None)
    assert judge(run, Budget(size_mb=None)).passed == bool(agreeing and min(agreeing) <= 100.0)


@given(st.sampled_from([math.nan, math.inf, -math.inf]), budgets())
def test_a_figure_that_is_no_number_does_not_pass(value, budget):
    verdict = judge(one(acc=value), budget)
    drops = [criterion for criterion in verdict.criteria if criterion.name.startswith("metric")]
    assert all(not criterion.passed and criterion.value is None for criterion in drops)
    assert not judge(one(size=value), replace(budget, size_mb=5.0)).passed


@given(runs())
def test_a_record_comes_back_from_its_line(run):
    line = run.to_json_line()
    assert "\n" not in line
    assert Record.from_json_line(line).to_json_line() == line
    assert Record.from_json_line(line).size_mb == run.size_mb


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=4))
def test_the_size_is_the_sum_of_the_bytes(sizes):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files = tuple(Path(folder) / str(i) for i in range(len(sizes)))
        for file, size in zip(files, sizes, strict=True):
            file.write_bytes(b"x" * size)
        assert Artefact(kind="paddle", path=files[0], files=files).size_mb == sum(sizes) / 1e6


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=60))
def test_latencies_are_numpys_percentiles_in_their_order(durations):
    row = summarise(durations)
    assert row["p50_ms"] == np.median(durations)
    order = [row[name] for name in ("min_ms", "p25_ms", "p50_ms", "p75_ms", "p90_ms")]
    assert all(a <= b + 1e-9 * b for a, b in pairwise(order))
    assert min(durations) <= row["mean_ms"] * (1 + 1e-9)
    assert row["mean_ms"] <= max(durations) * (1 + 1e-9)


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 6))
def test_every_call_is_timed_as_often_as_asked(calls, warmup, repeats):
    ticks, counts = iter(range(10**6)), dict.fromkeys(map(str, range(calls)), 0)

    def counted(name):
        def call():
            counts[name] += 1

        return call

    durations = measure_latency(
        {name: counted(name) for name in counts}, warmup=warmup, repeats=repeats, clock=lambda: next(ticks)
    )
    assert {name: len(rows) for name, rows in durations.items()} == dict.fromkeys(counts, repeats)
    assert set(counts.values()) == {warmup + repeats}
    assert all(row == 1000.0 for rows in durations.values() for row in rows)


@given(SEEDS, st.floats(1e-6, 10.0), st.floats(0.0, 2.0))
def test_a_check_passes_up_to_its_tolerance(seed, scale, share):
    expected = (np.random.RandomState(seed).randn(3, 5) * scale).astype("float32")
    limit = 1e-4 + 1e-3 * float(np.abs(expected).max())
    got = expected.copy().astype("float64")
    got[1, 2] += share * limit
    check = compare_outputs([expected], [got], engine="paddle")
    if abs(share - 1) > 1e-6:
        assert check.passed == (share < 1)
    np.testing.assert_allclose(check.max_abs_diff, share * limit, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(check.tolerance, limit, rtol=1e-6)
