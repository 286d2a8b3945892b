"""List the quantised layers of an int8 ONNX file, and put some back to float.

For experiments on speed: a file with some layers in float has the nodes that it would have if these layers had not been
quantised, without another export.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from paddlelite_callbacks.export.float_layers import arrange_for_onnxruntime_
from paddlelite_callbacks.export.onnx_graph import WEIGHTED, OnnxGraph, copied_model
from paddlelite_callbacks.export.stored_weights import stored_weight

__all__ = ["int8_layers", "layer_of", "layers_computed_in_float", "with_layers_in_float"]

_ENDS = (".inner.weight_int8", ".weight_int8")  # of weights: of a `QuantizedOutput`, of other layers
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def int8_layers(model: Any) -> list[str]:
    """Return the names of the layers with int8 weights, in running order.

    Args:
        model: An ``onnx.ModelProto`` in QDQ format.
    """
    graph = OnnxGraph(model)
    return list(dict.fromkeys(_layers(graph).values()))


def layers_computed_in_float(model: Any) -> list[str]:
    """Return the layers whose int8 weights ONNX Runtime dequantises at load.

    Args:
        model: An ``onnx.ModelProto`` in QDQ format.
    """
    graph = OnnxGraph(model)
    by_id = {id(node): node for node in graph.nodes}
    found = {name: stored_weight(graph, by_id[key].input[1]) for key, name in _layers(graph).items()}
    return [name for name, weight in found.items() if weight is not None and weight.at_load]


def layer_of(weight: str) -> str:
    """Return the layer of an int8 weight; a weight of another maker names itself.

    Args:
        weight: Name of the tensor.
    """
    if weight.endswith(".quantized"):  # of `quantize_graph`, which names products by their float weights
        return weight.removesuffix(".quantized").removesuffix(".plain").removesuffix(".folded").removesuffix(".weight")
    return next((weight.removesuffix(end) for end in _ENDS if weight.endswith(end)), weight)


def with_layers_in_float(model: Any, names: Collection[str], *, outputs: bool) -> Any:
    """Return ``model`` as if the layers ``names`` had not been quantised.

    Their weights become float, and quantizers that no other layer needs are removed.

    Args:
        model: An ``onnx.ModelProto`` of `rewrite_as_qdq`; not changed.
        names: Some of `int8_layers`.
        outputs: Whether outputs of convolutions were quantised, too; a quantizer behind a convolution that stays in
            int8 then stays.
    """
    graph = OnnxGraph(copied_model(model))
    layers = _layers(graph)
    by_id = {id(node): node for node in graph.nodes}
    staying = {key for key, name in layers.items() if name not in names}
    for key in layers.keys() - staying:
        _store_weight_in_float(graph, by_id[key])
    for quantize in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        source = _before_clip(graph, quantize.input[0])
        if outputs and id(_convolution_behind(graph, source)) in staying:
            continue
        rectified = None
        for back in graph.consumers(quantize.output[0]):
            for user in graph.consumers(back.output[0]):
                if id(user) in staying and user.input[0] == back.output[0]:
                    continue
                if rectified is None:
                    rectified = _as_rectified(graph, source, quantize)
                graph.set_inputs(user, [rectified if name == back.output[0] else name for name in user.input])
    arrange_for_onnxruntime_(graph)
    return graph.to_model()


def _layers(graph: OnnxGraph) -> dict[int, str]:
    """Return the names of quantised layers by the ids of their nodes."""
    found = {}
    for node in graph.nodes:
        weight = stored_weight(graph, node.input[1]) if node.op_type in WEIGHTED else None
        if weight is not None and graph.constants[weight.integers].ndim > 1:
            found[id(node)] = layer_of(weight.integers)
    return found


def _store_weight_in_float(graph: OnnxGraph, node: Any) -> None:
    weight = stored_weight(graph, node.input[1])
    assert weight is not None  # of `_layers`
    name = f"{weight.integers}.in_float"
    value = graph.constants[weight.integers].astype("float32") * weight.scale
    stored = name if name in graph.constants else graph.constant(name, value)
    graph.set_inputs(node, [node.input[0], stored, *node.input[2:]])


def _before_clip(graph: OnnxGraph, name: str) -> str:
    """Return the tensor that the quantizer of a coarse grid clips."""
    node = graph.producer(name)
    written = node is not None and node.op_type == "Clip" and graph.only_consumer(name, "QuantizeLinear") is not None
    return node.input[0] if node is not None and written else name


def _convolution_behind(graph: OnnxGraph, name: str) -> Any | None:
    node = graph.producer(name)
    if node is not None and node.op_type == "Relu":
        node = graph.producer(node.input[0])
    return node if node is not None and node.op_type in _CONVOLUTIONS else None


def _as_rectified(graph: OnnxGraph, source: str, quantize: Any) -> str:
    """Return ``source``, rectified where the grid behind a convolution did so."""
    zero, made_by = graph.constants[quantize.input[2]], graph.producer(source)
    unsigned = zero.dtype == np.uint8 and zero == 0
    if not unsigned or made_by is None or made_by.op_type not in _CONVOLUTIONS:
        return source
    graph.insert_before(quantize, "Relu", [source], f"{source}.rectified")
    return f"{source}.rectified"
