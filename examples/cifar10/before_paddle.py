"""What has to stand in the environment before Paddle is imported; import this first."""

from __future__ import annotations

import os
import warnings

from paddlelite_callbacks.utils.cpu import mkl_environment

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # two trainings of one thread do more than one of two
os.environ.update(mkl_environment())  # half the speed otherwise, on AMD
warnings.filterwarnings("ignore", message=".*(ccache|track global mean|To copy construct).*")
