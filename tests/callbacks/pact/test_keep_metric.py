"""Layers of quantised networks are put back to float until the int8 file keeps the metric."""

from __future__ import annotations

import re

import numpy as np
import onnx
import paddle
import pytest
from installed import needs
from onnx import numpy_helper
from paddle import nn
from paddle.static import InputSpec
from toy import equal_weights, weights_of

from paddlelite_callbacks import (
    BenchOptions,
    ExportBenchCallback,
    PACTQuantCallback,
    export_forms,
    load_pact_,
    ptq_int8,
)
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.callbacks.pact.accuracy import keep_metric_
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.switch import put_back

pytestmark = needs("paddle2onnx", "onnxruntime")


class Broken(nn.Layer):
    """A channel of ``first`` is always zero, and the weights of ``second`` on it are huge: no grid holds the others."""

    def __init__(self, outlier=300.0):
        super().__init__()
        self.first, self.second = nn.Conv2D(3, 6, 3, padding=1), nn.Conv2D(6, 6, 3, padding=1)
        self.third, self.fc, self.relu = nn.Conv2D(6, 6, 3, padding=1), nn.Linear(6 * 64, 5), nn.ReLU()
        for tensor, place, value in (
            (self.first.weight, 3, 0.0),
            (self.first.bias, 3, 0.0),
            (self.second.weight, (slice(None), 3), outlier),
        ):
            changed = tensor.numpy()
            changed[place] = value
            tensor.set_value(changed)

    def forward(self, x):
        x = self.relu(self.third(self.relu(self.second(self.relu(self.first(x))))))
        return self.fc(x.flatten(1))


class Own(paddle.io.Dataset):
    """Images with the classes that the float network gives them."""

    def __init__(self, network, count=64):
        self.images = np.random.RandomState(0).randn(count, 3, 8, 8).astype("float32")
        network.eval()
        with paddle.no_grad():
            self.labels = network(paddle.to_tensor(self.images)).numpy().argmax(1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], np.int64(self.labels[i])


def model_of(quantize_outputs=False, outlier=300.0):
    paddle.seed(1)
    network = Broken(outlier)
    data = Own(network)
    images = [paddle.to_tensor(data.images)]
    quantised = ptq_int8(network, images, quantize_outputs=quantize_outputs, bias_correction=False)
    model = paddle.Model(quantised)
    model.prepare(metrics=paddle.metric.Accuracy())
    return model, data


def on_the_file(network, data, folder):
    spec = [InputSpec([None, 3, 8, 8], name="x")]
    forms = export_forms(network, folder, input_spec=spec, sample=[data.images[:8]])
    file = next(item for item in forms.artefacts if (item.kind, item.precision) == ("onnx", "int8"))
    got = ENGINES["onnxruntime"].load(file, threads=1)([data.images])[0]
    return float(np.mean(got.argmax(1) == data.labels)), file.path


@pytest.mark.parametrize("quantize_outputs", [False, True], ids=["inputs", "outputs"])
def test_the_broken_layer_is_put_back_and_the_file_keeps_the_limit(quantize_outputs, tmp_path):
    model, data = model_of(quantize_outputs)
    (tmp_path / "before").mkdir(), (tmp_path / "after").mkdir()
    before, _ = on_the_file(model.network, data, tmp_path / "before")
    assert before < 0.8
    found = keep_metric_(model, data, metric_drop=0.1, engine="onnxruntime", verbose=0)
    assert (found.metric, found.fp32, found.layers) == ("acc", 1.0, ("second",))
    after, file = on_the_file(model.network, data, tmp_path / "after")
    assert found.int8 == pytest.approx(after)
    assert after >= 0.9
    assert [point.layers for point in found.curve if point.chosen] == [("second",)]
    assert found.curve[0].metric == pytest.approx(before)
    assert "put back to float: second" in found.lines()[0]
    weights = {item.dims[1]: [] for item in onnx.load(file).graph.initializer if len(item.dims) == 4}
    for item in onnx.load(file).graph.initializer:
        if len(item.dims) == 4:
            weights[item.dims[1]].append(numpy_helper.to_array(item).dtype.name)
    assert (weights[3], sorted(weights[6])) == (["int8"], ["float32", "int8"])
    again = Broken()
    load_pact_(again, model.network.state_dict())
    with paddle.no_grad():
        x = paddle.to_tensor(data.images)
        np.testing.assert_array_equal(again(x).numpy(), model.network(x).numpy())


