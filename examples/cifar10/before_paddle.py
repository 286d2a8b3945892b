"""What has to stand in the environment before Paddle is imported; import this first."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # two trainings of one thread do more than one of two
_cpu = Path("/proc/cpuinfo")
if _cpu.is_file() and "AuthenticAMD" in _cpu.read_text(encoding="utf-8"):
    os.environ.setdefault(
        "MKL_DEBUG_CPU_TYPE", "5"
    )  # Paddle's MKL takes its slow path on AMD otherwise: half the speed
warnings.filterwarnings("ignore", message=".*(ccache|track global mean|To copy construct).*")
