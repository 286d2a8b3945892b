"""Find int8 products of an ONNX file that saturate on a CPU without VNNI.

AVX2 and plain AVX-512 multiply uint8 activations by int8 weights with ``vpmaddubsw``: two products are added in a
signed 16-bit number, which saturates. Two weights of one output channel can cause that if they have the same sign and
``|w1| + |w2| > 128`` (``255 * 129 > 32767``). Which weights form a pair is the engine's choice, so any two of a channel
are considered: a file without such a channel is exact everywhere; one with them may not be.

ONNX Runtime and OpenVINO add the products of depthwise convolutions (one input channel a group) in 32 bits; these are
counted all the same and reported apart, since other engines may not. Products of two uint8 or of two int8 tensors are
not counted: ONNX Runtime widens them, and OpenVINO halves the weights of the latter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.stored_weights import factors_of_product
from paddlelite_callbacks.utils.cpu import has_vnni

__all__ = ["INTEGER_OPERATORS", "LayerSaturation", "SaturationReport", "saturating_channels", "saturation_of"]

# Input indices: activation's scale, its zero point, weight, its scale.
_INTEGER: dict[str, tuple[int | None, int | None, int, int | None]] = {
    "QLinearConv": (1, 2, 3, 4),
    "QLinearMatMul": (1, 2, 3, 4),
    "QGemm": (1, 2, 3, 4),
    "ConvInteger": (None, 2, 1, None),
    "MatMulInteger": (None, 2, 1, None),
    "MatMulIntegerToFloat": (2, 4, 1, 3),
    "DynamicQuantizeMatMul": (None, None, 1, 2),
}
INTEGER_OPERATORS = ("QuantizeLinear", "DynamicQuantizeLinear", *_INTEGER)

_LOWEST, _HIGHEST = -32768, 32767  # of the 16-bit sum of two products
_MOVES = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Pad", "MaxPool", "Slice", "Concat")


@dataclass(frozen=True, kw_only=True)
class LayerSaturation:
    """Saturation of one integer product of a file.

    Args:
        name: Name of the node, or of its output.
        op_type: ONNX operator type.
        channels: Number of output channels that can saturate.
        total: Number of output channels.
        worst: Largest error of an output by saturation, in units of the output; ``None`` where its scale is dynamic.
        share: The same error relative to the right value.
        depthwise: Whether each group has one input channel.
    """

    name: str
    op_type: str
    channels: int
    total: int
    worst: float | None
    share: float
    depthwise: bool = False


@dataclass(frozen=True, kw_only=True)
class SaturationReport:
    """Saturation of all products of uint8 activations and int8 weights of a file.

    Args:
        layers: Products in the order of the file.
    """

    layers: tuple[LayerSaturation, ...]

    @property
    def channels(self) -> int:
        """Number of output channels that can saturate."""
        return sum(layer.channels for layer in self.layers)

    @property
    def total(self) -> int:
        """Number of output channels."""
        return sum(layer.total for layer in self.layers)

    @property
    def depthwise(self) -> int:
        """Number of `channels` in depthwise convolutions.

        ONNX Runtime and OpenVINO compute them exactly.
        """
        return sum(layer.channels for layer in self.layers if layer.depthwise)

    @property
    def worst(self) -> LayerSaturation | None:
        """Layer with the largest relative error; ``None`` where nothing saturates."""
        layers = [layer for layer in self.layers if layer.channels]
        return max(layers, key=lambda layer: layer.share, default=None)

    def figures(self) -> dict[str, Any]:
        """Return counts and the worst layer as JSON values."""
        figures: dict[str, Any] = {"channels": self.channels, "total": self.total}
        if self.worst is not None:
            figures |= {"layer": self.worst.name, "worst": self.worst.worst, "share": round(self.worst.share, 4)}
        return figures

    def note(self, file: str) -> str:
        """Return a sentence for the report.

        Args:
            file: Name of the file.
        """
        text = f"{file}: {self}."
        if not self.channels:
            return text
        here = "this CPU has VNNI" if has_vnni() else "this CPU has no VNNI"
        return f"{text} Here {here}. Use reduce_range=True for files that are exact on every CPU."

    def __str__(self) -> str:
        if not self.total:
            return "no products of uint8 activations and int8 weights"
        if self.worst is None:
            return f"none of {self.total} channels can saturate: exact on every CPU"
        known = f" ({self.worst.worst:.3g})" if self.worst.worst is not None else ""
        return (
            f"{self.channels} of {self.total} channels can saturate on a CPU without VNNI"
            + (f" ({self.depthwise} of them depthwise: exact in ONNX Runtime and OpenVINO)" if self.depthwise else "")
            + f"; at worst an output of {self.worst.name} loses {self.worst.share:.0%}{known}"
        )


def saturating_channels(model: Any) -> SaturationReport:
    """Count the output channels of an int8 ONNX file that saturate without VNNI.

    Considered are ``Conv``, ``ConvTranspose``, ``Gemm`` and ``MatMul`` between ``DequantizeLinear`` nodes, and the
    integer operators ``QLinearConv``, ``QLinearMatMul``, ``QGemm``, ``ConvInteger``, ``MatMulInteger`` and their fused
    forms.

    Args:
        model: Path of an ``.onnx`` file, or an ``onnx.ModelProto``.

    Raises:
        MissingDependencyError: ``onnx`` is not installed.
    """
    if isinstance(model, (str, Path)):
        model = require("onnx", needed_for="a look into int8 ONNX files").load(str(model))
    return SaturationReport(layers=tuple(_layers(_Graph(model.graph))))


def saturation_of(kind: str, precision: str, path: Path) -> SaturationReport | None:
    """Return `saturating_channels` of a file; ``None`` unless it is int8 ONNX.

    Args:
        kind: ``"paddle"`` or ``"onnx"``.
        precision: Precision of its weights.
        path: Path of the file.
    """
    if kind != "onnx" or precision != "int8":
        return None
    with suppress(Exception):  # onnx is not installed, or no engine can read the file
        return saturating_channels(path)
    return None


class _Graph:
    """Nodes and constants by name, and their types."""

    def __init__(self, graph: Any) -> None:
        onnx = require("onnx", needed_for="a look into int8 ONNX files")
        self._read = onnx.numpy_helper.to_array
        self.nodes = list(graph.node)
        self._made_by = {name: node for node in self.nodes for name in node.output}
        self._constants = {item.name: item for item in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                self._constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")

    def constant(self, name: str) -> np.ndarray | None:
        item = self._constants.get(name)
        return None if item is None else self._read(item)

    def producer(self, name: str) -> Any | None:
        return self._made_by.get(name)

    def attribute(self, node: Any, name: str, default: Any) -> Any:
        for item in node.attribute:
            if item.name == name:
                return list(item.ints) if item.ints else item.i
        return default


@dataclass(frozen=True)
class _Weight:
    """Integers of a weight, and the scale of each."""

    integers: np.ndarray
    scale: np.ndarray | None


def _layers(graph: _Graph) -> Iterator[LayerSaturation]:
    for node in graph.nodes:
        found = _operands(graph, node)
        if found is None:
            continue
        weight, top, step = found
        integers = _by_channel(graph, node, weight.integers)
        scale = None if weight.scale is None else _by_channel(graph, node, weight.scale).max(axis=1)
        lost, right = _lost(integers, top)
        worst = lost * scale * step if scale is not None and step is not None else None
        channels = int((lost > 0).sum())
        yield LayerSaturation(
            name=node.name or node.output[0],
            op_type=node.op_type,
            channels=channels,
            total=len(integers),
            worst=None if worst is None else float(worst.max(initial=0.0)),
            share=float((lost / np.maximum(right, 1)).max(initial=0.0)),
            depthwise=_is_depthwise(graph, node, weight.integers),
        )


def _lost(integers: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, per row, the largest saturation error of its sum, and the exact sum.

    Both are 0 where nothing saturates.

    Args:
        integers: Weights, ``[channels, reduction]``.
        top: Largest activation.
    """
    lost, right = np.zeros(len(integers), "int64"), np.zeros(len(integers), "int64")
    largest = np.maximum(integers.max(axis=1, initial=0), -integers.min(axis=1, initial=0).astype("int32"))
    some = largest * 2 * top > _HIGHEST  # no pair of the other rows can saturate
    lost[some], right[some] = _lost_of_large(integers[some], top)
    return lost, right


