"""Quantise float ONNX graphs after training, in QDQ format.

Weights are quantised per output channel and symmetrically, activations per tensor as uint8, biases as int32. The zero
point is 0 where no value is negative, and 128 where values reach as far below zero as above, as in the files that are
exported after training (see `rewrite_as_qdq`). Else it lies where the values do: behind a hard-swish, which is never
below -0.375, the middle would leave nearly half of the integers unused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paddlelite_callbacks.export.float_layers import arrange_for_onnxruntime_
from paddlelite_callbacks.export.float_onnx import FloatOnnx, Product
from paddlelite_callbacks.export.onnx_graph import OnnxGraph
from paddlelite_callbacks.export.qdq import LARGEST_BIAS, finer_factor
from paddlelite_callbacks.quant.functional import grid_levels, highest_weight, shifted_levels

__all__ = ["ActivationRange", "GraphScheme", "output_tensors", "quantize_graph", "read_tensors"]

_FUSED = ("Relu", "Clip")  # engines compute them inside the integer product


@dataclass(frozen=True, kw_only=True)
class ActivationRange:
    """Range of one tensor.

    Args:
        alpha: Value of the highest integer, in units of the tensor; positive.
        signed: Whether the grid has negative values.
        lowest: Value of the lowest integer of a signed grid; ``None`` for about ``-alpha``.
    """

    alpha: float
    signed: bool
    lowest: float | None = None

    def grid(self, bits: int) -> tuple[float, int, int, int]:
        """Return step, lowest and highest integer from zero, and the zero point.

        Args:
            bits: Grid width in bits, 2-8.
        """
        if self.signed and self.lowest is not None:
            levels = shifted_levels(self.lowest, self.alpha, bits)
        else:
            levels = grid_levels(bits, self.signed)
        low, high = (int(level) for level in levels)
        return self.alpha / high, low, high, -low


@dataclass(frozen=True, kw_only=True)
class GraphScheme:
    """Bits and places of the quantizers of a graph.

    Args:
        weight_bits: Weight bits, 2-8.
        activation_bits: Activation bits, 2-8.
        reduce_range: Whether 8-bit weights use half their range, on which no CPU saturates.
        quantize_outputs: Whether outputs of products are quantised too where another operator reads them.
        skip: Names of products that stay in float.
        raised: Names of products whose weights have 8 bits whatever ``weight_bits`` is.
        corrections: What to add to the outputs of products, ``[channels]`` by name.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    reduce_range: bool = True
    quantize_outputs: bool = False
    skip: Collection[str] = ()
    raised: Collection[str] = ()
    corrections: Mapping[str, np.ndarray] = field(default_factory=dict)

    def bits_of(self, name: str) -> int:
        """Return the weight bits of a product."""
        return 8 if name in self.raised else self.weight_bits


def read_tensors(source: FloatOnnx) -> list[str]:
    """Return the tensors that the products of a model read, each once.

    Args:
        source: Float model.
    """
    return list(dict.fromkeys(product.source for product in source.products.values()))


def output_tensors(source: FloatOnnx) -> dict[str, str]:
    """Return the tensor to quantise behind each product, by the product's name.

    It is the output of a ReLU that alone reads the product, else the product's own. Outputs of the model, and those of
    the last product, stay in float.

    Args:
        source: Float model.
    """
    graph, found = source.graph(), {}
    for product in list(source.products.values()):
        name = product.added or product.output
        for kind in _FUSED:
            if (follower := graph.only_consumer(name, kind)) is not None:
                name = follower.output[0]
                break
        if name not in graph.outputs and graph.consumers(name):
            found[product.name] = name
    if source.products:
        found.pop(next(reversed(source.products)), None)
    return found


