"""Rewrite float ONNX graphs so that onnx2tf converts them correctly for LiteRT.

Both rewrites keep every value. What onnx2tf 2.6.9 gets wrong otherwise:

- It drops a sum that an activation reads before a convolution does: convolutions come before the other readers of
  their input, which only changes the order of nodes.
- It takes a map ``[N, C, H, W]`` with more than four channels and rows and up to eight columns for channels-last
  (``passes/probable_nhwc_axis_sanitizer.py``). It then splits such a map into equal parts, and joins equal parts, along
  the columns (Lite-HRNet's channel halves, MobileViT's fusion). One part is therefore taken as two pieces of unequal
  width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paddlelite_callbacks.export.onnx_graph import OnnxGraph, Shapes

__all__ = ["put_convolutions_first_", "split_unequally_"]

_BLOCK = 16  # engines compute on blocks of 8 or 16 channels: a piece of whole blocks needs no other layout


def put_convolutions_first_(graph: OnnxGraph) -> int:
    """Move convolutions before the other readers of their input.

    Args:
        graph: Graph to change.

    Returns:
        Number of moved nodes.
    """
    movable = {
        id(node)
        for node in graph.nodes
        if node.op_type == "Conv" and all(name in graph.constants for name in node.input[1:])
    }
    first: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in () if id(node) in movable else graph.read_by(node):
            first.setdefault(name, index)
    places = [(index, 1) for index in range(len(graph.nodes))]
    for index, node in enumerate(graph.nodes):
        if id(node) in movable and first.get(node.input[0], index) < index:
            places[index] = first[node.input[0]], 0
    order = sorted(range(len(places)), key=lambda index: (places[index], index))
    graph.nodes = [graph.nodes[index] for index in order]
    return sum(place[1] == 0 for place in places)


def split_unequally_(graph: OnnxGraph, shapes: Shapes) -> int:
    """Make channel parts of small maps that are split or joined unequal.

    Where a ``Split`` makes a part that nothing but ``Concat`` reads, it makes two pieces of it and no node is added;
    other equal parts that are joined get a ``Split`` of their own.

    Args:
        graph: Graph to change.
        shapes: Shapes of the tensors, ``None`` for a size that is not known; the pieces are added.

    Returns:
        Number of parts that were cut.
    """
    count = _cut_split_parts(graph, shapes)
    for join in [node for node in graph.nodes if node.op_type == "Concat"]:
        part = join.input[0]
        if not _over_channels(graph, join, shapes) or not _joins_equals(join, shapes):
            continue
        whole = graph.insert_before(join, "Split", [part], f"{part}.part", axis=1)
        shapes[f"{part}.part"] = shapes[part]
        graph.set_inputs(join, [f"{part}.part", *join.input[1:]])
        _cut(graph, whole, f"{part}.part", shapes)
        count += 1
    return count


def _cut_split_parts(graph: OnnxGraph, shapes: Shapes) -> int:
    count = 0
    for node in [node for node in graph.nodes if node.op_type == "Split"]:
        size, parts = _sizes(shapes, node.input[0]), list(node.output)
        widths = [(_sizes(shapes, part) or [0])[0] for part in parts]
        if size is None or not _mistaken(size) or not _over_channels(graph, node, shapes) or not all(widths):
            continue
        halves = len(set(widths)) == 1 and size[2] % len(parts) == 0
        for part, width in reversed(list(zip(parts, widths, strict=True))):
            joins = graph.consumers(part)
            free = part not in graph.outputs and joins and all(_over_channels(graph, join, shapes) for join in joins)
            if free and width > 1 and (halves or any(_joins_equals(join, shapes) for join in joins)):
                _cut(graph, node, part, shapes)
                count += 1
                halves = False
    return count


def _over_channels(graph: OnnxGraph, node: Any, shapes: Shapes) -> bool:
    """Return whether a node splits or joins the channels of maps."""
    if node.op_type not in ("Split", "Concat") or graph.attribute(node, "axis", 0) not in (1, -3):
        return False
    return len(shapes.get(node.input[0]) or ()) == 4


def _sizes(shapes: Shapes, name: str) -> list[int] | None:
    """Return channels, rows and columns of a map where they are known."""
    found = shapes.get(name) or []
    known = [size for size in found[1:] if size is not None]
    return known if len(found) == 4 and len(known) == 3 else None


def _mistaken(size: list[int] | None) -> bool:
    """Return whether onnx2tf takes a map of this size for channels-last."""
    return size is not None and size[0] > 4 and size[1] > 4 and size[2] <= 8


def _joins_equals(join: Any, shapes: Shapes) -> bool:
    found = [_sizes(shapes, name) for name in join.input]
    return len(found) > 1 and all(_mistaken(size) and size == found[0] for size in found)


def _cut(graph: OnnxGraph, node: Any, part: str, shapes: Shapes) -> None:
    """Take ``part``, an output of ``node``, as two pieces, in all of its readers too."""
    batch, width, *size = shapes.pop(part)
    assert width is not None  # of a map that is mistaken
    first = (width - 1) // _BLOCK * _BLOCK or width - 1
    pieces = graph.replace_output(node, part, 2)
    for piece, channels in zip(pieces, (first, width - first), strict=True):
        shapes[piece] = [batch, channels, *size]
    for join in graph.consumers(part):
        graph.set_inputs(join, [new for name in join.input for new in (pieces if name == part else [name])])
    sizes = graph.constant(f"{node.output[0]}.sizes", np.asarray([shapes[name][1] for name in node.output], "int64"))
    graph.set_inputs(node, [node.input[0], sizes])
    graph.change_kind(node, "Split", axis=1)
