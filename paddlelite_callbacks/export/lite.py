"""Write Paddle Lite files (``.nb``) with ``opt``, and run them on x86.

Paddle Lite has wheels for few versions of Python, and ``opt`` aborts its process on unsupported programs. Therefore
``opt`` and the x86 engine run in a child process, of this Python or of another.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlelite_callbacks.errors import ExportError, MissingDependencyError
from paddlelite_callbacks.export.nb_encoding import compact_nb
from paddlelite_callbacks.utils.atomic_files import staged_file
from paddlelite_callbacks.utils.child_process import last_words, run_command

__all__ = ["LITE_TARGETS", "OPT_VARIABLE", "LiteOptions", "LiteTool", "checked_targets", "find_opt"]

LITE_TARGETS = ("arm", "x86")
OPT_VARIABLE = "PADDLE_LITE_OPT"
_WORKER = Path(__file__).with_name("lite_worker.py")
_SECONDS = 600
_RUN_SECONDS = 120
_REMEDY = (
    "Paddle Lite's wheels are for Python 3.8 and 3.10 on Linux x86-64: python3.10 -m venv lite && lite/bin/pip install "
    f"paddlelite==2.13rc0, then give lite/bin/python as opt (command line: --opt, or the variable {OPT_VARIABLE}). The "
    "path of an opt binary works, too."
)


@dataclass(frozen=True, kw_only=True)
class LiteOptions:
    """Options of the files for Paddle Lite.

    Args:
        targets: Targets to write a file for, some of `LITE_TARGETS`.
        opt: Path of Paddle Lite's ``opt``, see `find_opt`.
    """

    targets: Sequence[str] = ("arm",)
    opt: str | Path | None = None


def checked_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Return ``targets`` as a tuple.

    Args:
        targets: Targets of Paddle Lite.

    Raises:
        ValueError: ``targets`` is not a list, is empty or holds an unknown target.
    """
    known = list(LITE_TARGETS)
    if isinstance(targets, str):
        raise ValueError(f"targets must be a list of names, got {targets!r}: write targets=[{targets!r}].")
    if not targets or any(target not in known for target in targets):
        raise ValueError(f"targets must be some of {known}, got {list(targets)}: leave it out for ['arm'].")
    return tuple(dict.fromkeys(targets))


