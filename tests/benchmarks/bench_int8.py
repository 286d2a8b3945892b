"""Size and latency of the int8 files over fp32: ``python tests/benchmarks/bench_int8.py``.

Batch 1, one thread; all engines and files of a network take turns in one process. Scales come from `ptq_int8` on
random images, which changes no time: the graph is the one that training gives. Networks that this installation does
not have yet are left out, with a line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle
from paddle.static import InputSpec

from paddlelite_callbacks import ptq_int8
from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason
from paddlelite_callbacks.benchmark.latency import measure_latency
from paddlelite_callbacks.benchmark.machine import this_machine
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.export.variants import export_forms

OUT = Path(__file__).parents[2] / "build" / "benchmarks" / "int8.json"
# Limits of int8 time over the best fp32 time; 1.0: faster on at least one engine.
NETWORKS = {
    "PPLCNet_x2_5": ((224, 224), 0.65),
    "MobileNetV3_large_x1_0": ((224, 224), 1.0),
    "MobileNetV3_small_x1_0": ((224, 224), 1.0),
    "ResNet50": ((224, 224), 0.4),
    "lite_hrnet_30": ((256, 192), 1.0),
    "hrnet_w32": ((256, 192), 0.35),
}


def built(name: str) -> paddle.nn.Layer | None:
    """Return the network, of paddleclas or of our models; ``None`` where there is none of that name."""
    require("paddleclas", needed_for="the benchmark")
    homes = ["paddleclas.ppcls.arch.backbone"]
    homes += ["paddlelite_callbacks.models.lite_hrnet", "paddlelite_callbacks.models.hrnet", "models.lite_hrnet"]
    homes += ["models.hrnet"]
    for home in homes:
        try:
            make = getattr(importlib.import_module(home), name, None)
        except ImportError:
            continue
        if make is not None:
            paddle.seed(0)
            return make()
    return None


def measure(name: str, outputs: bool, repeats: int) -> dict | None:
    network, (size, limit) = built(name), NETWORKS[name]
    if network is None:
        return None
    x = np.random.RandomState(0).randn(1, 3, *size).astype("float32")
    network.train()
    with paddle.no_grad():
        network(paddle.randn([2, 3, *size]))  # plausible statistics
    network.eval()
    quantised = ptq_int8(network, [paddle.to_tensor(x)], quantize_outputs=outputs)
    spec = [InputSpec([1, 3, *size], name="x")]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "plain").mkdir()
        plain = export_forms(network, Path(folder, "plain"), input_spec=spec, onnx=False).artefacts[0]
        stage = Path(folder, "int8")
        stage.mkdir()
        forms = export_forms(quantised, stage, input_spec=spec)
        sizes = {f"{a.kind}/{a.precision}": a.size_mb for a in forms.artefacts} | {"paddle/fp32": plain.size_mb}
        files = [artefact for artefact in forms.artefacts if artefact.kind == "onnx"]
        calls: dict[str, Callable[[], object]] = {}
        for engine in (e for e in ENGINES.values() if e.kind == "onnx" and not missing_reason(e)):
            for artefact in files:
                predict = engine.load(artefact, threads=1)
                calls[f"{engine.name}/{artefact.precision}"] = lambda predict=predict: predict([x])
        times = {key: float(np.median(v)) for key, v in measure_latency(calls, warmup=5, repeats=repeats).items()}
    fp32 = min(value for key, value in times.items() if key.endswith("fp32"))
    ratios = {key: value / fp32 for key, value in times.items()}
    best = min(value for key, value in ratios.items() if key.endswith("int8"))
    return {
        "quantize_outputs": outputs,
        "size_mb": sizes,
        "onnx_size_ratio": sizes["onnx/int8"] / sizes["onnx/fp32"],
        "paddle_size_ratio": sizes["paddle/int8"] / sizes["paddle/fp32"],
        "p50_ms": times,
        "over_best_fp32": ratios,
        "best_int8_ratio": best,
        "limit": limit,
        "errors": {"/".join(key): value for key, value in forms.errors.items()},
    }


def run(names: list[str], repeats: int, out: Path) -> dict:
    former = json.loads(out.read_text())["networks"] if out.is_file() else {}  # of other networks
    figures: dict = {"machine": vars(this_machine()), "repeats": repeats, "networks": former}
    for name in names:
        for outputs in (False, True):
            row = measure(name, outputs, repeats)
            if row is None:
                print(f"{name:<24}not here yet")  # noqa: T201
                break
            figures["networks"][f"{name}{' + outputs' if outputs else ''}"] = row
            times = "  ".join(f"{k} {row['p50_ms'][k]:.2f} ({r:.2f})" for k, r in row["over_best_fp32"].items())
            print(  # noqa: T201
                f"{name:<24}outputs={outputs!s:<6}{times}  onnx {row['onnx_size_ratio']:.3f}  "
                f"paddle {row['paddle_size_ratio']:.3f}",
                flush=True,
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1))
    return figures


def test_int8_pays():
    figures = run(["PPLCNet_x2_5", "ResNet50"], 20, OUT)["networks"]
    for name in ("PPLCNet_x2_5", "ResNet50"):
        assert figures[name]["best_int8_ratio"] <= figures[name]["limit"]
        assert figures[name]["onnx_size_ratio"] <= 0.27
        assert figures[name]["paddle_size_ratio"] <= 0.3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    run(options.networks, options.repeats, options.out)
