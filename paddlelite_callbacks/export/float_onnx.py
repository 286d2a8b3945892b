"""Read float ONNX files of any maker and bring them into one form to quantise.

What exporters write differently becomes the same here: constants as nodes or initializers, weights listed as inputs,
local functions, opsets below 13, batch normalisation behind a convolution, a matrix product with a bias added behind
it, ``Gemm`` with ``transB``, ``alpha`` or ``beta``. Names of nodes and tensors stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.clean_onnx import clean_onnx
from paddlelite_callbacks.export.onnx_files import onnx_files
from paddlelite_callbacks.export.onnx_graph import WEIGHTED, OnnxGraph, copied_model, tensor_shapes
from paddlelite_callbacks.export.qdq import fold_norm_
from paddlelite_callbacks.export.saturation import INTEGER_OPERATORS
from paddlelite_callbacks.utils.error_text import reason

__all__ = ["FloatOnnx", "Product", "read_float_onnx"]

_OPSET = 13  # the first with scales per channel
_HALF = {10: "float16", 16: "bfloat16"}
_DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, kw_only=True)
class Product:
    """One convolution or matrix product with a constant weight.

    Args:
        name: Name of the layer, see `FloatOnnx`.
        op_type: ``"Conv"``, ``"ConvTranspose"``, ``"Gemm"`` or ``"MatMul"``.
        source: Tensor that it reads.
        weight: Name of its weight.
        output: Tensor that it computes.
        axis: Axis of the output channels in the weight.
        added: Output of the ``Add`` behind a ``MatMul`` that holds its bias; ``None`` for others.
    """

    name: str
    op_type: str
    source: str
    weight: str
    output: str
    axis: int
    added: str | None = None

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in the output."""
        return 1 if self.op_type in ("Conv", "ConvTranspose") else -1

    def channel_sums(self, output: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the sum of each channel of an output, and the number of its values.

        Args:
            output: What the product computed.
        """
        if self.channel_axis == 1 and output.ndim > 2:
            maps = output.reshape(*output.shape[:2], -1)
            return maps.sum(axis=2, dtype="float64").sum(axis=0), len(maps) * maps.shape[2]
        columns = np.moveaxis(output, self.channel_axis, -1)
        columns = columns.reshape(-1, columns.shape[-1])
        return columns.sum(axis=0, dtype="float64"), len(columns)


@dataclass(frozen=True, kw_only=True)
class FloatOnnx:
    """Float model in the form that is quantised.

    A layer is named by its weight (``layer1.conv.weight`` gives ``layer1.conv``), else by its node, else by its output.

    Args:
        model: An ``onnx.ModelProto``.
        products: What can be quantised, by name, in the order of the file.
        left: Reasons why other convolutions and matrix products stay in float, by name.
    """

    model: Any
    products: dict[str, Product]
    left: dict[str, str]

    def graph(self) -> OnnxGraph:
        """Return an editable copy of the model."""
        return OnnxGraph(copied_model(self.model))


def read_float_onnx(path: str | Path) -> FloatOnnx:
    """Read a float ONNX file, with its external data, and bring it into one form.

    Args:
        path: Path of an ``.onnx`` file.

    Raises:
        ValueError: Not an ONNX file, a quantised one, one with 16-bit weights or weights that are not finite, or an
            opset below 13 that cannot be upgraded.
        MissingDependencyError: ``onnx`` is not installed.
    """
    path = Path(path)
    onnx_files(path)  # raises where a file is missing or truncated
    onnx = require("onnx", needed_for="ONNX files")
    model = onnx.load(str(path))
    if model.functions:
        model = require("onnx.inliner", needed_for="local functions").inline_local_functions(model)
    _check_float(model, path)
    model = _upgraded(_without_listed_weights(model), path)
    graph = OnnxGraph(model)
    for node in [node for node in graph.nodes if node.op_type in ("Conv", "ConvTranspose")]:
        fold_norm_(graph, node)
    graph = OnnxGraph(clean_onnx(graph.to_model(short_names=False)))
    ranks = _ranks(graph)
    for node in [node for node in graph.nodes if node.op_type == "MatMul"]:
        _as_gemm(graph, node, ranks)
    for node in [node for node in graph.nodes if node.op_type == "Gemm"]:
        _plain_gemm(graph, node)
    products, left = _products(graph, path)
    return FloatOnnx(model=graph.to_model(short_names=False), products=products, left=left)


def _check_float(model: Any, path: Path) -> None:
    for node in _nodes(model.graph):
        if node.op_type in (*INTEGER_OPERATORS, "DequantizeLinear"):
            raise ValueError(
                f"{path} is quantised already ({node.op_type} computes {node.output[0]!r}): give the float file that "
                "it was made from."
            )
    for item in model.graph.initializer:
        if item.data_type in _HALF:
            raise ValueError(
                f"{path} holds weights in {_HALF[item.data_type]} ({item.name!r}), which are rounded already: give "
                "the fp32 file."
            )


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _without_listed_weights(model: Any) -> Any:
    """Remove the weights that old exporters list as inputs too."""
    known = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in known]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    return model


def _upgraded(model: Any, path: Path) -> Any:
    """Return the model in opset 13 or later, quantizers per channel need it."""
    version = max((item.version for item in model.opset_import if item.domain in _DEFAULT_DOMAINS), default=1)
    if version >= _OPSET:
        return model
    converter = require("onnx.version_converter", needed_for="ONNX files below opset 13")
    try:
        return converter.convert_version(model, _OPSET)
    except Exception as error:
        raise ValueError(
            f"{path} has opset {version}; scales per channel need {_OPSET}, and it cannot be upgraded: "
            f"{reason(error).rstrip('.')}. Export the network again with opset {_OPSET} or later."
        ) from error


def _ranks(graph: OnnxGraph) -> dict[str, int]:
    """Return the number of axes of the tensors, where it can be inferred."""
    try:
        return {name: len(shape) for name, shape in tensor_shapes(graph.to_model(short_names=False)).items()}
    except Exception:  # operators of other domains: matrix products stay as they are
        return {}


def _as_gemm(graph: OnnxGraph, node: Any, ranks: dict[str, int]) -> None:
    """Write a matrix product with a constant as ``Gemm``, with the bias behind it.

    ONNX Runtime computes only this form in integers.
    """
    weight = graph.constants.get(node.input[1])
    if weight is None or weight.ndim != 2 or ranks.get(node.input[0]) != 2:
        return
    inputs, add = list(node.input), graph.only_consumer(node.output[0], "Add")
    value = _added_constant(graph, add, node.output[0])
    if add is not None and value is not None and value.size == weight.shape[1]:
        inputs.append(graph.constant(f"{add.output[0]}.bias", value.reshape(-1)))
        graph.absorb(node, add)
    node.op_type = "Gemm"
    graph.set_inputs(node, inputs)


def _added_constant(graph: OnnxGraph, add: Any | None, name: str) -> np.ndarray | None:
    """Return the constant vector that ``add`` adds to the tensor ``name``."""
    if add is None:
        return None
    others = [item for item in add.input if item != name]
    value = graph.constants.get(others[0]) if len(others) == 1 else None
    return value if value is not None and value.ndim and value.size == value.shape[-1] else None


def _plain_gemm(graph: OnnxGraph, node: Any) -> None:
    """Move ``transB``, ``alpha`` and ``beta`` of a ``Gemm`` into its constants."""
    weight = graph.constants.get(node.input[1])
    if weight is None or graph.attribute(node, "transA", 0):
        return
    alpha, beta = graph.attribute(node, "alpha", 1.0), graph.attribute(node, "beta", 1.0)
    bias = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    if len(node.input) > 2 and bias is None:
        return
    turned = bool(graph.attribute(node, "transB", 0))
    inputs = list(node.input)
    if turned or alpha != 1.0:
        value = (weight.T if turned else weight) * np.asarray(alpha, weight.dtype)
        inputs[1] = graph.constant(f"{inputs[1]}.plain", np.ascontiguousarray(value))
    if bias is not None:
        columns = weight.shape[0 if turned else 1]
        if bias.size not in (1, columns):
            return
        value = np.broadcast_to(bias.reshape(-1) * np.asarray(beta, bias.dtype), columns)
        inputs[2] = graph.constant(f"{inputs[2]}.plain", np.ascontiguousarray(value))
    graph.set_inputs(node, inputs)
    del node.attribute[:]


def _products(graph: OnnxGraph, path: Path) -> tuple[dict[str, Product], dict[str, str]]:
    products: dict[str, Product] = {}
    left: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type not in WEIGHTED or node.domain not in _DEFAULT_DOMAINS:
            continue
        name = _name_of(node, {*products, *left})
        why = _why_not(graph, node)
        if why is not None:
            left[name] = why
            continue
        if not np.isfinite(graph.constants[node.input[1]]).all():
            raise ValueError(f"The weight {node.input[1]!r} of {path} is not finite: take an earlier checkpoint.")
        add = graph.only_consumer(node.output[0], "Add") if node.op_type == "MatMul" else None
        bias = _added_constant(graph, add, node.output[0])
        channels = graph.constants[node.input[1]].shape[WEIGHTED[node.op_type]]
        products[name] = Product(
            name=name,
            op_type=node.op_type,
            source=node.input[0],
            weight=node.input[1],
            output=node.output[0],
            axis=WEIGHTED[node.op_type],
            added=add.output[0] if add is not None and bias is not None and bias.size == channels else None,
        )
    for node in graph.nodes:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                inside = [one for one in _nodes(body) if one.op_type in WEIGHTED]
                left.update((one.name or one.output[0], f"it is inside a body of {node.op_type}") for one in inside)
    return products, left


def _why_not(graph: OnnxGraph, node: Any) -> str | None:
    """Return why a product stays in float."""
    weight = graph.constants.get(node.input[1])
    if weight is None:
        constant = graph.constants.get(node.input[0])
        return "its weight is computed" if constant is None else "its constant stands on the left"
    if node.input[0] in graph.constants:
        return "it is a constant"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} axes"
    if node.op_type == "ConvTranspose" and graph.attribute(node, "group", 1) != 1:
        return "a transposed convolution in groups has no scales per channel"
    if node.op_type == "Gemm" and node.attribute:
        return "its input is transposed, or its bias is no constant vector"
    if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.constants:
        return "its bias is computed"
    return None


def _name_of(node: Any, taken: set[str]) -> str:
    weight = node.input[1].removesuffix(".plain").removesuffix(".folded")
    named = weight.removesuffix(".weight") if weight.endswith(".weight") else ""
    names = (named, node.name, node.output[0], f"{node.output[0]}.{node.op_type}")
    return next(name for name in names if name and name not in taken)
