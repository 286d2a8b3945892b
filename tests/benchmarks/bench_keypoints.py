"""Size and latency of LiteHRNet-30 against HRNet-w32 and the paper's own graph; writes ``bench_keypoints.json``.

The paper's graph is `keypoint_reference.LiteReference`: the network as published, with channel shuffles, interpolation
operators and batch norms, which is what the guide's code exports. All files take turns in one process. Run with
``python tests/benchmarks/bench_keypoints.py [folder]`` on a quiet machine.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import numpy as np
import paddle
from keypoint_reference import LiteReference

from paddlelite_callbacks import models
from paddlelite_callbacks.benchmark.engines import ENGINES, EngineError
from paddlelite_callbacks.benchmark.latency import measure_latency, summarise
from paddlelite_callbacks.benchmark.machine import this_machine
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.maintainer_tools.backbone_checks import settle_
from paddlelite_callbacks.nn.surgery import copy_network

SIZE = (256, 192)
LIMITS = {"lite over HRNet-w32 without oneDNN": 1 / 35, "lite over the paper's graph in ONNX Runtime": 0.8}


def settled(network: paddle.nn.Layer) -> paddle.nn.Layer:
    """Give batch normalisation the statistics of random images: a deep network has no definite output without."""
    settle_(network, paddle.randn([1, 3, *SIZE]))
    return copy_network(network)


def files_of(name: str, folder: Path) -> dict:
    """Export one network as users get it, and the paper's graph as it stands."""
    spec = [paddle.static.InputSpec([1, 3, *SIZE], "float32", "x")]
    if name == "paper":
        program = export_paddle(settled(LiteReference((3, 8, 3), 40, True)), folder / name, input_spec=spec)
        return {"paddle": program, "onnx": export_onnx(program, folder / name / "model.onnx")}
    make = {"lite_hrnet_30": models.lite_hrnet_30, "hrnet_w32": lambda: models.hrnet_w32(multi_scale=False)}[name]
    (folder / name).mkdir(parents=True, exist_ok=True)
    forms = export_forms(settled(models.keypoint_net(make())), folder / name, input_spec=spec)
    return {artefact.kind: artefact for artefact in forms.artefacts}


def main(folder: Path, repeats: int = 15) -> None:
    """Export, time, print ratios."""
    calls, sizes = {}, {}
    x = np.random.RandomState(0).randn(1, 3, *SIZE).astype("float32")
    for name in ("lite_hrnet_30", "hrnet_w32", "paper"):
        files = files_of(name, folder)
        sizes |= {f"{name} {kind}": file.size_mb for kind, file in files.items()}
        for engine in ENGINES.values():
            try:
                predict = engine.load(files[engine.kind], threads=1)
                predict([x])
            except (EngineError, RuntimeError) as error:  # oneDNN on the paper's interpolation operators
                sys.stdout.write(f"{name} {engine.name}: {str(error)[:100]}\n")
                continue
            calls[f"{name} {engine.name}"] = lambda predict=predict: predict([x])
    figures = {
        name: summarise(times) for name, times in measure_latency(calls, warmup=3, repeats=repeats, settle=1).items()
    }
    base, paper = figures["hrnet_w32 paddle"], figures["paper onnxruntime"]
    best = min((item for name, item in figures.items() if name.startswith("lite")), key=lambda item: item["p50_ms"])
    ratios = {
        "lite over HRNet-w32 without oneDNN": best["p50_ms"] / base["p50_ms"],
        "lite over the paper's graph in ONNX Runtime": best["p50_ms"] / paper["p50_ms"],
        "the same, ONNX Runtime alone": figures["lite_hrnet_30 onnxruntime"]["p50_ms"] / paper["p50_ms"],
    }
    lines = [
        f"{name:28s} median {item['p50_ms']:8.2f} ms  fastest {item['min_ms']:8.2f} ms  "
        f"1/{base['p50_ms'] / item['p50_ms']:.1f}"
        for name, item in figures.items()
    ]
    lines += [f"{name:28s} {size:8.2f} MB" for name, size in sizes.items()]
    lines += [f"{name}: {value:.3f}, limit {LIMITS.get(name, 1):.3f}" for name, value in ratios.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    result = {"size_mb": sizes, "latency": figures, "ratios": ratios, "machine": asdict(this_machine())}
    (folder / "bench_keypoints.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench-keypoints"))
