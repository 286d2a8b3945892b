"""Shrink Paddle programs by removing what no reader needs.

Networks with many small layers halve in size.

``paddle.jit.save`` writes with every operation the scope it came from (``struct_name``), an attribute for training
(``stop_gradient``), and a constant of its own for every axis, kernel size and scale. Here equal constants are shared,
and these attributes are removed. Interpolations get the name of an operator that oneDNN does not take, see
`run_beside_onednn`. The outputs do not change; the parameter file stays as it is. Without these attributes a program
that ``paddle.jit.load`` reads can no longer be trained: training continues from the checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paddlelite_callbacks.export.interpolation import run_beside_onednn
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["make_program_lean", "name_outputs", "number_parameters"]

_NOTES = ("struct_name", "op_callstack", "stop_gradient")
_CONSTANTS = ("1.full", "1.full_int_array")
_MAY_BE_MISSING = ("OA", "DA", "QA")  # attribute lists
_FETCH = "1.fetch"
_PARAMETER = "p"  # its attributes are positional
_SUFFIX = re.compile(r"(_deepcopy_\d+)+$")


def make_program_lean(path: Path) -> None:
    """Shrink the program ``path``, in place and atomically.

    A file that is not a program of Paddle 3 (PIR, JSON) stays as it is.

    Args:
        path: ``model.json`` of ``paddle.jit.save``.
    """
    text = path.read_text(encoding="utf-8")
    program = json.loads(text)
    if program.get("base_code", {}).get("magic") != "pir":
        return
    blocks = list(_blocks(program["program"]))
    for block in blocks:
        for op in block["ops"]:
            _drop_notes(op)
        run_beside_onednn(block["ops"])
    if len(blocks) == 1:  # a branch or loop refers to outer values by numbers that sharing would change
        _share_constants(blocks[0])
    _shorten_names([op for block in blocks for op in block["ops"] if op["#"] == _PARAMETER])
    with staged_file(path) as partial:
        partial.write_text(json.dumps(program, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")


def number_parameters(path: Path) -> None:
    """Rename the parameters of the program ``path`` to numbers, in place.

    They are numbered in the order of the parameter file, which readers go by. Names as in ``state_dict`` take 60 bytes
    each: 0.06 of 0.93 MB in LiteHRNet-30.

    Args:
        path: ``model.json`` of ``paddle.jit.save``; another file stays as it is.
    """
    program = json.loads(path.read_text(encoding="utf-8"))
    if program.get("base_code", {}).get("magic") != "pir":
        return
    parameters = [op for block in _blocks(program["program"]) for op in block["ops"] if op["#"] == _PARAMETER]
    names = sorted({op["A"][-1] for op in parameters})
    numbers = {name: f"{number:0{len(str(len(names)))}}" for number, name in enumerate(names)}
    for op in parameters:
        op["A"][-1] = numbers[op["A"][-1]]
    with staged_file(path) as partial:
        partial.write_text(json.dumps(program, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")


def name_outputs(path: Path, names: Sequence[str]) -> None:
    """Name the outputs of the program ``path``, in place.

    Paddle itself calls them ``fetch_name_0``, ``fetch_name_1``, ...

    Args:
        path: ``model.json`` of ``paddle.jit.save``; another file, or one with another number of outputs, stays as it
            is.
        names: Unique names, in the order of the outputs.
    """
    program = json.loads(path.read_text(encoding="utf-8"))
    if program.get("base_code", {}).get("magic") != "pir":
        return
    ops = [op for block in _blocks(program["program"]) for op in block["ops"] if op["#"] == _FETCH]
    notes = [next(item["AT"] for item in op["A"] if item["N"] == "name") for op in ops]
    if not names or len(notes) != len(names):
        return
    for note in notes:
        note["D"] = names[int(note["D"].rpartition("_")[2])]
    with staged_file(path) as partial:
        partial.write_text(json.dumps(program, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")


def _blocks(holder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for region in holder.get("regions", []):
        for block in region["blocks"]:
            yield block
            for op in block["ops"]:
                yield from _blocks(op)


def _drop_notes(op: dict[str, Any]) -> None:
    for key in ("A", "OA"):
        if isinstance(op.get(key), list) and op["#"] != _PARAMETER:
            op[key] = [item for item in op[key] if not (isinstance(item, dict) and item.get("N") in _NOTES)]
    for key in _MAY_BE_MISSING:
        if op.get(key) == []:
            del op[key]


def _share_constants(block: dict[str, Any]) -> None:
    known: dict[str, int] = {}
    instead: dict[int, int] = {}
    kept = []
    for op in block["ops"]:
        for operand in op.get("I", []):
            operand["%"] = instead.get(operand["%"], operand["%"])
        if op["#"] in _CONSTANTS and not op.get("I") and len(op["O"]) == 1:
            result = op["O"][0]
            same = known.setdefault(json.dumps([op["#"], op["A"], result.get("TT")], sort_keys=True), result["%"])
            if same != result["%"]:
                instead[result["%"]] = same
                continue
        kept.append(op)
    block["ops"] = kept


def _shorten_names(parameters: list[dict[str, Any]]) -> None:
    """Shorten suffixes of copies where names stay unique and in their order."""
    names = [op["A"][-1] for op in parameters]
    if not all(isinstance(name, str) for name in names):
        return
    short = [_SUFFIX.sub("_", name) for name in names]  # the "_" keeps w_1 sorted after w_10, as before
    order = sorted(range(len(names)), key=names.__getitem__)
    if len(set(short)) == len(short) and order == sorted(range(len(short)), key=short.__getitem__):
        for op, name in zip(parameters, short, strict=True):
            op["A"][-1] = name
