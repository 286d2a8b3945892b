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
from warm_converter import WarmConverter

from paddlelite_callbacks.export import onnx_export
from paddlelite_callbacks.utils.child_process import run_module

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


@pytest.fixture(scope="session")
def _warm_converter():
    converter = WarmConverter()
    yield converter
    converter.close()


@pytest.fixture(autouse=True)
def _conversions(request, _warm_converter):
    own = request.node.get_closest_marker("own_children")
    onnx_export.run_module = run_module if own else _warm_converter.run_module
