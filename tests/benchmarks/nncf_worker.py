"""Quantise an ONNX file with NNCF, in NNCF's own environment: ``nncf_worker.py MODEL.onnx CALIBRATION.npy OUT.xml``.

NNCF's mixed preset with its fix against overflow (7 bits for weights on CPUs without VNNI), and its bias correction.
The last line printed is the process time in seconds.
"""

from __future__ import annotations

import sys
import time

import nncf
import numpy as np
import openvino

if __name__ == "__main__":
    model, images, out = openvino.Core().read_model(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
    began = time.process_time()
    quantized = nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in images]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )
    seconds = time.process_time() - began
    openvino.save_model(quantized, out, compress_to_fp16=False)
    sys.stdout.write(f"{seconds:.2f}\n")
