"""Find and describe exported models: Paddle programs and ONNX files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from paddle.static import InputSpec

from paddlelite_callbacks.errors import near_names, require
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.onnx_files import onnx_files
from paddlelite_callbacks.export.program_desc import read_program_desc
from paddlelite_callbacks.export.saturation import INTEGER_OPERATORS
from paddlelite_callbacks.export.separate_parameters import MODEL, parameter_files
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.file_kind import mistaken_kind
from paddlelite_callbacks.utils.parameters_file import check_not_truncated

__all__ = [
    "complete_inputs",
    "declared_inputs",
    "find_model",
    "input_shapes",
    "output_shapes",
    "parse_input",
    "random_inputs",
]

_PROGRAMS = (".json", ".pdmodel")
_FED = "1.data"  # PIR operation of an input
_PROGRAM_TYPES = {0: "bool", 1: "int16", 2: "int32", 3: "int64", 4: "float16", 5: "float32", 6: "float64"} | {
    20: "uint8",
    21: "int8",
}  # of VarType in Paddle 2


def find_model(path: str | Path) -> Artefact:
    """Find the files of an exported model.

    Args:
        path: An ``.onnx`` file; a Paddle program (``.json``, ``.pdmodel``), its ``.pdiparams``, or their common prefix;
            a program of Paddle 2 with its parameters in ``params`` or one file each (``__model__``); or a folder with
            exactly one of these, as PaddleClas and PaddleDetection write it (``inference.pdmodel`` +
            ``inference.pdiparams``). In a folder with both kinds, Paddle's is taken; beside ``model.json`` its other
            form ``model.int8.pdmodel`` is not counted.

    Raises:
        ValueError: No or several models there, or parameters that are missing or truncated.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".onnx" and path.is_file():
        return Artefact(kind="onnx", path=path, files=onnx_files(path), precision=_precision(path))
    if path.suffix in (".pdparams", ".pdopt"):
        raise ValueError(
            f"{path} is a checkpoint: weights without the network. Export it first, with paddle.jit.save(network, "
            "...) or ExportBenchCallback, and give the program."
        )
    known = (*_PROGRAMS, ".pdiparams")
    prefix = path.with_name(path.name[: -len(path.suffix)]) if path.suffix in known else path
    named = [path] if path.is_file() and (path.suffix in _PROGRAMS or path.name == MODEL) else []
    program = next((p for p in named), None) or next(
        (p for p in (prefix.with_name(prefix.name + end) for end in _PROGRAMS) if p.is_file()), None
    )
    if program is None:
        ends = (".onnx", *_PROGRAMS)
        there = sorted(p.name for p in path.parent.iterdir() if p.suffix in ends) if path.parent.is_dir() else []
        near = f" Near names there: {near_names(path.name, there)}." if there else ""
        raise ValueError(
            f"No model at {path}: give an .onnx file, a Paddle program (.json or .pdmodel with .pdiparams beside "
            f"it), or its folder.{near}"
        )
    parameters: tuple[Path, ...] = (prefix.with_name(f"{prefix.name}.pdiparams"),)
    if program.name == MODEL or not parameters[0].is_file():
        if program.suffix == ".json":
            raise ValueError(
                f"{program} has no parameters beside it: {parameters[0].name} is missing. Copy both files."
            )
        parameters = parameter_files(program)
    _check_kind(program, parameters)
    for file in parameters:
        check_not_truncated(file)
    return Artefact(kind="paddle", path=program, files=(program, *parameters), precision=_precision(program))


