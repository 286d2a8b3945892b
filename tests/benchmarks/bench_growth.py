"""How cost grows with batch, input size, taps and layers: a straight line each, fitted and shown.

``python -m pytest tests/benchmarks/bench_growth.py -s``. Points take turns in one process. ``r2`` is the line's
coefficient of determination, ``bend`` the cost per unit of the last stretch over that of the first: 1 for a line,
2 and more for a cost that grows as the square over these points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.static import InputSpec

from paddlelite_callbacks import DistillCallback, FeatureTerm, prepare_pact_
from paddlelite_callbacks.benchmark.load import load_files
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.export.variants import export_forms, references

WIDTH, CLASSES, REPEATS, STEPS = 32, 10, 15, 3


def stack(layers: int, *, width: int = WIDTH) -> nn.Sequential:
    """``layers`` times convolution, norm, ReLU; then a classifier."""
    paddle.seed(0)
    parts: list[nn.Layer] = []
    for index in range(layers):
        parts.append(
            nn.Sequential(
                nn.Conv2D(width if index else 3, width, 3, padding=1, bias_attr=False), nn.BatchNorm2D(width), nn.ReLU()
            )
        )
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(width, CLASSES))


def straight(points: Mapping[int, float]) -> dict[str, object]:
    """Fit a line to cost over size by least squares."""
    sizes, costs = np.array(list(points), float), np.array(list(points.values()))
    slope, start = np.polyfit(sizes, costs, 1)
    left = costs - (slope * sizes + start)
    steps = np.diff(costs) / np.diff(sizes)
    return {
        "ms": {str(size): round(1e3 * cost, 3) for size, cost in points.items()},
        "ms_per_unit": 1e3 * slope,
        "ms_at_zero": 1e3 * start,
        "r2": 1 - float((left**2).sum() / ((costs - costs.mean()) ** 2).sum()),
        "bend": float(steps[-1] / steps[0]),
    }


def medians(interleaved, units: Mapping[int, Callable[[], object]], repeats: int = REPEATS) -> dict[int, float]:
    seconds = interleaved.run({str(size): unit for size, unit in units.items()}, repeats=repeats, warmup=2)
    return {int(size): float(np.median(values)) for size, values in seconds.items()}


def distilling(batch: int, size: int, taps: int) -> Callable[[], object]:
    """Return a call that runs ``STEPS`` steps of ``fit`` with the callback; one batch object, so no loader is timed."""
    student, teacher = stack(8), stack(8)
    model = paddle.Model(student)
    model.prepare(paddle.optimizer.Momentum(0.01, parameters=student.parameters()), nn.CrossEntropyLoss())
    features = [FeatureTerm(str(index), str(index)) for index in range(taps)]
    callback = DistillCallback(teacher, loss="kl", features=features or None)
    data = [(paddle.rand([batch, 3, size, size]), paddle.randint(0, CLASSES, [batch]))] * STEPS
    return lambda: model.fit(data, epochs=1, verbose=0, callbacks=[callback])


AXES = {
    "batch": ((8, 16, 32, 64), lambda batch: distilling(batch, 32, 1)),
    "pixels": ((16, 24, 32, 48), lambda size: distilling(16, size, 1)),
    "taps": ((1, 2, 4, 8), lambda taps: distilling(16, 32, taps)),
}


@pytest.mark.parametrize("axis", AXES)
def test_distillation(axis, interleaved, report):
    sizes, make = AXES[axis]
    found = medians(interleaved, {size: make(size) for size in sizes})
    figures = straight({size**2 if axis == "pixels" else size: cost / STEPS for size, cost in found.items()})
    report(f"growth-distill-{axis}", figures)
    assert figures["r2"] > 0.9


def quantized_step(layers: int) -> Callable[[], object]:
    network = stack(layers)
    prepare_pact_(network)
    network.train()
    optimizer = paddle.optimizer.Momentum(0.01, parameters=network.parameters())
    images, labels = paddle.rand([16, 3, 32, 32]), paddle.randint(0, CLASSES, [16])

    def step() -> float:
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss)

    return step


def test_quantised_layers(interleaved, report):
    figures = straight(medians(interleaved, {layers: quantized_step(layers) for layers in (4, 8, 16, 32)}))
    report("growth-pact-layers", figures)
    assert figures["r2"] > 0.9


def exported(layers: int, folder: Path) -> Callable[[], object]:
    """Export to every form, load every file in every engine, compare."""
    network = stack(layers)
    network.eval()
    sample = [np.random.RandomState(0).rand(1, 3, 32, 32).astype("float32")]
    turn = iter(range(1_000))

    def once() -> None:
        target = folder / f"{layers}-{next(turn)}"
        target.mkdir(parents=True)
        forms = export_forms(network, target, input_spec=[InputSpec([None, 3, 32, 32], name="x")])
        load_files(forms.artefacts, sample, references(network, sample), BenchOptions(), errors=forms.errors)

    return once


def test_exported_layers(interleaved, report, tmp_path):
    units = {layers: exported(layers, tmp_path) for layers in (4, 8, 16, 32)}
    figures = straight(medians(interleaved, units, repeats=5))
    report("growth-export-layers", figures)
    assert figures["r2"] > 0.8
