"""A dozen fits in one process leave no more behind than three do; `benchmarks/bench_soak.py` makes it 200."""

from __future__ import annotations

import gc
import traceback

import paddle
import pytest
from paddle.static import InputSpec
from soak import Soak
from toy import TinyNet

from paddlelite_callbacks.deploy.export import export_paddle

FITS = 12


@pytest.mark.slow
def test_nothing_of_ours_grows_with_the_number_of_fits(tmp_path):
    soak = Soak(tmp_path)
    for number in range(FITS):
        soak.step(number)
    early, last = soak.figures[3], soak.figures[-1]
    for name in ("objects of ours", "tensors", "threads of Python", "child processes", "open files", "hooks", "files"):
        assert last[name] <= early[name], name
    assert last["threads"] <= early["threads"]
    assert last["objects"] - early["objects"] < 400 * (FITS - 4)  # Paddle's own: some 150 a program that it traces


def test_exports_leave_no_call_stacks_behind(tmp_path):
    """Paddle alone keeps the Python stack of every operation that it traces: 800 frames for this network."""

    def frames(export) -> int:
        counts = []
        for number in range(3):
            export(number)
            gc.collect()
            counts.append(sum(isinstance(o, traceback.FrameSummary) for o in gc.get_objects()))
        return counts[-1] - counts[0]

    spec = [InputSpec([None, 3, 8, 8])]
    network = TinyNet()
    network.eval()
    assert frames(lambda i: paddle.jit.save(network, str(tmp_path / f"p{i}"), input_spec=spec)) > 500
    assert frames(lambda i: export_paddle(TinyNet(), tmp_path / f"{i}", input_spec=spec)) == 0
