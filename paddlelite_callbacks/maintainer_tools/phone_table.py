"""Check catalogue networks in phone engines, and write a table of results.

``python -m paddlelite_callbacks.maintainer_tools.phone_table RESULTS.jsonl [NAME ...] --root FOLDER`` adds one line per
network (networks in the file are skipped); without names it only writes ``table.md`` beside the results. Weights are
random, batch-norm statistics come from the inputs, int8 is post-training (`ptq_int8`, ``activation_symmetric``): the
results show how engines compute the files, not accuracy. ``--size`` takes smaller inputs, for networks that run for
hours in the emulator. ``PADDLE_2_PYTHON`` names a Python with paddlepaddle 2.6.2.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.static import InputSpec

from paddlelite_callbacks.backbone.registry import build
from paddlelite_callbacks.benchmark.engines import native_file
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.eval_copy import eval_outputs
from paddlelite_callbacks.export.lite import LiteOptions, find_opt
from paddlelite_callbacks.export.variants import Reference, Variants, export_forms
from paddlelite_callbacks.maintainer_tools.arm_emulator import ArmEmulator, build_arm_root
from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_
from paddlelite_callbacks.quant.ptq import ptq_int8
from paddlelite_callbacks.utils.error_text import reason

__all__ = ["main", "measure", "table"]

_SIZE, _ROWS, _CALIBRATION = 224, 1, 8
_SECONDS = 7200
_SIZES = {
    ".pdmodel pair": ("pdmodel", "fp32"),
    ".nb fp32": ("lite-arm", "fp32"),
    ".nb int8": ("lite-arm", "int8"),
    "ONNX fp32": ("onnx", "fp32"),
    "ONNX int8": ("onnx", "int8"),
}
_CHECKS = {  # column heading -> key of ``engines``
    "Paddle 2.6.2": "paddle2",
    "Lite x86": "lite-x86",
    "ORT ARM fp32": "arm-onnxruntime-fp32",
    "ORT ARM int8": "arm-onnxruntime-int8",
    "MNN ARM": "arm-mnn-fp32",
    "ncnn ARM": "arm-ncnn-fp32",
}
_COUNTS = ("arm-onnxruntime-fp32", "arm-onnxruntime-int8", "arm-mnn-fp32", "arm-ncnn-fp32")


def measure(name: str, folder: Path, emulator: ArmEmulator, *, size: int = _SIZE) -> dict[str, Any]:
    """Export a network in float and int8 and check it in each phone engine.

    Args:
        name: Name of a catalogue network.
        folder: Empty folder for the files.
        emulator: Result of `build_arm_root`.
        size: Height and width of the inputs, in pixels.

    Returns:
        Sizes in MB; for each engine ``off`` (largest difference relative to the largest output) and ``passed``, or
        ``error``; on ARM also ``instructions_m``, instructions per call in millions.
    """
    paddle.seed(0)
    network, images = build(name), paddle.rand([_CALIBRATION, 3, size, size])
    settle_(network, images[:2])
    network.eval()
    quantised = ptq_int8(network, [images], activation_symmetric=True)
    given = [images[:_ROWS].numpy()]
    spec = [InputSpec([None, 3, size, size], name="x")]
    lite = LiteOptions(targets=["arm", "x86"])
    files: dict[tuple[str, str], Artefact] = {}
    errors: dict[str, str] = {}
    for place, one in (("float", network), ("int8", quantised)):
        (folder / place).mkdir()
        forms = export_forms(one, folder / place, input_spec=spec, pdmodel=True, lite=lite, sample=given)
        errors.update({f"{kind} {precision}": why for (kind, precision), why in forms.errors.items()})
        for artefact in forms.artefacts:
            if place == "float" or artefact.precision == "int8":
                files[artefact.kind, artefact.precision] = artefact
    expected = {"fp32": Reference(eval_outputs(network, [paddle.to_tensor(item) for item in given]))}
    tensors = [paddle.to_tensor(item) for item in given]
    expected["int8"] = Variants.of(quantised, tensors).references["int8"]
    runs = _runs(files, given, emulator, folder)
    found = {key: _compared(run, expected[key.rpartition("-")[2] if "int8" in key else "fp32"]) for key, run in runs}
    return {
        "name": name,
        "size": size,
        "size_mb": {heading: files[key].size_mb for heading, key in _SIZES.items() if key in files},
        "engines": found,
        "errors": errors,
        "machine": {"qemu": emulator.version, "cpu": "cortex-a76"},
    }


def _runs(
    files: Mapping[tuple[str, str], Artefact], given: Sequence[np.ndarray], emulator: ArmEmulator, folder: Path
) -> list[tuple[str, Callable[[], tuple[list[np.ndarray], float | None]]]]:
    def on_arm(engine: str, precision: str) -> tuple[list[np.ndarray], float | None]:
        artefact = files["onnx", precision]
        own = artefact if engine == "onnxruntime" else native_file(engine, artefact)
        done = emulator.run(engine, own.files, given, count=True)
        return done.outputs, done.instructions_m

    return [
        ("paddle2", lambda: (_in_paddle_2(files["pdmodel", "fp32"], given, folder), None)),
        ("lite-x86", lambda: (find_opt().run(files["lite-x86", "fp32"].path, given), None)),
        ("arm-onnxruntime-fp32", lambda: on_arm("onnxruntime", "fp32")),
        ("arm-onnxruntime-int8", lambda: on_arm("onnxruntime", "int8")),
        ("arm-mnn-fp32", lambda: on_arm("mnn", "fp32")),
        ("arm-ncnn-fp32", lambda: on_arm("ncnn", "fp32")),
    ]


def _compared(run: Callable[[], tuple[list[np.ndarray], float | None]], reference: Reference) -> dict[str, Any]:
    try:
        got, count = run()
    except KeyError as error:
        return {"error": f"no such file: {error}"}
    except Exception as error:
        return {"error": reason(error)}
    check = compare_outputs(
        reference.outputs, got, engine="", noise=reference.noise, middle=reference.middle, flips=reference.flips
    )
    if check.max_abs_diff is None:
        return {"error": check.error}
    found = {"off": check.max_abs_diff / max(check.largest or 0.0, 1e-12), "passed": check.passed}
    return found if count is None else {**found, "instructions_m": count}


_PADDLE_2 = """
import sys
import numpy as np
import paddle.inference as inference
program, parameters, given, got = sys.argv[1:]
config = inference.Config(program, parameters)
config.disable_glog_info()
config.set_cpu_math_library_num_threads(1)
predictor = inference.create_predictor(config)
stored = np.load(given)
for name, key in zip(predictor.get_input_names(), stored.files):
    predictor.get_input_handle(name).copy_from_cpu(stored[key])
