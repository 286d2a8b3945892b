"""Seeds before every test, and dygraph on one thread: small networks are faster so, and runs repeat."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import signal

import numpy as np
import paddle
import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    paddle.seed(0)
    yield
    assert paddle.in_dynamic_mode(), "a test, or what it calls, left static mode on"
