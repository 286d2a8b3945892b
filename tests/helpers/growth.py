"""What other software leaves behind for each call, without this package: memory and objects that never come back."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import paddle
from paddle import inference
from paddle.pir.core import static_op_arg_cast_guard
from soak import heap_in_use_mb, resident_mb, slope
from toy import TinyNet, fit, hapi_model

from paddlelite_callbacks.utils.signals import same_signal_stack

__all__ = ["CALLS", "Alone"]

CALLS = 120
_BETWEEN = 10  # calls from one reading to the next


class Alone:
    """Calls of Paddle, ONNX Runtime and OpenVINO themselves.

    Args:
        folder: of their files.
    """

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        self.network, self.model = TinyNet(), hapi_model()
        self.network.eval()
        self.array = np.ones([2, 3, 8, 8], "float32")
        self.spec = [paddle.static.InputSpec([None, 3, 8, 8])]
        paddle.jit.save(self.network, str(folder / "p"), input_spec=self.spec)
        child = [sys.executable, "-m", "paddlelite_callbacks.export.onnx_worker"]
        files = [folder / "p.json", folder / "p.pdiparams", folder / "p.onnx"]
        subprocess.run([*child, *map(str, files), "17"], check=True, capture_output=True)

    def growth(self, call: Callable[[], object]) -> dict[str, float]:
        """Return, per call, KB of resident memory, KB of heap in use, blocks of Python and objects of its collector."""
        rows = []
        for count in range(1, CALLS + 1):
            call()
            if count % _BETWEEN == 0:
                gc.collect()
                heap = heap_in_use_mb()
                rows.append((1e3 * resident_mb(), 1e3 * heap, sys.getallocatedblocks(), len(gc.get_objects())))
        names = ("resident KB", "heap KB", "blocks", "objects")
        return {n: round(slope(list(v)) / _BETWEEN, 2) for n, v in zip(names, zip(*rows, strict=True), strict=True)}

    def calls(self) -> dict[str, Callable[[], object]]:
        return {
            "nothing": lambda: None,
            "fit, the same model": lambda: fit(self.model),
            "fit, a new model": lambda: fit(hapi_model()),
            "paddle.to_tensor": lambda: paddle.to_tensor(self.array),
            "copy.deepcopy of 9 parameters": lambda: copy.deepcopy(self.network),
            "100 operations traced": lambda: _traced(100),
            "100 operations traced as paddle.jit does": lambda: _traced(100, static_op_arg_cast_guard(lambda x: x)),
            "one new name in a program": self.new_name,
            "paddle.jit.save": self.save,
            "paddle.jit.load": lambda: paddle.jit.load(str(self.folder / "p")),
            "Paddle Inference": self.predictor,
            "Paddle Inference without constant_folding_pass": lambda: self.predictor("constant_folding_pass"),
            "Paddle Inference, oneDNN": lambda: self.predictor(onednn=True),
            "ONNX Runtime": self.session,
            "OpenVINO": self.compiled,
            "a child process": lambda: subprocess.run([sys.executable, "-c", ""], check=True, capture_output=True),
        }

    def new_name(self) -> None:
        self.number += 1
        _traced(1, name=f"input_{self.number:012d}")

    def save(self) -> None:
        paddle.jit.save(copy.deepcopy(self.network), str(self.folder / "s"), input_spec=self.spec)

    def predictor(self, left_out: str | None = None, onednn: bool = False) -> None:
        config = inference.Config(str(self.folder / "p.json"), str(self.folder / "p.pdiparams"))
        config.disable_glog_info()
        config.enable_mkldnn() if onednn else config.disable_mkldnn()
        if left_out:
            config.delete_pass(left_out)
        predictor = inference.create_predictor(config)
        predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(self.array)
        predictor.run()

    def session(self) -> None:
        session = onnxruntime.InferenceSession(str(self.folder / "p.onnx"), providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: self.array})

    def compiled(self) -> None:
        with same_signal_stack():
            compiled = openvino.Core().compile_model(str(self.folder / "p.onnx"), "CPU", {"INFERENCE_NUM_THREADS": 1})
        compiled.create_infer_request().infer({0: self.array})


@contextmanager
def _static() -> Iterator[None]:
    paddle.enable_static()
    try:
        with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
            yield
    finally:
        paddle.disable_static()


def _traced(count: int, guard=None, name: str = "x") -> None:
    with _static():
        x = paddle.static.data(name, [2, 3])
        if guard is None:
            for _ in range(count):
                x = paddle._C_ops.relu(x)
            return
        with guard:
            for _ in range(count):
                x = paddle._C_ops.relu(x)
