"""Interpolation that every engine can read: what Paddle writes, oneDNN and paddle2onnx stumble over.

Paddle 3.3 writes the factors of ``F.interpolate`` and ``nn.Upsample`` as a list of float64, empty where a size is
given. Its oneDNN kernels cannot type that list (``ConvertPirAttribute2RuntimeAttribute``), and paddle2onnx 2.1 reads
float32 alone. All interpolations of Paddle are one kernel that goes by the attribute ``interp_method``, and oneDNN
claims only some of the operations: under the name of one that it leaves alone the same values are computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["readable_by_converter", "run_beside_onednn"]

_CLAIMED = ("1.nearest_interp", "1.bilinear_interp")  # by oneDNN
_LEFT_ALONE = "1.bicubic_interp"
_FLOAT32 = "0.a_f32"


def run_beside_onednn(operations: Iterable[dict[str, Any]]) -> None:
    """Let oneDNN leave the interpolations among ``operations`` to Paddle's own kernels, in place.

    Args:
        operations: of a program of Paddle 3 (PIR, JSON).
    """
    for operation in operations:
        if operation["#"] in _CLAIMED:
            operation["#"] = _LEFT_ALONE


def readable_by_converter(program: Path, folder: Path) -> Path:
    """Return a program whose interpolations paddle2onnx can read: ``program`` itself, or a changed copy in ``folder``.

    Args:
        program: of Paddle 3 (PIR, JSON), or of an older Paddle, which has no such lists.
        folder: exists; for the copy.
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
    """Give ``operation`` its own name, which stands in messages, and float32 factors."""
    values = {attribute["N"]: attribute["AT"]["D"] for attribute in operation["A"]}
    operation["#"] = f"1.{values['interp_method']}_interp"
    for item in values.get("scale", []):
        item["#"] = _FLOAT32
