"""Write ONNX files with fp16 weights: half the bytes, computed in fp32.

Engines cast the weights back when they load the file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
from paddle.nn import Layer

from paddlelite_callbacks.errors import ExportError, require
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["round_to_fp16_", "write_fp16_onnx"]

_LARGEST = 65504.0  # largest fp16 number
_LEAST_SIZE = 16  # smaller constants (scales, epsilons) stay fp32


def write_fp16_onnx(source: Artefact, path: Path) -> Artefact:
    """Store the float32 constants of an ONNX file as fp16, each followed by ``Cast``.

    Args:
        source: fp32 file of kind ``"onnx"``.
        path: Path of the new file; written atomically.

    Raises:
        ExportError: A weight is too large for fp16.
        MissingDependencyError: ``onnx`` is not installed.
    """
    onnx = require("onnx", needed_for="fp16 ONNX files")
    model = onnx.load(str(source.path))
    graph, casts = model.graph, []
    holders = [(item, item.name) for item in graph.initializer]
    holders += [
        (node.attribute[0].t, node.output[0])
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    ]
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    for tensor, name in holders:
        if tensor.data_type != onnx.TensorProto.FLOAT or int(np.prod(tensor.dims)) < _LEAST_SIZE:
            continue
        value, stored = onnx.numpy_helper.to_array(tensor), f"{name}.fp16"
        if np.abs(value).max() > _LARGEST:
            raise ExportError(
                f"The weight {name} holds {np.abs(value).max():.3g}; the largest fp16 number is {_LARGEST:.0f}. "
                "Leave the fp16 "
                "file out."
            )
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype("float16"), stored))
        if name in constants:
            constants[name].output[0] = stored
        casts.append(onnx.helper.make_node("Cast", [stored], [name], name=f"Cast_{name}", to=onnx.TensorProto.FLOAT))
    others = [node for node in graph.node if node.op_type != "Constant"]
    front = [node for node in graph.node if node.op_type == "Constant"]
    nodes = [*front, *casts, *others]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    with staged_file(path) as partial:
        partial.write_bytes(model.SerializeToString())
    return replace(source, path=path, files=(path,), precision="fp16")


@paddle.no_grad()
def round_to_fp16_(network: Layer) -> None:
    """Round every float32 parameter to fp16 precision in place; pass a copy.

    Args:
        network: Network whose parameters are rounded.
    """
    for parameter in network.parameters():
        if parameter.dtype == paddle.float32:
            parameter.set_value(parameter.cast("float16").cast("float32"))
