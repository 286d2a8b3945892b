"""Run ONNX models that are in memory, tensors inside them included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import ExportError, require
from paddlelite_callbacks.export.onnx_graph import copied_model
from paddlelite_callbacks.utils.error_text import reason

__all__ = ["run_model", "with_outputs"]

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def run_model(model: Any, *, exact: bool = True, threads: int = 1) -> Run:
    """Return a function that computes the outputs of a model by name.

    Args:
        model: An ``onnx.ModelProto``.
        exact: Whether to compute every node as ONNX defines it, without the optimisations of ONNX Runtime.
        threads: CPU threads.

    Raises:
        ExportError: ONNX Runtime cannot load the model.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    runtime = require("onnxruntime", needed_for="calibration of ONNX files")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if exact:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot run the model: {reason(error)}.") from error
    taken, names = [item.name for item in session.get_inputs()], [item.name for item in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, {name: inputs[name] for name in taken}), strict=True))

    return run


def with_outputs(model: Any, names: Iterable[str], *, only: bool = False) -> Any:
    """Return a copy of a model that also outputs the tensors ``names``.

    Args:
        model: An ``onnx.ModelProto``.
        names: Float tensors inside the model.
        only: Whether to leave out its own outputs.
    """
    onnx = require("onnx", needed_for="ONNX files")
    copied = copied_model(model)
    if only:
        del copied.graph.output[:]
    known: Sequence[str] = [item.name for item in copied.graph.output]
    for name in dict.fromkeys(names):
        if name not in known:
            copied.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copied
