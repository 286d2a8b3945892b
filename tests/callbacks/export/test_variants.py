"""One export makes each form of the network once: copies, passes and memory are counted."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import numpy as np
import paddle
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet

from paddlelite_callbacks import ExportBenchCallback, ptq_int8
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.nn import surgery
from paddlelite_callbacks.nn.surgery import copy_network, restored
from paddlelite_callbacks.report.record import read_records
from paddlelite_callbacks.report.tables import noted
from paddlelite_callbacks.utils.peak_memory import MemoryMeter, PeakMemory

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}
IMAGES = Images(8).images
SPEC = [InputSpec([None, 3, 8, 8], "float32", "x")]


class Counted(TinyNet):
    """Counts the passes of all its copies."""

    passes = 0

    def forward(self, x):
        if paddle.in_dynamic_mode():
            Counted.passes += 1
        return super().forward(x)


@needs("paddle2onnx", "onnxruntime")
@pytest.mark.parametrize(("quantised", "copies", "passes"), [(False, 2, 9), (True, 3, 22)])
def test_an_export_makes_few_copies_and_one_round_of_passes(quantised, copies, passes, tmp_path, monkeypatch):
    network = Counted(width=8)
    network.eval()
    network = ptq_int8(network, [paddle.to_tensor(IMAGES)]) if quantised else network
    made, copied = [], surgery._deep_copy

    def counting(*arguments):
        made.append(arguments)
        return copied(*arguments)

    monkeypatch.setattr(surgery, "_deep_copy", counting)
    monkeypatch.setattr(Counted, "passes", 0)
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=["onnxruntime"], fp16=True, **QUICK))
    callback.export(network, IMAGES)
    assert all(check.passed for check in callback.record.checks)
    assert {a.precision for a in callback.record.artefacts} == {"fp32", "fp16", *(["int8"] if quantised else [])}
    assert len(made) <= copies
    assert Counted.passes <= passes


def test_what_is_traced_in_place_is_given_back(tmp_path):
    network = copy_network(TinyNet())
    x = paddle.to_tensor(IMAGES)
    expected, before = network(x).numpy(), {id(layer): dict(vars(layer)) for layer in network.sublayers(True)}
    names = [tensor.name for tensor in network.state_dict().values()]
    once = export_paddle(network, tmp_path / "a", input_spec=SPEC, in_place=True)
    assert {id(layer): dict(vars(layer)) for layer in network.sublayers(True)} == before
    assert [tensor.name for tensor in network.state_dict().values()] == names
    assert type(network) is TinyNet
    np.testing.assert_array_equal(network(x).numpy(), expected)
    network.fc.weight.set_value(2 * network.fc.weight)
    network.fc.bias.set_value(2 * network.fc.bias)
    twice = export_paddle(network, tmp_path / "b", input_spec=SPEC, in_place=True)  # with what it holds now
    assert once.path.read_bytes() == twice.path.read_bytes()
    loaded = paddle.jit.load(str(twice.path.with_suffix("")))
    np.testing.assert_allclose(loaded(x).numpy(), 2 * expected, rtol=1e-5, atol=1e-6)


def test_layers_hooks_and_names_come_back_after_an_error():
    network = TinyNet()
    bn1, name, told = network.bn1, network.conv1.weight.name, []

    def spoil():
        with restored(network):
            network.bn1 = nn.Identity()
            network.conv1.weight.name = "other"
            network.conv1.register_forward_post_hook(lambda *_: told.append(1))
            network.forward = None
            del network.fc
            raise KeyError

    with pytest.raises(KeyError):
        spoil()
    network(paddle.to_tensor(IMAGES))
    assert network.bn1 is bn1
    assert network.conv1.weight.name == name
    assert not told


def in_own_process(function, *given) -> None:
    """Run ``function`` where no other test has left freed memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(function, given)


def test_memory_is_measured_by_stage_and_in_children():
    in_own_process(memory_by_stage)


def memory_by_stage() -> None:
    meter = MemoryMeter("first")
    meter.stage("nothing is measured yet")
    assert not meter.peaks
    program = "x = b'1' * 60_000_000; import time; time.sleep(1)"
    with meter:
        held = np.ones(8_000_000)  # 64 MB
        del held
        meter.stage("second")
        held = np.ones(16_000_000)
        subprocess.run([sys.executable, "-c", program], check=True)
        meter.__exit__()
        again = np.ones(40_000_000)  # behind it
        del again
    assert list(meter.peaks) == ["first", "second"]
    assert meter.peaks["first"] == pytest.approx(64, abs=8)
    assert meter.peaks["second"] == pytest.approx(8 * held.size / 1e6, abs=8)
    assert 60 < meter.children < 90


class Heavy(nn.Layer):
    """Forty megabytes in layers of two."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 256, 3, stride=2)
        blocks = [layer for _ in range(16) for layer in (nn.Conv2D(256, 256, 3, padding=1), nn.BatchNorm2D(256))]
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(256, 4)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean([2, 3]))


@pytest.mark.own_children
@needs("paddle2onnx", "onnxruntime")
@pytest.mark.parametrize("quantised", [False, True])
def test_writing_takes_about_four_times_the_network(quantised, tmp_path):
    in_own_process(writing_takes_about_four_times_the_network, quantised, tmp_path)


def writing_takes_about_four_times_the_network(quantised, tmp_path) -> None:
    network = Heavy()
    network.eval()
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=["onnxruntime"], **QUICK))
    callback.export(TinyNet(), IMAGES)  # what the first export of a process loads stays loaded
    network = ptq_int8(network, [paddle.to_tensor(IMAGES)]) if quantised else network
    callback.export(network, IMAGES)
    peak = callback.record.peak_memory
    assert peak == read_records(tmp_path / "runs.jsonl")[-1].peak_memory
    assert peak.network_mb == pytest.approx(38, abs=2)
    assert 1 < peak.times(peak.writing_mb) <= (4.4 if quantised else 4)  # it has its integers beside the weights
    assert peak.engines_mb > 0
    assert peak.children_mb > peak.network_mb  # the converter holds the weights too
    assert f"network {peak.network_mb:.1f} MB: {peak.writing_mb:.0f} MB" in noted(callback.record)


def test_a_network_without_weights_has_no_multiple():
    assert PeakMemory(network_mb=0.0, writing_mb=1.0).times(1.0) is None
