"""What the look at each batch's loss costs: steps with ``on_nan="raise"`` over steps with ``"ignore"``."""

from __future__ import annotations

import paddle
import pytest
from bench_distill import Noise, collated, networks, optimizer

from paddlelite_callbacks import DistillCallback, PACTQuantCallback


def stepper(make, on_nan):
    student, teacher = networks()
    model = paddle.Model(student)
    model.prepare(optimizer(student.parameters()), paddle.nn.CrossEntropyLoss())
    callback = make(teacher, on_nan)
    callback.set_model(model)
    callback.set_params({"metrics": ["loss"]})
    callback.on_train_begin()
    images, labels = collated(Noise(), 0)
    return lambda: model.train_batch([images], [labels])


@pytest.mark.parametrize("name", ["distill", "pact"])
def test_guarded_step(interleaved, report, name):
    def make(teacher, on_nan):
        return DistillCallback(teacher, on_nan=on_nan) if name == "distill" else PACTQuantCallback(on_nan=on_nan)

    units = {on_nan: stepper(make, on_nan) for on_nan in ("ignore", "raise", "skip")}
    report(f"nan-guard-{name}", interleaved.summary(interleaved.run(units, repeats=30, warmup=2), "ignore"))