def quantize_graph(source: FloatOnnx, ranges: Mapping[str, ActivationRange], scheme: GraphScheme) -> Any:
    """Return the int8 model in QDQ format (``onnx.ModelProto``), names kept.

    Args:
        source: Float model.
        ranges: Ranges of `read_tensors`, and with ``quantize_outputs`` of `output_tensors`.
        scheme: Bits and places.

    Raises:
        ValueError: Every product is skipped.
    """
    wanted = [product for product in source.products.values() if product.name not in scheme.skip]
    if not wanted:
        raise ValueError(
            f"Nothing is left to quantise: {len(source.products)} products, all of them skipped. Leave some out of "
            "skip."
        )
    graph, writer = source.graph(), _Writer(scheme, ranges)
    nodes = {node.output[0]: node for node in graph.nodes}
    behind = output_tensors(source) if scheme.quantize_outputs else {}
    for product in wanted:
        writer.product(graph, nodes[product.output], product)
    for product in wanted:
        if product.name in behind:
            writer.output(graph, behind[product.name])
    arrange_for_onnxruntime_(graph)
    return graph.to_model(short_names=False)


class _Writer:
    """Quantizers that were written into one graph, each once."""

    def __init__(self, scheme: GraphScheme, ranges: Mapping[str, ActivationRange]) -> None:
        self._scheme, self._ranges = scheme, ranges
        self._tensors: dict[str, str] = {}  # dequantised form by tensor
        self._weights: dict[tuple[str, int, int], tuple[str, np.ndarray]] = {}

    def product(self, graph: OnnxGraph, node: Any, product: Product) -> None:
        """Quantise input, weight and bias of one product."""
        delta = self._scheme.corrections.get(product.name)
        bias = None if len(node.input) < 3 or not node.input[2] else graph.constants[node.input[2]]
        if delta is not None and product.added is not None:
            _shift_added(graph, product, delta)
        elif delta is not None and product.op_type != "MatMul":
            bias = delta if bias is None else bias.reshape(-1) + delta
        source = self._source(graph, node, product.source)
        step = self._step(product.source)
        weight, steps = self._weight(graph, node, product, step, bias)
        inputs = [source, weight]
        if bias is not None:
            inputs.append(_integer_bias(graph, node, product, np.asarray(bias, "float64").reshape(-1), step * steps))
        graph.set_inputs(node, inputs)
        if product.added is not None:
            _subtract_negative(graph, product)

    def output(self, graph: OnnxGraph, name: str) -> None:
        """Quantise a tensor for all that read it."""
        if name in self._tensors:
            back = self._tensors[name]
            quantizer = graph.producer(graph.producer(back).input[0])  # type: ignore[union-attr]
            chain = {id(quantizer), *(id(n) for n in graph.consumers(name) if n.op_type == "Clip" and _ours(graph, n))}
            for node in [node for node in graph.consumers(name) if id(node) not in chain]:
                graph.set_inputs(node, [back if item == name else item for item in node.input])
            return
        readers = graph.consumers(name)
        first = min(readers, key=lambda node: next(i for i, one in enumerate(graph.nodes) if one is node))
        back = self._write(graph, first, name)
        for node in readers:
            graph.set_inputs(node, [back if item == name else item for item in node.input])

    def _source(self, graph: OnnxGraph, node: Any, name: str) -> str:
        if name not in self._tensors:
            self._write(graph, node, name)
        return self._tensors[name]

    def _write(self, graph: OnnxGraph, before: Any, name: str) -> str:
        """Write ``[Clip,] Q, DQ`` of a tensor before a node."""
        bits, prefix, source = self._scheme.activation_bits, f"{name}.quantized", name
        step, low, high, zero_point = self._ranges[name].grid(bits)
        scale = graph.constant(f"{prefix}.scale", np.asarray(step, "float32"))
        zero = graph.constant(f"{prefix}.zero_point", np.asarray(zero_point, "uint8"))
        if bits < 8:
            limits = [
                graph.constant(f"{prefix}.{key}", np.asarray(value * step, "float32"))
                for key, value in (("low", low), ("high", high))
            ]
            graph.insert_before(before, "Clip", [source, *limits], f"{prefix}.clipped")
            source = f"{prefix}.clipped"
        graph.insert_before(before, "QuantizeLinear", [source, scale, zero], prefix)
        graph.insert_before(before, "DequantizeLinear", [prefix, scale, zero], f"{prefix}.back")
        self._tensors[name] = f"{prefix}.back"
        return self._tensors[name]

    def _step(self, name: str) -> float:
        return self._ranges[name].grid(self._scheme.activation_bits)[0]

    def _weight(
        self, graph: OnnxGraph, node: Any, product: Product, step: float, bias: np.ndarray | None
    ) -> tuple[str, np.ndarray]:
        """Return the dequantised weight, and its step per channel."""
        bits = self._scheme.bits_of(product.name)
        values = graph.constants[product.weight].astype("float64")
        rest = tuple(axis for axis in range(values.ndim) if axis != product.axis)
        high = highest_weight(bits, reduce_range=self._scheme.reduce_range)
        steps = np.abs(values).max(axis=rest) / high
        steps = np.where(steps > 0, steps, 1.0 / high)
        finer = finer_factor(np.asarray(high))
        if bias is not None:  # a channel of tiny weights must not make its bias overflow, on the finer steps
            steps = np.maximum(steps, finer * np.abs(bias).reshape(-1) / (LARGEST_BIAS * step))
        key = (product.weight, product.axis, bits)
        if (known := self._weights.get(key)) is not None and np.allclose(finer * known[1], steps, rtol=1e-6):
            return known
        shape = [-1 if axis == product.axis else 1 for axis in range(values.ndim)]
        integers = np.clip(np.rint(values / steps.reshape(shape)), -high, high).astype("int8")
        steps = (steps / finer).astype("float32").astype("float64")
        stored = graph.constant(f"{product.weight}.quantized", integers * np.int8(finer))
        scale = graph.constant(f"{stored}.scale", steps.astype("float32"))
        zero = graph.constant(f"{stored}.zero_point", np.zeros(steps.size, "int8"))
        graph.insert_before(node, "DequantizeLinear", [stored, scale, zero], f"{stored}.back", axis=product.axis)
        self._weights[key] = f"{stored}.back", steps
        return self._weights[key]


