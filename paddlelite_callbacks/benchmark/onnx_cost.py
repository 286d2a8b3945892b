"""Count multiply-accumulates and weights of an ONNX file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddlelite_callbacks.errors import require

__all__ = ["onnx_cost"]


def onnx_cost(path: Path, shapes: Sequence[Sequence[int]]) -> tuple[int | None, int]:
    """Count multiply-accumulates per image and weights of an ONNX file.

    Convolutions and matrix products count.

    Args:
        path: Path of the file.
        shapes: Shapes of the inputs in the file's order, batch first.

    Returns:
        Both numbers; ``None`` for the first where a shape cannot be inferred.

    Raises:
        MissingDependencyError: ``onnx`` is not installed.
    """
    onnx = require("onnx", needed_for="counting multiply-accumulates of ONNX files")
    model = onnx.load(str(path))
    constants = {item.name: list(item.dims) for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    for item, shape in zip(inputs, shapes, strict=True):
        for dim, size in zip(item.type.tensor_type.shape.dim, shape, strict=True):
            dim.ClearField("dim_param")
            dim.dim_value = size
    weights = sum(math.prod(dims) for dims in constants.values() if len(dims) > 1)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value" and len(node.attribute[0].t.dims) > 1:
            weights += math.prod(node.attribute[0].t.dims)
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {item.name: _dims(item) for item in (*graph.value_info, *graph.input, *graph.output)} | constants
    counts = [_macs(node, known) for node in graph.node]
    if any(count is None for count in counts):
        return None, weights
    return sum(count or 0 for count in counts) // shapes[0][0], weights


def _dims(item: Any) -> list[int]:
    return [dim.dim_value for dim in item.type.tensor_type.shape.dim]


def _macs(node: Any, known: dict[str, list[int]]) -> int | None:
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return 0
    first, second, out = (known.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if not (first and second and out and all(first) and all(second) and all(out)):
        return None
    if node.op_type == "Conv":
        return math.prod(second) * math.prod(out[2:]) * out[0]
    if node.op_type == "ConvTranspose":
        return math.prod(second) * math.prod(first[2:]) * first[0]
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(out) * (first[-2] if transposed else first[-1])
