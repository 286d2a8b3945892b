"""Rewrite quantised Paddle 2 programs with ``quantize_linear`` operators.

Paddle Lite and Paddle 2 support these operators.

The input is the program exported for Paddle 3, in which a quantizer is the chain ``scale, round, clip, scale`` and an
int8 weight is ``cast, elementwise_mul``. Each chain is replaced by ``quantize_linear`` and ``dequantize_linear`` with
its scales, as `qdq` does for ONNX. Their grid is symmetric, ``[-127, 127]``: train the network with
``activation_symmetric=True``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.program_graph import ProgramGraph

__all__ = ["rewrite_program_as_qdq"]

_HIGHEST = 127
_AXES = {"conv2d": 0, "depthwise_conv2d": 0, "conv2d_transpose": 1, "depthwise_conv2d_transpose": 1, "matmul_v2": 1}
_FIXED = {"bit_length": 8, "qmin": -128, "qmax": _HIGHEST, "is_test": True, "only_observer": False}
_ON_GRID = 1e-4  # largest distance from an integer in steps: the rounding error of fp32
_HALF_AWAY = 1  # round_type: half away from zero, as Lite rounds, after clipping to [-127, 127]


def rewrite_program_as_qdq(graph: ProgramGraph) -> int:
    """Replace quantizer chains and int8 weights in place.

    Args:
        graph: Program of a network that `convert_for_export_` converted.

    Returns:
        Number of int8 weights.

    Raises:
        ExportError: There is no quantizer, a chain of operators is not a known quantizer, or a grid is not symmetric.
    """
    roundings = [operator for operator in graph.operators if operator.type == "round"]
    casts = [operator for operator in graph.operators if _is_int8_cast(graph, operator)]
    if not roundings:
        raise ExportError("The program holds no quantizer: was it exported from a quantised network?")
    for operator in roundings:
        _activation(graph, operator)
    made: dict[str, str] = {}
    for operator in casts:
        _weight(graph, operator, made)
    for operator in [operator for operator in graph.operators if operator.type in _AXES]:
        _float_weight(graph, operator, made)
    if not made:
        raise ExportError("The program holds no int8 weight: was it exported from a quantised network?")
    return len(made)


def _activation(graph: ProgramGraph, rounding: Any) -> None:
    """Replace ``scale, round, clip, scale`` by ``[clip,] quantize, dequantize``."""
    before = graph.producer(_input(graph, rounding))
    clip = graph.only_consumer(_output(graph, rounding), "clip")
    after = None if clip is None else graph.only_consumer(_output(graph, clip), "scale")
    if before is None or before.type != "scale" or clip is None or after is None:
        raise ExportError(
            f"The operator round that writes {_output(graph, rounding)} is not part of a known quantizer: export a "
            "network that was quantised with this package."
        )
    low, high, step = graph.attribute(clip, "min"), graph.attribute(clip, "max"), graph.attribute(after, "scale")
    if low != -high:
        raise ExportError(
            f"The network was quantised on grids that are not symmetric ([{low:g}, {high:g}]), which this format does "
            "not have: train with activation_symmetric=True."
        )
    source, output = _input(graph, before), _output(graph, after)
    shape, dtype = graph.shape(source), graph.dtype(source)
    if high != _HIGHEST:
        clipped = graph.add_variable(f"{output}.clipped", dtype, shape)
        limits = {"min": low * step, "max": high * step}
        graph.insert_before(before, "clip", {"X": [source]}, {"Out": [clipped]}, limits)
        source = clipped
    quantised = graph.add_variable(f"{output}.quantized", dtype, shape)
    scales = _scales(graph, output, np.asarray([step * _HIGHEST], "float32"))
    attributes = {**_FIXED, "quant_axis": -1, "round_type": _HALF_AWAY}
    graph.remove([rounding, clip])
    graph.insert_before(before, "quantize_linear", {"X": [source], **scales}, {"Y": [quantised]}, attributes)
    graph.remove([after])
    graph.insert_before(before, "dequantize_linear", {"X": [quantised], **scales}, {"Y": [output]}, attributes)
    if not graph.consumers(_output(graph, before)):
        graph.remove([before])


def _weight(graph: ProgramGraph, cast: Any, made: dict[str, str]) -> None:
    """Replace ``cast(int8), elementwise_mul(steps)`` by ``dequantize_linear``."""
    weight = _input(graph, cast)
    product = graph.only_consumer(_output(graph, cast), "elementwise_mul")
    steps = None if product is None else graph.parameters.get(graph.inputs(product, "Y")[0])
    users = [] if product is None else graph.consumers(_output(graph, product))
    axes = {_AXES.get(user.type) for user in users}
    if product is None or steps is None or len(axes) != 1 or None in axes:
        raise ExportError(f"The int8 weight {weight} is read by an operator that is no convolution or matrix product.")
    output = _output(graph, product)
    if weight in made:  # the layer is called twice
        graph.redirect(output, made[weight])
        graph.remove([cast, product])
        return
    made[weight] = output
    scales = _scales(graph, weight, steps.reshape(-1) * np.float32(_HIGHEST))
    attributes = {**_FIXED, "quant_axis": axes.pop(), "round_type": _HALF_AWAY}
    graph.remove([product])
    graph.insert_before(cast, "dequantize_linear", {"X": [weight], **scales}, {"Y": [output]}, attributes)
    graph.remove([cast])


def _float_weight(graph: ProgramGraph, user: Any, made: dict[str, str]) -> None:
    """Store a float weight whose values lie on a grid as int8."""
    source, weight = ("X", "Y") if user.type == "matmul_v2" else ("Input", "Filter")
    (given,), (name,) = graph.inputs(user, source), graph.inputs(user, weight)
    maker, value = graph.producer(given), graph.parameters.get(name)
    if maker is None or maker.type != "dequantize_linear" or value is None or value.dtype != np.float32:
        return
    axis = _AXES[user.type]
    if (found := _integers_of(value, axis)) is None:
        return
    integers, steps = found
    stored, output = graph.add_parameter(f"{name}.int8", integers), f"{name}.back"
    output = graph.add_variable(output, "float32", value.shape)
    scales = _scales(graph, stored, steps * np.float32(_HIGHEST))
    attributes = {**_FIXED, "quant_axis": axis, "round_type": _HALF_AWAY}
    graph.insert_before(user, "dequantize_linear", {"X": [stored], **scales}, {"Y": [output]}, attributes)
    for other in graph.consumers(name):
        graph.set_input(other, weight, [output])
    made[stored] = output


def _integers_of(value: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return integers and step sizes of a weight; ``None`` if it is not on a grid."""
    rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1).astype("float64")
    largest = np.abs(rows).max(axis=1, keepdims=True)
    largest[largest == 0] = 1.0
    integers, steps = np.zeros(rows.shape, "int8"), np.ones(len(rows))
    waiting = np.ones(len(rows), bool)
    for highest in range(1, _HIGHEST + 1):
        scaled = rows * highest / largest
        fits = waiting & (np.abs(scaled - np.rint(scaled)).max(axis=1) < _ON_GRID)
        integers[fits], steps[fits] = np.rint(scaled[fits]), largest[fits, 0] / highest
        waiting &= ~fits
    if waiting.any():
        return None
    moved = tuple(np.moveaxis(value, axis, 0).shape)
    return np.ascontiguousarray(np.moveaxis(integers.reshape(moved), 0, axis)), steps.astype("float32")


def _scales(graph: ProgramGraph, name: str, scale: np.ndarray) -> dict[str, list[str]]:
    zeros = np.zeros(scale.size, "float32")
    return {
        "Scale": [graph.add_parameter(f"{name}.scale", scale)],
        "ZeroPoint": [graph.add_parameter(f"{name}.zero_point", zeros)],
    }


def _is_int8_cast(graph: ProgramGraph, operator: Any) -> bool:
    return operator.type == "cast" and getattr(graph.parameters.get(_input(graph, operator)), "dtype", None) == np.int8


def _input(graph: ProgramGraph, operator: Any) -> str:
    return graph.inputs(operator, "X")[0]


def _output(graph: ProgramGraph, operator: Any) -> str:
    return graph.outputs(operator, "Out")[0]
