"""Upsampling as FPN, U-Net and DB write it: every file, every engine, the same values; the network stays as it is."""

from __future__ import annotations

import json

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from exporting import grouped
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from toy import fit, hapi_model

from paddlelite_callbacks import ExportBenchCallback, PACTQuantCallback
from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.interpolation import readable_by_converter
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle

IMAGE = np.random.RandomState(0).rand(2, 3, 7, 9).astype("float32")
LINE, VOLUME = IMAGE[:, :, 0], np.random.RandomState(0).rand(2, 3, 3, 5, 7).astype("float32")
ALL = ["paddle", "paddle-onednn", "onnxruntime", "openvino"]

FORMS = {
    "layer": (IMAGE, nn.Upsample(scale_factor=2)),
    "layer, bilinear": (IMAGE, nn.Upsample(scale_factor=2, mode="bilinear")),
    "nearest": (IMAGE, lambda x: F.interpolate(x, scale_factor=2)),
    "nearest, float": (IMAGE, lambda x: F.interpolate(x, scale_factor=3.0)),
    "nearest, list": (IMAGE, lambda x: F.interpolate(x, scale_factor=[2, 3])),
    "nearest, no whole number": (IMAGE, lambda x: F.interpolate(x, scale_factor=1.5)),
    "nearest, smaller": (IMAGE, lambda x: F.interpolate(x, scale_factor=0.4)),
    "nearest, size": (IMAGE, lambda x: F.interpolate(x, size=[14, 20])),
    "bilinear": (IMAGE, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "bilinear, corners": (IMAGE, lambda x: F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=True)),
    "bilinear, align_mode": (IMAGE, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_mode=1)),
    "bilinear, no whole number": (IMAGE, lambda x: F.interpolate(x, scale_factor=[1.7, 2.3], mode="bilinear")),
    "bilinear, of another map": (IMAGE, lambda x: F.interpolate(x, size=paddle.shape(x)[2:] * 2, mode="bilinear")),
    "bicubic": (IMAGE, lambda x: F.interpolate(x, scale_factor=2, mode="bicubic")),
    "bicubic, corners": (IMAGE, lambda x: F.interpolate(x, scale_factor=1.7, mode="bicubic", align_corners=True)),
    "linear": (LINE, lambda x: F.interpolate(x, scale_factor=2, mode="linear", data_format="NCW")),
    "trilinear": (VOLUME, lambda x: F.interpolate(x, scale_factor=2, mode="trilinear", data_format="NCDHW")),
}


class Upsampled(nn.Layer):
    def __init__(self, act):
        super().__init__()
        self.act, self.gain = act, self.create_parameter([1])

    def forward(self, x):
        return self.act(x) * (1 + self.gain)


def written(name, folder, free=False):
    x, act = FORMS[name]
    network = Upsampled(act)
    network.eval()
    sizes = [None] * (x.ndim - 2) if free else x.shape[2:]
    return network, x, export_paddle(network, folder, input_spec=[InputSpec([None, 3, *sizes], "float32", "x")])


@needs("paddle2onnx")
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("form", FORMS)
def test_every_engine_computes_what_the_network_does(form, free, tmp_path):
    network, x, program = written(form, tmp_path, free)
    files = {"paddle": program, "onnx": export_onnx(program, tmp_path / "model.onnx")}
    for given in (x, np.ascontiguousarray(x[..., :-2])) if free else (x,):
        expected = network(paddle.to_tensor(given)).numpy()
        for name in ALL:
            (got,) = ENGINES[name].load(files[ENGINES[name].kind], threads=1)([given])
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=5e-6, err_msg=name)


def test_paddle_jit_load_reads_it_and_the_network_is_as_it_was(tmp_path):
    network, x, program = written("bilinear", tmp_path)
    expected = network(paddle.to_tensor(x)).numpy()
    np.testing.assert_array_equal(paddle.jit.load(str(tmp_path / "model"))(paddle.to_tensor(x)).numpy(), expected)
    assert "bilinear" in program.path.read_text()


class Pyramid(nn.Layer):
    """As in FPN and in PP-OCR's DB: coarse maps are enlarged and added, all are brought to one size and joined."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3, stride=2, padding=1)
        self.down = nn.Sequential(nn.Conv2D(8, 8, 3, stride=2, padding=1), nn.BatchNorm2D(8), nn.ReLU())
        self.side, self.out = nn.Conv2D(8, 8, 1), nn.Conv2D(16, 4, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x):
        fine = self.stem(x)
        coarse = self.down(fine)
        fine = self.side(fine) + self.up(coarse)
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_mode=1)
        maps = self.out(paddle.concat([fine, coarse], axis=1))
        return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=True).mean(axis=[2, 3])


@needs("paddle2onnx")
@pytest.mark.parametrize("more", [[], [PACTQuantCallback]], ids=["fp32", "pact"])
def test_a_pyramid_gets_all_files_and_all_engines(more, tmp_path):
    model = hapi_model(Pyramid())
    options = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=ALL, **options))
    fit(model, [callback, *(kind() for kind in more)])
    checks = {(check.engine, check.precision): check.passed for check in callback.record.checks}
    wanted = {(name, "fp32") for name in ALL}
    if more:
        wanted = {(name, "int8") for name in ALL} | {("onnxruntime", "fp32"), ("openvino", "fp32")}
    assert checks == dict.fromkeys(wanted, True)


@needs("paddle2onnx")
def test_what_has_no_onnx_form_is_named_by_its_own_name(tmp_path):
    network = Upsampled(lambda x: F.interpolate(x, scale_factor=2, data_format="NHWC"))
    program = export_paddle(network, tmp_path, input_spec=[InputSpec([None, 4, 4, 3], "float32", "x")])
    with pytest.raises(ExportError, match=r"nearest_interp\] Data format of NHWC is not supported"):
        export_onnx(program, tmp_path / "model.onnx")


def test_other_programs_are_read_as_they_are(tmp_path):
    old = tmp_path / "model.pdmodel"
    assert readable_by_converter(old, tmp_path) == old
    network = nn.Linear(2, 2)
    program = export_paddle(network, tmp_path, input_spec=[InputSpec([None, 2], "float32", "x")])
    assert readable_by_converter(program.path, tmp_path / "none") == program.path


@needs("paddle2onnx")
def test_paddle_and_its_converter_have_not_mended_it(tmp_path):
    """Fails on the day they do: then `export.interpolation` can go."""
    x, act = FORMS["nearest"]
    paddle.jit.save(Upsampled(act), str(tmp_path / "raw"), input_spec=[InputSpec([None, 3, 7, 9], "float32", "x")])
    program, weights = tmp_path / "raw.json", tmp_path / "raw.pdiparams"
    with pytest.raises(Exception, match="ConvertPirAttribute2RuntimeAttribute"):
        ENGINES["paddle-onednn"].load(Artefact(kind="paddle", path=program, files=(program, weights)), threads=1)([x])
    content = json.loads(program.read_text())
    operations = content["program"]["regions"][0]["blocks"][0]["ops"]
    scales = [a["AT"]["D"] for op in operations if op["#"] == "1.nearest_interp" for a in op["A"] if a["N"] == "scale"]
    assert [[item["#"] for item in scale] for scale in scales] == [["0.a_f64", "0.a_f64"]]
