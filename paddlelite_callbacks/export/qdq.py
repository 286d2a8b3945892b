"""Write int8 ONNX in QDQ format with the scales learned in training.

The input is the ONNX form of the program that is shipped for Paddle, in which a quantizer is ``Mul, Round, Clip, Mul``
and an int8 weight is ``Cast, Mul``. Each of these chains is replaced in place by the
``QuantizeLinear``/``DequantizeLinear`` pair that engines recognise, with its own constants, so that the file computes
what was simulated. Batch normalisation is folded by one rule: the scale of output channel ``c`` is multiplied by
``|gamma_c / sigma_c|``, a negative sign goes into the channel's integers, and the rest into the bias; the integers stay
those of training.

Activations are uint8, non-negative ones with zero point 0 and the others with zero point 128: with int8 activations
ONNX Runtime takes three times as long. Those trained on a symmetric grid (``activation_symmetric``) are int8 with zero
point 0, as TensorRT and NPUs need them. Grids below 8 bits are kept by a ``Clip`` before the quantizer, those of
weights by integers that are multiples of a power of two.

Weights of convolutions that ONNX Runtime computes in float are dequantised when the file is loaded (see
`dequantize_at_load_`). A ``Linear`` is written as ONNX Runtime fuses it: one matrix as ``Gemm``, several as ``MatMul``,
each with its bias behind it (see `_keep_product_in_int8`). A quantizer whose input is already on its grid is left out;
one behind another grid is kept apart from it, since ONNX Runtime would merge them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import ExportError, require
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.float_layers import arrange_for_onnxruntime_
from paddlelite_callbacks.export.fuse_onnx import upsample_by_resize_
from paddlelite_callbacks.export.onnx_graph import WEIGHTED, OnnxGraph, tensor_shapes
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["LARGEST_BIAS", "finer_factor", "fold_norm_", "rewrite_as_qdq", "write_int8_onnx"]

LARGEST_BIAS = 2.0**30  # of an int32, with room for the sum of products
_UNSATURATED = 64  # 2 x 64 x 255 fits the 16 bits in which CPUs without VNNI add two products
_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp")
_KEEPS_SIGN = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Reshape", "Flatten", "Transpose"),
    *("Squeeze", "Unsqueeze", "Concat", "Add", "Mul", "Identity", "QuantizeLinear", "DequantizeLinear"),
)


def write_int8_onnx(source: Artefact, path: Path) -> Artefact:
    """Write an ONNX file converted from a quantised Paddle program in int8.

    Args:
        source: File of kind ``"onnx"``.
        path: Path of the new file; written atomically.

    Raises:
        ExportError: The file has no quantizer, or a chain that `convert_for_export_` does not write.
        MissingDependencyError: ``onnx`` is not installed.
    """
    onnx = require("onnx", needed_for="int8 ONNX files")
    model = rewrite_as_qdq(onnx.load(str(source.path)))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The int8 form of {source.path.name} is not a valid ONNX model: {error}.") from error
    with staged_file(path) as partial:
        partial.write_bytes(model.SerializeToString())
    return replace(source, path=path, files=(path,), precision="int8")


def rewrite_as_qdq(model: Any) -> Any:
    """Replace quantizer chains of ``model`` by QDQ pairs, and fold batch norms.

    Raises:
        ExportError: As for `write_int8_onnx`.
    """
    graph, shapes = OnnxGraph(model), tensor_shapes(model)
    roundings = [node for node in graph.nodes if node.op_type == "Round"]
    casts = [node for node in graph.nodes if _is_int8_cast(graph, node)]
    if not roundings or not casts:
        raise ExportError("The ONNX file has no quantizer: convert it from a quantised network.")
    for node in roundings:
        _activation(graph, node)
    for node in casts:
        _weight(graph, node)
    for node in [node for node in graph.nodes if node.op_type in ("Conv", "ConvTranspose")]:
        fold_norm_(graph, node)
    for node in [node for node in graph.nodes if node.op_type == "DequantizeLinear"]:
        _leave_room_for_biases(graph, node)
    upsample_by_resize_(graph, shapes)
    for node in [node for node in graph.nodes if node.op_type == "MatMul"]:
        _keep_product_in_int8(graph, node, len(shapes.get(node.output[0], ())))
    for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        _leave_out_repeated(graph, node)
    for node in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        _keep_both_grids(graph, node)
    arrange_for_onnxruntime_(graph)
    return graph.to_model()


def _keep_product_in_int8(graph: OnnxGraph, product: Any, rank: int) -> None:
    """Write the product of a quantised ``Linear`` so that ONNX Runtime fuses it.

    It makes a float ``Gemm`` of ``MatMul`` and ``Add``, and dequantises the whole weight at each call. A ``Gemm`` of a
    matrix without bias becomes ``QGemm``, a ``MatMul`` of more dimensions that no ``Add`` follows
    ``MatMulIntegerToFloat``. The bias stays float and exact: it is added behind the product, in the second case by
    subtracting its negative, which is the same number.
    """
    if any(_kind_behind(graph, name) != "DequantizeLinear" for name in product.input):
        return
    if rank == 2:
        graph.change_kind(product, "Gemm", alpha=1.0, beta=1.0, transA=0, transB=0)
        return
    add = graph.only_consumer(product.output[0], "Add")
    at = None if add is None else next((i for i, name in enumerate(add.input) if name in graph.constants), None)
    if add is not None and at is not None:
        negated = graph.constant(f"{add.input[at]}.negated", -graph.constants[add.input[at]])
        graph.set_inputs(add, [product.output[0], negated])
        graph.change_kind(add, "Sub")


def _leave_out_repeated(graph: OnnxGraph, quantize: Any) -> None:
    """Leave out a quantizer behind one with the same grid, whose values it keeps."""
    before = graph.producer(quantize.input[0])
    if before is None or before.op_type != "DequantizeLinear":
        return
    grids = [[graph.constants[name] for name in node.input[1:3]] for node in (before, quantize)]
    if all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(*grids, strict=True)):
        for after in graph.consumers(quantize.output[0]):
            graph.redirect(after.output[0], before.output[0])


def _keep_both_grids(graph: OnnxGraph, quantize: Any) -> None:
    """Part a quantizer from the one before it, whose grid is another.

    ONNX Runtime (1.32) makes one grid of two that follow each other, which is neither. It leaves them where a node
    stands between that it does not know: the minimum of each value and the largest number.
    """
    source = quantize.input[0]
    if _kind_behind(graph, source) != "DequantizeLinear":
        return
    largest = graph.constant("largest", np.asarray(np.finfo("float32").max, "float32"))
    graph.insert_before(quantize, "Min", [source, largest], f"{quantize.output[0]}.apart")
    graph.set_inputs(quantize, [f"{quantize.output[0]}.apart", *quantize.input[1:]])


def _kind_behind(graph: OnnxGraph, name: str) -> str | None:
    node = graph.producer(name)
    return None if node is None else node.op_type


def fold_norm_(graph: OnnxGraph, conv: Any) -> None:
    """Fold the batch norm, and a constant added per channel, after ``conv`` into it.

    Args:
        graph: Graph to edit.
        conv: A ``Conv`` or ``ConvTranspose`` of it; left as it is where what follows is not constant.
    """
    if len(conv.input) > 2 and conv.input[2] not in graph.constants:
        return
    _fold_bias(graph, conv)
    _fold_batch_norm(graph, conv)
    _fold_bias(graph, conv)


def _activation(graph: OnnxGraph, rounding: Any) -> None:
    """Replace ``Mul(1/step), Round, Clip, Mul(step)`` by ``[Clip,] Q, DQ``."""
    before = _through_idle_add(graph, rounding.input[0])
    clip = graph.only_consumer(rounding.output[0], "Clip")
    after = None if clip is None else graph.only_consumer(clip.output[0], "Mul")
    if before is None or clip is None or after is None:
        raise ExportError(f"The rounding at {rounding.output[0]} is not a quantizer of this package.")
    step = _scalar(graph, after.input[1])
    low, high = (int(_scalar(graph, name)) for name in clip.input[1:3])
    output = _past_idle_add(graph, after)
    signed, symmetric = low < 0, low == -high
    prefix = f"{output}.quantized"
    scale = graph.constant(f"{prefix}.scale", np.asarray(step, "float32"))
    point = np.asarray(0, "int8") if symmetric else np.asarray(-low, "uint8")
    zero = graph.constant(f"{prefix}.zero_point", point)
    source = before.input[0]
    reached = (0, high) if symmetric and _not_negative(graph, source) else (low, high)
    ends = reached == (0, 127) if symmetric else high - low == 255  # where the type itself does
    if not ends:
        limits = [
            graph.constant(f"{prefix}.{k}", np.asarray(v * step, "float32")) for k, v in (("low", low), ("high", high))
        ]
        graph.insert_before(after, "Clip", [source, *limits], f"{prefix}.clipped")
        source = f"{prefix}.clipped"
    graph.insert_before(after, "QuantizeLinear", [source, scale, zero], prefix)
    graph.insert_before(after, "DequantizeLinear", [prefix, scale, zero], f"{prefix}.back")
    graph.redirect(output, f"{prefix}.back")
    for node in graph.consumers(f"{prefix}.back"):
        if node.op_type == "Relu" and not signed and node.output[0] not in graph.outputs:
            graph.redirect(node.output[0], f"{prefix}.back")  # of non-negative values


def _not_negative(graph: OnnxGraph, name: str) -> bool:
    """Whether the producers of tensor ``name`` exclude negative values."""
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if (value := graph.constants.get(name)) is not None:
            if (value < 0).any():
                return False
            continue
        node = graph.producer(name)
        kind = None if node is None else node.op_type
        if node is None or kind in _NOT_NEGATIVE:
            if node is None:
                return False
        elif kind == "Clip":
            least = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
            if least is None or float(least) < 0:
                waiting.append(node.input[0])
        elif kind in _KEEPS_SIGN:
            every = kind in ("Concat", "Add", "Mul")
            waiting += list(node.input) if every else [node.input[0]]
        else:
            return False
    return True


def _weight(graph: OnnxGraph, cast: Any) -> None:
    """Replace ``Cast(int8), Mul(steps)`` by ``DQ`` along the axis of the steps."""
    product = graph.only_consumer(cast.output[0], "Mul")
    steps = None if product is None else graph.constants.get(product.input[1])
    users = [] if product is None else graph.consumers(product.output[0])
    if product is None or steps is None or not users or any(node.op_type not in WEIGHTED for node in users):
        raise ExportError(f"The int8 weight {cast.input[0]} is read by a node that is neither convolution nor product.")
    axis, back = WEIGHTED[users[0].op_type], f"{cast.input[0]}.back"
    if graph.producer(back) is not None:  # of a layer that runs twice
        graph.redirect(product.output[0], back)
        return
    finer = finer_factor(graph.constants[cast.input[0]])
    graph.constants[cast.input[0]] = graph.constants[cast.input[0]] * np.int8(finer)
    scale = graph.constant(f"{cast.input[0]}.scale", (steps.reshape(-1) / finer).astype("float32"))
    zero = graph.constant(f"{cast.input[0]}.zero_point", np.zeros(steps.size, "int8"))
    graph.insert_before(product, "DequantizeLinear", [cast.input[0], scale, zero], back, axis=axis)
    graph.redirect(product.output[0], back)


def finer_factor(integers: np.ndarray) -> int:
    """Return the factor by which integers below 8 bits are multiplied.

    Their steps are divided by it. A power of two, so the values are the same bit for bit. ONNX Runtime rounds biases to
    multiples of input step times weight step: with the step of a 4-bit grid that moves every output. Up to 64 no
    product with a uint8 saturates.

    Args:
        integers: Weights on their grid.
    """
    largest = max(int(np.abs(integers.astype("int16")).max(initial=0)), 1)
    return 2 ** max(int(np.floor(np.log2(_UNSATURATED / largest))), 0)


def _fold_batch_norm(graph: OnnxGraph, conv: Any) -> None:
    """Fold the norm after ``conv`` into its weight's scales and its bias."""
    norm = graph.only_consumer(conv.output[0], "BatchNormalization")
    axis = WEIGHTED[conv.op_type]
    if norm is None or (conv.op_type == "ConvTranspose" and graph.attribute(conv, "group", 1) != 1):
        return
    if any(name not in graph.constants for name in norm.input[1:5]) or len(norm.output) > 1:  # it learns
        return
    gamma, beta, mean, variance = (graph.constants[name].astype("float64") for name in norm.input[1:5])
    factor = gamma / np.sqrt(variance + graph.attribute(norm, "epsilon", 1e-5))
    if not _scale_weight(graph, conv, factor, axis):
        return
    bias = graph.constants[conv.input[2]].astype("float64") if len(conv.input) > 2 else 0.0
    folded = graph.constant(f"{norm.output[0]}.bias", (beta + (bias - mean) * factor).astype("float32"))
    graph.set_inputs(conv, [*conv.input[:2], folded])
    graph.absorb(conv, norm)


