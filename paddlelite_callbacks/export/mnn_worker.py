"""Run by `convert_to_mnn` in a child process: ``ONNX TARGET``."""

from __future__ import annotations

import sys

from paddlelite_callbacks.errors import require


def main(source: str, target: str) -> None:
    """Convert one ONNX file without the installations of MNN's command line."""
    tools = require("_tools", needed_for="a file for MNN")
    given = ["mnnconvert", "-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "paddlelite"]
    tools.mnnconvert(given)  # says True whatever it did


if __name__ == "__main__":
    main(*sys.argv[1:])
