"""Two processes on the CPU through paddle.distributed.launch give what one gives with the whole batch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from places import HELPERS

SCRIPT = HELPERS.joinpath("launched_training.py")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(folder, *arguments, processes=1, script=SCRIPT):
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent), "PYTHONWARNINGS": "ignore"}
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    launch += ["--master", f"127.0.0.1:{free_port()}"]
    command = [sys.executable, *(launch if processes > 1 else []), str(script), *arguments]
    with (folder / "screen.log").open("w") as screen:
        started = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=screen, stderr=screen, start_new_session=True
        )
        try:
            code = started.wait(timeout=240)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGTERM)  # the launcher ends its processes
                started.wait(timeout=30)
    logs = [folder / "screen.log", *sorted(folder.glob("log/workerlog.*"))]
    return code, "".join(log.read_text()[-3000:] for log in logs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of both runs and the arrays of the first process, the second, and of the one alone."""
    folder = tmp_path_factory.mktemp("launched")
    both, alone = folder / "both", folder / "alone"
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(run, both, str(both), "8", processes=2),
            pool.submit(run, alone, str(alone), "16"),
        ]
    for code, text in (done.result() for done in runs):
        assert code == 0, text
    files = (both / "result-0.npz", both / "result-1.npz", alone / "result-0.npz")
    return both, [dict(np.load(file)) for file in files]


def of(arrays, *cases):
    return {key: value for key, value in arrays.items() if key.split("/")[0] in cases}


@pytest.mark.slow
def test_processes_hold_the_same_bit_for_bit(trained):
    first, second, _ = trained[1]
    assert set(first) == set(second)
    for key, value in first.items():
        if not key.endswith(("bn1._mean", "bn1._variance")):
            np.testing.assert_array_equal(value, second[key], err_msg=key)
    assert any("alpha" in key for key in first)
    assert any("bridges/" in key for key in first)
    assert any("peer/" in key for key in first)


@pytest.mark.slow
def test_statistics_of_batch_norm_are_each_processes_own(trained):
    """As Paddle does it: the checkpoint and the export hold the first one's."""
    first, second, _ = trained[1]
    assert not np.array_equal(first["normed/network/bn1._mean"], second["normed/network/bn1._mean"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        *((name, 1e-6) for name in ("plain", "features", "average", "mutual", "kept", "cached", "skipped")),
        *((name, 1e-4) for name in ("pact", "lsq", "together")),  # a value beside a threshold may round otherwise
    ],
)
def test_two_processes_equal_one_with_the_whole_batch(trained, case, tolerance):
    first, _, alone = trained[1]
    mine, other = of(first, case), of(alone, case)
    assert len(mine) > 3
    assert set(mine) == set(other)
    for key, value in mine.items():
        np.testing.assert_allclose(value, other[key], atol=tolerance, rtol=1e-5, err_msg=key)


@pytest.mark.slow
def test_resumed_on_two_processes_is_the_uninterrupted_run(trained):
    for arrays in trained[1]:
        whole, resumed = of(arrays, "whole"), of(arrays, "resumed")
        assert len(whole) == len(resumed) > 8
        for key, value in whole.items():
            np.testing.assert_array_equal(value, resumed[key.replace("whole", "resumed")], err_msg=key)


@pytest.mark.slow
def test_the_first_process_alone_writes(trained):
    folder = trained[0]
    assert not (folder / "rank-1").exists()
    written = folder / "rank-0"
    assert sorted(file.name for file in (written / "features").glob("*.pddistill")) == [
        "0.pddistill",
        "1.pddistill",
        "final.pddistill",
    ]
    assert (written / "together" / "model.pdiparams").is_file()
    assert (written / "report.md").is_file()
    assert len((written / "runs.jsonl").read_text().splitlines()) == 2
    assert sorted(file.name for file in folder.glob("cache*")) == ["cache"]


@pytest.mark.slow
def test_a_failed_gate_reaches_all_processes(trained):
    for arrays in trained[1]:
        assert arrays["gate/code"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("where", ["batch", "cache"])
def test_nobody_waits_for_a_process_that_raised(tmp_path, where):
    """The launcher ends the others; `run` would give up after four minutes."""
    code, text = run(tmp_path, "fail", where, processes=2)
    assert code != 0
    assert f"raised on purpose in {'a' if where == 'batch' else 'the'} {where}" in text


@pytest.mark.slow
def test_a_loop_of_ones_own_gives_the_weights_of_fit(tmp_path):
    code, text = run(tmp_path, str(tmp_path), processes=2, script=HELPERS / "launched_loop.py")
    assert code == 0, text
    for name in ("features", "pact", "mutual", "skipped"):
        assert all((tmp_path / f"{name}-{rank}").exists() for rank in (0, 1))
