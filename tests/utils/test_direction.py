"""Metrics that fall with quality: which network, which layers and which verdict they choose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from installed import needs
from records import record
from toy import Images, TinyNet

from paddlelite_callbacks import Budget, DistillCallback, MutualPeer, PACTQuantCallback
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.quant.sensitivity import find_skips, leave_one_out
from paddlelite_callbacks.report.ladder_table import ladder_markdown
from paddlelite_callbacks.report.record import append_record
from paddlelite_callbacks.utils.metric_direction import falls_with_quality


class Rmse(paddle.metric.Metric):
    """Root mean squared error under a name of one's own."""

    def __init__(self, name="rmse"):
        super().__init__()
        self._name = name
        self.reset()

    def reset(self):
        self._sum = self._count = 0

    def compute(self, output, target):
        return (output - target).square()

    def update(self, squares):
        self._sum, self._count = self._sum + float(np.sum(squares)), self._count + np.size(squares)
        return self.accumulate()

    def accumulate(self):
        return (self._sum / max(self._count, 1)) ** 0.5

    def name(self):
        return self._name


def regression(metric="rmse", learning_rate=0.05):
    network = TinyNet(outputs=3)
    model = paddle.Model(network)
    optimizer = paddle.optimizer.Adam(learning_rate, parameters=network.parameters())
    model.prepare(optimizer, paddle.nn.MSELoss(), Rmse(metric))
    return model


def fit(model, callbacks, epochs=1):
    data = Images(32, target="mean")
    model.fit(data, data, batch_size=16, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)


@pytest.mark.parametrize("name", ["rmse", "val_MAE", "nme", "top1_err", "valLoss", "loss", "error_rate", "bbox-epe"])
def test_errors_and_losses_fall_with_quality(name):
    assert falls_with_quality(name)
    assert not falls_with_quality(name, "max")


@pytest.mark.parametrize("name", ["acc", "acc_top1", "mIoU", "f1", "mAP", "lossless", "maestro", "PSNR", "terrier"])
def test_other_names_grow_with_quality(name):
    assert not falls_with_quality(name)
    assert falls_with_quality(name, "min")


@pytest.mark.parametrize(("metric", "mode"), [("rmse", "auto"), ("off", "min")])
def test_of_two_equals_the_one_with_the_smaller_error_is_kept(metric, mode):
    """The student hardly learns, its peer does."""
    model, peer = regression(metric, learning_rate=1e-7), TinyNet(outputs=3)
    optimizer = paddle.optimizer.Adam(0.02, parameters=peer.parameters())
    mutual = MutualPeer(peer, optimizer, mode=mode)
    fit(model, [DistillCallback(mutual, loss="mse")], epochs=10)
    assert mutual.figures["peer"][metric] < mutual.figures["student"][metric]
    assert mutual.better == "peer"
    result = model.evaluate(Images(32, target="mean"), batch_size=16, verbose=0)
    assert result[metric] == pytest.approx(mutual.figures["peer"][metric], rel=1e-4)


@needs("paddle2onnx")
def test_the_diagnosis_of_an_error_counts_its_growth(caplog):
    model = regression()
    fit(model, [], epochs=8)
    data = Images(32, target="mean")
    callback = PACTQuantCallback(eval_data=data, metric_drop=0.5, lr_scale=1e-9, freeze_scales_after=0)
    fit(model, [callback])
    spoilt = model.network.fc.activation_quanter.alpha
    spoilt.set_value(spoilt * 0.01)
    fit(model, [callback])
    found = callback.diagnosis
    assert found.mode == "min"
    assert found.fake_quant > found.fp32 > 0
    shipped = found.fake_quant if found.int8 is None else found.int8
    assert found.drop == pytest.approx((shipped - found.fp32) / found.fp32)
    assert found.too_much
    assert found.skips[0] == "fc"
    assert found.gains["fc"] > 0
    assert callback.find_skips(0.5)[0] == "fc"


def test_without_a_gain_nothing_is_suggested():
    model = regression()
    callback = PACTQuantCallback()
    fit(model, [callback])
    assert leave_one_out(model.network, lambda: 1.0) == {"conv1": 0.0, "conv2": 0.0, "fc": 0.0}
    scores = iter([1.0, *[0.5] * 40])
    assert find_skips(model.network, lambda: next(scores), metric_drop=0.0) == []


@pytest.mark.parametrize("metric", ["rmse", "NME", "val_mae"])
def test_a_budget_for_an_error_knows_its_direction(metric):
    with pytest.raises(ValueError, match="got mode='max': leave mode out"):
        Budget(metric=metric, baseline=0.4, mode="max")
    assert Budget(metric=metric, baseline=0.4).is_lower_better
    assert Budget(metric=metric, baseline=0.4, mode="min").is_lower_better
    assert not Budget(metric="acc", baseline=0.4).is_lower_better
    assert Budget(metric="acc", baseline=0.4, mode="min").is_lower_better


def test_an_unknown_mode_is_refused():
    peer = TinyNet()
    optimizer = paddle.optimizer.Adam(0.02, parameters=peer.parameters())
    for make in (lambda: MutualPeer(peer, optimizer, mode="lower"), lambda: PACTQuantCallback(mode="lower")):
        with pytest.raises(ValueError, match="'auto', 'max', 'min', got 'lower'"):
            make()


def test_an_error_between_0_and_1_is_not_shown_as_a_share():
    runs = [replace(record(name=name), metrics={"acc": 0.94, "rmse": 0.4318}) for name in ("big", "light")]
    shown = ladder_markdown(runs, metric="rmse")
    assert "| 0.4318 |" in shown
    assert "rmse +0" in shown
    assert "| 94.00 % |" in ladder_markdown(runs, metric="acc")


def test_a_metric_that_no_run_has_cannot_be_judged(tmp_path, capsys):
    append_record(tmp_path / "runs.jsonl", record())
    assert main(["gate", str(tmp_path), "--metric", "Acc", "--baseline", "0.9"]) == 1
    assert "No run has the metric 'Acc'; available: ['acc'" in capsys.readouterr().err


class Named(TinyNet):
    """Outputs in a dictionary."""

    def forward(self, x):
        return {"scores": super().forward(x)}


def test_a_diagnosis_of_outputs_in_a_dictionary_is_refused_in_words():
    network = Named()
    model = paddle.Model(network)
    optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
    model.prepare(optimizer, lambda outputs, label: paddle.nn.functional.cross_entropy(outputs["scores"], label))
    with pytest.raises(ValueError, match="return a tuple"):
        model.fit(Images(), batch_size=8, verbose=0, callbacks=[PACTQuantCallback(eval_data=Images())])
