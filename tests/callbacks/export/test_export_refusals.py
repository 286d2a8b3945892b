"""What is refused before a file is written, and what ``deploy.json`` and ``bench`` say of files."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import TinyNet

from paddlelite_callbacks import ExportBenchCallback, PACTConfig, prepare_pact_
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.model_files import find_model
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.export.variants import export_forms
from paddlelite_callbacks.utils.error_text import reason

QUICK = {"engines": ["paddle", "onnxruntime"], "warmup": 0, "repeats": 1, "peak_memory": False, "roofline": False}


class Softplus(TinyNet):
    """Ends in an operator that the converter does not take."""

    def forward(self, x):
        return nn.functional.softplus(super().forward(x))


@needs("paddle2onnx")
def test_the_operator_that_cannot_be_converted_is_named(tmp_path):
    program = export_paddle(Softplus(), tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    with pytest.raises(ExportError, match=r"model.json: .*softplus.*Write this operation"):
        export_onnx(program, tmp_path / "model.onnx")


class Dense(nn.Layer):
    """Maps of the input's size, and a vector."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2D(3, 5, 3, padding=1), nn.Linear(5, 2)

    def forward(self, x):
        y = self.conv(x)
        return y, self.fc(y.mean(axis=[2, 3]))


@needs("paddle2onnx")
def test_free_sizes_and_names_of_outputs_stand_in_deploy_json(tmp_path):
    spec = [InputSpec([None, 3, None, None], "float32", "image")]
    images = paddle.io.TensorDataset([paddle.rand([4, 3, 8, 8]), paddle.rand([4, 2])])
    model = paddle.Model(Dense())
    optimizer = paddle.optimizer.SGD(parameters=model.parameters())
    model.prepare(optimizer, lambda maps, vector, target: nn.functional.mse_loss(vector, target))
    export = ExportBenchCallback(tmp_path, **grouped(name="net", input_spec=spec, report=False, verbose=0, **QUICK))
    model.fit(images, batch_size=2, verbose=0, callbacks=[export])
    assert any("timed at 3x8x8" in note for note in export.record.notes)
    said = json.loads((tmp_path / "net/deploy.json").read_text())
    assert [item["shape"] for item in said["outputs"]] == [[None, 5, None, None], [None, 2]]
    assert all(item["name"] for item in said["outputs"])
    assert main(["export", str(tmp_path / "net"), str(tmp_path / "again"), "--input", "1x3x8x8"]) == 0
    again = json.loads((tmp_path / "again/deploy.json").read_text())
    assert again["inputs"] == [{"name": "image", "shape": [None, 3, None, None], "dtype": "float32"}]
    assert [item["shape"] for item in again["outputs"]] == [[None, 5, None, None], [None, 2]]


@needs("paddle2onnx")
def test_bench_calls_a_quantised_file_int8_and_says_where_engines_disagree(tmp_path, capsys):
    network = TinyNet()
    prepare_pact_(network, PACTConfig(weight_bits=2, activation_bits=2))
    network(paddle.rand([4, 3, 8, 8]))
    export_forms(network, tmp_path, input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    assert find_model(tmp_path / "model.int8.onnx").precision == "int8"
    assert find_model(tmp_path / "model.onnx").precision == "fp32"
    arguments = ["--input", "1x3x8x8", "--warmup", "0", "--repeats", "1", "--no-memory"]
    assert main(["bench", str(tmp_path / "model.int8.onnx"), *arguments]) == 0
    assert "| openvino | int8 | 1 |" in capsys.readouterr().out


class Upsampled(TinyNet):
    """Ends in an interpolation."""

    def forward(self, x):
        return nn.functional.interpolate(self.conv1(x), scale_factor=2, mode="bilinear")


def test_what_onednn_does_not_run_is_said_in_plain_words(tmp_path):
    """Of a program that others wrote; ours run, see test_interpolation."""
    prefix = tmp_path / "theirs"
    paddle.jit.save(Upsampled(), str(prefix), input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    files = (prefix.with_suffix(".json"), prefix.with_suffix(".pdiparams"))
    program = Artefact(kind="paddle", path=files[0], files=files)
    try:
        ENGINES["paddle-onednn"].load(program, threads=1)([np.zeros([1, 3, 8, 8], "float32")])
        said = ""
    except Exception as error:
        said = reason(error)
    assert not said or "no interpolation" in said  # a later Paddle may have it
