"""Programs of Paddle 2 (``.pdmodel``) in Paddle 3's format, as the ONNX converter reads them; for a child process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["translate_old_program"]


def translate_old_program(program: Path, folder: Path) -> tuple[Path, Path]:
    """Write ``program`` and its parameters in the new format into ``folder``, with what the converter stumbles over.

    Paddle 2 kept ``[1]`` where a slice takes the only element of a shape; the converter makes it a scalar, which no
    ``Concat`` of ONNX takes. Scales of an interpolation are doubles, it reads floats.

    Args:
        program: a ``.pdmodel`` with its ``.pdiparams`` beside it.
        folder: exists.

    Returns:
        The new program and its parameters.
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
