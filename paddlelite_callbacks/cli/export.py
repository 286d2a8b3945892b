"""Command ``export MODEL OUT``: convert a Paddle program to ONNX and check it."""

from __future__ import annotations

import argparse
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlelite_callbacks.cli.output import write_json, write_text

if TYPE_CHECKING:
    from paddlelite_callbacks.export.artefact import Artefact

__all__ = ["add_arguments", "run"]

_INT8 = 21  # number of int8 in Paddle's VarType


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: Parser of the command.
    """
    parser.description = (
        "Write a Paddle inference program (inference.pdmodel or .json with .pdiparams; its file, prefix or folder) as "
        "ONNX, in Paddle 2's format or for Paddle Lite, and compare the two on random inputs. A checkpoint (.pdparams) "
        "holds no network and cannot be converted: load it into its network and call paddle.jit.save first."
    )
    parser.add_argument("model", help="a Paddle program, its prefix or its folder")
    parser.add_argument("out", help="folder for the files (with deploy.json); must hold nothing else")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME:]1x3x224x224[:TYPE]",
        help="sizes for the check, for inputs with dynamic sizes",
    )
    parser.add_argument(
        "--fp16", action="store_true", help="also write model.fp16.onnx: half the size, fp32 arithmetic"
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        type=str.lower,
        choices=["onnx", "pdmodel", "lite"],
        default=["onnx"],
        help="what to write: onnx (default), pdmodel (model.pdmodel + model.pdiparams, for Paddle 2 and "
        "other tools), lite (Paddle Lite's model.arm.nb)",
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        type=str.lower,
        choices=["arm", "x86"],
        default=["arm"],
        help="targets of the files for Paddle Lite: arm (default), x86 (only float networks)",
    )
    parser.add_argument(
        "--opt",
        metavar="PATH",
        help="Paddle Lite's opt: a Python with paddlelite, or a binary (default: the variable PADDLE_LITE_OPT, this "
        "Python's, or paddle_lite_opt on PATH)",
    )
    parser.add_argument("--opset", type=int, default=17, help="ONNX opset version (default: 17)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(options: argparse.Namespace) -> int:
    """Convert, check, then move the files into place.

    Args:
        options: Parsed arguments.

    Raises:
        ValueError: The model is ONNX already, or the target is a file or holds other files.
        ExportError: The outputs of a written file differ from the program's.
    """
    from paddle.static import InputSpec

    from paddlelite_callbacks.benchmark.verdicts import file_verdicts
    from paddlelite_callbacks.errors import ExportError
    from paddlelite_callbacks.export.artefact import Artefact
    from paddlelite_callbacks.export.compare import LITE_CHECKS, compare_outputs
    from paddlelite_callbacks.export.fp16 import write_fp16_onnx
    from paddlelite_callbacks.export.legacy_program import write_legacy_program
    from paddlelite_callbacks.export.lite import LITE_TARGETS, LiteOptions, find_opt
    from paddlelite_callbacks.export.metadata import (
        SIDECAR,
        checked_sidecar_options,
        described_outputs,
        write_sidecar,
    )
    from paddlelite_callbacks.export.model_files import (
        complete_inputs,
        find_model,
        input_shapes,
        parse_input,
        random_inputs,
    )
    from paddlelite_callbacks.export.onnx_export import export_onnx
    from paddlelite_callbacks.export.variants import LITE_PROGRAMS, write_lite
    from paddlelite_callbacks.utils.atomic_files import staged_folder
    from paddlelite_callbacks.utils.isolation import hushed_stdout
    from paddlelite_callbacks.utils.parameters_file import stored_tensors

    target = Path(options.out)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: give a folder.")
    ours = {"model.onnx", "model.fp16.onnx", "model.pdmodel", "model.pdiparams", SIDECAR}
    ours |= {f"model{precision}.{target}.nb" for precision in ("", ".int8") for target in LITE_TARGETS}
    if target.is_dir() and (other := sorted(item.name for item in target.iterdir() if item.name not in ours)):
        raise ValueError(
            f"{target} holds other files ({', '.join(other[:3])}), which deploy.json would not list: give a new folder."
        )
    specs = [parse_input(text) for text in options.input]
    if Path(options.model).suffix.lower() == ".onnx":
        raise ValueError(f"{options.model} is ONNX already; export converts Paddle programs: use the file as it is.")
    source = find_model(options.model)
    if source.kind != "paddle":
        raise ValueError(f"{source.path} is ONNX already; export converts Paddle programs: use the file as it is.")
    if options.fp16 and "onnx" not in options.forms:
        raise ValueError(f"--fp16 writes ONNX, but --forms names only {options.forms}: add onnx to it.")
    with suppress(ValueError):  # parameters in another format are left to Paddle
        if any(kind == _INT8 for file in source.files[1:] for kind, _ in stored_tensors(file)):
            source = replace(source, precision="int8")  # even without a deploy.json that says so
    tool = find_opt(options.opt) if "lite" in options.forms else None
    if tool is not None and source.precision == "int8" and "x86" in options.targets:
        raise ValueError(
            f"{source.path} is quantised, and Paddle Lite's int8 kernels for x86 are faulty: --targets arm."
        )
    if "pdmodel" in options.forms and source.path.suffix != ".json":
        raise ValueError(f"{source.path} is in Paddle 2's format already: use the file as it is.")
    inputs = random_inputs(source, complete_inputs(source, specs))
    judges = {"pdmodel": "paddle", **({"onnx": _installed_engine()} if "onnx" in options.forms else {})}
    with hushed_stdout():
        expected = _answers(source, "paddle", inputs)
    with staged_folder(target, dropped=sorted(ours)) as stage:
        files, told = [], []
        if "onnx" in options.forms:
            files.append(export_onnx(source, stage / "model.onnx", opset=options.opset))
        if options.fp16:
            files.append(write_fp16_onnx(files[0], stage / "model.fp16.onnx"))
        if "pdmodel" in options.forms:
            pair = write_legacy_program(source.path, stage / "model")
            files.append(Artefact(kind="pdmodel", path=pair[0], files=pair, precision=source.precision))
        if tool is not None:
            files += write_lite(source, stage, LiteOptions(targets=options.targets, opt=options.opt))
        checks = []
        for file in files:
            judge = LITE_CHECKS.get(file.kind) or judges[file.kind]
            coarse = file.precision == "fp16" or (file.kind in LITE_CHECKS and file.precision == "int8")
            atol, rtol = (5e-5, 5e-2) if coarse else (1e-4, 1e-3)
            unverified = None
            if file.kind == "lite-x86" and tool is not None and tool.python is not None:
                got = tool.run(file.path, inputs)
            elif file.program:
                unverified = "Paddle Lite runs it on ARM alone" if file.kind == "lite-arm" else "a binary cannot run it"
                program = replace(file, kind="pdmodel", path=file.program[0], files=file.program)
                got = _answers(program, "paddle", inputs)
            else:
                got = _answers(file, judge, inputs)
            check = compare_outputs(expected, got, engine=judge, precision=file.precision, atol=atol, rtol=rtol)
            check = replace(check, unverified=unverified)
            checks.append(check)
            if not check.passed:
                found = check.error or f"by {check.max_abs_diff:.3g}, allowed {check.tolerance:.3g}"
                raise ExportError(f"{file.path.name} differs from the program on {judge}: {found}.")
            told.append(
                {
                    "path": str(target / file.path.name),
                    "kind": file.kind,
                    "precision": file.precision,
                    "size_mb": file.size_mb,
                    "engine": judge,
                    "max_abs_diff": check.max_abs_diff,
                    "tolerance": check.tolerance,
                    "verdict": check.verdict,
                }
            )
        shutil.rmtree(stage / LITE_PROGRAMS, ignore_errors=True)
        shapes = input_shapes(next((file for file in files if file.kind not in LITE_CHECKS), source))
        described = [
            {"name": name, "shape": [None if size < 0 else size for size in shape], "dtype": str(a.dtype)}
            for (name, shape), a in zip(shapes.items(), inputs, strict=True)
        ]
        outputs = described_outputs(files, expected, [InputSpec(shape) for shape in shapes.values()])
        write_sidecar(
            stage,
            files,
            inputs=described,
            outputs=outputs,
            options=checked_sidecar_options(None),
            verdicts=file_verdicts([check for check in checks if check.unverified is not None], []),
        )
    if options.json:
        write_json({"files": told})
    else:
        write_text("".join(map(_line, told)))
    return 0


def _line(file: dict[str, Any]) -> str:
    said = f"; {file['verdict']}" if file["verdict"] != "agrees" else ""
    return f"{file['path']}: {file['size_mb']:.2f} MB, largest difference {file['max_abs_diff']:.3g}{said}\n"


def _answers(artefact: Artefact, engine: str, inputs: list) -> list:
    from paddlelite_callbacks.benchmark.crash_probe import crash_of
    from paddlelite_callbacks.benchmark.engines import ENGINES, EngineError

    if (why := crash_of(engine, artefact, inputs)) is not None:
        raise EngineError(f"{why}.")
    return ENGINES[engine].load(artefact, threads=1)(inputs)


def _installed_engine() -> str:
    """Return the first installed engine for ONNX files."""
    from paddlelite_callbacks.benchmark.engines import DEFAULT_ENGINES, missing_reason
    from paddlelite_callbacks.errors import MissingDependencyError

    engines = [engine for engine in DEFAULT_ENGINES.values() if engine.kind == "onnx"]
    why = [missing_reason(engine) for engine in engines]
    if None not in why:
        raise MissingDependencyError(f"The check of the file needs an engine: {'; '.join(map(str, why))}.")
    return engines[why.index(None)].name
