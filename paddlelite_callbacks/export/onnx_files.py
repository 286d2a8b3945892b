"""List all files of an ONNX model, external data included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.utils.file_kind import mistaken_kind

__all__ = ["onnx_files"]

_EXTERNAL = 1  # TensorProto.EXTERNAL


def onnx_files(path: Path) -> tuple[Path, ...]:
    """Return ``path`` and the external data files of its tensors, subgraphs included.

    Args:
        path: Path of an ``.onnx`` file.

    Raises:
        ValueError: Not an ONNX file, or an external data file is missing, too short, or outside its folder.
        MissingDependencyError: ``onnx`` is not installed.
    """
    if (what := mistaken_kind(path)) is not None:
        raise ValueError(
            f"{path} cannot be read: it is not an ONNX file but {what}. Export it again, or fetch the file itself."
        )
    onnx = require("onnx", needed_for="ONNX files")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read: it is truncated, or not an ONNX file ({type(error).__name__}). Export it again."
        ) from error
    files = [path]
    for tensor in _tensors(model):
        if tensor.data_location == _EXTERNAL:
            file = _checked(path, tensor)
            if file not in files:
                files.append(file)
    return tuple(files)


def _checked(path: Path, tensor: Any) -> Path:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "").replace("\\", "/")
    inside = os.path.normpath(location) if location else ".."
    if Path(inside).is_absolute() or inside.split("/")[0] == "..":
        raise ValueError(
            f"{path} reads the weights {tensor.name!r} from {location!r}, outside its folder, which engines refuse. "
            "Save "
            "the model again with its data beside it (onnx.save_model(..., save_as_external_data=True))."
        )
    file = path.parent / inside
    if not file.is_file():
        raise ValueError(f"{path} needs {location}, which is missing: copy it to the folder of the model.")
    if (what := mistaken_kind(file)) is not None and "zeros" not in what and not what.startswith("a text"):
        raise ValueError(f"{path} needs the weights in {location}, but that is {what}. Copy the weights again.")
    needed = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    if file.stat().st_size < needed:
        raise ValueError(
            f"{file} is truncated: {file.stat().st_size} bytes, {path.name} needs {needed}. Copy it again."
        )
    return file


def _tensors(model: Any) -> Iterator[Any]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)
