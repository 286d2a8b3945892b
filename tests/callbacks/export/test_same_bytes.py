"""Same weights, same bytes: three exports in one process, and one in another that has made other networks before."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from places import HELPERS

CODE = """
import sys
sys.path.insert(0, {tests!r})
import paddle
from paddle import nn
from toy import Images, TinyNet
from paddlelite_callbacks import ExportBenchCallback, ptq_int8

[nn.Linear(2, 2) for _ in range({others})]
[paddle.ones([1]) * 2 for _ in range({others})]
paddle.seed(7)
network = TinyNet()
if {pact}:
    network = ptq_int8(network, [paddle.to_tensor(Images().images)], quantize_outputs=True)
for number in range({times}):
    options = dict(warmup=0, repeats=1, verbose=0, peak_memory=False, roofline=False, report=False, fp16=True)
    options["engines"] = ["paddle", "onnxruntime"]
    callback = ExportBenchCallback(f"{folder}/{others}-{{number}}", name="n", **options)
    callback.export(network, Images().images)
"""


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "n").iterdir())}


@pytest.mark.parametrize("pact", [False, True], ids=["fp32", "int8"])
def test_same_weights_same_bytes(pact, tmp_path):
    tests = str(HELPERS)
    for others, times in ((0, 2), (5, 1)):
        code = CODE.format(tests=tests, others=others, pact=pact, times=times, folder=tmp_path)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    first = sums(tmp_path / "0-0")
    assert {"model.json", "model.pdiparams", "deploy.json"} <= first.keys()
    assert sums(tmp_path / "0-1") == first
    assert sums(tmp_path / "5-0") == first
