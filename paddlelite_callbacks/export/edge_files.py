"""Convert float ONNX files for MNN and ncnn, in child processes."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.errors import ExportError, require, require_installed
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.onnx_graph import OnnxGraph, tensor_shapes
from paddlelite_callbacks.utils.atomic_files import staged_file
from paddlelite_callbacks.utils.child_process import last_words, run_command, run_module
from paddlelite_callbacks.utils.folder_names import without_folder

__all__ = ["QUANTIZED_OPERATORS", "check_float_onnx", "convert_to_mnn", "convert_to_ncnn", "ncnn_input_shapes"]

_SECONDS = 600
QUANTIZED_OPERATORS = frozenset(
    [
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    ]
)
"""ONNX operators of quantised networks, which the converters of `check_float_onnx` do not support."""
_KNOWN = {  # tested with a file of this package, which ONNX Runtime and OpenVINO compute correctly
    "MNN": "MNN 3.6.1 says 'Converted Success!' and writes a file that fails or computes something else",
    "pnnx": "pnnx 20261020 leaves the quantisers in the file, and ncnn has no such layers",
    "onnx2tf": "onnx2tf 2.6.9 makes a LiteRT file of fp32's size of it, older ones a wrong file",
}
_ELEMENTS = {1: "f32", 6: "i32", 7: "i64", 10: "f16", 11: "f64"}  # ONNX element type -> pnnx suffix


def check_float_onnx(path: Path, converter: str) -> None:
    """Check that an ONNX file is not quantised, which ``converter`` gets wrong.

    Args:
        path: Path of the file.
        converter: ``"MNN"``, ``"pnnx"`` (for ncnn) or ``"onnx2tf"`` (for LiteRT).

    Raises:
        ExportError: The file is quantised; the message names operators, versions and an alternative.
    """
    nodes = _graph(path).node
    found = {node.op_type for node in nodes if node.op_type in QUANTIZED_OPERATORS or node.op_type.startswith("QLin")}
    if found:
        installed = "not installed"
        with suppress(importlib.metadata.PackageNotFoundError):
            installed = f"{importlib.metadata.version(converter)} installed"
        raise ExportError(
            f"{path.name} is quantised ({', '.join(sorted(found))}), and {_KNOWN[converter]} ({installed}): give the "
            "fp32 model.onnx, or run the int8 file with ONNX Runtime."
        )


def convert_to_mnn(source: Path, path: Path) -> Artefact:
    """Convert a float ONNX file for MNN.

    Args:
        source: Path of the ``.onnx`` file.
        path: Path of the ``.mnn`` file; written atomically.

    Raises:
        MissingDependencyError: MNN is not installed.
        ExportError: The file is quantised, or the converter failed or crashed.
    """
    require_installed("MNN", needed_for="a file for MNN")
    check_float_onnx(source, "MNN")
    with staged_file(path) as partial:
        try:  # not its command line, which installs packages and sends telemetry
            done = run_module("export.mnn_worker", str(source.absolute()), str(partial.absolute()), seconds=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"MNN's converter did not finish {source.name} in {_SECONDS} s.") from error
        if done.returncode or not partial.is_file() or not partial.stat().st_size:
            raise ExportError(f"MNN's converter failed on {source.name}: {_said(done, source.parent, path.parent)}")
    return Artefact(kind="mnn", path=path, files=(path,))


def convert_to_ncnn(source: Path, folder: Path) -> Artefact:
    """Convert a float ONNX file for ncnn, with one image of a fixed size per call.

    Args:
        source: Path of the ``.onnx`` file.
        folder: Existing folder for ``model.ncnn.param`` and ``model.ncnn.bin``.

    Raises:
        MissingDependencyError: The converter, pnnx, is not installed.
        ExportError: The file is quantised, has dynamic sizes besides the batch or takes more than one image per call;
            it selects several indices in a way that pnnx gets wrong; the converter failed, or left operators that ncnn
            does not have.
    """
    program = _pnnx()
    check_float_onnx(source, "pnnx")
    shapes = ncnn_input_shapes(source)
    sizes = ",".join(f"[{','.join(map(str, shape))}]{letters}" for shape, letters in shapes.values())
    with tempfile.TemporaryDirectory() as work:  # pnnx writes ten files beside its input
        place = Path(work) / "model.onnx"
        place.write_bytes(_without_gathers(source))
        command = [str(program), place.name, f"inputshape={sizes}", "fp16=0"]
        try:
            done = run_command(command, seconds=_SECONDS, folder=work)
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"pnnx did not finish {source.name} in {_SECONDS} s.") from error
        written = [Path(work) / f"model.ncnn.{end}" for end in ("param", "bin")]
        if done.returncode or not all(file.is_file() for file in written):
            raise ExportError(f"pnnx failed on {source.name}: {_said(done, Path(work))}")
        if unknown := _unknown_layers(written[0]):
            raise ExportError(f"ncnn has no layer for {unknown}, found in {source.name}: use another engine.")
        targets = []
        for file in written:
            targets.append(folder / file.name)
            with staged_file(targets[-1]) as partial:
                partial.write_bytes(file.read_bytes())
    return Artefact(kind="ncnn", path=targets[0], files=tuple(targets))


def ncnn_input_shapes(source: Path) -> Mapping[str, tuple[list[int], str]]:
    """Return shape (batch 1) and pnnx's element type of each input.

    Args:
        source: Path of the ``.onnx`` file.

    Raises:
        ExportError: Sizes besides the batch are dynamic, or the file takes more than one image per call.
    """
    graph = _graph(source)
    constants = {item.name for item in graph.initializer}
    shapes = {}
    for item in graph.input:
        if item.name in constants:
            continue
        tensor = item.type.tensor_type
        sizes = [dim.dim_value for dim in tensor.shape.dim]
        if any(size < 1 for size in sizes[1:]):
            raise ExportError(
                f"ncnn's files have fixed sizes, the input {item.name} of {source.name} has dynamic ones ({sizes}; 0: "
                "dynamic): export it with an input_spec that gives height and width."
            )
        if sizes and sizes[0] > 1:
            raise ExportError(
                f"ncnn runs one image per call, {source.name} takes exactly {sizes[0]}: export it with "
                "dynamic_batch=True."
            )
        if tensor.elem_type not in _ELEMENTS:
            raise ExportError(f"ncnn takes floats and integers, {item.name} of {source.name} is neither.")
        shapes[item.name] = [1, *sizes[1:]], _ELEMENTS[tensor.elem_type]
    return shapes


def _graph(path: Path) -> Any:
    return require("onnx", needed_for="a look into ONNX files").load(str(path), load_external_data=False).graph


def _without_gathers(source: Path) -> bytes:
    """Return the file with selections of channels as 1x1 convolutions.

    pnnx 20261020 takes a ``Gather`` of several indices for one of a single index, and ncnn crashes on the result.
    """
    model = require("onnx", needed_for="a file for ncnn").load(str(source))
    graph = OnnxGraph(model)
    selections = [node for node in graph.nodes if node.op_type == "Gather" and _selects_several(graph, node)]
    if not selections:
        return source.read_bytes()
    shapes = tensor_shapes(model)
    for node in selections:
        data, indices = node.input[0], graph.constants.get(node.input[1])
        shape, axis = shapes.get(data), graph.attribute(node, "axis", 0)
        if shape is not None and len(shape) < 2:  # sizes, which pnnx computes beforehand
            continue
        channels = shape[1] if shape is not None and len(shape) == 4 and axis in (1, -3) else None
        if indices is None or indices.ndim != 1 or channels is None:
            raise ExportError(
                f"pnnx takes a Gather of several indices for one of a single index, then ncnn crashes: {source.name} "
                f"has one on axis {axis} of a tensor of shape {shape}. Select channels of maps alone (axis 1 of 4), or "
                "use another engine."
            )
        weight = np.eye(channels, dtype="float32")[indices][:, :, None, None]
        graph.set_inputs(node, [data, graph.constant(f"{node.output[0]}.selection", weight)])
        graph.change_kind(node, "Conv", kernel_shape=[1, 1])
    return graph.to_model(short_names=False).SerializeToString()


def _selects_several(graph: OnnxGraph, gather: Any) -> bool:
    """Return whether it is neither an embedding nor a selection by one index."""
    indices = graph.constants.get(gather.input[1])
    return gather.input[0] not in graph.constants and (indices is None or indices.ndim > 0)


def _pnnx() -> Path:
    """Return the path of pnnx's binary without importing pnnx, which imports PyTorch."""
    require_installed("pnnx", needed_for="a file for ncnn")
    spec = find_spec("pnnx")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) / ("pnnx.exe" if os.name == "nt" else "pnnx")


def _said(done: subprocess.CompletedProcess[str], *folders: Path) -> str:
    """Return the error of a converter; both print it to the standard output."""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    said = lines[-1][-300:] if lines and done.returncode >= 0 and not done.stderr.strip() else last_words(done)
    for folder in folders:
        said = without_folder(said, folder)
    return said


def _unknown_layers(param: Path) -> list[str]:
    """Return the operators without an ncnn layer, which keep their PyTorch names."""
    lines = param.read_text(encoding="utf-8").splitlines()[2:]
    return sorted({line.split()[0] for line in lines if line.strip() and "." in line.split()[0]})
