"""Read programs of Paddle 3 (PIR, ``model.json``) without running Paddle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlelite_callbacks.utils.file_kind import mistaken_kind

__all__ = ["PirOperation", "PirProgram", "PirType", "PirValue", "read_pir_program"]

_PARAMETER = "p"
_SPECIAL = {"NAN": float("nan"), "INF": float("inf"), "-INF": float("-inf")}  # JSON has no such numbers
_DTYPES = {
    "t_bool": "bool",
    "t_i8": "int8",
    "t_ui8": "uint8",
    "t_i16": "int16",
    "t_i32": "int32",
    "t_i64": "int64",
    "t_f16": "float16",
    "t_bf16": "bfloat16",
    "t_f32": "float32",
    "t_f64": "float64",
}


@dataclass(frozen=True)
class PirType:
    """Type of a tensor value.

    Args:
        dtype: Data type, such as ``"float32"``.
        shape: Sizes; -1 for dynamic ones.
    """

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PirValue:
    """Result of an operation.

    Args:
        number: Number by which operands refer to it; 0 for none.
        types: One for a tensor, one each for a list of tensors.
        is_list: Whether it is a list of tensors.
    """

    number: int
    types: tuple[PirType, ...]
    is_list: bool = False


@dataclass(frozen=True)
class PirOperation:
    """Operation of a program.

    Args:
        name: Name without its dialect, such as ``"conv2d"``; ``"parameter"`` for a parameter.
        operands: Numbers of values; 0 for a missing optional one.
        results: Result values.
        attributes: Attributes as Python values.
        regions: Number of nested programs, as in a branch or a loop.
    """

    name: str
    operands: tuple[int, ...]
    results: tuple[PirValue, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    regions: int = 0


@dataclass(frozen=True)
class PirProgram:
    """A program: its operations in order.

    Args:
        operations: Operations, parameters included.
        path: Path of the file.
    """

    operations: tuple[PirOperation, ...]
    path: Path

    def parameters(self) -> dict[str, PirType]:
        """Return the types of the parameters by name, in the order of their file."""
        found = {op.attributes["name"]: op.results[0].types[0] for op in self.operations if op.name == "parameter"}
        return dict(sorted(found.items()))


def read_pir_program(path: str | Path) -> PirProgram:
    """Read ``model.json``, written by ``paddle.jit.save`` or an export.

    Args:
        path: Path of the file.

    Raises:
        ValueError: Another kind of file, a truncated one, or unknown content.
    """
    path = Path(path)
    if (what := mistaken_kind(path)) is not None:
        raise ValueError(f"{path} cannot be read: it is not a program of Paddle but {what}. Export it again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is truncated or not JSON ({str(error)[:80]}): export it again.") from error
    if not isinstance(content, dict) or content.get("base_code", {}).get("magic") != "pir":
        raise ValueError(f"{path} is JSON, but not a program of Paddle 3: export the network with paddle.jit.save.")
    try:
        (region,) = content["program"]["regions"]
        (block,) = region["blocks"]
        return PirProgram(tuple(_operation(item) for item in block["ops"]), path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} differs from the programs of Paddle 3.3 ({type(error).__name__}: {error}): export it with "
            "Paddle 3.3."
        ) from error


def _operation(item: Mapping[str, Any]) -> PirOperation:
    if item["#"] == _PARAMETER:
        return PirOperation("parameter", (), (_value(item["O"]),), {"name": item["A"][-1]})
    return PirOperation(
        name=item["#"].partition(".")[2],
        operands=tuple(operand["%"] for operand in item.get("I", [])),
        results=tuple(_value(result) for result in _as_list(item.get("O", []))),
        attributes={attribute["N"]: _attribute(attribute["AT"]) for attribute in item.get("A", [])},
        regions=len(item.get("regions", [])),
    )


def _as_list(item: Any) -> Sequence[Any]:
    return item if isinstance(item, list) else [item]


def _value(item: Mapping[str, Any]) -> PirValue:
    if not item["%"] or item.get("TT", {}).get("#", "NULL") == "NULL":
        return PirValue(item["%"], ())
    kind = item["TT"]
    if kind["#"].endswith("t_vec"):
        return PirValue(item["%"], tuple(_type(part) for part in kind["D"]), is_list=True)
    return PirValue(item["%"], (_type(kind),))


def _type(item: Mapping[str, Any]) -> PirType:
    if not item["#"].endswith("t_dtensor"):
        raise ValueError(f"a value of the type {item['#']}")
    dtype, shape = item["D"][0]["#"].partition(".")[2], item["D"][1]
    return PirType(_DTYPES[dtype], tuple(int(size) for size in shape))


def _attribute(item: Mapping[str, Any]) -> Any:
    if "VD" in item:
        return _SPECIAL[item["VD"]]
    value: Any = item.get("D")
    return [_attribute(part) for part in value] if item["#"].endswith(".a_array") else value
