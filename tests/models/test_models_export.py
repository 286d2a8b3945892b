"""The networks exported: every engine computes what the live network does, Paddle's default (oneDNN) included."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from test_models import calibrated

from paddlelite_callbacks import models
from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.models.inference import FoldedConv

SIZE = (64, 64)


@needs("paddle2onnx")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "fused"), [(models.lite_hrnet_18, False), (models.lite_hrnet_30, True), (models.hrnet_w18, True)]
)
def test_every_engine_computes_the_network(make, fused, tmp_path):
    net = calibrated(models.keypoint_net(make()), (128, 96))
    x = paddle.randn([1, 3, *SIZE])
    with paddle.no_grad():
        expected = net(x).numpy()
    if fused:
        models.fuse_for_inference_(net)
    program = export_paddle(net, tmp_path, input_spec=[paddle.static.InputSpec([None, 3, *SIZE], "float32", "x")])
    files = {"paddle": program}
    if missing_reason(ENGINES["onnxruntime"]) is None:
        files["onnx"] = export_onnx(program, tmp_path / "model.onnx")
    for engine in ENGINES.values():
        if engine.kind in files and missing_reason(engine) is None:
            got = engine.load(files[engine.kind], threads=1)([x.numpy()])[0]
            assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-3, engine.name


def test_fused_convolutions_compute_the_same():
    net = calibrated(models.keypoint_net(models.lite_hrnet_18()), (128, 96)).to(dtype="float64")
    fused = copy.deepcopy(net)
    convolutions = sum(isinstance(layer, nn.BatchNorm2D) for layer in net.sublayers())
    assert models.fuse_for_inference_(fused) == convolutions
    assert not any(isinstance(layer, nn.BatchNorm2D) for layer in fused.sublayers())
    assert sum(isinstance(layer, FoldedConv) for layer in fused.sublayers()) == convolutions
    x = paddle.randn([1, 3, 64, 64]).astype("float64")
    with paddle.no_grad():
        expected, got = net(x), fused(x)
    assert float((expected - got).abs().max() / expected.abs().max()) < 1e-9
    net.train()
    with pytest.raises(ValueError, match="eval"):
        models.fuse_for_inference_(net)


def test_export_with_an_open_height_is_refused(tmp_path):
    from paddlelite_callbacks.errors import ExportError

    spec = [paddle.static.InputSpec([None, 3, None, None], "float32", "x")]
    with pytest.raises(ExportError, match="must be known at export"):
        export_paddle(models.keypoint_net(models.naive_lite_hrnet_18()), tmp_path, input_spec=spec)
