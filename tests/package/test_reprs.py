"""``repr`` of public classes: the constructor call with what is not default."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from installed import needs
from paddle import nn
from paddle.static import InputSpec
from records import record
from toy import Images, TinyNet

import paddlelite_callbacks as pc
from paddlelite_callbacks import (
    BackboneSwap,
    Budget,
    DistillCallback,
    EMATeacher,
    ExportOptions,
    MutualPeer,
    PACTConfig,
    PACTQuantCallback,
)
from paddlelite_callbacks.backbone.weights import LoadReport
from paddlelite_callbacks.distill.losses.afd import AttentionFeatureLoss
from paddlelite_callbacks.distill.schedules import cosine, warm_up
from paddlelite_callbacks.report.gate import judge
from paddlelite_callbacks.utils.representation import shown

NAMES = {
    **{name: getattr(pc, name) for name in pc.__all__},
    "AttentionFeatureLoss": AttentionFeatureLoss,
    "cosine": cosine,
}
CALLS = [
    "AdvancedPACTOptions()",
    "AdvancedPACTOptions(layer_types=('Linear',), alpha_percentile=99.0)",
    "BenchOptions()",
    "BenchOptions(engines=['paddle'], threads=[1, 4], repeats=5, roofline=False)",
    "Budget()",
    "Budget(size_mb=None, metric_drop=0.2, metric='rmse', baseline=0.1, mode='min', engine='openvino')",
    "EMATeacher(0.9)",
    "EMATeacher(ramp=False)",
    "ExportBenchCallback('out')",
    "ExportBenchCallback('out', name='run', engines=['paddle'], eval_data=False, which='best', "
    "budget=Budget(size_mb=3), gate='fail', export=ExportOptions(fp16=True), benchmark=BenchOptions(repeats=5), "
    "verbose=0)",
    "ExportOptions()",
    "ExportOptions(forms=('pdmodel',), dynamic_batch=False, sidecar={'labels': ['a']}, monitor='acc', strict=True)",
    "FeatureTerm('a', 'b')",
    "FeatureTerm(('a', 'b'), ('c',), loss=AttentionFeatureLoss())",
    "FeatureTerm('a', 'b', loss='rkd', weight=2.0, project=False, of=1, resize='nearest')",
    "OutputTerm()",
    "OutputTerm('kl', weight=cosine(1.0, 0.1), output=('a', 0), temperature=2.0)",
    "OutputTerm(output={'maps': 'maps'}, resize='bilinear')",
    "PACTConfig()",
    "PACTConfig(weight_bits=4, skip=('head.*',), alpha_decay=0.1, freeze_bn_after=2)",
    "PACTQuantCallback()",
    "PACTQuantCallback(weight_bits=4, skip=('fc',), advanced=AdvancedPACTOptions(calibration_batches=2), "
    "metric_drop=0.01, mode='min', on_nan='skip')",
    "BackboneSwap('PPLCNet_x1_0')",
    "BackboneSwap('PPLCNet_x1_0', at='backbone', taps=[8, 16], freeze_norm=True, options={'a': [1, 2]})",
]


@pytest.mark.parametrize(
    "call",
    [pytest.param(call, marks=needs("paddleclas") if "BackboneSwap" in call else (), id=call) for call in CALLS],
)
def test_the_repr_is_the_call(call):
    made = eval(call, NAMES)
    assert repr(made) == call
    assert repr(eval(repr(made), NAMES)) == call


@pytest.mark.parametrize("call", [call for call in CALLS if call.split("(")[0].endswith(("Options", "Config", "et"))])
def test_options_are_equal_to_what_their_repr_makes(call):
    assert eval(repr(eval(call, NAMES)), NAMES) == eval(call, NAMES)


def test_a_config_is_shown_by_its_fields():
    config = PACTConfig(method="lsq", alpha_percentile=100)
    assert repr(PACTQuantCallback(config)) == (
        "PACTQuantCallback(method='lsq', advanced=AdvancedPACTOptions(alpha_percentile=100))"
    )
    assert eval(repr(PACTQuantCallback(config)), NAMES).config == config


def normalised(x):
    return x / 255


def test_teachers_and_peers(tmp_path):
    peer = TinyNet()
    mutual = MutualPeer(peer, paddle.optimizer.Adam(parameters=peer.parameters()), keep="student")
    assert repr(mutual) == "MutualPeer(TinyNet(), Adam(), keep='student')"
    assert repr(DistillCallback(mutual, loss="dml")) == f"DistillCallback({mutual!r}, loss='dml')"
    cached = pc.cache_teacher(TinyNet(), Images(8), tmp_path / "c", verbose=0)
    assert repr(cached) == f"CachedTeacher(Images(), {str(tmp_path / 'c')!r})"
    assert repr(DistillCallback(cached)) == f"DistillCallback({cached!r})"
    assert repr(DistillCallback(EMATeacher(0.9))) == "DistillCallback(EMATeacher(0.9))"
    two = DistillCallback([TinyNet(), nn.Linear(2, 2)], weight=warm_up(1, cosine(1.0, 0.1)), teacher_inputs=normalised)
    assert repr(two) == (
        f"DistillCallback([TinyNet, Linear], weight={warm_up(1, cosine(1.0, 0.1))!r}, "
        f"teacher_inputs={normalised.__module__}.normalised)"
    )


def test_networks_data_and_arrays_are_shown_by_class():
    assert shown(TinyNet()) == "TinyNet()"
    assert shown(Images(8)) == "Images()"
    assert shown(np.zeros([100, 100])) == "ndarray()"
    assert shown([np.float32, len, ("a",)]) == "[numpy.float32, builtins.len, ('a',)]"
    assert "TinyNet" in repr(BackboneSwap(TinyNet()))
    assert repr(PACTQuantCallback(eval_data=Images(8))) == "PACTQuantCallback(eval_data=Images())"
    spec = ExportOptions(input_spec=[InputSpec([None, 3, 8, 8])])
    assert repr(spec).startswith("ExportOptions(input_spec=[InputSpec(")


def test_results_are_short():
    run = record("light", acc=0.9375, size=3.25, ms=(("paddle", 12.5), ("onnxruntime", 4.5)))
    assert repr(run) == "<Record 'light': fp32, 3.25 MB, 4.50 ms on onnxruntime, acc 0.9375>"
    failed = replace(run, artefacts=(), latencies=(), checks=(), failure="no such op")
    assert repr(failed) == "<Record 'light': fp32, acc 0.9375; nothing exported>"
    verdict = judge(run, Budget(size_mb=5))
    assert repr(verdict) == f"<Verdict {verdict}>"
    keys = tuple(f"layer{i}.weight" for i in range(500))
    report = LoadReport(file="w.pdparams", loaded=keys, missing=(), unexpected=(), mismatched=())
    assert repr(report) == "<LoadReport w.pdparams: 500 keys loaded>"
