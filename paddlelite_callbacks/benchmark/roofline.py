"""Measure this machine's fastest matrix product, to relate latencies to.

The child process is this module, run by `run_module` with the number of threads.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.utils.child_process import run_module

__all__ = ["Roofline", "measure_roofline", "roofline_share"]

_SIZE, _CALLS, _PATIENCE, _SECONDS = 1024, 40, 10, 120
Roofline = dict[str, float]  # GFLOP/s by library


@functools.cache
def measure_roofline(threads: int) -> Roofline:
    """Time a float32 product of 1024x1024 matrices with each installed library.

    Measured once per process and number of threads.

    It runs in a child process, since NumPy's BLAS reads its number of threads from the environment at its start.

    Args:
        threads: Number of CPU threads.

    Returns:
        GFLOP/s of the fastest call by library: ``"numpy"``, ``"onnxruntime"``, ``"openvino"``; empty if none ran.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
    environment = dict.fromkeys(names, str(threads))
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        done = run_module("benchmark.roofline", str(threads), seconds=_SECONDS, environment=environment)
        return {str(key): float(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
    return {}


def roofline_share(macs: int, batch_size: int, p50_ms: float, roofline: Roofline) -> float | None:
    """Return ``2 macs batch_size / p50_ms`` relative to the fastest matrix product.

    Args:
        macs: Multiply-accumulates per image.
        batch_size: Images per call.
        p50_ms: Median milliseconds per call.
        roofline: Result of `measure_roofline` for as many threads; empty gives ``None``.
    """
    best = max(roofline.values(), default=0.0)
    return 2 * macs * batch_size / (p50_ms * 1e6) / best if best and p50_ms else None


def _products(threads: int) -> Iterator[tuple[str, Callable[[], object]]]:
    random = np.random.RandomState(0)
    a, b = (random.rand(_SIZE, _SIZE).astype("float32") for _ in range(2))
    out = np.empty_like(a)
    yield "numpy", lambda: np.matmul(a, b, out=out)
    with contextlib.suppress(ImportError), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        _write_product(path, b)
        for name in ("onnxruntime", "openvino"):
            with contextlib.suppress(ImportError, RuntimeError):
                artefact = SimpleNamespace(path=path, files=(path,))
                predict = ENGINES[name].load(artefact, threads=threads)  # type: ignore[arg-type]
                yield name, lambda predict=predict: predict([a])  # type: ignore[misc]


def _write_product(path: Path, b: np.ndarray) -> None:
    onnx = require("onnx", needed_for="the matrix product of the engines")
    helper = onnx.helper
    sizes = [_SIZE, _SIZE]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes) for name in ("a", "c")]
    weights = onnx.numpy_helper.from_array(b, "b")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _gflops(call: Callable[[], object]) -> float:
    """Return the speed of the fastest call; stop early without improvement."""
    best, left = float("inf"), _PATIENCE
    for _ in range(_CALLS):
        begin = time.perf_counter()
        call()
        taken = time.perf_counter() - begin
        left = _PATIENCE if taken < 0.99 * best else left - 1
        best = min(best, taken)
        if not left:
            break
    return 2 * _SIZE**3 / best / 1e9


if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: _gflops(call) for name, call in _products(int(sys.argv[1]))}) + "\n")
