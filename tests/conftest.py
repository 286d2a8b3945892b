"""Seeds before every test, and dygraph on one thread: small networks are faster so, and runs repeat."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import random
import signal

import numpy as np
import paddle
import pytest

pytest.register_assert_rewrite("faults")
with contextlib.suppress(ImportError):  # without it its tests are skipped
    from hypothesis import HealthCheck, settings

    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.differing_executors]
    settings.register_profile(
        "repeatable", derandomize=True, deadline=None, database=None, max_examples=25, suppress_health_check=checks
    )
    settings.load_profile("repeatable")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    paddle.seed(0)
    yield
    assert paddle.in_dynamic_mode(), "a test, or what it calls, left static mode on"