def test_networks_quantised_after_training_are_built_again_without_the_layers(tmp_path):
    paddle.seed(1)
    network = Broken()
    data = Own(network)
    images, made = [paddle.to_tensor(data.images)], []

    def rebuild(skip):
        made.append(skip)
        return ptq_int8(network, images, skip=sorted(skip))

    model = paddle.Model(network)
    model.prepare(metrics=paddle.metric.Accuracy())
    before = weights_of(network)
    found = keep_metric_(model, data, metric_drop=0.1, engine="onnxruntime", rebuild=rebuild, verbose=0)
    assert (found.fp32, found.layers) == (1.0, ("second",))
    assert equal_weights(before, weights_of(network))
    assert made[0] == made[1] == frozenset()
    after, _ = on_the_file(ptq_int8(network, images, skip=found.layers), data, tmp_path)
    assert found.int8 == pytest.approx(after)


def test_nothing_is_put_back_where_the_limit_is_kept():
    model, data = model_of(outlier=0.2)
    before = weights_of(model.network)
    found = keep_metric_(model, data, metric_drop=0.2, verbose=0)
    assert (found.layers, len(found.curve)) == ((), 1)
    assert list(weights_of(model.network)) == list(before)
    assert "no layer was put back" in found.lines()[0]


def test_where_no_file_keeps_it_the_network_stays(caplog):
    model, data = model_of()
    keys = list(model.network.state_dict())
    found = keep_metric_(model, data, metric_drop=0.1, most=2, verbose=0)
    assert (found.int8, found.layers) == (None, ())
    assert list(model.network.state_dict()) == keys
    assert "No int8 file of 2 keeps acc" in caplog.text


def test_in_fit_they_are_put_back_before_the_export(tmp_path):
    paddle.seed(1)
    network = Broken()
    data = Own(network)
    model = paddle.Model(network)
    optimizer = paddle.optimizer.SGD(1e-6, parameters=network.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss(), paddle.metric.Accuracy())
    pact = PACTQuantCallback(eval_data=data, metric_drop=0.3, put_back=True, keep_better=False)
    bench = BenchOptions(engines=["onnxruntime"], warmup=0, repeats=2, peak_memory=False, roofline=False)
    export = ExportBenchCallback(tmp_path, name="n", eval_data=data, benchmark=bench, verbose=0)
    model.fit(data, epochs=1, batch_size=32, verbose=0, shuffle=False, callbacks=[export, pact])
    assert "second" in pact.kept.layers
    assert [point.layers for point in export.record.layer_curve if point.chosen] == [pact.kept.layers]
    figures = {row.precision: row.metrics["acc"] for row in export.record.file_metrics}
    assert figures["int8"] == pytest.approx(pact.kept.int8, abs=0.04)
    assert pact.kept.int8 >= 0.7 * pact.kept.fp32
    assert any("put back to float: " in note for note in export.record.notes)
    assert "Layers put back: n" in (tmp_path / "report.md").read_text()


def test_layers_are_put_back_inside_a_block_only():
    model, data = model_of()
    network, x = model.network, paddle.to_tensor(data.images)
    with paddle.no_grad():
        expected = network(x).numpy()
        with put_back(network, ["second"]):
            assert quantized_layers(network)["second"].weight_quanter is None
            assert np.abs(network(x).numpy() - expected).max() > 0
        np.testing.assert_array_equal(network(x).numpy(), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric_drop": 1.0}, "metric_drop must be a share of the fp32 metric in [0, 1), got 1.0"),
        ({"metric_drop": 0.1, "engine": "paddle"}, "engine must be one of ['onnxruntime', 'openvino']"),
    ],
    ids=["metric_drop", "engine"],
)
def test_bad_input(options, said):
    model, data = model_of()
    with pytest.raises(ValueError, match=re.escape(said)):
        keep_metric_(model, data, verbose=0, **options)
    plain = paddle.Model(Broken())
    plain.prepare(metrics=paddle.metric.Accuracy())
    with pytest.raises(ValueError, match="Broken has no quantised layer: train it with PACTQuantCallback"):
        keep_metric_(plain, data, metric_drop=0.1, verbose=0)
