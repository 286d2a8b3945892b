"""CPU latency of the guide's and the light networks on every engine, batch 1, one thread.

``python -m pytest tests/benchmarks/bench_engines.py -s`` asserts that the best file is at least six times as fast as
what ``paddle.jit.save`` alone writes in Paddle Inference without oneDNN and faster than Paddle's default, and that our
figures agree with a plain loop and with OpenVINO's own ``benchmark_app``. Weights are random: they do not change the
time.

On AMD, Paddle without oneDNN is handicapped by MKL's slow path: its time is measured with ``MKL_DEBUG_CPU_TYPE=5`` too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import paddle
import pytest
from by_hand import said_by_child
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.benchmark.load import load_files
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.benchmark.timing import time_files
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.variants import export_forms, references
from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_
from paddlelite_callbacks.nn.cost import count_macs
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.utils.cpu import MKL_VARIABLE

REPEATS, ROUNDS = 30, 3
CHILD = """
import sys, time
from pathlib import Path
from statistics import median
import numpy as np
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.export.artefact import Artefact
program, parameters, *shape = sys.argv[1:]
files = (Path(program), Path(parameters))
predict = ENGINES["paddle"].load(Artefact(kind="paddle", path=files[0], files=files), threads=1)
sample, seconds = [np.random.RandomState(0).randn(*map(int, shape)).astype("float32")], []
for _ in range(20):
    start = time.perf_counter()
    predict(sample)
    seconds.append(time.perf_counter() - start)
