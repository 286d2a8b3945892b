"""Prepare Paddle 2 programs for Paddle Lite's ``opt``; outputs stay the same.

Constant subgraphs are folded: with the hundreds of them in Lite-HRNet ``opt`` runs for minutes. A bias of shape
``[1, C, 1, 1]`` becomes ``[C]`` on axis 1, which Lite fuses into the preceding convolution (PP-LCNet 34 -> 28 ms).
Depthwise transposed convolutions are written as grouped ones, the only kind that Lite has; those that repeat each
value, as the networks of this package enlarge maps, as the interpolation that they are.

A ``.nb`` stores each name at each of its places, and 100 bytes and more for each attribute: names become short, and
attributes that say what Lite assumes without them are left out.
"""

from __future__ import annotations

import itertools
import math
import string
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.export.program_desc import ProgramWriter
from paddlelite_callbacks.export.program_graph import ProgramGraph
from paddlelite_callbacks.utils.isolation import hushed_stdout
from paddlelite_callbacks.utils.parameters_file import write_tensors

__all__ = ["prepare_for_lite_"]

_CONVOLUTIONS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "depthwise_conv2d_transpose")
_SOURCES = ("fill_constant", "assign_value")  # operators without inputs
_NEVER = ("feed", "fetch", "quantize_linear", "dequantize_linear", "dropout", "rrelu")
_KINDS = ("float32", "int32", "int64", "bool")
_LARGEST = 1 << 22  # largest stored constant, in bytes
_WINDOW = {"data_format": ("NCHW", "AnyLayout"), "padding_algorithm": ("EXPLICIT",)}
_ASSUMED: dict[str, dict[str, tuple[Any, ...]]] = {  # values that Lite assumes; Paddle's defaults are the same
    "conv2d": _WINDOW,
    "depthwise_conv2d": _WINDOW,
    "conv2d_transpose": {**_WINDOW, "output_padding": ([],), "output_size": ([],)},
    "nearest_interp_v2": {"out_d": (0,), "out_h": (0,), "out_w": (0,), "align_mode": (1,)},
    "pool2d": {
        **_WINDOW,
        "adaptive": (False,),
        "ceil_mode": (False,),
        "exclusive": (True,),
        "use_cudnn": (True, False),
    },
}


def prepare_for_lite_(graph: ProgramGraph) -> None:
    """Fold constants, flatten biases, and rename operators and variables, in place.

    The names of inputs and outputs stay.

    Args:
        graph: Program to rewrite.
    """
    _fold_constants(graph)
    for operator in list(graph.operators):
        if operator.type == "elementwise_add":
            _flatten_bias(graph, operator)
        elif operator.type == "depthwise_conv2d_transpose":
            operator.type = "conv2d_transpose"
        elif operator.type == "conv2d" and (order := _channel_order(graph, operator)) is not None:
            _write_as_gather(graph, operator, order)
        if operator.type == "conv2d_transpose" and (factor := _repetitions(graph, operator)) is not None:
            _write_as_interpolation(graph, operator, factor)
    _share_indices(graph)
    _drop_assumed(graph)
    _shorten_names(graph)


def _repetitions(graph: ProgramGraph, operator: Any) -> int | None:
    """Return k of a transposed convolution that repeats each value k x k times."""
    weight = graph.parameters.get(graph.inputs(operator, "Filter")[0])
    if weight is None or weight.ndim != 4 or not (weight == 1).all():
        return None
    channels, each, k, width = weight.shape
    wanted = {"strides": [k, k], "paddings": [0, 0], "dilations": [1, 1], "groups": channels, "data_format": "NCHW"}
    wanted |= {"padding_algorithm": "EXPLICIT", "output_size": []}
    same = all(graph.attribute(operator, name, value) == value for name, value in wanted.items())
    plain = not any(graph.attribute(operator, "output_padding", []))
    power_of_two = k & (k - 1) == 0  # 1 / k is exact, so is the place that is read
    return int(k) if same and plain and power_of_two and (each, width) == (1, k) and k > 1 else None


def _write_as_interpolation(graph: ProgramGraph, operator: Any, factor: int) -> None:
    inputs, outputs = {"X": graph.inputs(operator, "Input")}, {"Out": graph.outputs(operator, "Output")}
    attributes = {"scale": [float(factor)] * 2, "interp_method": "nearest", "align_corners": False}
    graph.replace(operator, "nearest_interp_v2", inputs, outputs, attributes)


def _channel_order(graph: ProgramGraph, operator: Any) -> np.ndarray | None:
    """Return the order in which a 1x1 convolution copies channels.

    ``None`` if it computes anything.
    """
    weight = graph.parameters.get(graph.inputs(operator, "Filter")[0])
    if weight is None or weight.shape[2:] != (1, 1) or graph.inputs(operator, "Bias"):
        return None
    wanted = {"strides": [1, 1], "paddings": [0, 0], "dilations": [1, 1], "groups": 1, "data_format": "NCHW"}
    same = all(graph.attribute(operator, name, value) == value for name, value in wanted.items())
    if not same or graph.attribute(operator, "padding_algorithm", "EXPLICIT") not in ("EXPLICIT", "VALID"):
        return None
    rows = weight.reshape(weight.shape[:2])
    one_each = ((rows == 1).sum(axis=1) == 1).all() and ((rows != 0).sum(axis=1) == 1).all()
    return rows.argmax(axis=1).astype("int32") if one_each else None