def _check_kind(program: Path, parameters: Sequence[Path]) -> None:
    """Check that the files are programs and parameters: Paddle aborts on others."""
    for file in (program, *parameters):
        wanted = "a program of Paddle" if file == program else "parameters of Paddle"
        if (what := mistaken_kind(file)) is not None and not (file != program and "zeros" in what):
            raise ValueError(f"{file} cannot be read: it is not {wanted} but {what}. Give the exported file.")
    if program.suffix == ".json":
        try:
            content = json.loads(program.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{program} is truncated or not JSON ({str(error)[:80]}): export it again.") from error
        if not isinstance(content, dict) or "program" not in content:
            raise ValueError(f"{program} is JSON, but not a program of Paddle 3: export it with paddle.jit.save.")
        return
    read_program_desc(program)


def _precision(file: Path) -> str:
    """Return the precision in ``deploy.json``, or by the quantizers in an ONNX file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        for entry in json.loads((file.parent / "deploy.json").read_text(encoding="utf-8"))["files"]:
            if file.name in entry["sha256"]:
                return str(entry["precision"])
    if file.suffix == ".onnx":
        with suppress(Exception):  # an unreadable file raises where it is read
            nodes = require("onnx", needed_for="ONNX files").load(str(file), load_external_data=False).graph.node
            if any(node.op_type in INTEGER_OPERATORS for node in nodes):
                return "int8"
    return "fp32"


def _in_folder(folder: Path) -> Artefact:
    names = sorted(item.stem for item in folder.glob("*.pdiparams"))
    found = [folder / name for name in names if any((folder / f"{name}{end}").is_file() for end in _PROGRAMS)]
    # the export's model.int8.pdmodel is another form of the model.json beside it
    found = [path for path in found if path.suffix != ".int8" or path.with_suffix("") not in found]
    found = found or [folder / MODEL] * (folder / MODEL).is_file()
    found = found or sorted(folder.glob("*.pdmodel")) or sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        said = f"holds several models ({', '.join(item.name for item in found)}): name one" if found else "has no model"
        raise ValueError(
            f"The folder {folder} {said}: give a program (.json or .pdmodel) with its .pdiparams, or an .onnx."
        )
    return find_model(found[0])


def parse_input(text: str) -> InputSpec:
    """Parse ``1x3x224x224``, ``name:1x3x224x224`` or ``name:1x3x224x224:int64``.

    Args:
        text: Text such as ``"x:1x3x224x224:float32"``.

    Raises:
        ValueError: The text has another form.
    """
    parts = text.split(":")
    name = None if re.fullmatch(r"\d+(x\d+)*", parts[0]) else parts.pop(0)
    sizes = parts.pop(0) if parts else ""
    kind = parts.pop(0) if parts else "float32"
    try:
        shape = [int(size) for size in sizes.split("x")]
        if parts or min(shape) < 1:
            raise ValueError
        np.dtype(kind)
    except (ValueError, TypeError):
        raise ValueError(
            f"input must be 1x3x224x224, name:1x3x224x224 or name:1x2:int64, got {text!r}: write sizes with x between."
        ) from None
    return InputSpec(shape, dtype=kind, name=name)


def input_shapes(artefact: Artefact) -> dict[str, list[int]]:
    """Return the input shapes by name, in the file's order; dynamic sizes -1.

    Args:
        artefact: Result of `find_model`.

    Raises:
        ValueError: The file cannot be read.
    """
    return {name: shape for name, (shape, _) in declared_inputs(artefact).items()}


def declared_inputs(artefact: Artefact) -> dict[str, tuple[list[int], str]]:
    """Return shape and dtype of each input by name, as the file declares them.

    Dynamic sizes are -1. No engine is run.

    Args:
        artefact: Result of `find_model`.

    Raises:
        ValueError: The file cannot be read.
    """
    if artefact.kind in ("paddle", "pdmodel"):
        try:
            found = _of_program(artefact.path)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{artefact.path} cannot be read: {reason(error)}. Export it again.") from error
        if not found:
            raise ValueError(f"{artefact.path} has no inputs: export the network with paddle.jit.save(input_spec=...).")
        return found
    onnx = require("onnx", needed_for="ONNX files")
    try:
        graph = onnx.load(str(artefact.path), load_external_data=False).graph
    except Exception as error:
        raise ValueError(f"{artefact.path} cannot be read: {reason(error)}. Export it again.") from error
    if not graph.node:
        raise ValueError(f"{artefact.path} holds no network: it is truncated, or not an ONNX file. Export it again.")
    constants = {item.name for item in graph.initializer}
    return {item.name: (_sizes(item), _onnx_type(onnx, item)) for item in graph.input if item.name not in constants}


def _of_program(program: Path) -> dict[str, tuple[list[int], str]]:
    if program.suffix == ".json":
        (region,) = json.loads(program.read_text(encoding="utf-8"))["program"]["regions"]
        found = {}
        for op in region["blocks"][0]["ops"]:
            if op["#"] == _FED:
                values = {item["N"]: item["AT"]["D"] for item in op["A"]}
                found[values["name"]] = [int(size) for size in values["shape"]], str(values["dtype"])
        return found
    block = read_program_desc(program).blocks[0]
    fed = [(op.attrs, op.outputs[0].arguments[0]) for op in block.ops if op.type == "feed"]
    columns = {name: next((item.i for item in attributes if item.name == "col"), 0) for attributes, name in fed}
    kinds = {item.name: item.type.dense_tensor.tensor for item in block.vars if item.name in columns}
    return {
        name: ([int(size) for size in kinds[name].dims], _PROGRAM_TYPES.get(kinds[name].data_type, "float32"))
        for name in sorted(columns, key=lambda name: columns[name])
    }


def _onnx_type(onnx: Any, item: Any) -> str:
    with suppress(KeyError, TypeError):
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)))
    return "float32"


def complete_inputs(artefact: Artefact, given: Sequence[InputSpec]) -> list[InputSpec]:
    """Return a spec with fixed sizes for each input of the file.

    Sizes come from ``given``, else from the file, else from ``deploy.json``; a dynamic batch becomes 1.

    Args:
        artefact: Result of `find_model`.
        given: Results of `parse_input`, for any of the inputs: all with names, or in the file's order.

    Raises:
        ValueError: A dynamic size was not given, or a given spec fits no input.
    """
    declared, described = declared_inputs(artefact), _described_shapes(artefact)
    if given and (len(given) == len(declared) or not all(spec.name for spec in given)):
        open_ones = [name for name, (shape, _) in declared.items() if _free(shape, described.get(name))]
        if len(given) == len(open_ones) < len(declared) and not any(spec.name for spec in given):
            given = [
                InputSpec(spec.shape, dtype=declared[name][1], name=name)
                for spec, name in zip(given, open_ones, strict=True)
            ]
        else:
            return list(given)  # `random_inputs` reports what does not fit
    named = {spec.name: spec for spec in given}
    if unknown := [name for name in named if name not in declared]:
        raise ValueError(
            f"{artefact.path} has the inputs {list(declared)}, not {unknown}: use the file's names; near names: "
            f"{near_names(str(unknown[0]), declared)}."
        )
    specs, missing = [], []
    for name, (shape, dtype) in declared.items():
        if name in named:
            specs.append(named[name])
            continue
        known = described.get(name)
        if _free(shape, known):
            missing.append(f"{name} of {shape}")
        sizes = [max(size, (known or shape)[axis]) for axis, size in enumerate(shape)]
        specs.append(InputSpec([max(size, 1) for size in sizes], dtype=dtype, name=name))
    if missing:
        name = missing[0].partition(" of ")[0]
        pattern = [str(size) if size > 0 else "N" if axis else "1" for axis, size in enumerate(declared[name][0])]
        raise ValueError(
            f"{artefact.path} has dynamic sizes (-1) in {', '.join(missing)}: give them, for instance --input "
            f"{name}:{'x'.join(pattern)} with a number for each N."
        )
    return specs


def _free(shape: Sequence[int], described: Sequence[int] | None) -> bool:
    """Whether a size besides the batch is in neither the file nor ``deploy.json``."""
    return any(max(size, (described or shape)[axis]) < 1 for axis, size in enumerate(shape) if axis)


def _described_shapes(artefact: Artefact) -> dict[str, list[int]]:
    """Return the shapes in ``deploy.json`` beside the file; dynamic sizes -1."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads((artefact.path.parent / "deploy.json").read_text(encoding="utf-8"))
        if any(artefact.path.name in entry["sha256"] for entry in content["files"]):
            declared = declared_inputs(artefact)
            found = {
                item["name"]: [-1 if size is None else int(size) for size in item["shape"]]
                for item in content["inputs"]
            }
            return {name: shape for name, shape in found.items() if len(shape) == len(declared.get(name, ([],))[0])}
    return {}


def output_shapes(artefact: Artefact) -> dict[str, list[int]]:
    """Return the shapes of the outputs by name; dynamic sizes -1.

    Args:
        artefact: An ONNX file.
    """
    graph = require("onnx", needed_for="ONNX files").load(str(artefact.path), load_external_data=False).graph
    return {item.name: _sizes(item) for item in graph.output}


def _sizes(item: Any) -> list[int]:
    return [dim.dim_value or -1 for dim in item.type.tensor_type.shape.dim]


def random_inputs(artefact: Artefact, specs: Sequence[InputSpec], *, rows: int | None = None) -> list[np.ndarray]:
    """Return seeded random inputs in the file's order.

    Floats are normally distributed, integers 0 or 1. Sizes besides the batch must be those that the file declares.


    Args:
        artefact: Result of `find_model`.
        specs: One per input; all with names, or in the file's order.
        rows: Batch size; ``None`` keeps that of ``specs``.

    Raises:
        ValueError: Number, names or sizes of the inputs differ from the file's.
    """
    shapes = input_shapes(artefact)
    names = list(shapes)
    if len(names) != len(specs):
        raise ValueError(
            f"{artefact.path} takes {len(names)} inputs ({', '.join(names)}), {len(specs)} were given: give one "
            "--input (InputSpec) for each."
        )
    if all(spec.name for spec in specs):
        named = {spec.name: spec for spec in specs}
        if missing := [name for name in names if name not in named]:
            raise ValueError(
                f"{artefact.path} takes the inputs {names}; {missing} were not given: use the file's names."
            )
        specs = [named[name] for name in names]
    for (name, shape), spec in zip(shapes.items(), specs, strict=True):
        fits = len(shape) == len(spec.shape) and all(
            size in (-1, given) for size, given in zip(shape[1:], spec.shape[1:], strict=True)
        )
        if shape and not fits:
            raise ValueError(
                f"{artefact.path} takes {name} of {shape} (-1: any), {list(spec.shape)} was given: give its sizes."
            )
    return [_random(spec, rows, seed) for seed, spec in enumerate(specs)]


def _random(spec: Any, rows: int | None, seed: int) -> np.ndarray:
    shape = [rows or spec.shape[0], *spec.shape[1:]]
    kind = np.dtype(str(spec.dtype).rpartition(".")[2].lower())
    stream = np.random.RandomState(seed)
    return stream.randn(*shape).astype(kind) if kind.kind == "f" else stream.randint(0, 2, shape).astype(kind)
