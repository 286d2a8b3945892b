"""Prepare Paddle 2 programs for Paddle Lite's ``opt``; outputs stay the same.

Constant subgraphs are folded: with the hundreds of them in Lite-HRNet ``opt`` runs for minutes. A bias of shape
``[1, C, 1, 1]`` becomes ``[C]`` on axis 1, which Lite fuses into the preceding convolution (PP-LCNet 34 -> 28 ms).
Depthwise transposed convolutions are written as grouped ones, the only kind that Lite has.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
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


def prepare_for_lite_(graph: ProgramGraph) -> None:
    """Fold constants, flatten biases and rename operators, in place.

    Args:
        graph: Program to rewrite.
    """
    _fold_constants(graph)
    for operator in list(graph.operators):
        if operator.type == "elementwise_add":
            _flatten_bias(graph, operator)
        elif operator.type == "depthwise_conv2d_transpose":
            operator.type = "conv2d_transpose"


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
