"""Forms of int8 files over the fp32 file on the same engine: ``python tests/benchmarks/bench_int8_forms.py``.

Batch 1, one thread; all engines and files of a network take turns in one process, and the fastest call counts.
``--trials`` searches the layers that ONNX Runtime computes faster in float; ``--cpu-time`` counts the processor's time,
for a machine on which others compute. Scales come from `ptq_int8` on
random images, which changes no time: the graph is the one that training gives. Networks that this installation does
not have yet are left out, with a line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle
from bench_int8 import NETWORKS, built
from paddle.static import InputSpec

from paddlelite_callbacks import ptq_int8
from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason
from paddlelite_callbacks.benchmark.int8_search import search_int8_layers
from paddlelite_callbacks.benchmark.latency import measure_latency
from paddlelite_callbacks.benchmark.machine import this_machine
from paddlelite_callbacks.benchmark.unfused_layers import float_layers
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.variants import export_forms

OUT = Path(__file__).parents[2] / "build" / "benchmarks" / "int8_forms.json"


def onnx_file(network: paddle.nn.Layer, folder: Path, precision: str, size: tuple[int, int]) -> tuple[Artefact, dict]:
    """Export ``network``; return the ONNX file of a precision, and the sizes of all files."""
    folder.mkdir()
    forms = export_forms(network, folder, input_spec=[InputSpec([1, 3, *size], name="x")])
    sizes = {f"{a.kind}/{a.precision}": a.size_mb for a in forms.artefacts}
    return next(a for a in forms.artefacts if (a.kind, a.precision) == ("onnx", precision)), sizes


def measure(name: str, repeats: int, trials: int, clock: Callable[[], float]) -> dict | None:
    """Time the fp32 file and three int8 files: inputs quantised, outputs too, and with the layers of a search."""
    network, size = built(name), NETWORKS[name][0]
    if network is None:
        return None
    x = np.random.RandomState(0).randn(1, 3, *size).astype("float32")
    network.train()
    with paddle.no_grad():
        network(paddle.randn([2, 3, *size]))  # plausible statistics
    network.eval()
    images = [paddle.to_tensor(x)]
    plan = search_int8_layers(network, images, repeats=7, trials=trials) if trials else None
    options = {"int8": {}, "int8, outputs": {"quantize_outputs": True}}
    if plan is not None and plan.skip:
        options["int8, searched"] = {"quantize_outputs": plan.quantize_outputs, "skip": plan.skip}
    with tempfile.TemporaryDirectory() as work:
        plain, sizes = onnx_file(network, Path(work, "fp32"), "fp32", size)
        files, small, left = {"fp32": plain}, {}, {}
        for number, (form, given) in enumerate(options.items()):
            files[form], small[form] = onnx_file(
                ptq_int8(network, images, **given), Path(work, str(number)), "int8", size
            )
            left[form] = list(float_layers(files[form].path))
        calls: dict[str, Callable[[], object]] = {}
        for engine in (e for e in ENGINES.values() if e.name in ("onnxruntime", "openvino") and not missing_reason(e)):
            for form, artefact in files.items():
                predict = engine.load(artefact, threads=1)
                calls[f"{engine.name}/{form}"] = lambda predict=predict: predict([x])
        taken = measure_latency(calls, warmup=3, repeats=repeats, settle=1, clock=clock)
        onnx = require("onnx", needed_for="the benchmark")
        nodes = {form: len(onnx.load(str(artefact.path)).graph.node) for form, artefact in files.items()}
    least = {key: float(np.min(values)) for key, values in taken.items()}
    return {
        "onnx_size_ratio": small["int8"]["onnx/int8"] / sizes["onnx/fp32"],
        "paddle_size_ratio": small["int8"]["paddle/int8"] / sizes["paddle/fp32"],
        "min_ms": least,
        "over_own_fp32": {key: value / least[f"{key.split('/')[0]}/fp32"] for key, value in least.items()},
        "nodes": nodes,
        "float_layers": left,
        "plan": None if plan is None else {**asdict(plan), "words": str(plan)},
    }


def run(names: list[str], repeats: int, out: Path, *, trials: int = 0, cpu_time: bool = False) -> dict:
    former = json.loads(out.read_text())["networks"] if out.is_file() else {}  # of other networks
    figures: dict = {"machine": vars(this_machine()), "repeats": repeats, "cpu_time": cpu_time, "networks": former}
    for name in names:
        row = measure(name, repeats, trials, time.process_time if cpu_time else time.perf_counter)
        if row is None:
            print(f"{name:<24}not here yet")  # noqa: T201
            continue
        figures["networks"][name] = row
        times = "  ".join(f"{k} {row['min_ms'][k]:.2f} ({r:.2f})" for k, r in row["over_own_fp32"].items())
        print(f"{name:<24}{times}  nodes {row['nodes']}  onnx {row['onnx_size_ratio']:.3f}", flush=True)  # noqa: T201
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1))
    return figures


def table(figures: dict) -> str:
    """Return the table of ``examples/results/engines/int8_forms.md``."""
    forms = ("fp32", "int8", "int8, outputs", "int8, searched")
    head = ["network", *(f"{engine}, {form}" for engine in ("ONNX Runtime", "OpenVINO") for form in forms[1:])]
    lines = [
        "| " + " | ".join([*head, "nodes", "layers in float, searched"]) + " |",
        "|---" + "|---:" * (len(head) + 1) + "|",
    ]
    for name, row in figures["networks"].items():
        keys = [f"{engine}/{form}" for engine in ("onnxruntime", "openvino") for form in forms[1:]]
        cells = [f"{row['over_own_fp32'][key]:.2f}" if key in row["over_own_fp32"] else "-" for key in keys]
        cells.append(" / ".join(str(row["nodes"][form]) for form in forms if form in row["nodes"]))
        plan = row["plan"]
        cells.append("-" if plan is None else f"{len(plan['skip'])} of {plan['layers']}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    found = run(options.networks, options.repeats, options.out, trials=options.trials, cpu_time=options.cpu_time)
    print(table(found))  # noqa: T201
