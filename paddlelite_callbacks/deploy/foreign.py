"""Exported models that were not trained here: Paddle's inference folders of either format, and ONNX files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from paddle.static import InputSpec

from paddlelite_callbacks.deploy.engines import reason
from paddlelite_callbacks.deploy.export import Artefact
from paddlelite_callbacks.deploy.onnx_files import onnx_files
from paddlelite_callbacks.deploy.saturation import INTEGER_OPERATORS
from paddlelite_callbacks.errors import near_names, require
from paddlelite_callbacks.export.program_desc import read_program_desc
from paddlelite_callbacks.parameters_file import refuse_torn
from paddlelite_callbacks.utils.file_kind import mistaken_kind

__all__ = ["find_model", "input_shapes", "output_shapes", "parse_input", "random_inputs"]

_PROGRAMS = (".json", ".pdmodel")


def find_model(path: str | Path) -> Artefact:
    """Return the files that ``path`` stands for.

    Args:
        path: an ``.onnx`` file; a Paddle program (``.json``, ``.pdmodel``), its ``.pdiparams``, or their common
            prefix; or a folder with exactly one of these, such as PaddleClas and PaddleDetection write
            (``inference.pdmodel`` + ``inference.pdiparams``). A folder with both kinds counts as Paddle's.

    Raises:
        ValueError: nothing of that kind is there, parameters are missing or torn, or there are several models.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".onnx" and path.is_file():
        return Artefact(kind="onnx", path=path, files=onnx_files(path), precision=_precision(path))
    if path.suffix in (".pdparams", ".pdopt"):
        raise ValueError(
            f"{path} is a checkpoint: weights without the network. Export it first, with paddle.jit.save(network, ...) "
            "or ExportBenchCallback, and give the program."
        )
    known = (*_PROGRAMS, ".pdiparams")
    prefix = path.with_name(path.name[: -len(path.suffix)]) if path.suffix in known else path
    program = next((p for p in (prefix.with_name(prefix.name + end) for end in _PROGRAMS) if p.is_file()), None)
    if program is None:
        ends = (".onnx", *_PROGRAMS)
        there = sorted(p.name for p in path.parent.iterdir() if p.suffix in ends) if path.parent.is_dir() else []
        near = f" Near names there: {near_names(path.name, there)}." if there else ""
        raise ValueError(
            f"No model at {path}: give an .onnx file, a Paddle program (.json or .pdmodel with .pdiparams beside it), "
            f"or its folder.{near}"
        )
    parameters = prefix.with_name(f"{prefix.name}.pdiparams")
    if not parameters.is_file():
        raise ValueError(f"{program} has no parameters beside it: {parameters.name} is missing.")
    _refuse_mistaken(program, parameters)
    refuse_torn(parameters)
    return Artefact(kind="paddle", path=program, files=(program, parameters), precision=_precision(program))


