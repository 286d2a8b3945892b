"""Clean converted ONNX files: fewer nodes, named outputs, a producer.

paddle2onnx writes each constant as a node and an ``Identity`` for each assignment, and computes at every call what is
known beforehand. onnxslim folds and removes these, and `fuse_onnx` rewrites slow parts; the outputs stay the same.
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
from paddlelite_callbacks.export.fuse_onnx import fuse_onnx
from paddlelite_callbacks.export.onnx_graph import copied_model, rename_tensors
from paddlelite_callbacks.utils.atomic_files import staged_file

if TYPE_CHECKING:  # the child process that cleans does not import Paddle
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["PRODUCER", "clean_onnx", "describe_onnx", "sign_onnx"]

PRODUCER = "paddlelite_callbacks"

_UNNAMED = re.compile(r"fetch_name_(\d+)")  # Paddle's name for an unnamed output


def clean_onnx(model: Any) -> Any:
    """Return ``model`` (``onnx.ModelProto``) with fewer nodes and the same outputs.

    Where onnxslim is not installed, fails or returns an invalid model, ``model`` comes back as it was, and the reason
    is
    written to stderr.

    Args:
        model: Model to clean; not changed.
    """
    onnx = require("onnx", needed_for="ONNX files")
    os.environ.pop("ONNXSLIM_MAX_ITER", None)  # the same weights give the same bytes everywhere
    try:
        slimmer = require("onnxslim", needed_for="cleaning ONNX files")
        with contextlib.redirect_stdout(io.StringIO()):
            cleaned = fuse_onnx(slimmer.slim(copied_model(model)))
        onnx.checker.check_model(cleaned)
    except MissingDependencyError as error:
        sys.stderr.write(f"{error}\n")
        return model
    except Exception as error:  # an uncleaned file is larger, but right
        sys.stderr.write(f"The ONNX file was not cleaned: {type(error).__name__}: {error}\n")
        return model
    return cleaned


def sign_onnx(model: Any) -> None:
    """Set producer, version and names of unnamed outputs in ``model``, in place.

    Outputs that Paddle only numbered become ``output_0``, ``output_1``, ...

    Args:
        model: An ``onnx.ModelProto``.
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
    """Write labels, pre- and postprocessing into the ONNX files, as metadata in JSON.

    Args:
        artefacts: Exported models; only those of kind ``"onnx"`` are changed.
        options: Result of `checked_sidecar_options`; ``None`` values are left out.
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
