"""Size and latency of LiteHRNet-30 against HRNet-w32, interleaved in one process; writes ``bench_keypoints.json``.

Run with ``python tests/benchmarks/bench_keypoints.py [folder]`` on a quiet machine.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import paddle

from paddlelite_callbacks import models
from paddlelite_callbacks.deploy.engines import ENGINES
from paddlelite_callbacks.deploy.export import export_onnx, export_paddle
from paddlelite_callbacks.deploy.latency import measure_latency, summarise
from paddlelite_callbacks.deploy.machine import this_machine

SIZE = (256, 192)


def main(folder: Path) -> None:
    """Export, time, print ratios."""
    calls, sizes = {}, {}
    x = np.random.RandomState(0).randn(1, 3, *SIZE).astype("float32")
    spec = [paddle.static.InputSpec([1, 3, *SIZE], "float32", "x")]
    makers = {"lite_hrnet_30": models.lite_hrnet_30, "hrnet_w32": lambda: models.hrnet_w32(multi_scale=False)}
    for name, make in makers.items():
        network = models.keypoint_net(make())
        network.eval()
        models.fuse_for_inference_(network)
        program = export_paddle(network, folder / name, input_spec=spec)
        files = {"paddle": program, "onnx": export_onnx(program, folder / name / "model.onnx")}
        sizes |= {f"{name} {kind}": file.size_mb for kind, file in files.items()}
        for engine in ENGINES.values():
            predict = engine.load(files[engine.kind], threads=1)
            calls[f"{name} {engine.name}"] = lambda predict=predict: predict([x])
    figures = {name: summarise(times) for name, times in measure_latency(calls, warmup=3, repeats=25).items()}
    base, lines = figures["hrnet_w32 paddle"], []
    for name, item in figures.items():
        ratio, best = base["p50_ms"] / item["p50_ms"], base["min_ms"] / item["min_ms"]
        lines.append(f"{name:28s} median {item['p50_ms']:8.2f} ms  1/{ratio:.1f}  fastest 1/{best:.1f}")
    lines += [f"{name:28s} {size:8.2f} MB" for name, size in sizes.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    result = {"size_mb": sizes, "latency": figures, "machine": asdict(this_machine())}
    (folder / "bench_keypoints.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench-keypoints"))