def _refuse_mistaken(program: Path, parameters: Path) -> None:
    """Refuse what only bears the name of a program or of parameters: Paddle would end with the process."""
    for file, wanted in ((program, "a program of Paddle"), (parameters, "parameters of Paddle")):
        if (what := mistaken_kind(file)) is not None and not (file == parameters and "zeros" in what):
            raise ValueError(f"{file} cannot be read: it is not {wanted} but {what}.")
    if program.suffix == ".json":
        try:
            content = json.loads(program.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{program} is torn, or no JSON ({str(error)[:80]}): export it again.") from error
        if not isinstance(content, dict) or "program" not in content:
            raise ValueError(f"{program} is JSON, but no program of Paddle 3: export the network with paddle.jit.save.")
        return
    read_program_desc(program)


def _precision(file: Path) -> str:
    """Return what ``deploy.json`` beside ``file`` says, or what the quantisers in an ONNX file do; else fp32."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        for entry in json.loads((file.parent / "deploy.json").read_text(encoding="utf-8"))["files"]:
            if file.name in entry["sha256"]:
                return str(entry["precision"])
    if file.suffix == ".onnx":
        with suppress(Exception):  # an unreadable file is refused where it is read
            nodes = require("onnx", needed_for="ONNX files").load(str(file), load_external_data=False).graph.node
            if any(node.op_type in INTEGER_OPERATORS for node in nodes):
                return "int8"
    return "fp32"


def _in_folder(folder: Path) -> Artefact:
    names = sorted(item.stem for item in folder.glob("*.pdiparams"))
    found = [folder / name for name in names if any((folder / f"{name}{end}").is_file() for end in _PROGRAMS)]
    found = found or sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        said = f"holds several models ({', '.join(item.name for item in found)}): name one" if found else "holds none"
        raise ValueError(f"The folder {folder} {said}: a program (.json or .pdmodel) with its .pdiparams, or an .onnx.")
    return find_model(found[0])


def parse_input(text: str) -> InputSpec:
    """Read ``1x3x224x224``, ``name:1x3x224x224`` or ``name:1x3x224x224:int64``.

    Args:
        text: for instance ``"x:1x3x224x224:float32"``.

    Raises:
        ValueError: it is none of them.
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
            f"An input is written 1x3x224x224, name:1x3x224x224 or name:1x2:int64, got {text!r}: sizes with x between."
        ) from None
    return InputSpec(shape, dtype=kind, name=name)


def input_shapes(artefact: Artefact) -> dict[str, list[int]]:
    """Return the shapes of the inputs by name, in the order in which engines take them.

    Free sizes are -1; the shapes of Paddle programs cannot be asked for and are empty.

    Args:
        artefact: of `find_model`.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        if artefact.kind == "paddle":
            inference = require("paddle.inference", needed_for="Paddle programs")
            config = inference.Config(*(str(file) for file in artefact.files))
            config.disable_glog_info()
            config.disable_gpu()
            config.disable_mkldnn()
            return {name: [] for name in inference.create_predictor(config).get_input_names()}
        graph = require("onnx", needed_for="ONNX files").load(str(artefact.path), load_external_data=False).graph
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{artefact.path} cannot be read: {reason(error)}") from error
    if not graph.node:
        raise ValueError(f"{artefact.path} holds no network: it is torn, or no ONNX file. Export it again.")
    constants = {item.name for item in graph.initializer}
    return {item.name: _sizes(item) for item in graph.input if item.name not in constants}


def output_shapes(artefact: Artefact) -> dict[str, list[int]]:
    """Return the shapes of the outputs by name, free sizes -1.

    Args:
        artefact: an ONNX file.
    """
    graph = require("onnx", needed_for="ONNX files").load(str(artefact.path), load_external_data=False).graph
    return {item.name: _sizes(item) for item in graph.output}


def _sizes(item: Any) -> list[int]:
    return [dim.dim_value or -1 for dim in item.type.tensor_type.shape.dim]


def random_inputs(artefact: Artefact, specs: Sequence[InputSpec], *, rows: int | None = None) -> list[np.ndarray]:
    """Return seeded inputs in the file's order: floats of a normal distribution, zeros and ones for integers.

    Sizes are held against those that the file declares, the batch aside.

    Args:
        artefact: of `find_model`.
        specs: one per input; all with names, or in the file's order.
        rows: of each; ``None`` keeps those of ``specs``.

    Raises:
        ValueError: numbers, names or sizes of inputs differ from the file's.
    """
    shapes = input_shapes(artefact)
    names = list(shapes)
    if len(names) != len(specs):
        raise ValueError(
            f"{artefact.path} takes {len(names)} inputs ({', '.join(names)}), {len(specs)} were given: one --input "
            "(InputSpec) for each."
        )
    if all(spec.name for spec in specs):
        named = {spec.name: spec for spec in specs}
        if missing := [name for name in names if name not in named]:
            raise ValueError(
                f"{artefact.path} takes the inputs {names}; {missing} were not given: name them as the file does."
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
