"""Export networks as Paddle inference programs."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.hooks import copy_with_hooks, forget_results_
from paddlelite_callbacks.export.legacy_program import legacy_program, write_legacy_program
from paddlelite_callbacks.export.lite_program import prepare_for_lite_
from paddlelite_callbacks.export.pdmodel_qdq import rewrite_program_as_qdq
from paddlelite_callbacks.export.pir_program import read_pir_program
from paddlelite_callbacks.export.program_graph import ProgramGraph
from paddlelite_callbacks.export.signature import has_plain_signature, named_specs, plain_signature_
from paddlelite_callbacks.export.slim_program import make_program_lean, name_outputs, number_parameters
from paddlelite_callbacks.nn.surgery import restored
from paddlelite_callbacks.utils.atomic_files import link_or_copy
from paddlelite_callbacks.workarounds.tracing import clean_trace

__all__ = [
    "check_program_format",
    "export_lite_program",
    "export_paddle",
    "export_pdmodel",
    "export_qdq_pdmodel",
    "output_names",
]


_UNUSED = "is not involved in the target_vars"  # in Paddle's error message


def export_paddle(
    network: Layer,
    folder: Path,
    *,
    input_spec: Sequence[InputSpec],
    precision: str = "fp32",
    name: str = "model",
    in_place: bool = False,
) -> Artefact:
    """Write ``<name>.json`` and ``<name>.pdiparams`` with ``paddle.jit.save``.

    The program is in Paddle 3's own format (PIR), for inference only, see `make_program_lean`. ``paddle.jit`` changes
    the network that it traces, so it gets a copy. Write into a `staged_folder` where an older export must survive a
    failure.

    Args:
        network: Network in any mode; not changed.
        folder: Target folder; created if missing.
        input_spec: One per input; ``None`` for dynamic sizes.
        precision: Precision recorded in the artefact.
        name: File name without suffix.
        in_place: Whether to trace ``network`` itself, hooks included, and restore it afterwards: for a copy of
            `copy_with_hooks`, which would otherwise be copied again. By default only the forward hooks of
            ``weight_norm`` and ``spectral_norm`` are exported.

    Raises:
        ExportError: ``forward`` cannot be traced, with Paddle's reason, or the disk is full.
    """
    check_program_format()
    folder.mkdir(parents=True, exist_ok=True)
    input_spec = named_specs(network, input_spec)
    names: list[str] = []
    try:
        with warnings.catch_warnings(), clean_trace():  # paddle.jit changes warning filters
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
            reason = "forward() does not use one of them in eval mode: leave that input out"
        shapes = [list(spec.shape) for spec in paddle.utils.flatten(list(input_spec))]
        raise ExportError(
            f"{type(network).__name__} cannot be exported with inputs {shapes}: {type(error).__name__}: {reason}"
        ) from error
    program, parameters = folder / f"{name}.json", folder / f"{name}.pdiparams"
    missing = [file.name for file in (program, parameters) if not file.is_file()]
    if missing:
        raise ExportError(
            f"paddle.jit.save wrote no {missing}: the program of {type(network).__name__} uses none of its "
            "parameters. Check whether forward() leaves Paddle's operations (numpy(), Python numbers), which makes "
            "its result a constant."
        )
    try:
        make_program_lean(program)
        name_outputs(program, _unlike(names, input_spec))
    except ValueError as error:  # paddle.jit.save does not report a full disk
        free = shutil.disk_usage(folder).free / 1e6
        raise ExportError(
            f"{program} is truncated ({error}); {free:.1f} MB are free there: check whether the disk is full."
        ) from error
    return Artefact(kind="paddle", path=program, files=(program, parameters), precision=precision)


def export_pdmodel(program: Artefact) -> Artefact:
    """Write ``model.pdmodel`` beside ``model.json``; both share ``model.pdiparams``.

    Args:
        program: Result of `export_paddle`; its parameters get short names.

    Raises:
        UnknownOperatorError: An operator has no equivalent in Paddle 2.
        OSError: The disk is full.
    """
    legacy_program(read_pir_program(program.path))  # errors name layers by their parameters, still with long names
    number_parameters(program.path)
    files = write_legacy_program(program.path, program.path.with_suffix(""))
    return Artefact(kind="pdmodel", path=files[0], files=files, precision=program.precision)


def export_qdq_pdmodel(program: Artefact, target: Path) -> Artefact:
    """Write a quantised program for Paddle 2 with int8 weights.

    See `rewrite_program_as_qdq`.

    Args:
        program: Result of `export_paddle` with the int8 weights of every layer; its parameters get short names.
        target: Path prefix of the two files.

    Raises:
        ExportError: The network was quantised on another grid.
        UnknownOperatorError: An operator has no equivalent in Paddle 2.
        OSError: The disk is full.
    """
    files = _graph_of(program).write(target)
    return Artefact(kind="pdmodel", path=files[0], files=files, precision=program.precision)


def export_lite_program(program: Artefact, target: Path) -> Artefact:
    """Write a program for Paddle Lite's ``opt``, see `prepare_for_lite_`.

    Args:
        program: Result of `export_paddle`, with the int8 weights of every layer if quantised.
        target: Path prefix of the two files.

    Raises:
        ExportError: The network was quantised on another grid.
        UnknownOperatorError: An operator has no equivalent in Paddle 2.
        OSError: The disk is full.
    """
    graph = _graph_of(program)
    prepare_for_lite_(graph)
    target.parent.mkdir(parents=True, exist_ok=True)
    files = graph.write(target)
    return Artefact(kind="pdmodel", path=files[0], files=files, precision=program.precision)


def _graph_of(program: Artefact) -> ProgramGraph:
    """Return a program in Paddle 2's format, with int8 weights and quantizers."""
    with tempfile.TemporaryDirectory() as work:
        files = program.files[0], program.files[-1]
        if program.path.suffix == ".json":
            source = Path(work, "source.json")
            shutil.copyfile(program.path, source)
            link_or_copy(files[1], source.with_suffix(".pdiparams"))
            legacy_program(read_pir_program(source))  # as long as the parameters have the names of layers
            number_parameters(source)
            files = write_legacy_program(source, Path(work, "model"))
        graph = ProgramGraph(*files)
    if program.precision == "int8" and not any(one.type == "quantize_linear" for one in graph.operators):
        rewrite_program_as_qdq(graph)
    return graph


