"""Set the environment for Paddle; import this module before Paddle."""

from __future__ import annotations

import os
import warnings

from paddlelite_callbacks.utils.cpu import mkl_environment

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # two single-threaded trainings are faster than one with two threads
os.environ.update(mkl_environment())  # doubles the speed on AMD
warnings.filterwarnings("ignore", message=".*(ccache|track global mean|To copy construct).*")
