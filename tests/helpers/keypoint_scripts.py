"""The keypoint scripts run as commands."""

from __future__ import annotations

import os
import subprocess
import sys

from places import ROOT
from warm_converter import run_script

FOLDER = ROOT / "examples" / "keypoints"
DATA = ("--settings", "toy-quick", "--toy-images", 6, 3)
SMALL = ("--network", "naive_lite_hrnet_18")


def run(script, *flags, cwd, launch=()):
    path = (FOLDER / script).with_suffix(".py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if not launch:
        return run_script(path, *flags, cwd=cwd, environment=environment)
    command = [sys.executable, *launch, str(path), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)


def succeed(script, *flags, cwd, launch=()):
    done = run(script, *flags, cwd=cwd, launch=launch)
    logs = "".join(log.read_text()[-2000:] for log in cwd.glob("log/workerlog.*"))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:] + logs
    return done.stdout
