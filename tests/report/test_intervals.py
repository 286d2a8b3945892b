"""Wilson intervals against the definition and against exact sums, and when two accuracies are called a tie."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from records import record

from paddlelite_callbacks import Budget
from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.report.intervals import (
    interval_of,
    is_share_of_images,
    mean_half_width,
    mean_in_percent,
    tied,
    wilson,
)
from paddlelite_callbacks.report.ladder_table import ladder_markdown
from paddlelite_callbacks.report.record import append_record
from paddlelite_callbacks.report.write import write_report


def evaluated(name, right, samples, **options):
    """A record whose files were looked at with ``samples`` images."""
    run = record(name, acc=right / samples, **options)
    rows = [
        FileMetrics(engine=one.engine, precision="fp32", metrics=run.metrics, samples=samples) for one in run.checks
    ]
    return replace(run, file_metrics=tuple(rows))


@pytest.mark.parametrize(
    ("right", "samples"), [(0, 10), (1, 10), (5, 10), (10, 10), (488, 500), (9999, 10_000), (1, 1)]
)
def test_the_bounds_are_the_shares_that_a_score_test_just_does_not_reject(right, samples):
    """The definition: |p - bound| is 1.96 standard errors of the bound."""
    share = right / samples
    low, high, count = wilson(share, samples)
    assert count == samples
    assert 0 <= low <= share <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        assert abs(share - bound) == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / samples))


def test_the_interval_covers_the_true_share_in_about_95_of_100_cases():
    """Summed over all outcomes of 200 images."""
    for true in (0.5, 0.9, 0.97):
        chance = [math.comb(200, k) * true**k * (1 - true) ** (200 - k) for k in range(201)]
        covered = sum(p for k, p in enumerate(chance) if wilson(k / 200, 200).low <= true <= wilson(k / 200, 200).high)
        assert 0.93 < covered < 0.975


@pytest.mark.parametrize(("share", "samples"), [(1.01, 5), (-0.1, 5), (float("nan"), 5), (0.5, 0)])
def test_what_has_no_interval_is_refused(share, samples):
    with pytest.raises(ValueError, match="got"):
        wilson(share, samples)


@pytest.mark.parametrize("name", ["acc", "acc_top1", "Accuracy", "top5", "top1_err", "eval_acc"])
def test_names_of_accuracies(name):
    assert is_share_of_images(name)


@pytest.mark.parametrize(
    "name", ["loss", "ap", "miou", "pixel_acc", "balanced_accuracy", "mean_class_acc", "macc", "f1"]
)
def test_names_of_other_metrics(name):
    assert not is_share_of_images(name)


def test_an_accuracy_of_other_data_or_of_no_images_has_no_interval():
    run = evaluated("a", 450, 500)
    assert interval_of(run, "acc") == wilson(0.9, 500)
    assert interval_of(run, "loss") is None
    assert interval_of(record(), "acc") is None  # nobody says of how many images
    assert interval_of(replace(run, metrics={"acc": 0.9001}), "acc") is None  # 450.05 of 500 images
    assert interval_of(replace(run, metrics={"acc": float("nan")}), "acc") is None
    assert interval_of(replace(run, metrics={"acc": 0.902}), "acc", file=("paddle", "fp32")) == wilson(0.9, 500)
    assert interval_of(run, "acc", file=("openvino", "fp32")) is None


def test_overlapping_intervals_are_a_tie():
    big, near, far, bare = evaluated("big", 490, 500), evaluated("near", 482, 500), evaluated("far", 440, 500), record()
    assert tied(big, near, "acc")
    assert not tied(big, far, "acc")
    assert not tied(big, bare, "acc")
    text = ladder_markdown([big, near, far], metric="acc")
    assert "| big | 98.00 % (96.4\u201398.9, n 500) |" in text
    assert "- **near** against big: same size, same latency (timed apart), acc -1.60 points (a tie)." in text
    assert "acc -10.00 points." in text
    assert "acc: in brackets the 95 % Wilson interval and the number of images; a tie: they overlap." in text
    assert "Wilson" not in ladder_markdown([bare, bare], metric="acc")


def test_the_gate_names_file_and_engine_margins_interval_and_ties(tmp_path):
    budget = Budget(size_mb=20, latency_ms=10, metric="acc", baseline=0.98)
    for run in (evaluated("big", 490, 500, size=50.0), evaluated("a", 480, 500), evaluated("b", 478, 500)):
        append_record(tmp_path / "runs.jsonl", run)
    gate = write_report(tmp_path, budget=budget).split("## Runs")[0]
    assert "pass: Most accurate of those that pass: **a**, its fp32 file on onnxruntime." in gate
    assert "- **size**: 10 MB (at most 20 MB): pass, 10 MB left" in gate
    assert "- **latency**: 5 ms (at most 10 ms): pass, 5 ms left" in gate
    assert "- **drop of acc**: 2.041 % (at most 5 %): pass, 2.959 points left" in gate
    low, high, _ = wilson(0.96, 500)
    assert f"acc 96.00 % on 500 images; 95 % Wilson interval: {100 * low:.1f} to {100 * high:.1f} %." in gate
    assert "A tie (the intervals overlap) with b." in gate
    assert "2 of 3 runs pass: a, b." in gate
    gate = write_report(tmp_path, budget=replace(budget, latency_ms=1, metric_limit=0.99)).split("## Runs")[0]
    assert "fail: None passes the gate. The nearest is big" not in gate  # three criteria fail there, two of the others
    assert "fail: None passes the gate. The nearest is a, its fp32 file on onnxruntime." in gate
    assert "- **latency**: 5 ms (at most 1 ms): fail, 4 ms too much" in gate
    assert "- **acc**: 96 % (at least 99 %): fail, 3 points below it" in gate


def test_without_a_metric_the_fastest_of_those_that_pass_wins(tmp_path):
    for run in (record("a"), record("b", ms=(("paddle", 50.0), ("onnxruntime", 4.0))), record("big", size=50.0)):
        append_record(tmp_path / "runs.jsonl", run)
    gate = write_report(tmp_path, budget=Budget(size_mb=20, latency_ms=10)).split("## Runs")[0]
    assert "pass: Fastest of those that pass: **b**, its fp32 file on onnxruntime." in gate


@pytest.mark.parametrize("count", range(2, 11))
def test_the_interval_of_a_mean_is_students_t(count):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.RandomState(count).rand(count)
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean_half_width(values) == pytest.approx((high - low) / 2, rel=2e-4)
    mean, half = map(float, mean_in_percent(values, digits=3).split(" ± "))
    assert (mean, half) == pytest.approx((100 * values.mean(), 50 * (high - low)), rel=2e-4)


def test_a_mean_of_one_value_has_no_interval_and_zero_no_sign_of_its_own():
    assert mean_half_width([0.5]) == 0
    assert mean_in_percent([0.5], digits=2) == "50.00"
    assert mean_in_percent([-1e-6, 0.0], digits=1, sign=True) == "+0.0 ± 0.0"
