"""Time to import the package, and to export and check a network.

``python -m pytest tests/benchmarks/bench_package.py -s``
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.load import load_files
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.variants import export_forms, references

IMPORTS = {
    "python": "pass",
    "paddle": "import paddle",
    "package": "import paddlelite_callbacks",
    "package, four callbacks": "from paddlelite_callbacks import "
    "BackboneSwap, DistillCallback, ExportBenchCallback, PACTQuantCallback",
}


def test_import(interleaved, report):
    """Fresh processes in turns; the package's names are lazy, so it costs nothing before one is used."""

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)

    units = {name: lambda code=code: start(code) for name, code in IMPORTS.items()}
    report("package-import", interleaved.summary(interleaved.run(units, repeats=7, warmup=1), "paddle"))


@pytest.mark.own_children  # a converter of its own for each file, as outside of the tests
@pytest.mark.parametrize("name", ["PPLCNet_x2_5", "MobileNetV3_small_x1_0", "ResNet50"])
def test_export_and_check(name, interleaved, report, tmp_path):
    """`jit.save` alone against all forms, each loaded again in every engine and compared with the live network."""
    network = getattr(require("paddleclas.ppcls.arch.backbone", needed_for="benchmark"), name)(class_num=1000)
    network.train()
    with paddle.no_grad():
        network(paddle.randn([4, 3, 224, 224]))
    network.eval()
    spec = [InputSpec([None, 3, 224, 224], name="x")]
    sample = [np.random.RandomState(0).randn(1, 3, 224, 224).astype("float32")]
    turn = iter(range(1_000))

    def folder() -> Path:
        path = tmp_path / str(next(turn))
        path.mkdir()
        return path

    def whole() -> None:
        forms = export_forms(network, folder(), input_spec=spec)
        load_files(forms.artefacts, sample, references(network, sample), BenchOptions(), errors=forms.errors)

    units = {"jit.save": lambda: export_paddle(network, folder(), input_spec=spec), "export and check": whole}
    seconds = interleaved.run(units, repeats=3, warmup=1)
    report(f"package-export-{name}", interleaved.summary(seconds, "jit.save"))
