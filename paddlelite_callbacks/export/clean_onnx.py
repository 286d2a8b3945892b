"""ONNX files without what a converter leaves behind: constant nodes, identities, shape arithmetic, nameless origin.

paddle2onnx writes each constant as a node, an ``Identity`` for each assignment, and computes at every call what is
known beforehand. onnxslim folds and removes that; what is computed stays the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks._version import __version__
from paddlelite_callbacks.errors import MissingDependencyError, require
from paddlelite_callbacks.export.onnx_graph import rename_tensors
from paddlelite_callbacks.utils.atomic_files import staged_file

if TYPE_CHECKING:  # the child process that cleans needs no Paddle
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["PRODUCER", "clean_onnx", "describe_onnx", "sign_onnx"]

PRODUCER = "paddlelite_callbacks"

_UNNAMED = re.compile(r"fetch_name_(\d+)")  # Paddle's name of an output that has none


def clean_onnx(model: Any) -> Any:
    """Return ``model`` (``onnx.ModelProto``) with fewer nodes that compute the same.

    A model that onnxslim cannot clean, or makes no valid model of, comes back as it was, with a line on the error
    output; so does any model where onnxslim is not installed.

    Args:
        model: not changed.
    """
    onnx = require("onnx", needed_for="ONNX files")
    os.environ.pop("ONNXSLIM_MAX_ITER", None)  # the same weights give the same bytes everywhere
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    try:
        slimmer = require("onnxslim", needed_for="cleaning ONNX files")
        with contextlib.redirect_stdout(io.StringIO()):
            cleaned = slimmer.slim(copied)
        onnx.checker.check_model(cleaned)
    except MissingDependencyError as error:
        sys.stderr.write(f"{error}\n")
        return model
    except Exception as error:  # a file that is larger than it need be is still right
        sys.stderr.write(f"The ONNX file was not cleaned: {type(error).__name__}: {error}\n")
        return model
    return cleaned


def sign_onnx(model: Any) -> None:
    """Write producer and version into ``model`` in place, and name outputs that Paddle only numbered ``output_0``...

    Args:
        model: an ``onnx.ModelProto``.
    """
    model.producer_name, model.producer_version = PRODUCER, __version__
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken |= {item.name for item in (*model.graph.input, *model.graph.initializer)}
    names = {}
    for item in model.graph.output:
        if (found := _UNNAMED.fullmatch(item.name)) is not None and f"output_{found[1]}" not in taken:
            names[item.name] = f"output_{found[1]}"
    rename_tensors(model.graph, names)


def describe_onnx(artefacts: Sequence[Artefact], options: Mapping[str, Any]) -> None:
    """Write what ``deploy.json`` tells of labels and processing into the ONNX files too, as metadata in JSON.

    Args:
        artefacts: files of other kinds are left alone.
        options: of `checked_sidecar_options`; ``None`` values are left out.
    """
    metadata = {
        key: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        for key, value in sorted(options.items())
        if value is not None
    }
    if not metadata:
        return
    for artefact in artefacts:
        if artefact.kind == "onnx":
            _add_metadata(artefact.path, metadata)


def _add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    onnx = require("onnx", needed_for="ONNX files")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(metadata))
    with staged_file(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
