"""Two processes on the CPU through paddle.distributed.launch give what one gives with the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("launched_distill.py")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(command, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    logs = "".join(log.read_text()[-3000:] for log in folder.glob("log/workerlog.*"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + logs


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--master", f"127.0.0.1:{free_port()}"]
    run([sys.executable, *launch, str(SCRIPT), str(tmp_path), "8"], tmp_path)
    run([sys.executable, str(SCRIPT), str(tmp_path), "16"], tmp_path)
    first, second, alone = (np.load(tmp_path / f"weights-{which}.npz") for which in ("8-0", "8-1", "16-0"))
    assert set(first) == set(second) == set(alone)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)
        np.testing.assert_allclose(first[key], alone[key], atol=1e-5, err_msg=key)
    assert sorted(file.name for file in (tmp_path / "features-8").glob("*.pddistill")) == [
        "0.pddistill",
        "1.pddistill",
        "final.pddistill",
    ]
