"""Warm-up, settings, memory, roofline, noise; and that measuring leaves the process as it was."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import numpy as np
import paddle
import pytest
from installed import needs
from paddle.static import InputSpec
from places import HELPERS
from toy import Images, TinyNet

from paddlelite_callbacks.benchmark.engines import DEFAULT_ENGINES, ENGINES, in_batches
from paddlelite_callbacks.benchmark.footprint import measure_footprint
from paddlelite_callbacks.benchmark.latency import measure_latency
from paddlelite_callbacks.benchmark.load import load_files
from paddlelite_callbacks.benchmark.machine import noise_notes, this_machine
from paddlelite_callbacks.benchmark.onnx_cost import onnx_cost
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.benchmark.roofline import measure_roofline, roofline_share
from paddlelite_callbacks.benchmark.timing import time_files
from paddlelite_callbacks.callbacks.export.pipeline import hand_out
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.variants import references
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.utils.isolation import undisturbed


@pytest.fixture(scope="module")
def network():
    paddle.seed(0)
    return copy_network(TinyNet())


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured here \u4e2d")
    program = export_paddle(network, folder, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    return [program, export_onnx(program, folder / "model.onnx")]


class Clock:
    """A call that takes so long as its list says, on a clock of its own."""

    def __init__(self, durations):
        self.now, self.left, self.calls = 0.0, itertools.chain(durations, itertools.repeat(1.0)), 0

    def call(self):
        self.calls += 1
        self.now += next(self.left)

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("durations", "rounds", "steady"),
    [([], 10, True), ([3.0] * 8 + [2.0] * 8, 21, True), ([float(i) for i in range(40, 0, -1)], 30, False)],
)
def test_warm_up_goes_on_until_the_times_stand_still_but_not_for_ever(durations, rounds, steady):
    """Steady is what two windows of five rounds within 5 % are: here a search by hand over the list."""
    clock, seen = Clock(durations), []
    found = measure_latency(
        {"a": clock.call}, warmup=10, max_warmup=30, repeats=4, clock=clock, warmed=lambda how: seen.append(how)
    )
    (how,) = seen
    assert len(found["a"]) == 4
    assert clock.calls == how.rounds + 4
    assert (how.unsteady == ()) == steady
    if durations and steady:
        values = [*durations, *[1.0] * 40]
        by_hand = next(
            n
            for n in range(10, 31)
            if abs(np.median(values[n - 5 : n]) - np.median(values[n - 10 : n - 5]))
            <= 0.05 * np.median(values[n - 10 : n - 5])
        )
        assert how.rounds == by_hand
    else:
        assert how.rounds == rounds


def test_order_changes_and_untimed_calls_go_in_front():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    durations = measure_latency(calls, warmup=0, repeats=20, settle=1, shuffle=True)
    rounds = [order[i : i + 6] for i in range(0, 120, 6)]
    assert all(a[0::2] == a[1::2] and sorted(a[::2]) == ["a", "b", "c"] for a in rounds)
    assert len({tuple(a) for a in rounds}) > 1
    assert [len(values) for values in durations.values()] == [20] * 3


@needs("paddle2onnx")
def test_every_setting_has_its_rows_and_the_first_one_counts(network, files):
    options = BenchOptions(threads=[1, 2], batch_size=(2, 5), warmup=1, repeats=3, peak_memory=False, roofline=False)
    x = [Images(4).images]
    loaded = load_files(files, x, references(network, x), options)
    rows = time_files(loaded, x, options, macs=1000, verbose=0).latencies
    assert [(r.threads, r.batch_size) for r in rows[::4]] == [(1, 2), (1, 5), (2, 2), (2, 5)]
    assert [r.engine for r in rows] == list(DEFAULT_ENGINES) * 4
    for row in rows:
        assert row.error is None
        assert row.min_ms <= row.p25_ms <= row.p50_ms <= row.p75_ms
        assert row.images_per_s == pytest.approx(1000 * row.batch_size / row.p50_ms)
        assert row.spread == pytest.approx((row.p75_ms - row.p25_ms) / row.p50_ms)


@needs("paddle2onnx")
def test_a_file_of_a_fixed_batch(network, tmp_path):
    program = export_paddle(network, tmp_path, input_spec=[InputSpec([3, 3, 8, 8], name="x")])
    made = [program, export_onnx(program, tmp_path / "model.onnx")]
    x = [Images(8).images]
    options = BenchOptions(batch_size=[3, 1], warmup=0, repeats=1, peak_memory=False, roofline=False)
    loaded = load_files(made, x, references(network, x), options, rows=3)  # 8 rows: 3 + 3 + 2 filled up
    assert all(check.passed for check in loaded.checks)
    assert len(loaded.checks) == 4
    rows = time_files(loaded, x, options, verbose=0).latencies
    assert [row.error for row in rows] == [None] * 4 + ["ValueError: the file takes exactly 3 images per call"] * 4
    predict = ENGINES["onnxruntime"].load(made[1], threads=1)
    np.testing.assert_allclose(in_batches(predict, 3)(x)[0], references(network, x)["fp32"].outputs[0], atol=1e-5)


@needs("paddle2onnx")
def test_footprint_in_a_process_of_its_own(files, tmp_path):
    x = [Images(1).images]
    taken = measure_footprint("onnxruntime", files[1], x, threads=1)
    assert taken.error is None
    assert 0 < taken.load_ms < 60_000
    assert 1 < taken.peak_mb < 500
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(b"torn")
    failed = measure_footprint("onnxruntime", type(files[1])(kind="onnx", path=torn, files=(torn,)), x, threads=1)
    assert failed.peak_mb is None
    assert "the child process ended with 1" in failed.error


@needs("paddle2onnx")
def test_more_memory_is_seen(tmp_path):
    """A linear layer of 64 MB takes at least as much."""
    big = paddle.nn.Linear(4096, 4096)
    program = export_paddle(big, tmp_path, input_spec=[InputSpec([1, 4096], name="x")])
    onnx = export_onnx(program, tmp_path / "model.onnx")
    taken = measure_footprint("onnxruntime", onnx, [np.zeros([1, 4096], "float32")], threads=1)
    assert 64 < taken.peak_mb < 600


def test_roofline():
    product = measure_roofline(1)
    assert set(product) == {"numpy", "onnxruntime", "openvino"}
    assert all(1 < gflops < 5000 for gflops in product.values())
    assert measure_roofline(1) is product  # once a process
    assert roofline_share(500_000_000, 2, 10.0, {"a": 100.0, "b": 400.0}) == pytest.approx(2e9 / 0.01 / 400e9)
    assert roofline_share(1, 1, 1.0, {}) is None


@needs("paddle2onnx")
def test_macs_of_an_onnx_file_by_hand(files):
    """conv1 8*8*3*3*3*4, conv2 8*8*3*3*4*4, linear 4*4; its shapes come from the file, at any batch."""
    by_hand = 8 * 8 * 9 * 3 * 4 + 8 * 8 * 9 * 4 * 4 + 16
    macs, weights = onnx_cost(files[1].path, [[5, 3, 8, 8]])
    assert macs == by_hand
    assert weights >= 9 * 3 * 4 + 9 * 4 * 4 + 16


def test_noise_is_named():
    quiet = {"p25_ms": 1.0, "p50_ms": 1.05, "p75_ms": 1.1}
    loud = {"p25_ms": 1.0, "p50_ms": 1.5, "p75_ms": 2.0}
    governor = this_machine().governor
    base = [] if governor in (None, "performance") else [f"governor is '{governor}'"]
    assert len(noise_notes((1, 1), {("a", "fp32"): quiet}, [], 0.99)) == len(base)
    said = noise_notes((1, 4), {("a", "fp32"): quiet, ("b", "int8"): loud}, ["b"], 0.5)
    assert said[0] == "Noise (1 thread, batch 4): the quartiles of b int8 lie more than 20% apart."
    assert said[1] == "Noise (1 thread, batch 4): b had not become steady in the warm-up."
    assert "got 50% of a CPU" in said[2]


def test_nothing_of_the_process_is_disturbed(network, tmp_path):
    def streams():
        return [random.random(), float(np.random.rand()), float(paddle.rand([1]))]

    def state():
        flags = paddle.base.core.globals()
        return {key: flags[key] for key in flags.keys()}, paddle.get_device(), paddle.is_grad_enabled()  # noqa: SIM118

    random.seed(3), np.random.seed(3), paddle.seed(3)
    expected = streams()
    random.seed(3), np.random.seed(3), paddle.seed(3)
    before = state()
    tmp_path.joinpath("f").mkdir()
    spec = [InputSpec([None, 3, 8, 8], name="x")]
    options = BenchOptions(threads=2, warmup=0, repeats=1, peak_memory=False, roofline=False)
    hand_out(network, tmp_path / "f", sample=[Images(2).images], input_spec=spec, options=options, verbose=0)
    assert state() == before
    assert streams() == expected
    assert paddle.in_dynamic_mode()


def test_the_process_is_given_back_after_an_exception_too():
    def failing():
        np.random.rand()
        paddle.set_grad_enabled(False)
        raise KeyError

    before = np.random.get_state()[2]
    with pytest.raises(KeyError), undisturbed():
        failing()
    assert paddle.is_grad_enabled()
    assert np.random.get_state()[2] == before


def test_what_engines_print_stays_off_the_screen(tmp_path):
    """oneDNN prints past sys.stdout; the user's own prints stay, in their order."""
    code = (
        "import sys, pathlib, ctypes, warnings; warnings.simplefilter('ignore')\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from toy import Images, TinyNet, fit, hapi_model\n"
        "from paddlelite_callbacks import ExportBenchCallback\n"
        "print('before', flush=False)\n"
        "quiet = dict(warmup=0, repeats=2, verbose=0, peak_memory=False, roofline=False, report=False)\n"
        "fit(hapi_model(), [ExportBenchCallback(sys.argv[1], engines=['paddle-onednn', 'paddle'], **quiet)])\n"
        "from paddlelite_callbacks.utils.isolation import hushed_stdout\n"
        "puts = ctypes.CDLL(None).puts\n"
        "with hushed_stdout(): puts(b'swallowed'); print('swallowed too', flush=True)\n"
        "puts(b'heard'); ctypes.CDLL(None).fflush(None)\n"
        "print('after')\n"
    )
    here = str(HELPERS)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), here], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "heard", "after"]
