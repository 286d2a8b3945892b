"""Check the ONNX files of a finished export on an emulated ARM processor.

``python -m paddlelite_callbacks.maintainer_tools.arm_check FOLDER --root ROOT`` runs every ``.onnx`` file in FOLDER, as
``ExportBenchCallback`` or ``export_forms`` left it, and compares it with the trained network: Paddle Inference runs the
folder's own program and ``.pdiparams`` here, without oneDNN. ROOT is the emulator's folder (see `build_arm_root`).
Exit code 1 if a file differs or could not be run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlelite_callbacks.benchmark.engines import PaddleInference, native_file, takes_precision
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import Check, compare_outputs
from paddlelite_callbacks.export.legacy_program import write_legacy_program
from paddlelite_callbacks.export.model_files import (
    complete_inputs,
    declared_inputs,
    find_model,
    parse_input,
    random_inputs,
)
from paddlelite_callbacks.export.program_graph import ProgramGraph
from paddlelite_callbacks.export.variants import Reference
from paddlelite_callbacks.maintainer_tools.arm_emulator import CPU, ArmEmulator, build_arm_root
from paddlelite_callbacks.utils.error_text import reason

__all__ = ["ARM_ENGINES", "ArmCheck", "check_folder", "folder_references", "main"]

ARM_ENGINES = ("onnxruntime", "mnn", "ncnn")
"""Engines of the emulated CPU."""
_ROWS = 4  # from four rows on, the median row is compared as well
_DRAWS = 3
_LAST_BITS = 1.3e-4  # in steps: one part in a million of 127 of them
_FP16 = (5e-5, 5e-2)  # absolute and relative tolerance of half precision, as the command export takes it


@dataclass(frozen=True, kw_only=True)
class ArmCheck:
    """Result of one engine on one file.

    Args:
        file: Name of the file.
        engine: One of `ARM_ENGINES`.
        precision: Precision of the file.
        check: Comparison with the trained network.
        instructions_m: Instructions per call in millions, a proxy for its cost and no latency; ``None`` if not counted.
    """

    file: str
    engine: str
    precision: str
    check: Check
    instructions_m: float | None = None


def folder_references(folder: Path, inputs: Sequence[np.ndarray]) -> dict[str, Reference]:
    """Return the trained network's outputs for each precision.

    They are computed from the program in ``folder``. That of a quantised network rounds activations; without the
    rounding it is the network of ``model.onnx``. The tolerances of int8 files are measured as in `middle_noise` and
    `flip_noise`, in the program.

    Args:
        folder: Folder with a Paddle program.
        inputs: Inputs in the program's order, one array each, ``[N, ...]``.

    Returns:
        References of ``"fp32"`` and, for a quantised network, of ``"int8"``.

    Raises:
        ValueError: There is no Paddle program, or it cannot be read.
    """
    source = find_model(folder)
    if source.kind != "paddle":
        raise ValueError(f"{folder} holds no Paddle program to compare with: give the whole folder of an export.")
    own = _outputs(source.path, source.files, inputs)
    with tempfile.TemporaryDirectory() as work:
        pair = source.files
        if source.path.suffix == ".json":
            pair = write_legacy_program(source.path, Path(work) / "model")
        graph = ProgramGraph(pair[0], pair[1])
        roundings = [operator for operator in graph.operators if operator.type == "round"]
        if not roundings:
            return {"fp32": Reference(own)}
        last_bits = _changes(graph, roundings, inputs, own, Path(work), flips=False)
        flips = _changes(graph, roundings, inputs, own, Path(work), flips=True)
        for operator in roundings:
            graph.redirect(graph.outputs(operator, "Out")[0], graph.inputs(operator, "X")[0])
        graph.remove(roundings)
        plain = graph.write(Path(work) / "plain")
        clipped = _outputs(plain[0], plain, inputs)
    middle = [max(float(np.median(rows)) for rows in draws) for draws in last_bits]
    int8 = Reference(own, [_largest(one) for one in last_bits], middle, [_largest(one) for one in flips])
    return {"fp32": Reference(clipped), "int8": int8}


def check_folder(
    folder: Path,
    emulator: ArmEmulator,
    *,
    inputs: Sequence[np.ndarray] | None = None,
    engines: Sequence[str] = ("onnxruntime",),
    count: bool = False,
) -> list[ArmCheck]:
    """Run an export's ONNX files on the emulated CPU; compare with the network.

    Args:
        folder: Folder of a finished export.
        emulator: Result of `build_arm_root`.
        inputs: Inputs in the program's order, one array each; ``None`` for four random rows.
        engines: Some of `ARM_ENGINES`; MNN and ncnn run only the float file.
        count: Whether to count instructions.

    Returns:
        A result for each file and engine.

    Raises:
        ValueError: No ONNX file or no Paddle program in ``folder``, or an unknown engine.
    """
    if other := sorted(set(engines) - set(ARM_ENGINES)):
        raise ValueError(f"Unknown engines {other}; available: {', '.join(ARM_ENGINES)}.")
    files = [find_model(path) for path in sorted(folder.glob("*.onnx"))]
    if not files:
        raise ValueError(f"{folder} holds no .onnx file: give the folder of an export.")
    source = find_model(folder)
    inputs = _inputs(source) if inputs is None else list(inputs)
    references = folder_references(folder, inputs)
    named = dict(zip(declared_inputs(source), inputs, strict=True))
    found = []
    for artefact in files:
        given = [named[name] for name in declared_inputs(artefact)]
        reference = references.get("int8" if artefact.precision == "int8" else "fp32", references["fp32"])
        for engine in engines:
            if takes_precision(engine, artefact.precision):
                found.append(_checked(artefact, engine, given, reference, emulator, count=count))
    return found


def _checked(
    artefact: Artefact,
    engine: str,
    inputs: Sequence[np.ndarray],
    reference: Reference,
    emulator: ArmEmulator,
    *,
    count: bool,
) -> ArmCheck:
    about: dict[str, Any] = {"file": artefact.path.name, "engine": engine, "precision": artefact.precision}
    try:
        native = native_file(engine, artefact) if engine != "onnxruntime" else artefact
        done = emulator.run(engine, native.files, inputs, count=count)
    except Exception as error:
        return ArmCheck(**about, check=Check(engine=engine, precision=artefact.precision, error=reason(error)))
    atol, rtol = _FP16 if artefact.precision == "fp16" else (1e-4, 1e-3)
    check = compare_outputs(
        reference.outputs,
        done.outputs,
        engine=engine,
        precision=artefact.precision,
        atol=atol,
        rtol=rtol,
        noise=reference.noise,
        middle=reference.middle,
        flips=reference.flips,
    )
    return ArmCheck(**about, check=check, instructions_m=done.instructions_m)


def _inputs(source: Artefact) -> list[np.ndarray]:
    specs = complete_inputs(source, [])
    free = all(shape[0] < 0 for shape, _ in declared_inputs(source).values() if shape)
    return random_inputs(source, specs, rows=_ROWS if free else None)


def _outputs(program: Path, files: Sequence[Path], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    artefact = Artefact(kind="paddle", path=program, files=tuple(files))
    return PaddleInference(onednn=False).load(artefact, threads=1)(inputs)


def _changes(
    graph: ProgramGraph,
    roundings: Sequence[Any],
    inputs: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    work: Path,
    *,
    flips: bool,
) -> list[list[np.ndarray]]:
    """Return the change of each row when what the quantizers round moves.

    One list of draws for each output.

    Args:
        graph: Program; as before afterwards.
        roundings: Its operators ``round``.
        inputs: Inputs of the program.
        expected: Its outputs.
        work: Folder for the changed programs.
        flips: Whether one value a row takes the next step; else all values move in their last bits.
    """
    random, draws = np.random.RandomState(0), []
    for number in range(_DRAWS):
        added = []
        for operator in roundings:
            (name,) = graph.outputs(operator, "Out") if flips else graph.inputs(operator, "X")
            shape, users = graph.shape(name), graph.consumers(name)
            amount = graph.add_parameter(f"{name}.by", _moves([1, *shape[1:]], random, flips=flips))
            moved = graph.add_variable(f"{name}.moved", graph.dtype(name), shape)
            terms = {"X": [name], "Y": [amount]}
            added.append((name, users, graph.insert_before(users[0], "elementwise_add", terms, {"Out": [moved]})))
            for user in users:
                graph.set_input(user, "X", [moved])
        pair = graph.write(work / f"moved{int(flips)}{number}")
        got = _outputs(pair[0], pair, inputs)
        for name, users, add in added:
            for user in users:
                graph.set_input(user, "X", [name])
            graph.remove([add])
        draws.append([_by_row(a, b) for a, b in zip(expected, got, strict=True)])
    return [list(rows) for rows in zip(*draws, strict=True)]


def _moves(shape: Sequence[int], random: np.random.RandomState, *, flips: bool) -> np.ndarray:
    """Return what to add to a tensor in units of steps; no flip with dynamic sizes."""
    sizes = [max(size, 1) for size in shape]
    if not flips:
        return random.uniform(-_LAST_BITS, _LAST_BITS, sizes).astype("float32")
    moves = np.zeros(sizes, "float32")
    if min(shape) > 0:
        moves.flat[random.randint(moves.size)] = random.choice([-1.0, 1.0])
    return moves


def _by_row(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    change = np.abs(expected - got)
    return change.reshape(len(change), -1).max(axis=1) if change.ndim else change.reshape(1)


def _largest(draws: Sequence[np.ndarray]) -> float:
    return max(float(rows.max(initial=0.0)) for rows in draws)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a folder and print a line for each file and engine.

    Args:
        arguments: Command-line arguments without the program's name; ``None`` for ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, default=Path("arm_root"), help="folder of the emulator; built if missing")
    parser.add_argument("--input", action="append", default=[], metavar="[NAME:]1x3x224x224[:TYPE]")
    parser.add_argument("--engines", nargs="+", choices=ARM_ENGINES, default=["onnxruntime"])
    parser.add_argument("--count", action="store_true", help="count instructions: a proxy for cost, no time")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args(arguments)
    inputs = None
    if options.input:
        source = find_model(options.folder)
        inputs = random_inputs(source, complete_inputs(source, [parse_input(text) for text in options.input]))
    emulator = build_arm_root(options.root)
    found = check_folder(options.folder, emulator, inputs=inputs, engines=options.engines, count=options.count)
    if options.json:
        content = {"cpu": CPU, "emulator": emulator.version, "checks": [asdict(one) for one in found]}
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        sys.stdout.write("".join(map(_line, found)))
    return 0 if all(one.check.passed for one in found) else 1


def _line(found: ArmCheck) -> str:
    check = found.check
    said = f"could not be run: {check.error}" if check.max_abs_diff is None else check.verdict
    off = "" if check.max_abs_diff is None else f", largest difference {check.max_abs_diff:.3g}"
    count = "" if found.instructions_m is None else f", {found.instructions_m:.0f} M instructions a call"
    return f"{found.file} in {found.engine} on an emulated {CPU}: {said}{off}{count}\n"


if __name__ == "__main__":
    sys.exit(main())
