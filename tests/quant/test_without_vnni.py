"""Both engines on an emulated CPU with AVX2 and without VNNI: half the range is exact, the full range saturates.

``QEMU_X86_64`` is the command of qemu-user 7.2 or later (``apt-get install qemu-user``: ``QEMU_X86_64=qemu-x86_64``).
The engines choose their kernels by the emulated processor's CPUID.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from places import HELPERS

from paddlelite_callbacks import export_forms, ptq_int8

QEMU = shlex.split(os.environ.get("QEMU_X86_64", ""))


@pytest.fixture(scope="module")
def network():
    """All weights near the largest of their channel, so that pairs of products add up."""
    paddle.seed(3)
    net = nn.Sequential(
        nn.Conv2D(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2D(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.set_value(paddle.abs(parameter) * 0.2 + 0.9 * paddle.abs(parameter).max())
    net.eval()
    return net


@pytest.mark.slow
@pytest.mark.skipif(not QEMU, reason="QEMU_X86_64 names no qemu-x86_64 to emulate a CPU without VNNI")
@needs("paddle2onnx", "onnxruntime", "openvino")
@pytest.mark.parametrize("reduce_range", [True, False])
def test_engines_on_an_emulated_haswell(network, reduce_range, tmp_path):
    import onnxruntime

    x = np.random.RandomState(0).rand(4, 3, 16, 16).astype("float32")
    quantized = ptq_int8(network, [paddle.to_tensor(x)], reduce_range=reduce_range, quantize_outputs=True)
    export_forms(quantized, tmp_path, input_spec=[InputSpec([None, 3, 16, 16], "float32", "x")])
    file = str(tmp_path / "model.int8.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (exact,) = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.save(tmp_path / "x.npy", x)
    child = [sys.executable, str(HELPERS / "int8_engines.py"), file, str(tmp_path / "x.npy"), str(tmp_path / "y.npz")]
    subprocess.run([*QEMU, "-cpu", "Haswell", *child], check=True, capture_output=True, timeout=600)
    found = np.load(tmp_path / "y.npz")
    off = {engine: float(np.abs(found[engine] - exact).max() / np.abs(exact).max()) for engine in found}
    if reduce_range:
        assert max(off.values()) < 1e-5, off
    else:
        assert min(off.values()) > 0.01, off
