"""Latency with a clock of our own, checks by hand, and engines that are missing or fail."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from installed import needs
from toy import Images, TinyNet

from paddlelite_callbacks.benchmark import engines
from paddlelite_callbacks.benchmark.latency import measure_latency, summarise
from paddlelite_callbacks.benchmark.load import load_files
from paddlelite_callbacks.benchmark.machine import this_machine
from paddlelite_callbacks.benchmark.options import BenchOptions, repeated_rows
from paddlelite_callbacks.benchmark.timing import time_files
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.variants import Reference
from paddlelite_callbacks.nn.surgery import copy_network


def checked_and_timed(artefacts, inputs, references, options):
    files = load_files(artefacts, inputs, references, options)
    return files.checks, time_files(files, inputs, options, verbose=0).latencies


def test_calls_take_turns_and_warm_up_is_not_counted():
    ticks, order = itertools.count(), []
    durations = measure_latency(
        {"a": lambda: order.append("a"), "b": lambda: (order.append("b"), next(ticks))},
        warmup=1,
        repeats=3,
        clock=lambda: float(next(ticks)),
    )
    assert order == ["a", "b"] * 4
    assert durations == {"a": [1000.0] * 3, "b": [2000.0] * 3}
    with pytest.raises(ValueError, match="repeats at least 1, got warmup=1, repeats=0"):
        measure_latency({}, warmup=1, repeats=0)


def test_summary_equals_numpy():
    values = np.random.RandomState(0).rand(101)
    assert summarise(values) == {
        "p50_ms": np.sort(values)[50],
        "p90_ms": np.sort(values)[90],
        "min_ms": values.min(),
        "mean_ms": pytest.approx(values.sum() / 101),
        "p25_ms": np.sort(values)[25],
        "p75_ms": np.sort(values)[75],
    }


def test_checks_by_hand():
    expected = [np.float32([[1, 2], [4, 3]])]
    same = compare_outputs(expected, [expected[0].copy()], engine="e")
    assert (same.passed, same.max_abs_diff, same.top1_agreement) == (True, 0.0, 1.0)
    moved = compare_outputs(expected, [np.float32([[1, 2], [3, 4]])], engine="e")
    assert (moved.passed, moved.max_abs_diff, moved.mean_abs_diff, moved.top1_agreement) == (False, 1.0, 0.5, 0.5)
    assert moved.tolerance == pytest.approx(1e-4 + 4e-3)
    assert compare_outputs(expected, [np.float32([[1, 2], [3, 4]])], engine="e", noise=[0.25]).passed
    assert (
        compare_outputs(expected, [np.zeros([2, 3])], engine="e").error
        == "outputs [[2, 3]], the network's are [[2, 2]]"
    )
    assert compare_outputs(expected, [expected[0] * np.nan], engine="e").error == "NaN or Inf in output 0"
    second = compare_outputs([expected[0], np.zeros([2])], [expected[0], np.float32([0, 1])], engine="e")
    assert not second.passed
    assert second.max_abs_diff == 1.0


def test_rows_are_repeated_up_to_the_batch():
    (batch,) = repeated_rows([np.arange(6).reshape(3, 2)], 5)
    np.testing.assert_array_equal(batch, [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]])


@needs("paddle2onnx")
def test_a_missing_or_failing_engine_gives_its_reason(tmp_path, monkeypatch):
    from paddle.static import InputSpec

    network = copy_network(TinyNet())
    program = export_paddle(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8])])
    x = Images(4).images
    monkeypatch.setattr(engines.ENGINES["openvino"], "package", "no-such-package", raising=False)
    expected = {"fp32": Reference([np.zeros([4, 4])])}
    checks, latencies = checked_and_timed(
        [program], [x], expected, BenchOptions(warmup=0, repeats=2, peak_memory=False, roofline=False)
    )
    rows = {row.engine: row for row in latencies}
    assert list(rows) == ["paddle", "paddle-onednn", "onnxruntime", "openvino"]
    assert rows["paddle"].p50_ms > 0
    assert rows["onnxruntime"].error == "no such file exported"
    assert rows["openvino"].error == "no-such-package not installed: pip install 'paddlelite_callbacks[deploy]'"
    assert [check.passed for check in checks] == [False, False]  # zeros are not what it computes
    program.files[1].write_bytes(b"torn")
    options = BenchOptions(engines=["paddle"], warmup=0, repeats=1, peak_memory=False, roofline=False)
    checks, latencies = checked_and_timed([program], [x], expected, options)
    assert not checks
    assert latencies[0].error.startswith("EngineError: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": ["openvin"]}, r"engine 'openvin'.*\['openvino'"),
        ({"engines": []}, "engines must name at least one"),
        ({"engines": "paddle"}, "engines must be a list of names, got 'paddle'"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"warmup": -1}, "warmup"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        BenchOptions(**options)


def test_this_machine_says_what_it_is():
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.packages["paddlepaddle"].startswith("3.3")
    assert machine.processor.startswith(machine.cpu)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("avx2",), "C (avx2, no VNNI)"),
        (("avx2", "avx512f"), "C (avx2 avx512f, no VNNI)"),
        (("avx2", "avx512f", "avx512_vnni"), "C (avx2 avx512f avx512_vnni)"),
        (("avx2", "avx_vnni"), "C (avx2 avx_vnni)"),
        (("asimd", "asimddp"), "C (asimd asimddp)"),
        ((), "C"),
    ],
)
def test_a_processor_is_told_with_its_instruction_sets(flags, said):
    assert replace(this_machine(), cpu="C", flags=flags).processor == said
