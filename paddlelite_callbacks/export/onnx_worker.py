"""Convert a program to ONNX in the child process of `export_onnx`.

Arguments: ``PROGRAM PARAMETERS TARGET OPSET CLEAN``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.clean_onnx import clean_onnx, sign_onnx
from paddlelite_callbacks.export.old_program import translate_old_program


def main(program: str, parameters: str, target: str, opset: str, clean: str) -> None:
    """Convert one Paddle program to ONNX and sign it; clean it if ``"yes"``."""
    converter = require("paddle2onnx", needed_for="ONNX export")
    with tempfile.TemporaryDirectory() as work:
        if program.endswith(".pdmodel"):
            program, parameters = map(str, translate_old_program(Path(program), Path(work)))
        converter.export(
            program,
            parameters,
            target,
            opset_version=int(opset),
            enable_onnx_checker=True,
            verbose=False,
            # The default, polygraphy, runs "pip install" in the user's environment and replaces NumPy.
            optimize_tool="onnxoptimizer",
        )
    onnx = require("onnx", needed_for="ONNX export")
    model = onnx.load(target)
    if clean == "yes":
        model = clean_onnx(model)
    sign_onnx(model)
    Path(target).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