predictor.run()
np.savez(got, *[predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()])
"""


def _in_paddle_2(artefact: Artefact, given: Sequence[np.ndarray], folder: Path) -> list[np.ndarray]:
    python = os.environ.get("PADDLE_2_PYTHON")
    if not python:
        raise RuntimeError("PADDLE_2_PYTHON names no Python with paddlepaddle 2.6.2")
    inputs, outputs = folder / "inputs.npz", folder / "outputs.npz"
    np.savez(inputs, *given)
    command = [python, "-c", _PADDLE_2, *map(str, (*artefact.files, inputs, outputs))]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean, timeout=_SECONDS)
    if done.returncode or not outputs.is_file():
        raise RuntimeError(f"Paddle 2.6.2 ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    with np.load(outputs) as stored:
        return [stored[key] for key in stored.files]


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of sizes, differences and instructions per call.

    Args:
        lines: Results of `measure`.
    """
    heads = ["network", *(f"{name}, MB" for name in _SIZES), *_CHECKS, "M instructions: ORT fp32, int8, MNN, ncnn"]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for line in lines:
        sizes = [f"{line['size_mb'][name]:.2f}" if name in line["size_mb"] else "no file" for name in _SIZES]
        checks = [_shown(line["engines"].get(key, {"error": "not run"})) for key in _CHECKS.values()]
        counts = [line["engines"].get(key, {}).get("instructions_m") for key in _COUNTS]
        shown = ", ".join("-" if count is None else f"{count:.0f}" for count in counts)
        size = line.get("size", _SIZE)
        name = line["name"] if size == _SIZE else f"{line['name']}, {size}x{size}"
        rows.append(f"| {name} | {' | '.join([*sizes, *checks, shown])} |")
    return "\n".join(rows) + "\n"


def _shown(found: Mapping[str, Any]) -> str:
    if "off" not in found:
        crashed = any(words in str(found.get("error")) for words in ("crashed", "uncaught target signal"))
        return "crashes" if crashed else "not run"
    return f"{found['off']:.1e}" if found["passed"] else f"differs, {found['off']:.1e}"


def _child(name: str, folder: str, root: str, size: int, sender: Any) -> None:
    try:
        sender.send(measure(name, Path(folder), build_arm_root(Path(root)), size=size))
    except Exception as error:
        sender.send({"name": name, "error": reason(error)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the named networks, each in a separate process; then write the table.

    Args:
        arguments: Command-line arguments without the program's name; ``None`` for ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--root", type=Path, default=Path("arm_root"), help="folder of the emulator; built if missing")
    parser.add_argument("--size", type=int, default=_SIZE, help=f"height and width of the inputs (default {_SIZE})")
    options = parser.parse_args(arguments)
    known = {line["name"] for line in _lines(options.results)}
    context = multiprocessing.get_context("spawn")
    build_arm_root(options.root)
    for name in (name for name in options.names if name not in known):
        with tempfile.TemporaryDirectory() as folder:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(name, folder, str(options.root), options.size, sender))
            process.start()
            sender.close()
            try:
                found = receiver.recv() if receiver.poll(_SECONDS) else {"name": name, "error": "took too long"}
            except EOFError:
                found = {"name": name, "error": "the process died"}
            process.kill()
            process.join()
        sys.stdout.write(json.dumps(found) + "\n")
        if "error" not in found:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    if lines := _lines(options.results):
        options.results.with_name("table.md").write_text(table(lines), encoding="utf-8")
    return 0


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
