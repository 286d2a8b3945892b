"""Export to Paddle's inference program and to ONNX; a finished export is never harmed by a failing one."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.deploy.hooks import copy_with_hooks, forget_results_
from paddlelite_callbacks.deploy.interpolation import readable_by_converter
from paddlelite_callbacks.deploy.lean import make_program_lean, name_outputs, number_parameters
from paddlelite_callbacks.deploy.signature import has_plain_signature, named_specs, plain_signature_
from paddlelite_callbacks.deploy.traces import clean_trace
from paddlelite_callbacks.errors import require_installed
from paddlelite_callbacks.export.legacy_program import legacy_program, write_legacy_program
from paddlelite_callbacks.export.pir_program import read_pir_program
from paddlelite_callbacks.export.separate_parameters import as_pair
from paddlelite_callbacks.files import staged_file, staged_folder
from paddlelite_callbacks.surgery import copy_network, restored
from paddlelite_callbacks.utils.child_process import run_module
from paddlelite_callbacks.utils.folder_names import without_folder

__all__ = [
    "Artefact",
    "ExportError",
    "copy_network",
    "export_onnx",
    "export_paddle",
    "export_pdmodel",
    "flat_outputs",
    "output_names",
    "refuse_older_programs",
    "staged_folder",
]

_log = logging.getLogger(__name__)

_ONNX_SECONDS = 600
_HIDDEN = re.compile(r"\b(tmp|paddlelite_traces_)[a-z0-9_]{8}[/\\\\]")  # of folders that the child made in ours
_NOT_CLEANED = "clean"  # of `clean_onnx`
_UNUSED = "is not involved in the target_vars"  # Paddle's words


class ExportError(RuntimeError):
    """A network could not be exported, or the exported file does not compute what the network does."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One exported form of a network.

    Args:
        kind: ``"paddle"`` (program and parameters), ``"onnx"``, or ``"pdmodel"`` (Paddle 2's format of the former).
        path: the file an engine is pointed at: Paddle's program, or the ``.onnx`` file.
        files: all files that belong to it.
        precision: ``"fp32"``, or ``"int8"`` for int8 weights.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    precision: str = "fp32"

    @property
    def size_mb(self) -> float:
        """Sum of the files in MB (1e6 bytes), as the gate counts: parameters and program."""
        return sum(file.stat().st_size for file in self.files) / 1e6

    def sha256(self) -> dict[str, str]:
        """Return the checksum of each file by its path in the folder of ``path``."""
        sums = {}
        for file in self.files:
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
            sums[file.relative_to(self.path.parent).as_posix()] = digest.hexdigest()
        return sums

    def moved_to(self, folder: Path) -> Artefact:
        """Return the same artefact with its files in ``folder``."""
        return Artefact(
            kind=self.kind,
            path=folder / self.path.name,
            files=tuple(folder / file.relative_to(self.path.parent) for file in self.files),
            precision=self.precision,
        )


def export_paddle(
    network: Layer,
    folder: Path,
    *,
    input_spec: Sequence[InputSpec],
    precision: str = "fp32",
    name: str = "model",
    in_place: bool = False,
) -> Artefact:
    """Write ``<name>.json`` and ``<name>.pdiparams`` with ``paddle.jit.save`` into ``folder``.

    The program is Paddle 3's own format (PIR), for inference alone, see `make_program_lean`. ``paddle.jit`` changes
    what it is given, so it is given a copy. Write into a `staged_folder` where an older export stands.

    Args:
        network: any mode; not changed.
        folder: made if missing.
        input_spec: one per input; ``None`` for sizes that vary.
        precision: noted in the artefact.
        name: of the files.
        in_place: whether ``network`` itself is traced, hooks included, and then given back as it was: a copy of
            `copy_with_hooks`, for which another one would take as much memory again. Otherwise, of the forward hooks,
            only those of ``weight_norm`` and ``spectral_norm`` belong to what is exported.

    Raises:
        ExportError: ``forward`` cannot be turned into a program, with Paddle's reason, or the disk is full.
    """
    refuse_older_programs()
    folder.mkdir(parents=True, exist_ok=True)
    input_spec = named_specs(network, input_spec)
    names: list[str] = []
    try:
        with warnings.catch_warnings(), clean_trace():  # paddle.jit changes filters
            duplicate = network if in_place else copy_with_hooks(network, ())
            with restored(duplicate):
                forget_results_(duplicate)
                _name_by_place(duplicate)
                if not has_plain_signature(duplicate, len(input_spec)):
                    plain_signature_(duplicate, len(input_spec))
                duplicate.register_forward_post_hook(_noting_names(names))
                paddle.jit.save(duplicate, str(folder / name), input_spec=list(input_spec))
    except Exception as error:
        reason = " ".join(str(error).split())[-400:]
        if _UNUSED in reason:
            reason = "forward() does not use one of them in eval mode: leave that one out"
        shapes = [list(spec.shape) for spec in paddle.utils.flatten(list(input_spec))]
        raise ExportError(
            f"{type(network).__name__} cannot be exported with inputs {shapes}: {type(error).__name__}: {reason}"
        ) from error
    program, parameters = folder / f"{name}.json", folder / f"{name}.pdiparams"
    missing = [file.name for file in (program, parameters) if not file.is_file()]
    if missing:
        raise ExportError(
            f"paddle.jit.save wrote no {missing}: the program of {type(network).__name__} uses none of its parameters. "
            "Does forward() leave Paddle's operations (numpy(), Python numbers), so that its result became a constant?"
        )
    try:
        make_program_lean(program)
        name_outputs(program, _unlike(names, input_spec))
    except ValueError as error:  # paddle.jit.save says nothing of a full disk
        free = shutil.disk_usage(folder).free / 1e6
        raise ExportError(
            f"{program} was written in part only ({error}); {free:.1f} MB are free there: is the disk full?"
        ) from error
    return Artefact(kind="paddle", path=program, files=(program, parameters), precision=precision)


def export_pdmodel(program: Artefact) -> Artefact:
    """Write ``model.pdmodel`` beside ``model.json``; both share ``model.pdiparams``.

    Args:
        program: of `export_paddle`; its parameters get short names.

    Raises:
        UnknownOperatorError: an operator has no form in Paddle 2.
        OSError: the disk is full.
    """
    legacy_program(read_pir_program(program.path))  # as long as the parameters have the names of layers
    number_parameters(program.path)
    files = write_legacy_program(program.path, program.path.with_suffix(""))
    return Artefact(kind="pdmodel", path=files[0], files=files, precision=program.precision)


def refuse_older_programs() -> None:
    """Refuse a process in which Paddle is told to write the programs of Paddle 2.

    Raises:
        ExportError: says what to unset.
    """
    if not paddle.get_flags("FLAGS_enable_pir_api")["FLAGS_enable_pir_api"]:
        raise ExportError(
            "FLAGS_enable_pir_api=0 lets Paddle write programs of the older form (.pdmodel), which many of Paddle 3's "
            "operations no longer support and this export does not read: run without this variable."
        )


def _name_by_place(network: Layer) -> None:
    """Call every tensor of ``network``, a copy, as ``state_dict`` does: the same weights give the same bytes.

    Paddle numbers the names of tensors through the life of the process.
    """
    named: set[int] = set()
    for name, layer in network.named_sublayers(include_self=True):
        for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None and id(tensor) not in named:  # a shared weight has its first name
                named.add(id(tensor))
                tensor.name = f"{name}.{key}" if name else key


def output_names(output: Any) -> list[str]:
    """Return a name for each tensor of `flat_outputs`: its keys joined by dots, or ``output_0``, ``output_1``, ...

    Args:
        output: what a network gives, of tensors or of anything in their place.
    """
    return [name if keyed else f"output_{i}" for i, (name, keyed) in enumerate(_named_parts(output, ""))]


def _named_parts(output: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Yield the path to each tensor of ``output``, and whether it has a key."""
    keys: list[Any] = []
    if isinstance(output, dict):
        keys, output = sorted(output), [output[key] for key in sorted(output)]
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        keys = list(output._fields)
    if not isinstance(output, (list, tuple)):
        yield path, bool(path)
        return
    for number, part in enumerate(output):
        if keys or path:
            yield from _named_parts(part, f"{path}.{keys[number] if keys else number}".lstrip("."))
        else:
            yield from _named_parts(part, "")


def _noting_names(names: list[str]) -> Callable[..., None]:
    """Return a forward hook that puts the names of the outputs into ``names``."""

    @paddle.jit.not_to_static
    def note(layer: Layer, inputs: Any, output: Any) -> None:
        names[:] = output_names(output)

    return note


def _unlike(names: Sequence[str], input_spec: Sequence[InputSpec]) -> list[str]:
    """Return ``names`` of outputs without those of inputs, and without two alike: a file could not hold them."""
    taken = {spec.name for spec in paddle.utils.flatten(list(input_spec))}
    unique = []
    for name in names:
        while name in taken:
            name = f"{name}_out"
        taken.add(name)
        unique.append(name)
    return unique


def flat_outputs(output: Any) -> list[Tensor]:
    """Return the tensors of a network's output as ``paddle.jit.save`` orders them: dictionaries by their sorted keys.

    Args:
        output: a tensor, or lists, tuples and dictionaries of them.

    Raises:
        ExportError: there is something else in it.
    """
    if isinstance(output, dict):
        output = [output[key] for key in sorted(output)]
    if isinstance(output, (list, tuple)):
        return [item for part in output for item in flat_outputs(part)]
    if not isinstance(output, Tensor):
        raise ExportError(
            f"The network's output holds a {type(output).__name__}: in eval mode forward() must give tensors, or "
            "lists, tuples and dictionaries of them."
        )
    return [output]


def export_onnx(program: Artefact, path: Path, *, opset: int = 17, clean: bool | None = None) -> Artefact:
    """Convert a Paddle program to ONNX, in a child process since the converter can abort its own.

    Names of inputs and outputs are those of the program; the producer is this package.

    Args:
        program: of kind ``"paddle"``.
        path: of the ``.onnx`` file; appears only when whole.
        opset: of ONNX.
        clean: whether to leave out the nodes that no engine needs, see `clean_onnx`; ``None`` does so with float
            programs. In one with int8 weights it would fold these into float ones.

    Raises:
        MissingDependencyError: the converter is not installed.
        ExportError: the converter failed or died; carries the end of what it said.
        OSError: the disk is full.
    """
    require_installed("paddle2onnx", needed_for="ONNX export")
    with staged_file(path) as partial, tempfile.TemporaryDirectory() as work, as_pair(program.files) as pair:
        files = [readable_by_converter(pair[0], Path(work)), *pair[1:]]
        wanted = program.precision == "fp32" if clean is None else clean
        arguments = [*(str(file.absolute()) for file in files), str(partial.absolute()), str(opset)]
        arguments.append("yes" if wanted else "no")
        try:
            done = run_module(
                "deploy.onnx_child",
                *arguments,
                seconds=_ONNX_SECONDS,
                environment={"TMPDIR": str(Path(work).resolve())},
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"paddle2onnx did not finish {program.path.name} in {_ONNX_SECONDS} s.") from error
        if done.returncode != 0 or not partial.is_file():
            if shutil.disk_usage(path.parent).free < program.size_mb * 1e6:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))  # no fault of the network's
            said = _telling(done.stdout, done.stderr)
            said = _HIDDEN.sub("", without_folder(without_folder(said, partial.parent), work))
            said = said.replace(partial.name, path.name)
            raise ExportError(f"paddle2onnx ended with {done.returncode} on {program.path.name}: {said}")
        for line in done.stderr.splitlines():
            if _NOT_CLEANED in line:
                _log.warning("%s: %s", path.name, line)
    return Artefact(kind="onnx", path=path, files=(path,), precision=program.precision)


def _telling(stdout: str, stderr: str) -> str:
    """Return what the converter said of operators that it cannot convert, or else the end of its error output."""
    lines = [line.replace("[Paddle2ONNX]", "").strip() for line in f"{stdout}\n{stderr}".splitlines()]
    named = [line for line in lines if line.startswith("[ERROR]") and "unsupported features" not in line]
    if named:
        return " ".join(dict.fromkeys(named))[:300] + " Write this operation otherwise, in operators that it knows."
    return " ".join((stderr or stdout).split())[-300:]
