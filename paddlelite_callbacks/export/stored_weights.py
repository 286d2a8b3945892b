"""Store int8 weights so that ONNX Runtime dequantises them once.

This concerns layers that it computes in float. It fuses a quantised convolution only where a quantizer follows,
perhaps behind a ReLU; of the others it dequantises the whole weight at each call, which takes longer than the
convolution. A ``DequantizeLinear`` is not computed when a file is loaded, a ``Cast`` and a ``Mul`` of constants are:
the same product of the same numbers.
OpenVINO reads both forms as quantised weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlelite_callbacks.export.onnx_graph import OnnxGraph

__all__ = ["StoredWeight", "dequantize_at_load_", "factors_of_product", "stored_weight"]

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_FLOAT_ALONE = (  # never part of an integer convolution
    *("HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Softmax", "GlobalAveragePool", "AveragePool", "ReduceMean"),
    *("Resize", "Concat"),
)
_OF_TWO = ("Add", "Mul")  # of a constant they are folded into the weight
_PASSED = (  # fused, or changed places with a quantizer
    *("Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
)
_FLOAT = 1  # of onnx.TensorProto


@dataclass(frozen=True)
class StoredWeight:
    """Integers that stand for a weight, and how they are dequantised.

    Args:
        integers: Name of the constant.
        scale: Its scales, shaped to broadcast.
        at_load: Whether ONNX Runtime dequantises it when the file is loaded, and computes its layer in float.
    """

    integers: str
    scale: np.ndarray
    at_load: bool


def stored_weight(graph: OnnxGraph, name: str) -> StoredWeight | None:
    """Return what is stored for a dequantised constant; ``None`` for other tensors.

    Args:
        graph: Graph of an int8 file.
        name: Tensor that a layer reads.
    """
    node = graph.producer(name)
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        integers, scale = (graph.constants.get(item) for item in node.input[:2])
        if integers is None or scale is None:
            return None
        axis = graph.attribute(node, "axis", 1)
        shape = [-1 if dim == axis else 1 for dim in range(integers.ndim)]
        return StoredWeight(node.input[0], scale.reshape(shape) if scale.ndim else scale, at_load=False)
    factors = factors_of_product(node, graph.producer, graph.constants.get)
    return None if factors is None else StoredWeight(*factors, at_load=True)


def factors_of_product(
    node: Any, producer: Callable[[str], Any], constant: Callable[[str], np.ndarray | None]
) -> tuple[str, np.ndarray] | None:
    """Return the constants of the ``Cast, Mul`` that `dequantize_at_load_` writes.

    Args:
        node: The ``Mul``; others give ``None``.
        producer: Returns the node that computes a tensor, or ``None``.
        constant: Returns the value of a constant, or ``None``.

    Returns:
        Name of the integers, and their scales, shaped to broadcast; ``None`` for other products.
    """
    cast = producer(node.input[0]) if node.op_type == "Mul" else None
    if cast is None or cast.op_type != "Cast":
        return None
    integers, scale = constant(cast.input[0]), constant(node.input[1])
    if integers is None or scale is None or integers.dtype not in (np.int8, np.int32):
        return None
    return cast.input[0], scale


def dequantize_at_load_(graph: OnnxGraph) -> int:
    """Write weights of convolutions before no quantizer as ``Cast, Mul``.

    A file with int8 activations is for engines of other rules and stays.

    Args:
        graph: Graph in QDQ format, changed in place.

    Returns:
        Number of these weights.
    """
    quantizers = [node for node in graph.nodes if node.op_type == "QuantizeLinear" and len(node.input) > 2]
    if any(getattr(graph.constants.get(node.input[2]), "dtype", None) == np.int8 for node in quantizers):
        return 0
    graph.remove_unread()
    count = 0
    for node in [node for node in graph.nodes if node.op_type == "DequantizeLinear"]:
        readers = graph.consumers(node.output[0])
        if not readers or any(one.op_type not in _CONVOLUTIONS for one in readers):
            continue
        if any(node.output[0] == one.input[0] or not _stays_in_float(graph, one.output[0]) for one in readers):
            continue
        weight = stored_weight(graph, node.output[0])
        if weight is None:
            continue
        count += any(node.output[0] == one.input[1] for one in readers)
        _write_product(graph, node, weight, readers)
    return count


def _stays_in_float(graph: OnnxGraph, name: str) -> bool:
    """Return whether ONNX Runtime computes the convolution before a tensor in float.

    Where only a quantizer follows, it would quantise a float weight itself, with one scale for all channels.
    """
    readers = graph.consumers(name)
    if not readers:
        return name in graph.outputs
    return any(
        node.op_type in _FLOAT_ALONE
        or (node.op_type in _OF_TWO and not any(one in graph.constants for one in node.input))
        or (node.op_type in _PASSED and _stays_in_float(graph, node.output[0]))
        for node in readers
    )


def _write_product(graph: OnnxGraph, node: Any, weight: StoredWeight, readers: list[Any]) -> None:
    output = node.output[0]
    scale = graph.constant(f"{node.input[1]}.shaped", weight.scale)
    first = next(item for item in graph.nodes if any(item is one for one in readers))
    graph.insert_before(first, "Cast", [weight.integers], f"{output}.cast", to=_FLOAT)
    graph.insert_before(first, "Mul", [f"{output}.cast", scale], f"{output}.float")
    graph.redirect(output, f"{output}.float")
    graph.remove(node)
