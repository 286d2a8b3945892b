"""The tolerance of quantised files: true rounding passes, a defect does not. The truth is the network in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from installed import needs
from paddle.static import InputSpec
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import ExportBenchCallback, ExportOptions, PACTConfig, PACTQuantCallback, prepare_pact_
from paddlelite_callbacks.benchmark.engines import OnnxRuntime
from paddlelite_callbacks.benchmark.load import load_files
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.variants import export_forms, references
from paddlelite_callbacks.nn.surgery import copy_network
from paddlelite_callbacks.quant.convert import convert_for_export_

ROWS = 8


def quantised(seed: int):
    random = np.random.RandomState(seed)
    paddle.seed(seed)
    network = TinyNet(int(random.choice([4, 8, 16, 32, 64])))
    prepare_pact_(network, PACTConfig(quantize_outputs=bool(seed % 2)))
    x = random.randn(ROWS, 3, 8, 8).astype("float32")
    network(paddle.to_tensor(x))
    network.eval()
    shipped = copy_network(network)
    convert_for_export_(shipped)
    return network, shipped, x


def weight(network):
    values = network.fc.weight_int8.numpy()
    largest = np.abs(values.astype(int)).argmax()
    values.flat[largest] = -values.flat[largest]
    network.fc.weight_int8.set_value(paddle.to_tensor(values))


def zero_point(network):
    step = network.fc.activation.step
    network.fc.activation.register_forward_post_hook(lambda _, __, out: out + step)


def scale(network):
    network.fc.activation.register_forward_post_hook(lambda _, __, out: out * 1.01)


def inner_scale(network):
    layer = getattr(network.conv2, "inner", network.conv2)  # inside, where its output is quantised
    layer.weight_step.set_value(layer.weight_step * 1.01)


# And the share that has to be found: where the weights of a row sum to nearly nothing, a zero point that is one too
# high moves the output by less than the tolerance of a float file.
DEFECTS = {weight: 1.0, zero_point: 0.85, scale: 0.95, inner_scale: 0.9}


@pytest.mark.slow
def test_two_hundred_networks_pass_and_their_defects_do_not():
    found = {defect: [] for defect in DEFECTS}
    for seed in range(200):
        network, shipped, x = quantised(seed)
        reference = references(network, [x])["int8"]

        def check(got, reference=reference):
            return compare_outputs(
                reference.outputs,
                [got],
                engine="float64",
                noise=reference.noise,
                middle=reference.middle,
                flips=reference.flips,
            )

        exact = copy_network(shipped).to(dtype="float64")
        right = check(exact(paddle.to_tensor(x.astype("float64"))).numpy())
        assert right.passed, (seed, right)
        for defect in DEFECTS:
            broken = copy_network(shipped)
            defect(broken)
            found[defect].append(not check(broken(paddle.to_tensor(x)).numpy()).passed)
    for defect, share in DEFECTS.items():
        assert np.mean(found[defect]) >= share, (defect.__name__, np.mean(found[defect]))


def test_a_few_rows_may_meet_a_flip_but_not_most():
    expected = np.ones((8, 4), "float32")
    one, most = expected.copy(), expected.copy()
    one[2] += 0.01
    most[:5] += 0.01
    options = {"engine": "e", "noise": [0.0], "middle": [0.0], "flips": [0.01]}
    assert compare_outputs([expected], [one], **options).passed
    assert not compare_outputs([expected], [one], engine="e").passed  # a float file has no grid to fall on
    check = compare_outputs([expected], [most], **options)
    assert not check.passed
    assert check.error.startswith("half of the rows are off by 0.01 and more, allowed 0.0011")
    assert not compare_outputs([expected], [expected + 0.05], **options).passed
    assert compare_outputs([expected[:2]], [one[1:3]], **options).passed  # too few rows to tell


class Dilated(paddle.nn.Layer):
    """conv - BN - ReLU - conv - BN - linear: what ONNX Runtime rounds the biases of."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1, self.relu = (
            paddle.nn.Conv2D(3, 8, 3, padding=1),
            paddle.nn.BatchNorm2D(8),
            paddle.nn.ReLU(),
        )
        self.second, self.bn2 = paddle.nn.Conv2D(8, 8, 3, padding=2, dilation=2), paddle.nn.BatchNorm2D(8)
        self.fc = paddle.nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.bn1(self.first(x)))
        return self.fc(self.bn2(self.second(x)).mean([2, 3]))


@needs("paddle2onnx")
@pytest.mark.parametrize("bits", [2, 8])
def test_onnx_runtime_may_round_biases_of_a_file_that_is_right_as_it_is_written(bits, tmp_path):
    """With its rewriting off it equals the network to the last bits; the default is off by whole steps."""
    paddle.seed(0)
    model = hapi_model(Dilated(), metrics=False)
    # fc in float: else the output of the second convolution is rounded, and hides or adds steps
    quantised = PACTQuantCallback(weight_bits=bits, activation_bits=bits, quantize_outputs=True, skip=["fc"])
    export = ExportBenchCallback(
        tmp_path,
        engines=["onnxruntime"],
        verbose=0,
        eval_data=False,
        export=ExportOptions(report=False),
        benchmark=BenchOptions(warmup=0, repeats=1, peak_memory=False, roofline=False),
    )
    fit(model, [quantised, export], evaluate=False, epochs=2)
    assert {(check.precision, check.passed) for check in export.record.checks} == {("fp32", True), ("int8", True)}
    network, images = model.network, Images(8).images
    network.eval()
    file = Artefact(
        kind="onnx", path=tmp_path / "Dilated" / "model.int8.onnx", files=(tmp_path / "Dilated" / "model.int8.onnx",),
        precision="int8",
    )  # fmt: skip
    expected = network(paddle.to_tensor(images)).numpy()
    as_written, default = (OnnxRuntime(optimised=o).load(file, threads=1)([images])[0] for o in (False, True))
    np.testing.assert_allclose(as_written, expected, atol=1e-5)
    assert np.abs(default - expected).max() >= np.abs(as_written - expected).max()


@needs("paddle2onnx")
def test_a_wrong_file_is_not_excused_by_rounded_biases(tmp_path):
    paddle.seed(0)
    model = hapi_model(Dilated(), metrics=False)
    fit(model, [PACTQuantCallback(weight_bits=2, activation_bits=2)], evaluate=False)
    network, images = copy_network(model.network), Images(8).images
    forms = export_forms(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], "float32", "x")], sample=[images])
    right = references(network, [images])
    options, found = BenchOptions(engines=["onnxruntime"]), []
    for factor in (1.0, 1.05):
        wrong = replace(right["int8"], outputs=[output * factor for output in right["int8"].outputs])
        files = load_files(forms.artefacts, [images], {**right, "int8": wrong}, options)
        found.append({check.precision: check.passed for check in files.checks})
    assert found == [{"fp32": True, "int8": True}, {"fp32": True, "int8": False}]