def check_program_format() -> None:
    """Check that Paddle writes programs in Paddle 3's format.

    Raises:
        ExportError: An environment variable selects the older format; names it.
    """
    if not paddle.get_flags("FLAGS_enable_pir_api")["FLAGS_enable_pir_api"]:
        raise ExportError(
            "FLAGS_enable_pir_api=0 makes Paddle write programs in the older format (.pdmodel), which many of "
            "Paddle 3's operations no longer support and this export does not read: run without this variable."
        )


def _name_by_place(network: Layer) -> None:
    """Name the tensors of ``network``, a copy, as ``state_dict`` does.

    Paddle numbers tensor names over the life of a process; with these names equal weights give equal bytes.
    """
    named: set[int] = set()
    for name, layer in network.named_sublayers(include_self=True):
        for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None and id(tensor) not in named:  # a shared weight keeps its first name
                named.add(id(tensor))
                tensor.name = f"{name}.{key}" if name else key


def output_names(output: Any) -> list[str]:
    """Return a name for each tensor of `flat_outputs`.

    Its keys joined by dots, or ``output_0``, ``output_1``, ...

    Args:
        output: Output of a network: a nest of tensors, or of other leaves.
    """
    return [name if keyed else f"output_{i}" for i, (name, keyed) in enumerate(_named_parts(output, ""))]


def _named_parts(output: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Yield the path of each tensor of ``output``, and whether it has a key."""
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
    """Return a forward hook that records the names of the outputs in ``names``."""

    @paddle.jit.not_to_static
    def note(layer: Layer, inputs: Any, output: Any) -> None:
        names[:] = output_names(output)

    return note


def _unlike(names: Sequence[str], input_spec: Sequence[InputSpec]) -> list[str]:
    """Make output names unique, among themselves and against the inputs."""
    taken = {spec.name for spec in paddle.utils.flatten(list(input_spec))}
    unique = []
    for name in names:
        while name in taken:
            name = f"{name}_out"
        taken.add(name)
        unique.append(name)
    return unique
