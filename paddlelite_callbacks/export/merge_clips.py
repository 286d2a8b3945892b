"""Merge and drop clips of ONNX graphs.

The float file of a quantised network clips where training did (see `clip_activations_`): behind a ReLU, twice between
two quantised layers, before a layer whose inputs are in range anyway. Engines fuse one clip into a convolution; a
second one keeps it from the layout in which ONNX Runtime computes fastest. The values stay the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from paddlelite_callbacks.export.onnx_graph import OnnxGraph

__all__ = ["merge_clips_"]

_DEPTH = 16  # operators to look back for the range of a tensor
_UNIT = ("Sigmoid", "HardSigmoid", "Softmax")  # results in [0, 1]
_KEEP_RANGE = ("MaxPool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
_DIP = 0.375  # hard-swish falls to minus this, at -1.5
_Range = tuple[float, float]
_ALL: _Range = (-math.inf, math.inf)


def merge_clips_(graph: OnnxGraph) -> int:
    """Merge clips that follow each other, and drop those that change nothing.

    A ``Relu`` counts as a clip. A clip before a hard-swish that only cuts its straight part moves behind it, where it
    merges with the next one.

    Args:
        graph: Graph to change.

    Returns:
        Number of changes.
    """
    count = sum(_move_behind_hard_swish(graph, node) for node in list(graph.nodes) if node.op_type == "HardSwish")
    for node in [node for node in graph.nodes if _limits(graph, node) is not None]:
        while _merge_with_former(graph, node):
            count += 1
        if node.output[0] not in graph.outputs and _is_idle(graph, node):
            graph.redirect(node.output[0], node.input[0])
            graph.remove(node)
            count += 1
    return count


def _limits(graph: OnnxGraph, node: Any | None) -> _Range | None:
    """Return the constant limits of a clip or ReLU, else ``None``."""
    if node is None or node.attribute:  # of opset 10 and before
        return None
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    found = list(_ALL)
    for place, name in enumerate(node.input[1:3]):
        if not name:
            continue
        value = graph.constants.get(name)
        if value is None or value.size != 1 or value.dtype != np.float32:
            return None
        found[place] = float(value.reshape(-1)[0])
    low, high = found
    return (low, high) if low <= high else None


def _both(first: _Range, second: _Range) -> _Range:
    """Return the limits of two clips in turn."""
    low, high = (min(max(limit, second[0]), second[1]) for limit in first)
    return low, high


def _merge_with_former(graph: OnnxGraph, node: Any) -> bool:
    """Let ``node`` do what the clip before it does, if no other node needs that."""
    former, limits = graph.producer(node.input[0]), _limits(graph, node)
    before = _limits(graph, former)
    if former is None or limits is None or before is None:
        return False
    if len(graph.consumers(former.output[0])) != 1 or former.output[0] in graph.outputs:
        return False
    source, (low, high) = former.input[0], _both(before, limits)
    if (low, high) == (0.0, math.inf):
        graph.set_inputs(node, [source])
        graph.change_kind(node, "Relu")
    else:
        names = [
            "" if math.isinf(limit) else graph.constant(f"{node.output[0]}.{end}", np.asarray(limit, "float32"))
            for end, limit in (("low", low), ("high", high))
        ]
        graph.set_inputs(node, [source, *(names if names[1] else names[:1])])
        graph.change_kind(node, "Clip")
    graph.remove(former)
    return True


def _is_idle(graph: OnnxGraph, node: Any) -> bool:
    limits = _limits(graph, node)
    low, high = _range_of(graph, node.input[0])
    return limits is not None and limits[0] <= low and high <= limits[1]


def _range_of(graph: OnnxGraph, name: str, depth: int = _DEPTH) -> _Range:
    """Return limits that no value of a tensor exceeds, whatever the inputs."""
    node = graph.producer(name)
    if node is None or not depth:
        return _ALL
    if (limits := _limits(graph, node)) is not None:
        return _both(_range_of(graph, node.input[0], depth - 1), limits)
    if node.op_type in _UNIT:
        return 0.0, 1.0
    if node.op_type in _KEEP_RANGE:
        return _range_of(graph, node.input[0], depth - 1)
    if node.op_type == "HardSwish":
        low, high = _range_of(graph, node.input[0], depth - 1)
        return (0.0 if low >= 0 else -_DIP), (high if high >= 3 else max(_hard_swish(high), 0.0))
    if node.op_type == "Concat":
        ranges = [_range_of(graph, one, depth - 1) for one in node.input]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    return _ALL


def _hard_swish(x: float) -> float:
    return x * min(max(x / 6 + 0.5, 0.0), 1.0)


def _move_behind_hard_swish(graph: OnnxGraph, node: Any) -> bool:
    """Clip the result of a hard-swish instead of its input, where that is the same.

    It is 0 below -3 and the identity above 3: limits outside of that commute with it. Convolution and hard-swish are
    fused then.
    """
    clip = graph.producer(node.input[0])
    limits = _limits(graph, clip)
    if clip is None or limits is None or clip.op_type != "Clip" or clip.output[0] in graph.outputs:
        return False
    alone = len(graph.consumers(clip.output[0])) == 1 and node.output[0] not in graph.outputs
    if not alone or limits[0] > -3 or not 3 <= limits[1] < math.inf:
        return False
    users = {id(user) for user in graph.consumers(node.output[0])}
    first = next((user for user in graph.nodes if id(user) in users), None)
    if first is None:
        return False
    output = node.output[0]
    clipped = f"{output}.clipped"
    graph.set_inputs(node, [clip.input[0]])
    graph.remove(clip)
    high = graph.constant(f"{output}.high", np.asarray(limits[1], "float32"))
    graph.redirect(output, clipped)
    graph.insert_before(first, "Clip", [output, "", high], clipped)
    return True
