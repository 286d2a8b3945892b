"""Run a file on the emulated CPU, in the child process of `ArmEmulator.run`.

Arguments: ``ENGINE RUNS INPUTS.npz OUTPUTS.npz FILE...``.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from paddlelite_callbacks.benchmark.edge_engines import Mnn, Ncnn

if TYPE_CHECKING:
    from paddlelite_callbacks.benchmark.engine import Predict


_MARKED = -424242  # MARKED in instruction_counter.c


def main(engine: str, runs: str, inputs: str, outputs: str, *files: str) -> None:
    """Load the file, run it ``runs`` times on all inputs, and write its outputs."""
    if platform.machine() != "aarch64":
        raise SystemExit(f"this is {platform.machine()}, not an ARM processor")
    with np.load(inputs) as stored:
        arrays = [stored[key] for key in stored.files]
    predict, got = _loaded(engine, files), list[np.ndarray]()
    _mark()
    for _ in range(int(runs)):
        got = predict(arrays)
        _mark()
    np.savez(outputs, *got)


def _mark() -> None:
    """Let the emulator's plugin write down its count."""
    with contextlib.suppress(OSError):
        os.close(_MARKED)


def _loaded(engine: str, files: tuple[str, ...]) -> Predict:
    if engine == "onnxruntime":  # the engine class needs Paddle, which has no wheel for ARM
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(files[0], options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_inputs()]
        return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))
    paths = tuple(map(Path, files))
    native = SimpleNamespace(path=paths[0], files=paths)
    return {"mnn": Mnn, "ncnn": Ncnn}[engine]().load(native, threads=1)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