def _leave_room_for_biases(graph: OnnxGraph, dequantize: Any) -> None:
    """Widen the steps of channels whose weights are tiny beside their bias.

    ONNX Runtime stores a float bias as int32, in multiples of the input's step times the weight's, and loses what does
    not fit: the whole bias of a channel that a batch norm has switched off. On the wider steps it fits; the weights, a
    billionth of the bias, are rounded to them.
    """
    integers, scale = (graph.constants.get(name) for name in dequantize.input[:2])
    if integers is None or scale is None or integers.dtype != np.int8:
        return
    needed = np.zeros(scale.shape)
    for conv in graph.consumers(dequantize.output[0]):
        before = graph.producer(conv.input[0])
        bias = graph.constants.get(conv.input[2]) if len(conv.input) > 2 else None
        if bias is None or bias.size != scale.size or before is None or before.op_type != "DequantizeLinear":
            continue
        step = float(graph.constants[before.input[1]].min())
        needed = np.maximum(needed, np.abs(bias.astype("float64")).reshape(scale.shape) / (LARGEST_BIAS * step))
    if not (needed > scale).any():
        return
    wider = np.maximum(scale, needed.astype("float32"))
    axis = graph.attribute(dequantize, "axis", 1) % integers.ndim
    shape = [-1 if dim == axis else 1 for dim in range(integers.ndim)]
    factor = (scale.astype("float64") / wider).reshape(shape)
    graph.constants[dequantize.input[0]] = np.rint(integers * factor).astype("int8")
    graph.constants[dequantize.input[1]] = wider


