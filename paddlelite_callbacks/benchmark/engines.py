"""Load exported files with CPU inference engines, as functions of arrays."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddlelite_callbacks.benchmark.edge_engines import ConvertingEngine, Mnn, Ncnn
from paddlelite_callbacks.benchmark.engine import Engine, EngineError, Predict
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.separate_parameters import as_pair
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.parameters_file import check_not_truncated
from paddlelite_callbacks.utils.signals import same_signal_stack

if TYPE_CHECKING:  # a process that runs an ONNX file does not import Paddle
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = [
    "DEFAULT_ENGINES",
    "ENGINES",
    "Engine",
    "EngineError",
    "OnnxRuntime",
    "OpenVino",
    "PaddleInference",
    "Predict",
    "in_batches",
    "missing_reason",
    "native_file",
    "takes_precision",
]


class PaddleInference:
    """Paddle Inference on the CPU.

    Args:
        onednn: Whether to use oneDNN (Paddle 3's default); the guide's table was measured without.
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
        optimised: Whether to optimise the graph, as by default.
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
    """OpenVINO on the CPU, for latency, in fp32 (its default may round to bf16)."""

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


DEFAULT_ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (PaddleInference(onednn=False), PaddleInference(onednn=True), OnnxRuntime(), OpenVino())
}
"""Engines used by default."""
_EDGE: dict[str, Engine] = {engine.name: engine for engine in (Mnn(), Ncnn())}
ENGINES: dict[str, Engine] = {**DEFAULT_ENGINES, **_EDGE}
"""All engines by name; phone engines convert the file first, which takes some time."""


def in_batches(predict: Predict, rows: int | None) -> Predict:
    """Split calls into chunks of exactly ``rows`` images, as a fixed batch needs.

    Args:
        predict: Predict function of an engine; outputs have one row per image.
        rows: Batch size of the file; ``None`` returns ``predict`` as it is. The last chunk is filled with repeated
            rows.
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


def native_file(engine: str, artefact: Artefact) -> Artefact:
    """Return the file that ``engine`` reads: ``artefact``, or its conversion.

    Args:
        engine: Name in `ENGINES`.
        artefact: File of the engine's kind.

    Raises:
        ExportError: The file cannot be converted.
    """
    one = ENGINES[engine]
    return one.native(artefact) if isinstance(one, ConvertingEngine) else artefact


def takes_precision(engine: str, precision: str) -> bool:
    """Whether ``engine`` reads files of ``precision`` at all.

    Args:
        engine: Name in `ENGINES`; unknown names count as reading any precision.
        precision: Precision of the file: ``"fp32"``, ``"fp16"`` or ``"int8"``.
    """
    one = ENGINES.get(engine)
    return not isinstance(one, ConvertingEngine) or precision in one.precisions


def missing_reason(engine: Engine) -> str | None:
    """Return why ``engine`` cannot be used; ``None`` if it can. Imports nothing."""
    if isinstance(engine, ConvertingEngine):
        return engine.missing()
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(engine.package)
        return None
    with suppress(importlib.metadata.PackageNotFoundError):  # the GPU build is another package
        importlib.metadata.version(f"{engine.package}-gpu")
        return None
    return f"{engine.package} not installed: pip install 'paddlelite_callbacks[deploy]'"
