"""Write interpolations that oneDNN and paddle2onnx can read.

Paddle 3.3 writes the factors of ``F.interpolate`` and ``nn.Upsample`` as a list of float64, empty where a size is
given. Its oneDNN kernels cannot type that list (``ConvertPirAttribute2RuntimeAttribute``), and paddle2onnx 2.1 reads
only float32. All interpolations of Paddle share one kernel that reads the attribute ``interp_method``, and oneDNN
takes only some of the operators: under the name of one that it does not take, the same values are computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["readable_by_converter", "run_beside_onednn"]

_CLAIMED = ("1.nearest_interp", "1.bilinear_interp")  # taken by oneDNN
_LEFT_ALONE = "1.bicubic_interp"
_FLOAT32 = "0.a_f32"


def run_beside_onednn(operations: Iterable[dict[str, Any]]) -> None:
    """Rename, in place, interpolations that oneDNN would take.

    Paddle's own kernels then run them.

    Args:
        operations: Operations of a Paddle 3 program (PIR, JSON).
    """
    for operation in operations:
        if operation["#"] in _CLAIMED:
            operation["#"] = _LEFT_ALONE


def readable_by_converter(program: Path, folder: Path) -> Path:
    """Return a program whose interpolations paddle2onnx can read.

    That is ``program`` itself, or a changed copy in ``folder``.

    Args:
        program: Program of Paddle 3 (PIR, JSON), or of an older Paddle, which is returned as it is.
        folder: Existing folder for the copy.
    """
    if program.suffix != ".json":
        return program
    content = json.loads(program.read_text(encoding="utf-8"))
    found = [item for item in _operations(content.get("program", {})) if item["#"].endswith("_interp")]
    for operation in found:
        _plain_(operation)
    if not found:
        return program
    copied = folder / program.name
    copied.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
    return copied


def _operations(holder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for region in holder.get("regions", []):
        for block in region["blocks"]:
            for operation in block["ops"]:
                yield operation
                yield from _operations(operation)


def _plain_(operation: dict[str, Any]) -> None:
    """Restore the operator's own name, shown in errors, and store float32 factors."""
    values = {attribute["N"]: attribute["AT"]["D"] for attribute in operation["A"]}
    operation["#"] = f"1.{values['interp_method']}_interp"
    for item in values.get("scale", []):
        item["#"] = _FLOAT32