def _lost_of_large(integers: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute `_lost` for rows that can saturate: sort, then pair the largest.

    The excess of a pair is convex in its sum.
    """
    totals, sums = [], []
    for sign, limit in ((1, _HIGHEST), (-1, -_LOWEST)):
        one_sign = -np.sort(-np.maximum(sign * integers.astype("int64"), 0), axis=1)
        if one_sign.shape[1] % 2:
            one_sign = np.pad(one_sign, ((0, 0), (0, 1)))
        pairs = top * (one_sign[:, 0::2] + one_sign[:, 1::2])
        totals.append(np.maximum(pairs - limit, 0).sum(axis=1))
        sums.append(pairs.sum(axis=1))
    larger = totals[0] >= totals[1]
    return np.where(larger, totals[0], totals[1]), np.where(larger, sums[0], sums[1])


def _operands(graph: _Graph, node: Any) -> tuple[_Weight, int, float | None] | None:
    """Return weight, largest activation and step; ``None`` for other nodes."""
    at = _INTEGER.get(node.op_type)
    if at is not None:
        return _integer_operands(graph, node, at)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    activation = _dequantizer(graph, node.input[0])
    weight = _dequantized_weight(graph, node.input[1])
    if activation is None or weight is None or not _is_unsigned(graph, activation):
        return None
    step = graph.constant(activation.input[1])
    return weight, _top(graph, activation), None if step is None else float(np.max(step))


def _integer_operands(
    graph: _Graph, node: Any, at: tuple[int | None, int | None, int, int | None]
) -> tuple[_Weight, int, float | None] | None:
    step_at, zero_at, weight_at, scale_at = at
    integers = graph.constant(node.input[weight_at])
    if integers is None or integers.dtype != np.int8:
        return None
    zero = graph.constant(node.input[zero_at]) if zero_at is not None and len(node.input) > zero_at else None
    if zero is not None and zero.dtype != np.uint8:
        return None
    scale = None if scale_at is None else graph.constant(node.input[scale_at])
    step = None if step_at is None else graph.constant(node.input[step_at])
    if scale is not None:
        scale = _broadcast(scale, integers, 0 if "Conv" in node.op_type else -1)
    return _Weight(integers, scale), 255, None if step is None else float(np.max(step))


def _dequantizer(graph: _Graph, name: str) -> Any | None:
    """Return the ``DequantizeLinear`` of ``name``, past nodes that only move values."""
    node = graph.producer(name)
    while node is not None and node.op_type in _MOVES:
        node = graph.producer(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _is_unsigned(graph: _Graph, dequantize: Any) -> bool:
    """Whether the integers are uint8, the default without a zero point."""
    before = graph.producer(dequantize.input[0])
    for node in (dequantize, before):
        if node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear") and len(node.input) > 2:
            zero = graph.constant(node.input[2])
            if zero is not None:
                return bool(zero.dtype == np.uint8)
    return True


def _top(graph: _Graph, dequantize: Any) -> int:
    """Return the largest integer: 255, or the limit of a preceding ``Clip``."""
    quantize = graph.producer(dequantize.input[0])
    clip = None if quantize is None else graph.producer(quantize.input[0])
    if quantize is None or clip is None or clip.op_type != "Clip" or len(clip.input) < 3:
        return 255
    limit, scale = graph.constant(clip.input[2]), graph.constant(quantize.input[1])
    zero = graph.constant(quantize.input[2]) if len(quantize.input) > 2 else np.zeros(1)
    if limit is None or scale is None or zero is None or scale.size != 1:
        return 255
    return int(np.clip(np.rint(float(limit.max()) / float(scale.max())) + int(zero.max()), 0, 255))


def _dequantized_weight(graph: _Graph, name: str) -> _Weight | None:
    """Return the int8 weight of ``name``: constant integers, or a quantised constant."""
    node = graph.producer(name)
    if node is not None and node.op_type in ("Transpose", "Identity"):
        inner = _dequantized_weight(graph, node.input[0])
        if inner is None or node.op_type == "Identity":
            return inner
        order = graph.attribute(node, "perm", list(reversed(range(inner.integers.ndim))))
        scale = None if inner.scale is None else inner.scale.transpose(order)
        return _Weight(inner.integers.transpose(order), scale)
    if node is not None and node.op_type == "Mul":
        return _weight_of_product(graph, node)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale, axis = graph.constant(node.input[1]), graph.attribute(node, "axis", 1)
    integers = graph.constant(node.input[0])
    if integers is None:
        integers = _rounded(graph, graph.producer(node.input[0]))
    if integers is None or integers.dtype != np.int8:
        return None
    return _Weight(integers, None if scale is None else _broadcast(scale, integers, axis))


def _weight_of_product(graph: _Graph, product: Any) -> _Weight | None:
    """Return the weight that `dequantize_at_load_` writes as ``Cast, Mul``."""
    factors = factors_of_product(product, graph.producer, graph.constant)
    integers = None if factors is None else graph.constant(factors[0])
    if factors is None or integers is None or integers.dtype != np.int8:
        return None
    return _Weight(integers, np.broadcast_to(factors[1], integers.shape))


def _rounded(graph: _Graph, quantize: Any | None) -> np.ndarray | None:
    """Apply a ``QuantizeLinear`` to its constant input."""
    if quantize is None or quantize.op_type != "QuantizeLinear" or len(quantize.input) < 3:
        return None
    value, scale, zero = (graph.constant(name) for name in quantize.input[:3])
    if value is None or scale is None or zero is None:
        return None
    axis, limits = graph.attribute(quantize, "axis", 1), np.iinfo(zero.dtype)
    scale, zero_point = _broadcast(scale, value, axis), _broadcast(zero, value, axis)
    return np.clip(np.rint(value / scale) + zero_point, limits.min, limits.max).astype(zero.dtype)


def _broadcast(scale: np.ndarray, like: np.ndarray, axis: int) -> np.ndarray:
    """Broadcast the scale to the shape of ``like``."""
    if scale.size == 1:
        return np.broadcast_to(scale.reshape([1] * like.ndim), like.shape)
    shape = [1] * like.ndim
    shape[axis] = scale.size
    return np.broadcast_to(scale.reshape(shape), like.shape)


def _by_channel(graph: _Graph, node: Any, values: np.ndarray) -> np.ndarray:
    """Reshape a weight to ``[output channels, reduction]``."""
    if node.op_type == "ConvTranspose":  # [in, out / groups, ...]
        groups = graph.attribute(node, "group", 1)
        split = values.reshape(groups, values.shape[0] // groups, *values.shape[1:])
        return np.moveaxis(split, 2, 1).reshape(groups * values.shape[1], -1)
    if "Conv" in node.op_type:  # [out, in / groups, ...]
        return values.reshape(values.shape[0], -1)
    if node.op_type in ("Gemm", "QGemm") and graph.attribute(node, "transB", 0):
        return values
    if values.ndim == 1:
        return values.reshape(1, -1)
    return np.moveaxis(values, -2, -1).reshape(-1, values.shape[-2])


def _is_depthwise(graph: _Graph, node: Any, integers: np.ndarray) -> bool:
    groups = graph.attribute(node, "group", 1) if "Conv" in node.op_type else 1
    if groups == 1:
        return False
    return bool((integers.shape[0] // groups if node.op_type == "ConvTranspose" else integers.shape[1]) == 1)