@dataclass(frozen=True, kw_only=True)
class LiteTool:
    """Installed ``opt`` of Paddle Lite.

    Args:
        python: Path of a Python with ``paddlelite``; ``None`` for a binary, which cannot run files.
        binary: Path of the binary; ``None`` with ``python``.
        version: Version of Paddle Lite; empty if unknown.
    """

    python: str | None = None
    binary: str | None = None
    version: str = ""

    def write(self, program: Path, parameters: Path, path: Path, *, target: str) -> Path:
        """Write a ``.nb`` file atomically.

        Args:
            program: Path of the ``.pdmodel``, see `prepare_for_lite_`.
            parameters: Path of its ``.pdiparams``.
            path: Path of the ``.nb`` file.
            target: One of `LITE_TARGETS`.

        Raises:
            ExportError: ``opt`` failed, crashed or timed out.
            OSError: The disk is full.
        """
        program, parameters = program.absolute(), parameters.absolute()
        with tempfile.TemporaryDirectory() as work, staged_file(path) as partial:
            made = Path(work, "model.nb")
            if self.python is not None:
                said = ["opt", str(program), str(parameters), target, str(made.with_suffix(""))]
                command = [self.python, "-I", "-W", "ignore", str(_WORKER), *said]
            else:
                command = [
                    str(self.binary),
                    f"--model_file={program}",
                    f"--param_file={parameters}",
                    f"--valid_targets={target}",
                    "--optimize_out_type=naive_buffer",
                    f"--optimize_out={made.with_suffix('')}",
                ]
            _run(command, seconds=_SECONDS, what=f"Paddle Lite's opt (for {target})", folder=work)
            if not made.is_file() or not made.stat().st_size:
                raise ExportError(f"Paddle Lite's opt wrote no file for {target}.")
            made.write_bytes(compact_nb(made.read_bytes()))
            shutil.copyfile(made, partial)
        return path

    def run(self, path: Path, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of an x86 ``.nb`` file.

        Args:
            path: Path of the file, of a float network: the x86 kernels for int8 are faulty.
            inputs: Inputs, one array each.

        Raises:
            ExportError: The file could not be run.
        """
        if self.python is None:
            raise ExportError("a binary opt cannot run files: give the Python that has paddlelite")
        with tempfile.TemporaryDirectory() as work:
            given, found = Path(work, "inputs.npz"), Path(work, "outputs.npz")
            np.savez(given, **{f"x{number}": value for number, value in enumerate(inputs)})
            command = [
                self.python,
                "-I",
                "-W",
                "ignore",
                str(_WORKER),
                "run",
                str(path.absolute()),
                str(given),
                str(found),
            ]
            _run(command, seconds=_RUN_SECONDS, what=f"Paddle Lite, running {path.name},", folder=work)
            with np.load(found) as outputs:
                return [outputs[f"y{number}"] for number in range(len(outputs.files))]


def find_opt(given: str | Path | None = None) -> LiteTool:
    """Find Paddle Lite's ``opt``.

    Searched in this order: ``given``, the variable ``PADDLE_LITE_OPT``, this Python, ``paddle_lite_opt`` on ``PATH``.

    Args:
        given: Path of a Python with ``paddlelite``, of its script ``paddle_lite_opt``, or of an ``opt`` binary.

    Raises:
        MissingDependencyError: It was not found or does not start; the message says what to install.
    """
    named = os.fspath(given) if given is not None else os.environ.get(OPT_VARIABLE)
    if named:
        return _tool_at(named, "opt" if given is not None else OPT_VARIABLE)
    if importlib.util.find_spec("paddlelite") is not None:
        return _tool_of_python(sys.executable, f"the Python that runs ({sys.executable})")
    if (script := shutil.which("paddle_lite_opt")) is not None:
        return _tool_at(script, "paddle_lite_opt on the path")
    raise MissingDependencyError(f"Files for Paddle Lite (.nb) need its opt, which is not installed. {_REMEDY}")


def _tool_at(named: str, whence: str) -> LiteTool:
    path = shutil.which(os.path.expanduser(named))  # noqa: PTH111 (a name on the path stays one)
    if path is None:
        raise MissingDependencyError(f"{whence} names {named!r}, which is not executable. {_REMEDY}")
    if Path(path).name.startswith("python"):
        return _tool_of_python(path, f"{whence} ({named})")
    with Path(path).open("rb") as file:
        first = file.readline(500)
    if first.startswith(b"#!") and b"python" in first:
        return _tool_of_python(first[2:].decode(errors="replace").split()[0], f"{whence} ({named})")
    return LiteTool(binary=path)


@functools.cache  # starting it takes a second, and each file asks
def _tool_of_python(python: str, whence: str) -> LiteTool:
    try:
        done = _child([python, "-I", "-W", "ignore", str(_WORKER), "version"], seconds=_RUN_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependencyError(f"{whence} does not start: {error}. {_REMEDY}") from error
    if done.returncode:
        raise MissingDependencyError(f"{whence} has no Paddle Lite that works: {last_words(done)}. {_REMEDY}")
    return LiteTool(python=python, version=done.stdout.strip())


def _run(command: Sequence[str], *, seconds: float, what: str, folder: str) -> None:
    try:
        done = _child(command, seconds=seconds, folder=folder)
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{what} did not finish in {seconds:.0f} s.") from error
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "Check failed" in line or "Error" in line]
        said = " ".join(told[-1].split())[-300:] if told else last_words(done)
        raise ExportError(f"{what} failed: {said}")


def _child(command: Sequence[str], *, seconds: float, folder: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder``, without the environment variables of this Python."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return run_command(command, seconds=seconds, folder=folder, environment=environment)
