"""ONNX Runtime rounds biases of int8 convolutions: is that all by which its answers differ from a file's?

A convolution whose input, weight and output are quantised is computed there in integers, its bias as a multiple of
input step times weight step (see `bias_step`). Small networks, and weights below 8 bits, notice it in every image. The
file is right nevertheless: its operators one by one give what the network gives, and with the biases rounded they give
what ONNX Runtime does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddlelite_callbacks.deploy.engines import in_batches
from paddlelite_callbacks.deploy.export import Artefact
from paddlelite_callbacks.deploy.onnx_graph import OnnxGraph
from paddlelite_callbacks.errors import require

__all__ = ["answers_one_by_one", "with_rounded_biases"]

_ACTIVATIONS = ("Relu", "Clip")


def with_rounded_biases(artefact: Artefact) -> tuple[Any, Any]:
    """Return the model of an int8 file as it is, and with the biases of its integer convolutions rounded.

    Args:
        artefact: written by `write_int8_onnx`.
    """
    onnx = require("onnx", needed_for="int8 ONNX files")
    plain = onnx.load(str(artefact.path))
    graph = OnnxGraph(onnx.load(str(artefact.path)))
    for conv in [node for node in graph.nodes if node.op_type == "Conv" and len(node.input) > 2]:
        bias, step = graph.constants.get(conv.input[2]), bias_step(graph, conv)
        if bias is not None and step is not None:
            rounded = (np.round(bias / step) * step).astype("float32")
            name = graph.constant(f"{conv.input[2]}.rounded", rounded)
            graph.set_inputs(conv, [*conv.input[:2], name])
    return plain, graph.to_model()


def bias_step(graph: OnnxGraph, conv: Any) -> np.ndarray | None:
    """Return, per channel, of what ONNX Runtime makes the bias of ``conv`` a multiple; ``None`` where it stays float.

    Args:
        graph: of the int8 file.
        conv: one of its convolutions.
    """
    sources = [graph.producer(name) for name in conv.input[:2]]
    if any(node is None or node.op_type != "DequantizeLinear" for node in sources):
        return None
    output = conv.output[0]
    for kind in _ACTIVATIONS:
        activation = graph.only_consumer(output, kind)
        output = activation.output[0] if activation is not None else output
    users = graph.consumers(output)
    if not users or any(node.op_type != "QuantizeLinear" for node in users):
        return None
    scales = [graph.constants[node.input[1]].astype("float64") for node in sources if node is not None]
    return np.asarray(scales[0] * scales[1])


def answers_one_by_one(model: Any, inputs: Sequence[np.ndarray], rows: int | None) -> list[np.ndarray]:
    """Return what the operators of ``model`` give one by one, in ONNX Runtime without its optimisations.

    Args:
        model: ``onnx.ModelProto``.
        inputs: one array each.
        rows: see `in_batches`.
    """
    runtime = require("onnxruntime", needed_for="the engine onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    predict = in_batches(lambda arrays: list(session.run(None, dict(zip(names, arrays, strict=True)))), rows)
    return predict(inputs)
