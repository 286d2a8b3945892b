"""Loggers that read hapi's ``logs`` get the callbacks' metrics: the real VisualDL, its file read by its own reader."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from installed import needs
from loss_formulas import numpy_dml
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import (
    BenchOptions,
    DistillCallback,
    ExportBenchCallback,
    ExportOptions,
    PACTQuantCallback,
    schedules,
)

EPOCHS, STEPS, TEMPERATURE = 3, 2, 4.0
QUICK = {
    "engines": ["paddle"],
    "eval_data": False,
    "verbose": 0,
    "benchmark": BenchOptions(warmup=0, repeats=1, peak_memory=False, roofline=False),
    "export": ExportOptions(preflight=False, report=False),
}


def scalars_of(folder):
    """Return ``{tag: {step: value}}`` of the one log file below ``folder``."""
    (file,) = folder.rglob("vdlrecords*")
    reader = pytest.importorskip("visualdl").LogReader(file_path=str(file))
    tags = [tag.replace("%2F", "/") for tag in reader.get_tags()["scalar"]]
    return {tag: {item.id: item.value for item in reader.get_data("scalar", tag)} for tag in tags}


class Outputs:
    """Training outputs of a network, batch by batch, as its own hook sees them."""

    def __init__(self, network):
        self.seen = []
        network.register_forward_post_hook(self._keep)

    def _keep(self, layer, inputs, outputs):
        if layer.training:
            self.seen.append(outputs.numpy())


@needs("visualdl")
@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
def test_visualdl_gets_what_the_record_keeps(first, tmp_path):
    model, teacher = hapi_model(), TinyNet(width=8)
    teacher.eval()
    student = Outputs(model.network)
    weight = schedules.linear(1.0, 0.25)
    export = ExportBenchCallback(tmp_path / "out", name="run", **QUICK)
    ours = [DistillCallback(teacher, temperature=TEMPERATURE, weight=weight), PACTQuantCallback(), export]
    log = paddle.callbacks.VisualDL(str(tmp_path / "log"))
    fit(model, [log, *ours] if first else [*ours, log], epochs=EPOCHS)

    scalars = scalars_of(tmp_path / "log")
    rows = export.record.history
    assert len(rows) == EPOCHS
    names = {key for row in rows for key in row} - {"epoch"}
    assert {"loss", "acc", "task_loss", "distill_loss", "distill_weight", "eval_loss", "eval_acc"} <= names
    for row in rows:
        for name in names:
            kind, step = ("eval", row["epoch"] - 1) if name.startswith("eval_") else ("train", row["epoch"] * STEPS)
            read = scalars[f"{kind}/{name.removeprefix('eval_')}"][step]
            assert read == pytest.approx(row[name], rel=1e-6), (row["epoch"], name)
    assert all(sorted(found) == list(range(1, 1 + EPOCHS * STEPS)) for tag, found in scalars.items() if "train" in tag)

    images = paddle.to_tensor(Images().images)
    targets = [teacher(images[:8]).numpy(), teacher(images[8:]).numpy()]
    expected = [
        TEMPERATURE**2 * numpy_dml(outputs / TEMPERATURE, targets[i % STEPS] / TEMPERATURE)
        for i, outputs in enumerate(student.seen[-EPOCHS * STEPS :])
    ]
    np.testing.assert_allclose(list(scalars["train/distill_loss"].values()), expected, rtol=1e-4)
    total = [
        scalars["train/task_loss"][i] + scalars["train/distill_weight"][i] * scalars["train/distill_loss"][i]
        for i in range(1, 1 + EPOCHS * STEPS)
    ]
    np.testing.assert_allclose(list(scalars["train/loss"].values()), total, rtol=1e-5)


@needs("visualdl")
def test_a_fit_of_its_own_logs_nothing_of_the_one_before(tmp_path):
    """hapi shares one dictionary among all models of a process."""
    fit(hapi_model(), [DistillCallback(TinyNet(width=8))])
    fit(hapi_model(), [paddle.callbacks.VisualDL(str(tmp_path))])
    assert set(scalars_of(tmp_path)) == {"train/loss", "train/acc", "eval/loss", "eval/acc"}
