"""Inference engines on the CPU, one small class each; every one is a function from arrays to arrays once loaded."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.separate_parameters import as_pair
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.parameters_file import check_not_truncated
from paddlelite_callbacks.utils.signals import same_signal_stack

if TYPE_CHECKING:  # a process that runs an ONNX file need not import Paddle
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = [
    "ENGINES",
    "Engine",
    "EngineError",
    "OnnxRuntime",
    "OpenVino",
    "PaddleInference",
    "in_batches",
    "missing_reason",
]

Predict = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


class EngineError(RuntimeError):
    """An engine could not load or run a file; one line with its reason."""


class Engine(Protocol):
    """Something that runs exported files.

    Attributes:
        name: as used in options and reports.
        kind: of the artefacts it reads.
        package: whose presence and version count.
    """

    name: str
    kind: str
    package: str

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """Return a function that runs the file on ``threads`` CPU threads; outputs in the file's order.

        Raises:
            EngineError: the file cannot be loaded.
            MissingDependencyError: the engine is not installed.
        """


class PaddleInference:
    """Paddle Inference on the CPU.

    Args:
        onednn: with oneDNN (Paddle 3's default) or without (how the guide's table was taken).
    """

    kind, package = "paddle", "paddlepaddle"

    def __init__(self, *, onednn: bool) -> None:
        self.name, self._onednn = ("paddle-onednn" if onednn else "paddle"), onednn

    def _config(self, inference: Any, files: Sequence[Path], threads: int) -> Any:
        config = inference.Config(*(str(file) for file in files))
        config.disable_glog_info()
        config.disable_gpu()
        config.enable_mkldnn() if self._onednn else config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(threads)
        return config

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """See `Engine.load`."""
        inference = require("paddle.inference", needed_for="Paddle Inference")
        try:
            for file in artefact.files[1:]:
                check_not_truncated(file)
            with as_pair(artefact.files) as files:
                predictor = inference.create_predictor(self._config(inference, files, threads))
        except Exception as error:
            raise EngineError(reason(error, folder=artefact.path.parent)) from error
        inputs = [predictor.get_input_handle(name) for name in predictor.get_input_names()]
        outputs = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

        def predict(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            for handle, array in zip(inputs, arrays, strict=True):
                handle.copy_from_cpu(array)
            predictor.run()
            return [handle.copy_to_cpu() for handle in outputs]

        return predict


class OnnxRuntime:
    """ONNX Runtime on the CPU.

    Args:
        optimised: whether it may rewrite the graph, as it does by default.
    """

    kind, package = "onnx", "onnxruntime"

    def __init__(self, *, optimised: bool = True) -> None:
        self.name, self._optimised = ("onnxruntime" if optimised else "onnxruntime-unoptimised"), optimised

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """See `Engine.load`."""
        runtime = require("onnxruntime", needed_for="the engine onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if not self._optimised:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = runtime.InferenceSession(str(artefact.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(reason(error, folder=artefact.path.parent)) from error
        names = [item.name for item in session.get_inputs()]
        return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


class OpenVino:
    """OpenVINO on the CPU, tuned for latency, in fp32 (its default rounds to bf16 where the CPU can)."""

    name, kind, package = "openvino", "onnx", "openvino"

    def load(self, artefact: Artefact, *, threads: int) -> Predict:
        """See `Engine.load`."""
        openvino = require("openvino", needed_for="the engine openvino")
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        try:
            with same_signal_stack():
                compiled = openvino.Core().compile_model(str(artefact.path), "CPU", options)
        except Exception as error:
            raise EngineError(reason(error, folder=artefact.path.parent)) from error
        request, count = compiled.create_infer_request(), len(compiled.outputs)

        def predict(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            results: Any = request.infer(dict(enumerate(arrays)))
            return [results[i] for i in range(count)]

        return predict


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (PaddleInference(onednn=False), PaddleInference(onednn=True), OnnxRuntime(), OpenVino())
}


def in_batches(predict: Predict, rows: int | None) -> Predict:
    """Return ``predict`` for any number of images, where the file takes exactly ``rows`` in a call.

    Args:
        predict: of an engine; outputs have a row per image.
        rows: ``None`` returns ``predict`` as it is. The last call is filled up with repeated rows.
    """
    if rows is None:
        return predict

    def chunked(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        count, parts = len(arrays[0]), []
        for start in range(0, count, rows):
            part = [np.resize(array[start : start + rows], (rows, *array.shape[1:])) for array in arrays]
            parts.append(predict(part))
        return [np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True)]

    return chunked


def missing_reason(engine: Engine) -> str | None:
    """Return why ``engine`` cannot be used here, ``None`` if it can; imports nothing."""
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(engine.package)
        return None
    with suppress(importlib.metadata.PackageNotFoundError):  # the GPU build is a package of its own
        importlib.metadata.version(f"{engine.package}-gpu")
        return None
    return f"{engine.package} not installed: pip install 'paddlelite_callbacks[deploy]'"
