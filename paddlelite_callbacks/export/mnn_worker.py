"""Convert ``ONNX TARGET`` in the child process of `convert_to_mnn`."""

from __future__ import annotations

import sys

from paddlelite_callbacks.errors import require


def main(source: str, target: str) -> None:
    """Convert one ONNX file without MNN's command line, which installs packages."""
    tools = require("_tools", needed_for="a file for MNN")
    given = ["mnnconvert", "-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "paddlelite"]
    tools.mnnconvert(given)  # returns True even if it fails


if __name__ == "__main__":
    main(*sys.argv[1:])