print(1e3 * median(seconds[5:]))
"""


def classifier(name):
    def make():
        from paddlelite_callbacks.errors import require

        return getattr(require("paddleclas.ppcls.arch.backbone", needed_for="benchmark"), name)(class_num=1000)

    return make, [1, 3, 224, 224]


def keypoints(name):
    def make():
        from paddlelite_callbacks import models

        return models.keypoint_net(getattr(models, name)())

    return make, [1, 3, 256, 192]


NETWORKS = {
    "PPLCNet_x2_5": classifier("PPLCNet_x2_5"),
    "MobileNetV3_small_x1_0": classifier("MobileNetV3_small_x1_0"),
    "MobileNetV3_large_x1_0": classifier("MobileNetV3_large_x1_0"),
    "ResNet50": classifier("ResNet50"),
    "HRNet-w32": keypoints("hrnet_w32"),
    "LiteHRNet-30": keypoints("lite_hrnet_30"),
}


def settled(network, shape):
    """Give batch normalisation the statistics of random images: without any, outputs of deep networks explode."""
    settle_(network, paddle.randn([2, *shape[1:]]))
    return copy_network(network)


def timed(network, shape, folder, *, repeats=REPEATS):
    sample = [np.random.RandomState(0).randn(*shape).astype("float32")]
    options = BenchOptions(warmup=5, repeats=repeats, peak_memory=True, roofline=True, rtol=1e-2)
    folder.mkdir(exist_ok=True)
    forms = export_forms(network, folder, input_spec=[InputSpec([None, *shape[1:]], name="x")])
    files = load_files(forms.artefacts, sample, references(network, sample), options, errors=forms.errors)
    assert all(check.passed for check in files.checks), files.checks
    macs = count_macs(network, [paddle.to_tensor(item) for item in sample])
    return time_files(files, sample, options, macs=macs, verbose=0), files, sample


def gain_of_folding(network, shape, files, sample, interleaved, folder):
    """In Paddle without oneDNN: time of what ``paddle.jit.save`` alone writes over that of our file."""
    plain = export_paddle(network, folder / "plain", input_spec=[InputSpec([None, *shape[1:]], name="x")])
    ready = {"plain": ENGINES["paddle"].load(plain, threads=1), "ours": files.ready["paddle", "fp32"][0]}
    units = {key: lambda predict=predict: predict(sample) for key, predict in ready.items()}
    return interleaved.summary(interleaved.run(units, repeats=9, warmup=2), "ours")["plain"]["ratio"]


def gain_of_mkl_variable(program: Artefact, shape) -> float:
    """In Paddle without oneDNN: time without ``MKL_DEBUG_CPU_TYPE=5`` over that with it, in processes in turns."""

    def ms(**variables: str) -> float:
        return float(said_by_child(CHILD, *program.files, *shape, **variables))

    return median(ms() / ms(**{MKL_VARIABLE: "5"}) for _ in range(ROUNDS))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_best_file_against_paddle(name, interleaved, report, tmp_path):
    make, shape = NETWORKS[name]
    network = settled(make(), shape)
    timing, files, sample = timed(network, shape, tmp_path)
    rows = {row.engine: row for row in timing.latencies}
    best = min((row for row in rows.values() if row.p50_ms), key=lambda row: row.p50_ms)
    figures = {
        engine: {
            key: getattr(row, key) for key in ("p50_ms", "p90_ms", "spread", "load_ms", "peak_mb", "roofline", "error")
        }
        for engine, row in rows.items()
    }
    slow, default = rows["paddle"].p50_ms, rows["paddle-onednn"].p50_ms
    ratios = {"best": best.engine, "to_paddle": slow / best.p50_ms, "to_default": default and default / best.p50_ms}
    ratios["to_jit_save"] = ratios["to_paddle"] * gain_of_folding(network, shape, files, sample, interleaved, tmp_path)
    ratios["mkl_variable"] = gain_of_mkl_variable(files.ready["paddle", "fp32"][1], shape)
    report(f"engines-{name}", {"rows": figures, "ratios": ratios, "notes": timing.notes, "product": timing.roofline})
    assert ratios["to_default"] is None or ratios["to_default"] > 1
    assert ratios["to_jit_save"] >= 6


def test_a_plain_loop_and_benchmark_app_agree(report, tmp_path):
    """ONNX Runtime by a loop of its own script, OpenVINO by its own tool, each in a process of its own."""
    make, shape = NETWORKS["PPLCNet_x2_5"]
    _, files, sample = timed(settled(make(), shape), shape, tmp_path, repeats=5)
    onnx, runs = files.ready["onnxruntime", "fp32"][1], []
    options = BenchOptions(
        engines=["onnxruntime", "openvino"], warmup=10, repeats=60, peak_memory=False, roofline=False
    )
    ready = {key: value for key, value in files.ready.items() if key[0] in options.engines}
    while len([run for run in runs if run["spread"] < 0.15]) < 3 and len(runs) < 8:  # others may compute here too
        timing = time_files(replace(files, ready=ready), sample, options, verbose=0)
        rows = {row.engine: row for row in timing.latencies}
        runs.append(
            {
                "onnxruntime": rows["onnxruntime"].p50_ms,
                "loop": plain_loop(onnx, shape),
                "openvino": rows["openvino"].p50_ms,
                "benchmark_app": benchmark_app(onnx, shape),
                "spread": max(rows["onnxruntime"].spread, rows["openvino"].spread),
                "ratio": rows["onnxruntime"].p50_ms / rows["openvino"].p50_ms,
                "notes": timing.notes,
            }
        )
    report("engines-agreement", {"runs": runs})
    quiet = [run for run in runs if run["spread"] < 0.15]
    if len(quiet) < 2:
        pytest.skip("The machine was too busy: fewer than two of eight runs had quartiles within 15 %.")
    for ours, theirs in (("onnxruntime", "loop"), ("openvino", "benchmark_app")):
        found = median(run[ours] / run[theirs] for run in quiet if run[theirs])
        assert abs(found - 1) <= 0.15, (ours, theirs, runs)
    ratios = [run["ratio"] for run in quiet]
    assert max(ratios) / min(ratios) <= 1.1, ratios


def plain_loop(onnx: Artefact, shape) -> float:
    code = (
        "import sys, time, numpy, onnxruntime as o\n"
        "s = o.SessionOptions(); s.intra_op_num_threads = s.inter_op_num_threads = 1\n"
        "n = o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider']); i = n.get_inputs()[0].name\n"
        f"x = numpy.random.randn(*{shape}).astype('float32'); t = []\n"
        "for k in range(80):\n"
        "    b = time.perf_counter(); n.run(None, {i: x}); t.append(time.perf_counter() - b)\n"
        "print(1e3 * numpy.median(t[20:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(onnx.path)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def benchmark_app(onnx: Artefact, shape) -> float | None:
    tool = shutil.which("benchmark_app", path=str(Path(sys.executable).parent)) or shutil.which("benchmark_app")
    command = [tool] if tool else [sys.executable, "-m", "openvino.tools.benchmark.main"]
    sizes = f"[{','.join(map(str, shape))}]"
    options = ["-m", str(onnx.path), "-shape", sizes, "-hint", "none", "-nthreads", "1", "-nstreams", "1"]
    options += ["-nireq", "1", "-api", "sync", "-niter", "80", "-d", "CPU", "-infer_precision", "f32"]
    begin = time.perf_counter()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert time.perf_counter() - begin < 300
    found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    return float(found[1]) if found else None