def _scale_weight(graph: OnnxGraph, conv: Any, factor: np.ndarray, axis: int) -> bool:
    """Multiply the output channels of ``conv``'s weight, unless the weight is shared."""
    name = conv.input[1]
    if len(graph.consumers(name)) > 1:
        return False
    if name in graph.constants:
        shape = [-1 if dim == axis else 1 for dim in range(graph.constants[name].ndim)]
        weight = (graph.constants[name] * factor.reshape(shape)).astype("float32")
        folded = graph.constant(f"{name}.folded", weight)
        graph.set_inputs(conv, [conv.input[0], folded, *conv.input[2:]])
        return True
    dequantize = graph.producer(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or (factor == 0).any():
        return False
    integers, scale = (graph.constants[item] for item in dequantize.input[:2])
    shape = [-1 if dim == axis else 1 for dim in range(integers.ndim)]
    signs = np.where(factor < 0, -1, 1).astype("int8").reshape(shape)
    graph.constants[dequantize.input[0]] = integers * signs
    graph.constants[dequantize.input[1]] = (scale * np.abs(factor)).astype("float32")
    return True


def _fold_bias(graph: OnnxGraph, conv: Any) -> None:
    """Fold an ``Add`` of one constant per channel after ``conv`` into its bias."""
    add = graph.only_consumer(conv.output[0], "Add")
    value = None if add is None else graph.constants.get(add.input[1])
    channels = 0 if value is None else value.size
    if add is None or value is None or value.ndim < 3 or value.shape[-3] != channels or len(conv.input) > 2:
        return
    graph.set_inputs(conv, [*conv.input, graph.constant(f"{add.output[0]}.bias", value.reshape(-1))])
    graph.absorb(conv, add)


def _is_int8_cast(graph: OnnxGraph, node: Any) -> bool:
    return node.op_type == "Cast" and getattr(graph.constants.get(node.input[0]), "dtype", None) == np.int8


def _through_idle_add(graph: OnnxGraph, name: str) -> Any | None:
    """Return the ``Mul`` by a constant that computes ``name``, past an ``Add`` of 0."""
    node = graph.producer(name)
    if node is not None and node.op_type == "Add" and _is_zero(graph, node.input[1]):
        node = graph.producer(node.input[0])
    return node if node is not None and node.op_type == "Mul" and node.input[1] in graph.constants else None


def _past_idle_add(graph: OnnxGraph, node: Any) -> str:
    add = graph.only_consumer(node.output[0], "Add")
    return node.output[0] if add is None or not _is_zero(graph, add.input[1]) else add.output[0]


def _is_zero(graph: OnnxGraph, name: str) -> bool:
    value = graph.constants.get(name)
    return value is not None and value.size == 1 and float(value.reshape(-1)[0]) == 0.0


def _scalar(graph: OnnxGraph, name: str) -> float:
    value = graph.constants.get(name)
    if value is None or value.size != 1:
        raise ExportError(f"{name} must be one constant number: convert the file from a network of this package.")
    return float(value.reshape(-1)[0])
