"""Integer weights of int8 ONNX files."""

from __future__ import annotations

import numpy as np
import onnx


def int8_weights(model) -> dict[str, np.ndarray]:
    """Return the integer weights of an int8 model by the names of their ``DequantizeLinear`` inputs."""
    return {
        item.name: onnx.numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.data_type == onnx.TensorProto.INT8 and len(item.dims) > 1
    }
