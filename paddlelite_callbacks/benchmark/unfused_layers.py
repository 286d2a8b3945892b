"""Find the quantised layers that an engine computes in float."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from paddlelite_callbacks.errors import require, require_installed
from paddlelite_callbacks.export.int8_layers import int8_layers, layer_of, layers_computed_in_float
from paddlelite_callbacks.utils.error_text import reason

__all__ = ["float_layers", "float_layers_of"]

_log = logging.getLogger(__name__)


def float_layers(path: Path) -> tuple[str, ...]:
    """Return the quantised layers that ONNX Runtime computes in float.

    The weights of most of them are written so that they are dequantised when the file is loaded, see
    `dequantize_at_load_`. The others are found in ONNX Runtime's own optimised graph: a layer runs in int8 where no
    ``DequantizeLinear`` of its weight is left; else the weight is dequantised at each call.

    Args:
        path: Path of the file.

    Returns:
        Names of the layers, in the order in which they run.

    Raises:
        MissingDependencyError: ``onnx`` or ``onnxruntime`` is not installed.
    """
    onnx = require("onnx", needed_for="int8 ONNX files")
    runtime = require("onnxruntime", needed_for="the engine onnxruntime")
    model = onnx.load(str(path))
    names, at_load = int8_layers(model), layers_computed_in_float(model)
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        left = {*at_load} | {layer_of(node.input[0]) for node in nodes if node.op_type == "DequantizeLinear"}
    return tuple(name for name in names if name in left)


def float_layers_of(kind: str, precision: str, path: Path) -> tuple[str, ...] | None:
    """Return `float_layers` of an exported file; ``None`` where it cannot be known.

    Args:
        kind: Kind of the file, see `Artefact`.
        precision: Its precision; only int8 files have such layers.
        path: Path of the file.
    """
    if (kind, precision) != ("onnx", "int8"):
        return None
    try:
        require_installed("onnxruntime", needed_for="the engine onnxruntime")
        return float_layers(path)
    except Exception as error:  # the file itself is judged elsewhere
        _log.info("The layers of %s that run in float are not known: %s", path.name, reason(error))
        return None
