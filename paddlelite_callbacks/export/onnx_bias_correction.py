"""Correct the biases of quantised ONNX graphs over calibration data.

Quantised weights shift the mean of a channel, and the shifts add up from layer to layer. The correction is the mean
over data, of the float output minus the quantised one, per channel, layer by layer with the layers before it corrected
already (empirical bias correction: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.float_onnx import FloatOnnx, Product
from paddlelite_callbacks.export.onnx_graph import OnnxGraph, copied_model
from paddlelite_callbacks.export.onnx_session import run_model
from paddlelite_callbacks.export.stored_weights import stored_weight

__all__ = ["bias_corrections"]

Inputs = Mapping[str, np.ndarray]


def bias_corrections(
    source: FloatOnnx,
    quantized: Any,
    means: Mapping[str, np.ndarray],
    batches: Sequence[Inputs],
    *,
    threads: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Return what to add to the output of each quantised product, by name.

    The graph is run piece by piece, from one product to the next, on all batches; only tensors that are still read are
    in memory.

    Args:
        source: Float model.
        quantized: Result of `quantize_graph`, without corrections.
        means: Mean of each product's float output, ``[channels]`` by name, over the same data.
        batches: Arrays by input name, batch first.
        threads: CPU threads.
        progress: Called after every product.
    """
    onnx = require("onnx", needed_for="ONNX files")
    graph = OnnxGraph(copied_model(quantized))
    products = {product.output: product for product in source.products.values()}
    last_read = {name: i for i, node in enumerate(graph.nodes) for name in graph.read_by(node)}
    held: list[dict[str, np.ndarray]] = [dict(batch) for batch in batches]
    found: dict[str, np.ndarray] = {}
    piece: list[Any] = []
    for place, node in enumerate(graph.nodes):
        piece.append(node)
        product = products.get(node.output[0])
        if product is None:
            continue
        made = {name for one in piece for name in one.output}
        wanted = {name for name in made if last_read.get(name, -1) > place} | {product.output}
        run = run_model(_model_of(onnx, graph, piece, held[0], wanted, quantized), threads=threads)
        for tensors in held:
            tensors.update(run(tensors))
        if _is_quantized(graph, node) and _holds_bias(product):
            found[product.name] = _mean_gap(product, means[product.name], [one[product.output] for one in held])
            for tensors in held:
                y = tensors[product.output]
                shape = [-1 if axis == product.channel_axis % y.ndim else 1 for axis in range(y.ndim)]
                y += found[product.name].astype(y.dtype).reshape(shape)
        for tensors in held:
            for name in [name for name in tensors if last_read.get(name, -1) <= place]:
                del tensors[name]
        piece = []
        progress()
    return found


def _is_quantized(graph: OnnxGraph, node: Any) -> bool:
    return stored_weight(graph, node.input[1]) is not None


def _holds_bias(product: Product) -> bool:
    return product.op_type != "MatMul" or product.added is not None


def _mean_gap(product: Product, mean: np.ndarray, outputs: Sequence[np.ndarray]) -> np.ndarray:
    sums = [product.channel_sums(y) for y in outputs]
    return mean - sum(total for total, _ in sums) / max(sum(count for _, count in sums), 1)


def _model_of(onnx: Any, graph: OnnxGraph, nodes: Sequence[Any], held: Inputs, wanted: set[str], quantized: Any) -> Any:
    """Return a model of a piece of a graph; types of inputs are those of the arrays."""
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in graph.read_by(node)} - made - {""}
    types = onnx.helper.np_dtype_to_tensor_dtype
    inputs = [
        onnx.helper.make_tensor_value_info(name, types(held[name].dtype), None) for name in sorted(read & held.keys())
    ]
    stored = [
        onnx.numpy_helper.from_array(
            np.ascontiguousarray(graph.constants[name]).reshape(graph.constants[name].shape), name
        )
        for name in sorted(read & graph.constants.keys())
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in sorted(wanted)]
    piece = onnx.helper.make_graph(list(nodes), "piece", inputs, outputs, stored)
    return onnx.helper.make_model(piece, opset_imports=quantized.opset_import, ir_version=quantized.ir_version)
