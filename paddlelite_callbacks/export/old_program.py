"""Translate Paddle 2 programs to Paddle 3's format for the ONNX converter.

Run in a child process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["translate_old_program"]


def translate_old_program(program: Path, folder: Path) -> tuple[Path, Path]:
    """Write ``program`` and its parameters in Paddle 3's format into ``folder``.

    Two things on which the ONNX converter fails are corrected. A Paddle 2 slice of one element keeps the shape ``[1]``
    although it declares that the axis is dropped; ONNX ``Concat`` rejects the resulting ranks. The scales of an
    interpolation are doubles, but the converter reads floats.

    Args:
        program: A ``.pdmodel`` with its ``.pdiparams`` beside it.
        folder: Existing folder.

    Returns:
        Paths of the new program and its parameters.
    """
    import paddle
    from paddle2onnx import convert

    executor = paddle.static.Executor(paddle.CPUPlace())
    with paddle.pir_utils.OldIrGuard():
        old, *_ = paddle.static.load_inference_model(str(program.with_name(program.stem)), executor)
    new = paddle.pir.translate_to_pir(old.desc)
    convert.load_parameter(new)
    convert.save_program(new, str(folder / "translated"))
    target = folder / "translated.json"
    content = json.loads(target.read_text(encoding="utf-8"))
    for region in content["program"]["regions"]:
        for block in region["blocks"]:
            _mend(block["ops"])
    target.write_text(json.dumps(content), encoding="utf-8")
    return target, folder / "translated.pdiparams"


def _mend(operations: list[dict[str, Any]]) -> None:
    ranks: dict[int, int] = {}
    for operation in operations:
        results = operation.get("O", [])
        for result in results if isinstance(results, list) else [results]:
            kind = result.get("TT", {})
            if str(kind.get("#", "")).endswith("t_dtensor"):
                ranks[result["%"]] = len(kind["D"][1])
    for operation in operations:
        named = {item["N"]: item["AT"] for item in operation.get("A", []) if isinstance(item, dict)}
        if operation["#"].endswith(".slice"):
            before, after = ranks.get(operation["I"][0]["%"]), ranks.get(operation["O"][0]["%"])
            if before is not None and before == after:
                named["decrease_axis"]["D"] = []
        if operation["#"].endswith("_interp") and "scale" in named:
            for element in named["scale"]["D"]:
                element["#"] = element["#"].replace("a_f64", "a_f32")
