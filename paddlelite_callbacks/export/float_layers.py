"""Keep layers in float that stand between quantizers.

ONNX Runtime (1.32) quantises the weight of a convolution or ``Gemm`` itself, with one scale for all channels, if its
input comes from a ``DequantizeLinear`` and its output goes to a ``QuantizeLinear``: a layer that was left in float for
the sake of accuracy would lose it. It leaves alone what reads a ``DequantizeLinear`` with a scale per channel, so such
a layer gets one of its own, with the same scale in every channel: no value changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paddlelite_callbacks.export.onnx_graph import WEIGHTED, OnnxGraph
from paddlelite_callbacks.export.stored_weights import dequantize_at_load_

__all__ = ["arrange_for_onnxruntime_", "keep_in_float_"]


def arrange_for_onnxruntime_(graph: OnnxGraph) -> None:
    """Arrange the layers that ONNX Runtime computes in float, in place.

    Float layers between quantizers keep their weights (`keep_in_float_`), stored weights of others are dequantised when
    the file is loaded (`dequantize_at_load_`).

    Args:
        graph: Graph in QDQ format.
    """
    keep_in_float_(graph)
    dequantize_at_load_(graph)


def keep_in_float_(graph: OnnxGraph) -> int:
    """Give float products that read a dequantised tensor a scale per channel.

    Args:
        graph: Graph in QDQ format, changed in place.

    Returns:
        Number of these products.
    """
    count = 0
    for node in [node for node in graph.nodes if node.op_type in WEIGHTED]:
        weight, dequantize = graph.constants.get(node.input[1]), graph.producer(node.input[0])
        if weight is None or weight.dtype.kind != "f" or dequantize is None:
            continue
        if dequantize.op_type != "DequantizeLinear" or graph.constants[dequantize.input[1]].ndim:
            continue
        channels, axis = _input_channels(graph, node, weight)
        name = f"{dequantize.output[0]}.by_channel"
        if graph.producer(name) is None:
            scale, zero = (graph.constants[item] for item in dequantize.input[1:3])
            scales = graph.constant(f"{name}.scale", np.full(channels, scale, scale.dtype))
            zeros = graph.constant(f"{name}.zero_point", np.full(channels, zero, zero.dtype))
            graph.insert_before(node, "DequantizeLinear", [dequantize.input[0], scales, zeros], name, axis=axis)
        graph.set_inputs(node, [name, *node.input[1:]])
        count += 1
    return count


def _input_channels(graph: OnnxGraph, node: Any, weight: np.ndarray) -> tuple[int, int]:
    """Return the number of input channels, and their axis."""
    if node.op_type == "Conv":
        return weight.shape[1] * int(graph.attribute(node, "group", 1)), 1
    if node.op_type == "Gemm":
        return weight.shape[1 if graph.attribute(node, "transB", 0) else 0], 1
    return weight.shape[-2 if node.op_type == "MatMul" else 0], -1 if node.op_type == "MatMul" else 1
