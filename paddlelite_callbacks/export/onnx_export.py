"""Convert a Paddle program to ONNX in a child process."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from paddlelite_callbacks.errors import ExportError, require_installed
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.interpolation import readable_by_converter
from paddlelite_callbacks.export.separate_parameters import as_pair
from paddlelite_callbacks.utils.atomic_files import staged_file
from paddlelite_callbacks.utils.child_process import run_module
from paddlelite_callbacks.utils.folder_names import without_folder
from paddlelite_callbacks.utils.numbers import check_whole

__all__ = ["DEFAULT_OPSET", "checked_opset", "export_onnx"]

DEFAULT_OPSET = 17
_OPSETS = (13, 19)  # from per-channel DequantizeLinear to the last that the converter knows
_log = logging.getLogger(__name__)
_ONNX_SECONDS = 600
_HIDDEN = re.compile(r"\b(tmp|paddlelite_traces_)[a-z0-9_]{8}[/\\\\]")  # temporary folders of the child process
_NOT_CLEANED = "clean"  # in the message of `clean_onnx`


def export_onnx(program: Artefact, path: Path, *, opset: int = DEFAULT_OPSET, clean: bool | None = None) -> Artefact:
    """Convert a Paddle program to ONNX, in a child process that may abort.

    Inputs and outputs keep the names of the program; the producer is this package.

    Args:
        program: Program of kind ``"paddle"``.
        path: Path of the ``.onnx`` file; written atomically.
        opset: ONNX opset version.
        clean: Whether to remove redundant nodes, see `clean_onnx`; ``None`` does so for float programs. For int8
            weights it would fold them into float ones.

    Raises:
        MissingDependencyError: The converter is not installed.
        ExportError: The converter failed or died; the message ends with its output.
        OSError: The disk is full.
    """
    require_installed("paddle2onnx", needed_for="ONNX export")
    with staged_file(path) as partial, tempfile.TemporaryDirectory() as work, as_pair(program.files) as pair:
        files = [readable_by_converter(pair[0], Path(work)), *pair[1:]]
        wanted = program.precision == "fp32" if clean is None else clean
        arguments = [*(str(file.absolute()) for file in files), str(partial.absolute()), str(opset)]
        arguments.append("yes" if wanted else "no")
        try:
            done = run_module(
                "export.onnx_worker",
                *arguments,
                seconds=_ONNX_SECONDS,
                environment={"TMPDIR": str(Path(work).resolve())},
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(
                f"paddle2onnx did not finish {program.path.name} in {_ONNX_SECONDS} s. Export a smaller network, or "
                "use onnx=False."
            ) from error
        if done.returncode != 0 or not partial.is_file():
            if shutil.disk_usage(path.parent).free < program.size_mb * 1e6:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))  # not the network's fault
            said = _telling(done.stdout, done.stderr)
            said = _HIDDEN.sub("", without_folder(without_folder(said, partial.parent), work))
            said = said.replace(partial.name, path.name)
            raise ExportError(f"paddle2onnx ended with {done.returncode} on {program.path.name}: {said}")
        for line in done.stderr.splitlines():
            if _NOT_CLEANED in line:
                _log.warning("%s: %s", path.name, line)
    return Artefact(kind="onnx", path=path, files=(path,), precision=program.precision)


def checked_opset(opset: int) -> int:
    """Return ``opset`` if all kinds of ONNX files can be written with it.

    Args:
        opset: ONNX opset version.

    Raises:
        ValueError: It is not a whole number, or is out of range.
    """
    least, most = _OPSETS
    check_whole("onnx_opset", opset, least, most, remedy=f"leave it out for {DEFAULT_OPSET}")
    return opset


def _telling(stdout: str, stderr: str) -> str:
    """Return the converter's errors on operators, else the end of its stderr."""
    lines = [line.replace("[Paddle2ONNX]", "").strip() for line in f"{stdout}\n{stderr}".splitlines()]
    named = [line for line in lines if line.startswith("[ERROR]") and "unsupported features" not in line]
    if named:
        return " ".join(dict.fromkeys(named))[:300] + " Write this operation with supported operators."
    return " ".join((stderr or stdout).split())[-300:]
