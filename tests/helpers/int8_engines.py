"""Run an int8 ONNX file in ONNX Runtime and OpenVINO, without Paddle: ``int8_engines.py FILE X.npy OUT.npz``."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import openvino

if __name__ == "__main__":
    file, x = sys.argv[1], np.load(sys.argv[2])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (by_onnxruntime,) = session.run(None, {session.get_inputs()[0].name: x})
    by_openvino = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
    np.savez(sys.argv[3], onnxruntime=by_onnxruntime, openvino=by_openvino)