def _ours(graph: OnnxGraph, clip: Any) -> bool:
    return bool(clip.output) and str(clip.output[0]).endswith(".quantized.clipped")


def _shift_added(graph: OnnxGraph, product: Product, delta: np.ndarray) -> None:
    """Add a correction to the constant of the ``Add`` behind a ``MatMul``."""
    add = graph.producer(str(product.added))
    assert add is not None
    old = next(name for name in add.input if name in graph.constants)
    shifted = (graph.constants[old].astype("float64") + delta).astype("float32")
    new = graph.constant(f"{old}.corrected", shifted)
    graph.set_inputs(add, [new if name == old else name for name in add.input])


def _subtract_negative(graph: OnnxGraph, product: Product) -> None:
    """Subtract the negative bias behind a ``MatMul``.

    Before an ``Add`` ONNX Runtime computes it in float.
    """
    add = graph.producer(str(product.added))
    assert add is not None
    old = next(name for name in add.input if name in graph.constants)
    negated = graph.constant(f"{old}.negated", -graph.constants[old])
    graph.set_inputs(add, [product.output, negated])
    graph.change_kind(add, "Sub")


def _integer_bias(graph: OnnxGraph, node: Any, product: Product, bias: np.ndarray, steps: np.ndarray) -> str:
    """Store a bias as int32 in units of input step times weight step."""
    name = f"{product.output}.bias"
    stored = graph.constant(f"{name}.quantized", np.rint(bias / steps).astype("int32"))
    scale = graph.constant(f"{stored}.scale", steps.astype("float32"))
    zero = graph.constant(f"{stored}.zero_point", np.zeros(bias.size, "int32"))
    graph.insert_before(node, "DequantizeLinear", [stored, scale, zero], f"{stored}.back", axis=0)
    return f"{stored}.back"
