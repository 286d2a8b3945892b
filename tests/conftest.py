"""Seeds before every test, and dygraph on one thread: small networks are faster so, and runs repeat."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import gc
import random
import signal
from pathlib import Path

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


# Files of more than half a minute are begun first, so that no worker is left alone with one at the end.
LONG = [
    "examples/test_examples.py",
    "examples/test_notebooks.py",
    "models/test_keypoints_scripts.py",
    "package/test_pages.py",
    "examples/test_cifar10.py",
    "callbacks/test_launch.py",
    "package/test_release.py",
    "callbacks/test_as_found.py",
    "export/test_saturation.py",
    "callbacks/test_contract.py",
    "callbacks/test_killed.py",
    "export/test_legacy_program.py",
    "backbone/test_swap_trunk.py",
    "models/test_models_export.py",
    "workarounds/test_hidden_names.py",
    "models/test_keypoints_ladder.py",
    "callbacks/test_interrupts.py",
    "export/test_int8.py",
]


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def _imported_objects_left_out():
    """Collecting garbage, and what looks through all objects, skip those of imports: they are 300,000, 0.2 s a time."""
    gc.collect()
    gc.freeze()


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