def _write_as_gather(graph: ProgramGraph, operator: Any, order: np.ndarray) -> None:
    (source,), outputs = graph.inputs(operator, "Input"), {"Out": graph.outputs(operator, "Output")}
    index = graph.add_parameter(f"{source}.order", order)
    graph.replace(operator, "gather", {"X": [source], "Index": [index]}, outputs, {"axis": 1})


def _share_indices(graph: ProgramGraph) -> None:
    """Store the constant indices of ``gather`` as int32, and equal ones once."""
    stored: dict[bytes, str] = {}
    for operator in graph.operators:
        (name,) = graph.inputs(operator, "Index") if operator.type == "gather" else [""]
        value = graph.parameters.get(name)
        if value is None or value.ndim != 1 or not (abs(value) < 1 << 31).all():
            continue
        small = value.astype("int32")
        if (key := small.tobytes()) not in stored:
            stored[key] = graph.add_parameter(f"{name}.small", small) if value.dtype != np.int32 else name
        graph.set_input(operator, "Index", [stored[key]])


def _drop_assumed(graph: ProgramGraph) -> None:
    """Remove the attributes whose values are Paddle Lite's and Paddle's defaults."""
    for operator in graph.operators:
        for name, values in _ASSUMED.get(operator.type, {}).items():
            value = graph.attribute(operator, name)
            if value is not None and value in values:
                graph.drop_attribute(operator, name)


def _shorten_names(graph: ProgramGraph) -> None:
    """Give all variables but inputs and outputs names of one to three letters."""
    kept = {"feed", "fetch"}
    for operator in graph.operators:
        if operator.type in kept:
            kept.update((*graph.read_by(operator), *graph.written_by(operator)))
    used = (name for one in graph.operators for name in (*graph.read_by(one), *graph.written_by(one)))
    short = (name for name in _short_names() if name not in kept)
    graph.rename({name: next(short) for name in dict.fromkeys(used) if name not in kept})


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_letters, repeat=length))


def _flatten_bias(graph: ProgramGraph, add: Any) -> None:
    """Reshape the bias after a convolution from ``[1, C, 1, 1]`` to ``[C]``."""
    (source,), (name,) = graph.inputs(add, "X"), graph.inputs(add, "Y")
    value, maker = graph.parameters.get(name), graph.producer(source)
    if value is None or maker is None or maker.type not in _CONVOLUTIONS:
        return
    if value.ndim != 4 or value.size != value.shape[1] or graph.attribute(maker, "data_format") == "NHWC":
        return
    graph.set_input(add, "Y", [graph.add_parameter(f"{name}.flat", value.reshape(-1))])
    graph.set_attribute(add, "axis", 1)


def _fold_constants(graph: ProgramGraph) -> None:
    constant, operators = set(graph.parameters), []
    for operator in graph.operators:
        read = [name for slot in operator.inputs for name in slot.arguments]
        written = [name for slot in operator.outputs for name in slot.arguments]
        known = bool(read) and all(name in constant for name in read) if operator.type not in _SOURCES else not read
        if known and operator.type not in _NEVER and not any(name in graph.parameters for name in written):
            operators.append(operator)
            constant.update(written)
    inside = {id(operator) for operator in operators}
    wanted = [
        name
        for operator in operators
        for slot in operator.outputs
        for name in slot.arguments
        if any(id(user) not in inside for user in graph.consumers(name)) and _worth_it(graph, name)
    ]
    if not wanted:
        return
    values = _computed(graph, operators, wanted)
    for name, value in zip(wanted, values, strict=True):
        new = graph.add_parameter(f"{name}.constant", value)
        for user in graph.consumers(name):
            if id(user) not in inside and user.type != "fetch":
                for slot in list(user.inputs):
                    if name in slot.arguments:
                        graph.set_input(user, slot.parameter, [new if one == name else one for one in slot.arguments])


def _worth_it(graph: ProgramGraph, name: str) -> bool:
    shape = graph.shape(name)
    return graph.dtype(name) in _KINDS and all(size >= 0 for size in shape) and math.prod(shape) * 4 <= _LARGEST


def _computed(graph: ProgramGraph, operators: Sequence[Any], wanted: Sequence[str]) -> list[np.ndarray]:
    """Return the outputs of constant operators, computed by Paddle Inference."""
    import paddle.inference as inference

    writer = ProgramWriter()
    used = {name for op in operators for slots in (op.inputs, op.outputs) for slot in slots for name in slot.arguments}
    for name in used:
        writer.copy_variable(graph.variables[name])
    for operator in operators:
        writer.copy_operator(operator)
    for column, name in enumerate(wanted):
        writer.fetch(name, column)
    with tempfile.TemporaryDirectory() as folder, hushed_stdout():
        files = Path(folder, "constants.pdmodel"), Path(folder, "constants.pdiparams")
        files[0].write_bytes(writer.to_bytes())
        write_tensors(files[1], {name: value for name, value in graph.parameters.items() if name in used})
        config = inference.Config(*map(str, files))
        config.disable_glog_info()
        config.disable_gpu()
        config.disable_mkldnn()
        config.switch_ir_optim(False)
        predictor = inference.create_predictor(config)
        predictor.run()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]
