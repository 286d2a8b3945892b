"""Rewrite parts of float ONNX graphs so that engines run fewer and faster nodes.

Each rewrite keeps the values, up to the order of sums:

- nearest upsampling, which this package's models write as a transposed convolution with ones, and Paddle as repeated
  axes, becomes ``Resize``: a copy, in the layout of the neighbours;
- resizing to a fixed size says so by its factors instead of a size that is joined from the batch's at each run, which
  few converters understand;
- the ``Linear`` layers of squeeze-and-excitation become 1x1 convolutions, into which engines fuse the activations, and
  the changes of shape around them vanish;
- clips are merged, or dropped where they change nothing (`merge_clips_`);
- order of nodes and widths of split channels become such that onnx2tf converts them correctly (`for_onnx2tf`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddlelite_callbacks.export.for_onnx2tf import put_convolutions_first_, split_unequally_
from paddlelite_callbacks.export.merge_clips import merge_clips_
from paddlelite_callbacks.export.onnx_graph import OnnxGraph, Shapes, copied_model, tensor_shapes

__all__ = [
    "exact_factor",
    "fuse_onnx",
    "resize_by_factors_",
    "squeeze_by_convolutions_",
    "upsample_by_resize_",
]

_ELEMENTWISE = ("Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "LeakyRelu", "Elu")  # one input, no constants
_POOLS = ("GlobalAveragePool", "GlobalMaxPool")


def fuse_onnx(model: Any) -> Any:
    """Return ``model`` with all rewrites applied; ``model`` itself where none fits.

    Args:
        model: An ``onnx.ModelProto``; not changed.
    """
    graph, shapes = OnnxGraph(copied_model(model)), tensor_shapes(model)
    count = (
        upsample_by_resize_(graph, shapes)
        + resize_by_factors_(graph, shapes)
        + squeeze_by_convolutions_(graph, shapes)
        + merge_clips_(graph)
        + split_unequally_(graph, shapes)
        + put_convolutions_first_(graph)
    )
    return graph.to_model() if count else model


def upsample_by_resize_(graph: OnnxGraph, shapes: Shapes) -> int:
    """Replace other forms of nearest upsampling by ``Resize``.

    These are depthwise transposed convolutions with ones, whose kernel and stride are the same, and rows and columns
    that are repeated along new axes (``Unsqueeze``, ``Tile``, ``Reshape``): each output is a copy of one input.

    Args:
        graph: Graph to change.
        shapes: Shapes of the tensors, ``None`` for a size that is not known.

    Returns:
        Number of replaced upsamplings.
    """
    count = _repeated_by_resize(graph, shapes)
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
        _make_nearest(graph, node, node.input[0], kernel)
        count += 1
    return count


def _repeated_by_resize(graph: OnnxGraph, shapes: Shapes) -> int:
    count = 0
    for node in [node for node in graph.nodes if node.op_type == "Reshape"]:
        repeated = graph.producer(node.input[0])
        if repeated is None or repeated.op_type != "Tile":
            continue
        raised, repeats = graph.producer(repeated.input[0]), graph.constants.get(repeated.input[1])
        if raised is None or raised.op_type != "Unsqueeze" or repeats is None or repeats.shape != (6,):
            continue
        axes = graph.constants.get(raised.input[1]) if len(raised.input) > 1 else None
        before, after = shapes.get(raised.input[0]) or [], shapes.get(node.output[0]) or []
        *ones, rows, one, columns = repeats.tolist()
        known = [size for size in before[1:] if size is not None]
        if axes is None or sorted(axes.tolist()) != [3, 5] or [*ones, one] != [1, 1, 1, 1]:
            continue
        if len(known) == 3 and len(after) == 4 and after[1:] == [known[0], known[1] * rows, known[2] * columns]:
            _make_nearest(graph, node, raised.input[0], [rows, columns])
            count += 1
    return count


def _make_nearest(graph: OnnxGraph, node: Any, source: str, factors: list[int]) -> None:
    _set_factors(graph, node, [source, ""], factors)
    graph.change_kind(node, "Resize", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _set_factors(graph: OnnxGraph, node: Any, inputs: list[str], factors: Sequence[Any]) -> None:
    """Make ``inputs`` and the factors of rows and columns the inputs of a ``Resize``."""
    scales = graph.constant(f"{node.output[0]}.scales", np.asarray([1, 1, *factors], "float32"))
    graph.set_inputs(node, [*inputs, scales])


def resize_by_factors_(graph: OnnxGraph, shapes: Shapes) -> int:
    """Replace a computed but fixed size of ``Resize`` by factors.

    Args:
        graph: Graph to change.
        shapes: Shapes of the tensors, ``None`` for a size that is not known.

    Returns:
        Number of changed nodes.
    """
    count = 0
    for node in [node for node in graph.nodes if node.op_type == "Resize" and len(node.input) == 4]:
        shape, wanted = shapes.get(node.input[0]) or [], _fixed_size(graph, node)
        known = [size for size in shape[2:] if size is not None]
        if wanted is None or len(shape) != 4 or len(known) != 2:
            continue
        factors = [exact_factor(before, after) for before, after in zip(known, wanted, strict=True)]
        if None not in factors and not any(item.name == "keep_aspect_ratio_policy" for item in node.attribute):
            _set_factors(graph, node, list(node.input[:2]), factors)
            count += 1
    return count


def _fixed_size(graph: OnnxGraph, node: Any) -> list[int] | None:
    """Return the last two sizes where they are constants behind those of ``x``."""
    join = graph.producer(node.input[3])
    if join is None or join.op_type != "Concat" or len(join.input) != 2:
        return None
    wanted, cut = graph.constants.get(join.input[1]), graph.producer(join.input[0])
    if wanted is None or wanted.shape != (2,) or cut is None or cut.op_type != "Slice":
        return None
    limits = [graph.constants.get(name) for name in cut.input[1:]]
    sizes = graph.producer(cut.input[0])
    given = [None if limit is None else limit.tolist() for limit in limits]
    first_two = given in ([[0], [2]], [[0], [2], [0]], [[0], [2], [0], [1]])
    if not first_two or sizes is None or sizes.op_type != "Shape" or sizes.attribute or sizes.input[0] != node.input[0]:
        return None
    return [int(size) for size in wanted]


def exact_factor(before: int, after: int) -> np.float32 | None:
    """Return the factor between two sizes, if it leads to the second one.

    Engines multiply the first by it in float32 and round down.

    Args:
        before: Size of the input.
        after: Size of the output.

    Returns:
        ``after / before``; ``None`` if the product is below ``after``.
    """
    factor = np.float32(after) / np.float32(before)
    return factor if int(np.float32(before) * factor) == after else None


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
