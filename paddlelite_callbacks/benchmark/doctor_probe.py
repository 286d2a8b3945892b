"""Probe Paddle, the converter and every engine in the child process of `doctor`.

Prints one JSON line per step.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__: list[str] = []


class _AbsentError(Exception):
    """A package is not installed, so its step is skipped."""


class _Probe:
    """Steps of the probe; later steps use the results of earlier ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._np: Any = None
        self._program: Any = None
        self._onnx: Any = None
        self._images: Any = None
        self._expected: Any = None

    def numpy(self) -> None:
        import numpy

        self._np = numpy
        if int(numpy.arange(4).reshape(2, 2).dot(numpy.ones([2, 1], "int64")).sum()) != 6:
            raise ValueError("a product of matrices is wrong")

    def paddle(self) -> None:
        import paddle

        paddle.set_device("cpu")

    def opencv(self) -> None:
        if importlib.util.find_spec("cv2") is None:
            raise _AbsentError
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            import cv2
        if "compiled using NumPy" in said.getvalue():
            raise ImportError(f"OpenCV {cv2.__version__} was built for another NumPy than {self._np.__version__}")
        cv2.resize(self._np.zeros([4, 4, 3], "uint8"), (2, 2))

    def convolution(self) -> None:
        import paddle

        np, stream = self._np, self._np.random.RandomState(0)
        image, kernel = (stream.rand(1, 3, 6, 6).astype("float32"), stream.rand(4, 3, 3, 3).astype("float32"))
        windows = np.lib.stride_tricks.sliding_window_view(image[0], (3, 3), axis=(1, 2))
        wanted = np.einsum("cijkl,ockl->oij", windows, kernel)
        got = paddle.nn.functional.conv2d(paddle.to_tensor(image), paddle.to_tensor(kernel)).numpy()[0]
        self._compare(got, wanted)

    def program(self) -> None:
        import paddle
        from paddle import nn
        from paddle.static import InputSpec

        from paddlelite_callbacks.export.paddle_program import export_paddle

        paddle.seed(0)
        network = nn.Sequential(
            nn.Conv2D(3, 8, 3, stride=2, padding=1), nn.BatchNorm2D(8), nn.Hardswish(), nn.Flatten(), nn.Linear(512, 4)
        )
        network.eval()
        self._images = self._np.random.RandomState(1).rand(1, 3, 16, 16).astype("float32")
        self._expected = network(paddle.to_tensor(self._images)).numpy()
        spec = [InputSpec([None, 3, 16, 16], name="x")]
        self._program = export_paddle(network, self._folder, input_spec=spec)

    def onnx(self) -> None:
        from paddlelite_callbacks.export.onnx_export import export_onnx

        if importlib.util.find_spec("paddle2onnx") is None:
            raise _AbsentError
        self._onnx = export_onnx(self._program, self._folder / "model.onnx")

    def engine(self, name: str) -> None:
        from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason

        engine = ENGINES[name]
        file = self._program if engine.kind == "paddle" else self._onnx
        if missing_reason(engine) is not None or file is None:
            raise _AbsentError
        self._compare(engine.load(file, threads=1)([self._images])[0], self._expected)

    def _compare(self, got: Any, wanted: Any) -> None:
        gap = float(self._np.abs(got - wanted).max())
        if not gap <= 1e-3 * max(1.0, float(self._np.abs(wanted).max())):
            raise ValueError(f"the result is off by {gap:.3g}")


def _main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        probe = _Probe(Path(folder))
        steps: dict[str, Callable[[], None]] = {
            "numpy": probe.numpy,
            "opencv": probe.opencv,  # before Paddle, which imports OpenCV and would hide its warning
            "paddle": probe.paddle,
            "convolution": probe.convolution,
            "program": probe.program,
            "paddle-engine": lambda: probe.engine("paddle"),
            "paddle-onednn": lambda: probe.engine("paddle-onednn"),
            "onnx": probe.onnx,
            "onnxruntime": lambda: probe.engine("onnxruntime"),
            "openvino": lambda: probe.engine("openvino"),
        }
        fatal: str | None = None
        for name, step in steps.items():
            error: str | None = None
            try:
                if fatal is not None:
                    raise _AbsentError
                step()
            except _AbsentError:
                error = "absent"
            except Exception as raised:
                error = " ".join(f"{type(raised).__name__}: {raised}".split())[:300]
                fatal = name if name in ("numpy", "paddle", "convolution", "program") else fatal
            os.write(sys.__stdout__.fileno(), (json.dumps({"step": name, "error": error}) + "\n").encode())  # type: ignore[union-attr]


if __name__ == "__main__":
    _main()
