"""Speed of swapped networks; ``python -m pytest -s tests/benchmarks/bench_swap.py`` prints ratios and writes JSON.

Runs take turns in one process, so the ratios hold on a busy machine too; absolute times do not.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from paddlelite_callbacks import BackboneSwap
from paddlelite_callbacks.backbone.registry import build
from paddlelite_callbacks.backbone.truncate import cut_
from paddlelite_callbacks.backbone.trunk import Trunk
from paddlelite_callbacks.benchmark.latency import measure_latency, summarise

OUT = Path(__file__).parents[2] / "build" / "benchmarks"


def write(name: str, figures: dict) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"bench_swap_{name}.json").write_text(json.dumps(figures, indent=1))
    print(name, json.dumps(figures))  # noqa: T201


def test_collecting_maps_costs_nothing():
    """A training step of the cut network against the same layers called by hand."""
    network = build("PPLCNet_x1_0")
    trunk, x = Trunk(network, ["blocks3", "blocks4", "blocks5", "blocks6"]), paddle.rand([4, 3, 128, 128])
    cut_(trunk, x)
    sections = [network._sub_layers[key] for key in ("conv1", "blocks2", "blocks3", "blocks4", "blocks5", "blocks6")]

    def by_hand():
        maps, y = [], x
        for section in sections:
            y = section(y)
            maps.append(y)
        return maps[2:]

    def step(forward):
        paddle.add_n([value.mean() for value in forward()]).backward()
        trunk.clear_gradients()

    durations = measure_latency(
        {"by hand": lambda: step(by_hand), "trunk": lambda: step(lambda: trunk(x))}, warmup=5, repeats=60
    )
    ratios = np.array(durations["trunk"]) / np.array(durations["by hand"])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    write(
        "overhead", {"ratio": median, "quartiles": [low, high], "by_hand_ms": summarise(durations["by hand"])["p50_ms"]}
    )


@pytest.mark.parametrize("engine", ["paddle", "onnxruntime"])
@pytest.mark.parametrize("name", ["PPLCNet_x2_5", "MobileNetV3_large_x1_0", "MobileNetV3_small_x1_0"])
def test_the_guides_choices_against_resnet50(name, engine):
    swap = BackboneSwap(name)
    swap(paddle.vision.models.resnet50(), [InputSpec([None, 3, 224, 224])])
    summary = swap.summary(engine=engine, repeats=30)
    figures = {key: vars(getattr(summary, key)) for key in ("before", "after")}
    write(f"{name}_{engine}", figures | {"latency_ratio": summary.latency_ratio, "engine": engine})
