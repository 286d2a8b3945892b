"""Rewrite parts of float ONNX graphs so that engines run fewer and faster nodes.

Each rewrite keeps the values, up to the order of sums:

- nearest upsampling, which this package's models write as a transposed convolution with ones, becomes ``Resize``: a
  copy, in the layout of the neighbours;
- the ``Linear`` layers of squeeze-and-excitation become 1x1 convolutions, into which engines fuse the activations, and
  the changes of shape around them vanish;
- clips are merged, or dropped where they change nothing (`merge_clips_`);
- order of nodes and widths of split channels become such that onnx2tf converts them correctly (`for_onnx2tf`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paddlelite_callbacks.export.for_onnx2tf import put_convolutions_first_, split_unequally_
from paddlelite_callbacks.export.merge_clips import merge_clips_
from paddlelite_callbacks.export.onnx_graph import OnnxGraph, copied_model, tensor_shapes

__all__ = [
    "fuse_onnx",
    "squeeze_by_convolutions_",
    "upsample_by_resize_",
]

_ELEMENTWISE = ("Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "LeakyRelu", "Elu")  # one input, no constants
_POOLS = ("GlobalAveragePool", "GlobalMaxPool")
Shapes = dict[str, list[int | None]]


def fuse_onnx(model: Any) -> Any:
    """Return ``model`` with all rewrites applied; ``model`` itself where none fits.

    Args:
        model: An ``onnx.ModelProto``; not changed.
    """
    graph, shapes = OnnxGraph(copied_model(model)), tensor_shapes(model)
    count = upsample_by_resize_(graph) + squeeze_by_convolutions_(graph, shapes) + merge_clips_(graph)
    count += split_unequally_(graph, shapes) + put_convolutions_first_(graph)
    return graph.to_model() if count else model


def upsample_by_resize_(graph: OnnxGraph) -> int:
    """Replace depthwise transposed convolutions with ones by nearest ``Resize``.

    Kernel and stride must be the same, so that each output is a copy of one input.

    Args:
        graph: Graph to change.

    Returns:
        Number of replaced nodes.
    """
    count = 0
    for node in [node for node in graph.nodes if node.op_type == "ConvTranspose"]:
        weight = graph.constants.get(node.input[1])
        if weight is None or weight.ndim != 4 or len(node.input) > 2 or not (weight == 1).all():
            continue
        channels, one, *kernel = weight.shape
        strides = list(graph.attribute(node, "strides", [1, 1]))
        plain = one == 1 and graph.attribute(node, "group", 1) == channels and strides == kernel
        plain = plain and not any(graph.attribute(node, "pads", [])) and not graph.attribute(node, "auto_pad", b"")
        plain = plain and not any(graph.attribute(node, "output_padding", []))
        plain = plain and set(graph.attribute(node, "dilations", [1])) == {1}
        if not plain or graph.attribute(node, "output_shape", None):
            continue
        scales = graph.constant(f"{node.output[0]}.scales", np.asarray([1, 1, *kernel], "float32"))
        graph.set_inputs(node, [node.input[0], "", scales])
        graph.change_kind(
            node, "Resize", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
        count += 1
    return count


def squeeze_by_convolutions_(graph: OnnxGraph, shapes: Shapes) -> int:
    """Replace products between pooling and ``Unsqueeze`` by 1x1 convolutions.

    Args:
        graph: Graph to change.
        shapes: Shapes of the tensors, ``None`` for a size that is not known.

    Returns:
        Number of replaced chains.
    """
    count = 0
    for node in [node for node in graph.nodes if node.op_type == "Unsqueeze"]:
        axes = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        chain = None if axes is None or list(axes) != [2, 3] else _chain_behind(graph, node.input[0])
        if chain is None or node.output[0] in graph.outputs:
            continue
        flat, products = chain
        pooled, rows = shapes.get(flat.input[0]), shapes.get(flat.output[0])
        first = graph.constants[products[0].input[1]]
        channels = first.shape[1 if graph.attribute(products[0], "transB", 0) else 0]
        if pooled is None or len(pooled) != 4 or pooled[1:] != [channels, 1, 1]:
            continue
        if rows is None or len(rows) != 2:
            continue
        graph.redirect(flat.output[0], flat.input[0])
        for product in products:
            weight = graph.constants[product.input[1]]
            weight = weight if graph.attribute(product, "transB", 0) else weight.T
            name = graph.constant(f"{product.input[1]}.pointwise", np.ascontiguousarray(weight)[..., None, None])
            graph.set_inputs(product, [product.input[0], name, *product.input[2:]])
            graph.change_kind(product, "Conv", kernel_shape=[1, 1])
        graph.redirect(node.output[0], node.input[0])
        count += 1
    return count


def _chain_behind(graph: OnnxGraph, name: str) -> tuple[Any, list[Any]] | None:
    """Return the change of shape behind a pooling, and the products up to ``name``."""
    products: list[Any] = []
    while (node := graph.producer(name)) is not None and _read_once(graph, name):
        if _is_linear(graph, node):
            products.insert(0, node)
        elif node.op_type in ("Reshape", "Flatten", "Squeeze"):
            pool = graph.producer(node.input[0])
            return (node, products) if products and pool is not None and pool.op_type in _POOLS else None
        elif node.op_type not in _ELEMENTWISE:
            return None
        name = node.input[0]
    return None


def _is_linear(graph: OnnxGraph, node: Any) -> bool:
    """Return whether a node multiplies rows by a constant matrix."""
    if node.op_type not in ("Gemm", "MatMul"):
        return False
    weight = graph.constants.get(node.input[1])
    if weight is None or weight.ndim != 2 or node.input[0] in graph.constants:
        return False
    if node.op_type == "MatMul":  # a bias of zeros has been removed
        return True
    bias = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    plain = graph.attribute(node, "alpha", 1.0) == graph.attribute(node, "beta", 1.0) == 1.0
    outputs = weight.shape[0 if graph.attribute(node, "transB", 0) else 1]
    return (
        plain
        and not graph.attribute(node, "transA", 0)
        and (len(node.input) < 3 or (bias is not None and bias.shape == (outputs,)))
    )


def _read_once(graph: OnnxGraph, name: str) -> bool:
    return name not in graph.outputs and len(graph.consumers(name)) == 1
