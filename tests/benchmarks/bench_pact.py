"""Step time of quantisation-aware training over the fp32 step: ``python tests/benchmarks/bench_pact.py``.

Contestants take turns in one process; the ratio is the median of those of neighbouring steps.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle

from paddlelite_callbacks import PACTConfig, prepare_pact_
from paddlelite_callbacks.errors import require

LIMIT = 1.25
OUT = Path(__file__).parents[2] / "build" / "benchmarks" / "pact.json"
CONTESTANTS = {
    "fp32": None,
    "pact": {},
    "pact + outputs": {"quantize_outputs": True},
    "lsq": {"method": "lsq"},
    "paddleslim": {"activation": "paddleslim"},
}


def step_of(name: str, options: dict | None, x: paddle.Tensor, y: paddle.Tensor) -> Callable[[], float]:
    require("paddleclas", needed_for="the benchmark")
    paddle.seed(0)
    network = getattr(importlib.import_module("paddleclas.ppcls.arch.backbone"), name)(class_num=10)
    if options is not None:
        prepare_pact_(network, PACTConfig(**options))
    optimizer = paddle.optimizer.Momentum(0.01, parameters=network.parameters())
    network.train()

    def step() -> float:
        loss = paddle.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss)

    return step


def measure(name: str, batch: int, size: int, repeats: int) -> dict[str, dict[str, float]]:
    x, y = paddle.randn([batch, 3, size, size]), paddle.randint(0, 10, [batch, 1])
    steps = {key: step_of(name, options, x, y) for key, options in CONTESTANTS.items()}
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for turn in range(repeats + 2):
        for key, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn >= 2:
                seconds[key].append(time.perf_counter() - begin)
    fp32 = np.array(seconds["fp32"])
    return {
        key: {"p50_ms": 1e3 * float(np.median(values)), "ratio": float(np.median(np.array(values) / fp32))}
        for key, values in seconds.items()
    }


def run(networks: list[str], batch: int, size: int, repeats: int, out: Path) -> dict:
    figures = {name: measure(name, batch, size, repeats) for name in networks}
    for name, rows in figures.items():
        for key, row in rows.items():
            print(f"{name:<24}{key:<16}{row['p50_ms']:9.1f} ms  {row['ratio']:.3f}")  # noqa: T201
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"batch": batch, "size": size, "repeats": repeats, "figures": figures}, indent=1))
    return figures


def test_step_time(tmp_path):
    figures = run(["MobileNetV3_small_x1_0"], 16, 224, 10, OUT)
    assert figures["MobileNetV3_small_x1_0"]["pact"]["ratio"] <= LIMIT


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["MobileNetV3_small_x1_0", "PPLCNet_x1_0"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    run(options.networks, options.batch, options.size, options.repeats, options.out)
