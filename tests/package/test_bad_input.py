"""Bad input, one row each: the exception's type, and a message that names it, shows the value and says what to do."""

from __future__ import annotations

import contextlib
import io
import re
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import (
    BackboneSwap,
    Budget,
    DistillCallback,
    EMATeacher,
    ExportBenchCallback,
    ExportOptions,
    FeatureTerm,
    MutualPeer,
    OutputTerm,
    PACTConfig,
    PACTQuantCallback,
    cache_teacher,
    list_backbones,
    prepare_pact_,
    ptq_int8,
    quantize,
)
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.backbone.weights import DownloadError
from paddlelite_callbacks.benchmark.int8_search import search_int8_layers
from paddlelite_callbacks.benchmark.latency import measure_latency, summarise
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.distill import losses, schedules
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.distill.losses import features as feature_losses
from paddlelite_callbacks.distill.losses.afd import AttentionFeatureLoss
from paddlelite_callbacks.export.model_files import find_model, input_shapes, parse_input, random_inputs
from paddlelite_callbacks.models import keypoint_net
from paddlelite_callbacks.models.guide_weights import load_guide_weights_
from paddlelite_callbacks.nn.surgery import find_sublayer, freeze_norm_, match_sublayers, replace_sublayer
from paddlelite_callbacks.quant.sensitivity import find_skips, leave_one_out
from paddlelite_callbacks.report.gate import most_accurate
from paddlelite_callbacks.report.record import Record, read_records
from paddlelite_callbacks.report.write import write_report
from paddlelite_callbacks.utils.safe_load import read_saved

NAN, INF = float("nan"), float("inf")
A, B = paddle.ones([2, 4]), paddle.ones([2, 5])
MAPS = paddle.ones([2, 3, 4, 4])


class Nothing(paddle.io.Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError


class Malicious:
    def __reduce__(self):
        return print, ("this should not run",)


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """Files that are missing, torn, of something else, or evil; and a few networks."""
    home = tmp_path_factory.mktemp("bad")
    paddle.save({"a": paddle.ones([2])}, str(home / "other.pdparams"))
    paddle.save([1, 2], str(home / "list.pdparams"))
    paddle.save({"a": 1}, str(home / "other.pddistill"))
    paddle.save(TinyNet().state_dict(), str(home / "whole.pdparams"))
    (home / "half.pdparams").write_bytes((home / "whole.pdparams").read_bytes()[:300])
    (home / "half.pddistill").write_bytes(b"\x80\x04xx")
    with (home / "evil.pdparams").open("wb") as file:
        import pickle

        pickle.dump({"w": Malicious()}, file)
    (home / "file").write_text("x")
    (home / "half.onnx").write_bytes(b"xx")
    (home / "half.json").write_text("{}")
    (home / "half.pdiparams").write_bytes(b"x")
    (home / "broken.json").write_text("{}")
    (home / "broken.pdiparams").write_bytes(b"")
    (home / "runs.jsonl").write_text('{"schema": 9}\n')
    (home / "full").mkdir()
    (home / "full" / "mine.txt").write_text("x")
    cache_teacher(TinyNet(), Images(16), home / "stored", verbose=0)
    cache_teacher(TinyNet(), Images(16), home / "torn", verbose=0)
    (home / "torn" / "checksums.npy").write_bytes(b"xx")
    cache_teacher(TinyNet(), Images(16), home / "torn-meta", verbose=0)
    (home / "torn-meta" / "meta.json").write_text("{")
    return SimpleNamespace(home=home)


def train(*callbacks, model=None, data=None, **options):
    """Fit; a bad input must be met before the first batch is trained."""
    model = model or hapi_model()

    class First(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            raise AssertionError("a batch was trained before the bad input was refused")

    fit(model, [*callbacks, First()], data=data, **options)


def distill(**options):
    return DistillCallback(TinyNet(), **options)


def optimizer_of(network):
    return paddle.optimizer.SGD(0.1, parameters=network.parameters())


def with_peer(peer=None, optimizer=None, **options):
    peer = peer or TinyNet()
    return train(DistillCallback(MutualPeer(peer, optimizer or optimizer_of(peer), **options)))


def with_itself():
    network = TinyNet()
    return train(DistillCallback(network), model=hapi_model(network))


def with_amp():
    network = TinyNet()
    model = paddle.Model(network)
    model.prepare(optimizer_of(network), nn.CrossEntropyLoss(), amp_configs="O1")
    return train(PACTQuantCallback(), model=model)


def with_a_strange_optimizer(callback):
    network = TinyNet()
    model = paddle.Model(network)
    model.prepare(optimizer_of(TinyNet()), nn.CrossEntropyLoss())
    return train(callback, model=model)


def with_other_bits():
    network = TinyNet()
    prepare_pact_(network, PACTConfig(weight_bits=4))
    return train(PACTQuantCallback(), model=hapi_model(network))


def with_nan_weights(make):
    network = TinyNet()
    network.fc.weight.set_value(np.full([4, 4], NAN, "float32"))
    return make(network)


def without_batches(folder):
    model = hapi_model()
    model.fit(paddle.io.DataLoader(Nothing(), batch_size=1), verbose=0, callbacks=[ExportBenchCallback(folder)])


def with_channels():
    network = TinyNet()
    network.channels = [4]
    return network


def cli(*arguments):
    """Run a command; its message becomes an exception, so that the rows are alike."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main([str(argument) for argument in arguments])
    assert code == 1
    assert said.getvalue().count("\n") == 1, "one line says why"
    raise RuntimeError(said.getvalue())


def swap(*arguments, **options):
    return BackboneSwap("mobilenet_v3_small", *arguments, **options)  # of paddle.vision: on every Python


SPEC = [InputSpec([None, 3, 32, 32])]

V, T, R, F = ValueError, TypeError, RuntimeError, FileNotFoundError
# id | call | exception | the argument (or file, or command) that the message names | the value that it shows
ROWS = [
    # --- DistillCallback: who teaches ---
    ("teacher-none", lambda b: DistillCallback(None), T, "teacher", "NoneType"),
    ("teacher-path", lambda b: DistillCallback("no"), F, "teacher", "'no'"),
    ("teacher-empty", lambda b: DistillCallback([]), V, "teacher", "[]"),
    ("teacher-other-params", lambda b: DistillCallback((b.home / "other.pdparams", TinyNet())), V, "teacher", "['a']"),
    (
        "teacher-no-state",
        lambda b: DistillCallback((b.home / "list.pdparams", TinyNet())),
        V,
        "list.pdparams",
        "a list",
    ),
    (
        "teacher-torn",
        lambda b: DistillCallback((b.home / "half.pdparams", TinyNet())),
        V,
        "half.pdparams",
        "UnpicklingError",
    ),
    (
        "teacher-evil",
        lambda b: DistillCallback((b.home / "evil.pdparams", TinyNet())),
        V,
        "evil.pdparams",
        "builtins.print",
    ),
    ("teacher-builder-type", lambda b: DistillCallback((b.home / "other.pdparams", 3)), T, "teacher", "int"),
    ("teacher-builder-gives", lambda b: DistillCallback((b.home / "other.pdparams", lambda: 3)), T, "teacher", "int"),
    ("teacher-program-torn", lambda b: DistillCallback(str(b.home / "half")), V, "half.pdiparams", "1 bytes"),
    ("teacher-program-broken", lambda b: DistillCallback(str(b.home / "broken")), V, "teacher", "broken"),
    ("teacher-is-student", lambda b: with_itself(), V, "teacher", "conv1.weight"),
    ("teacher-nan", lambda b: with_nan_weights(lambda n: train(DistillCallback(n))), V, "fc.weight", "16 NaN"),
    # --- DistillCallback: losses, weights, features ---
    ("loss-name", lambda b: distill(loss="kll"), V, "loss", "'kll'"),
    ("loss-type", lambda b: distill(loss=3), T, "loss", "int"),
    ("loss-empty", lambda b: train(distill(loss=[])), V, "loss", "[]"),
    (
        "loss-not-chosen",
        lambda b: train(distill(), model=hapi_model(loss=lambda x, y: (x**2).mean())),
        V,
        "loss",
        "<lambda>",
    ),
    ("temperature-zero", lambda b: distill(temperature=0), V, "temperature", "0"),
    ("temperature-nan", lambda b: distill(temperature=NAN), V, "temperature", "nan"),
    ("temperature-text", lambda b: distill(temperature="4"), V, "temperature", "'4'"),
    ("temperature-mse", lambda b: distill(loss="mse", temperature=4), V, "temperature", "'mse'"),
    ("weight-negative", lambda b: distill(weight=-1), V, "weight", "-1"),
    ("weight-nan", lambda b: distill(weight=NAN), V, "weight", "nan"),
    ("task-weight-inf", lambda b: distill(task_weight=INF), V, "task_weight", "inf"),
    ("combine", lambda b: distill(combine="sum"), V, "combine", "'sum'"),
    (
        "teacher-weights-number",
        lambda b: DistillCallback([TinyNet(), TinyNet()], teacher_weights=[1]),
        V,
        "teacher_weights",
        "[1]",
    ),
    (
        "teacher-weights-text",
        lambda b: DistillCallback([TinyNet(), TinyNet()], teacher_weights="ab"),
        V,
        "teacher_weights",
        "'ab'",
    ),
    ("features-list", lambda b: distill(features=["a"]), T, "features", "['a']"),
    ("features-number", lambda b: distill(features=3), T, "features", "3"),
    ("features-student-name", lambda b: train(distill(features={"conv9": "conv1"})), V, "TinyNet", "'conv9'"),
    ("features-teacher-name", lambda b: train(distill(features={"conv1": "cnv1"})), V, "TinyNet", "'cnv1'"),
    ("features-counts", lambda b: train(distill(features={"conv*": "bn*"})), V, "features", "'conv*'"),
    ("features-teacher-number", lambda b: train(distill(features=FeatureTerm("conv1", "conv1", of=3))), V, "of", "3"),
    ("output-key", lambda b: train(distill(loss=OutputTerm(output="aux"))), V, "output", "'aux'"),
    ("output-teacher-number", lambda b: train(distill(loss=OutputTerm("kl", teacher=4))), V, "teacher", "4"),
    ("shapes", lambda b: train(DistillCallback(TinyNet(outputs=7))), V, "output", "[8, 7]"),
    ("label-number", lambda b: train(distill(loss=OutputTerm("dkd", label=5))), V, "label", "5"),
    ("term-label", lambda b: OutputTerm("kl", label=1), V, "label", "'kl'"),
    ("term-project", lambda b: FeatureTerm("a", "b", project=3), T, "project", "int"),
    ("term-tuple", lambda b: FeatureTerm("a", ("b",)), T, "student", "('b',)"),
    ("term-tuple-named", lambda b: FeatureTerm(("a",), ("b",), loss="kl"), V, "loss", "'kl'"),
    ("schedule-value", lambda b: schedules.linear(-1, 0), V, "start", "-1"),
    ("schedule-epochs", lambda b: schedules.cosine(1, 0, epochs=0), V, "epochs", "0"),
    ("schedule-stop", lambda b: schedules.stop_at(NAN), V, "epoch", "nan"),
    ("schedule-gives", lambda b: train(distill(weight=lambda epoch, epochs: -1)), V, "schedule", "-1"),
    ("on-nan", lambda b: distill(on_nan="stop"), V, "on_nan", "'stop'"),
    (
        "on-nan-differs",
        lambda b: train(distill(on_nan="skip"), PACTQuantCallback(on_nan="raise")),
        V,
        "on_nan",
        "'PACTQuantCallback': 'raise'",
    ),
    # --- resuming ---
    ("resume-missing", lambda b: distill(resume=b.home / "no"), F, "resume", "no.pddistill"),
    ("resume-torn", lambda b: distill(resume=b.home / "half"), V, "half.pddistill", "UnpicklingError"),
    ("resume-other", lambda b: distill(resume=b.home / "other"), V, "resume", "other.pddistill"),
    ("session", lambda b: distill().session, R, "DistillCallback", "not in training"),
    # --- peers, averages ---
    ("peer-network", lambda b: MutualPeer("x", None), T, "network", "str"),
    ("peer-optimizer", lambda b: MutualPeer(TinyNet(), 0.1), T, "optimizer", "float"),
    ("peer-keep", lambda b: with_peer(keep="best"), V, "keep", "'best'"),
    ("peer-monitor", lambda b: with_peer(monitor="f1"), V, "monitor", "'f1'"),
    ("peer-strange-optimizer", lambda b: with_peer(optimizer=optimizer_of(TinyNet())), V, "optimizer", "SGD"),
    ("ema-decay", lambda b: EMATeacher(1.0), V, "decay", "1.0"),
    ("ema-text", lambda b: EMATeacher("0.9"), V, "decay", "'0.9'"),
    # --- stored outputs ---
    ("cache-iterable", lambda b: cache_teacher(TinyNet(), iter([]), b.home / "c"), T, "data", "list_iterator"),
    ("cache-empty", lambda b: cache_teacher(TinyNet(), Nothing(), b.home / "c"), V, "data", "Nothing"),
    ("cache-dtype", lambda b: cache_teacher(TinyNet(), Images(), b.home / "c", dtype="int8"), V, "dtype", "'int8'"),
    ("cache-batch", lambda b: cache_teacher(TinyNet(), Images(), b.home / "c", batch_size=0), V, "batch_size", "0"),
    ("cache-inputs", lambda b: cache_teacher(TinyNet(), Images(), b.home / "c", inputs=5), V, "inputs", "5"),
    (
        "cache-no-network",
        lambda b: cache_teacher(b.home / "other.pdparams", Images(), b.home / "c"),
        V,
        "teacher",
        "other.pdparams",
    ),
    (
        "cache-unwritable",
        lambda b: cache_teacher(TinyNet(), Images(), b.home / "file" / "c"),
        PermissionError,
        "HOME/file",
        "not writable",
    ),
    ("cache-other", lambda b: cache_teacher(TinyNet(), Images(24), b.home / "stored"), V, "HOME/stored", "16"),
    ("cache-length", lambda b: CachedTeacher(Images(3), b.home / "stored"), V, "HOME/stored", "3"),
    ("cache-missing", lambda b: CachedTeacher(Images(3), b.home / "no"), V, "HOME/no", "meta.json"),
    ("cache-torn", lambda b: CachedTeacher(Images(16), b.home / "torn"), V, "checksums.npy", "allow_pickle"),
    ("cache-torn-meta", lambda b: CachedTeacher(Images(16), b.home / "torn-meta"), V, "meta.json", "line 1 column 2"),
    # --- losses as functions ---
    ("kl-shapes", lambda b: losses.kl(A, B), V, "student", "[2, 5]"),
    ("kl-arrays", lambda b: losses.kl(A.numpy(), A), T, "student", "ndarray"),
    ("mse-none", lambda b: losses.mse(A, None), T, "teacher", "NoneType"),
    ("smooth-l1-delta", lambda b: losses.smooth_l1(A, A, delta=0), V, "delta", "0"),
    ("dkd-labels", lambda b: losses.dkd(A, A, paddle.to_tensor([1, 2, 3])), V, "labels", "[3]"),
    ("dist-maps", lambda b: losses.dist(MAPS, MAPS), V, "dist", "[2, 3, 4, 4]"),
    ("cwd-logits", lambda b: feature_losses.cwd(A, A), V, "cwd", "[2, 4]"),
    ("attention-logits", lambda b: feature_losses.attention(A, A), V, "attention", "[2, 4]"),
    ("rkd-batches", lambda b: feature_losses.rkd(A, paddle.ones([3, 4])), V, "rkd", "3"),
    ("heatmap-weights", lambda b: feature_losses.heatmap_mse(MAPS, MAPS, B), V, "heatmap_mse", "[2, 5]"),
    ("afd-width", lambda b: AttentionFeatureLoss(0), V, "width", "0"),
    (
        "afd-shapes",
        lambda b: AttentionFeatureLoss(4).prepare_for([[2, 3]], [[2, 3]]),
        V,
        "AttentionFeatureLoss",
        "[[2, 3], [2, 3]]",
    ),
    # --- PACT ---
    ("bits-low", lambda b: PACTConfig(weight_bits=1), V, "weight_bits", "1"),
    ("bits-high", lambda b: PACTConfig(activation_bits=9), V, "activation_bits", "9"),
    ("bits-true", lambda b: PACTConfig(weight_bits=True), V, "weight_bits", "True"),
    ("layer-types", lambda b: PACTConfig(layer_types=["LSTM"]), V, "layer_types", "['LSTM']"),
    ("skip-text", lambda b: PACTConfig(skip="fc"), V, "skip", "'fc'"),
    ("percentile", lambda b: PACTConfig(alpha_percentile=10), V, "alpha_percentile", "10"),
    ("percentile-text", lambda b: PACTConfig(alpha_percentile="99"), V, "alpha_percentile", "'99'"),
    ("calibration", lambda b: PACTConfig(calibration="entropy"), V, "calibration", "'entropy'"),
    ("calibration-both", lambda b: PACTConfig(calibration="mse", alpha_percentile=99), V, "alpha_percentile", "'mse'"),
    ("decay-nan", lambda b: PACTConfig(alpha_decay=NAN), V, "alpha_decay", "nan"),
    ("lr-scale", lambda b: PACTConfig(lr_scale=0), V, "lr_scale", "0"),
    ("method", lambda b: PACTConfig(method="dorefa"), V, "method", "'dorefa'"),
    ("outputs-text", lambda b: PACTConfig(quantize_outputs="yes"), V, "quantize_outputs", "'yes'"),
    ("pact-option", lambda b: PACTQuantCallback(bits=4), T, "argument", "'bits'"),
    ("pact-both", lambda b: PACTQuantCallback(PACTConfig(), weight_bits=4), T, "config", "['weight_bits']"),
    ("pact-config", lambda b: PACTQuantCallback({}), T, "config", "dict"),
    ("pact-metric-drop", lambda b: PACTQuantCallback(metric_drop="3"), V, "metric_drop", "'3'"),
    ("pact-eval-data", lambda b: PACTQuantCallback(eval_data=3), T, "eval_data", "int"),
    ("pact-eval-data-empty", lambda b: PACTQuantCallback(eval_data=Nothing()), V, "eval_data", "Nothing"),
    ("guide-key", lambda b: PACTConfig.from_guide({"weight_bit": 8}), V, "quantization", "['weight_bit']"),
    (
        "guide-scheme",
        lambda b: PACTConfig.from_guide({"weight_quantize_type": "abs_max"}),
        V,
        "weight_quantize_type",
        "'abs_max'",
    ),
    ("guide-type", lambda b: PACTConfig.from_guide("PACT"), T, "quantization", "str"),
    ("pact-skip-name", lambda b: train(PACTQuantCallback(skip=["fcc"])), V, "TinyNet", "'fcc'"),
    ("pact-nothing", lambda b: prepare_pact_(nn.Sequential(nn.ReLU())), V, "include", "Sequential"),
    ("prepare-number", lambda b: prepare_pact_(3), T, "network", "int"),
    ("prepare-model", lambda b: prepare_pact_(hapi_model()), T, "network", "Model"),
    ("prepare-config", lambda b: prepare_pact_(TinyNet(), {}), T, "config", "dict"),
    ("pact-never", lambda b: train(PACTQuantCallback(start_epoch=3)), V, "start_epoch", "3"),
    ("pact-amp", lambda b: with_amp(), V, "amp_configs", "O1"),
    ("pact-other-bits", lambda b: with_other_bits(), V, "weight_bits", "4"),
    (
        "pact-nan",
        lambda b: with_nan_weights(lambda n: train(PACTQuantCallback(), model=hapi_model(n))),
        V,
        "fc.weight",
        "16 NaN",
    ),
    ("skips-without", lambda b: PACTQuantCallback().find_skips(0.1), R, "eval_data", "NoneType"),
    ("skips-budget", lambda b: find_skips(TinyNet(), lambda: 1.0, metric_drop=-1), V, "metric_drop", "-1"),
    ("skips-fp32", lambda b: find_skips(TinyNet(), lambda: 1.0, metric_drop=0.1), V, "network", "TinyNet"),
    (
        "leave-out-name",
        lambda b: leave_one_out((lambda n: (prepare_pact_(n), n)[1])(TinyNet()), lambda: 1.0, ["x"]),
        V,
        "layers",
        "['x']",
    ),
    ("ptq-empty", lambda b: ptq_int8(TinyNet(), []), V, "batches", "[]"),
    ("ptq-bias", lambda b: ptq_int8(TinyNet(), [A], bias_correction=1), V, "bias_correction", "1"),
    ("ptq-rounding", lambda b: ptq_int8(TinyNet(), [A], rounding="up"), V, "rounding", "'up'"),
    ("ptq-option", lambda b: ptq_int8(TinyNet(), [A], weight_bit=3), T, "argument", "'weight_bit'"),
    ("ptq-network", lambda b: ptq_int8("n", [A]), T, "network", "str"),
    ("ptq-nan", lambda b: ptq_int8(TinyNet(), [paddle.full([2, 3, 8, 8], NAN)]), V, "batches", "not finite"),
    ("put-back-data", lambda b: PACTQuantCallback(put_back=True), V, "put_back", "eval_data=None"),
    ("put-back-kind", lambda b: PACTQuantCallback(put_back=1, eval_data=Images()), V, "put_back", "1"),
    ("quantize-model", lambda b: quantize(TinyNet(), A), T, "model", "TinyNet"),
    ("quantize-torn", lambda b: quantize(b.home / "half.onnx", A), V, "half.onnx", "cannot be read"),
    ("quantize-drop", lambda b: quantize(b.home / "half.onnx", A, metric_drop=1.5), V, "metric_drop", "1.5"),
    ("quantize-skip", lambda b: quantize(b.home / "half.onnx", A, skip="conv"), T, "skip", "'conv'"),
    ("quantize-files", lambda b: quantize(b.home / "half.onnx", A, most_files=1), V, "most_files", "1"),
    ("search-engine", lambda b: search_int8_layers(TinyNet(), A, engine="paddle"), V, "engine", "'paddle'"),
    ("search-trials", lambda b: search_int8_layers(TinyNet(), A, trials=0), V, "trials", "0"),
    # --- both kinds of training ---
    *[
        (
            f"optimizer-of-another-{name}",
            lambda b, make=make: with_a_strange_optimizer(make(b)),
            V,
            "optimizer",
            "SGD",
        )
        for name, make in {
            "distill": lambda b: distill(),
            "pact": lambda b: PACTQuantCallback(),
            "export": lambda b: ExportBenchCallback(b.home / "o"),
        }.items()
    ],
    # --- export ---
    ("export-folder", lambda b: ExportBenchCallback(3), T, "folder", "int"),
    ("export-name", lambda b: ExportBenchCallback(b.home, name="a/b"), V, "name", "'a/b'"),
    ("export-gate", lambda b: ExportBenchCallback(b.home, gate="warn"), V, "gate", "'warn'"),
    ("export-no-budget", lambda b: ExportBenchCallback(b.home, gate="fail"), V, "budget", "None"),
    ("export-budget", lambda b: ExportBenchCallback(b.home, budget=20), T, "budget", "int"),
    (
        "export-preflight",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(preflight="no")),
        T,
        "preflight",
        "'no'",
    ),
    ("export-mode", lambda b: ExportBenchCallback(b.home, export=ExportOptions(mode="up")), V, "mode", "'up'"),
    ("export-engine", lambda b: ExportBenchCallback(b.home, engines=["onnx"]), V, "engine", "'onnx'"),
    ("export-engine-text", lambda b: BenchOptions(engines="ort"), V, "engines", "'ort'"),
    ("export-threads", lambda b: BenchOptions(threads=0), V, "threads", "0"),
    ("export-batch", lambda b: BenchOptions(batch_size=1.5), V, "batch_size", "1.5"),
    ("export-repeats", lambda b: BenchOptions(repeats=0), V, "repeats", "0"),
    (
        "export-unwritable",
        lambda b: train(ExportBenchCallback(b.home / "file")),
        PermissionError,
        "HOME/file",
        "not writable",
    ),
    (
        "export-sidecar",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(sidecar={"mean": 3})),
        V,
        "sidecar",
        "['mean']",
    ),
    (
        "export-labels",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(sidecar={"labels": "cat"})),
        V,
        "labels",
        "'cat'",
    ),
    (
        "export-sidecar-json",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(sidecar={"preprocess": {"a": object()}})),
        V,
        "sidecar",
        "object",
    ),
    (
        "export-monitor",
        lambda b: train(ExportBenchCallback(b.home / "o", which="best", export=ExportOptions(monitor="f1"))),
        V,
        "monitor",
        "'f1'",
    ),
    (
        "export-spec-type",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(input_spec=[3])),
        T,
        "input_spec",
        "[3]",
    ),
    (
        "export-spec-sizes",
        lambda b: train(
            ExportBenchCallback(b.home / "o", export=ExportOptions(input_spec=[InputSpec([None, 1, 8, 8])]))
        ),
        V,
        "input_spec",
        "[[-1, 1, 8, 8]]",
    ),
    ("export-eval-data", lambda b: ExportBenchCallback(b.home, eval_data=Nothing()), V, "eval_data", "Nothing"),
    ("export-summary", lambda b: ExportBenchCallback(b.home).summary(), R, "summary", "fit()"),
    # --- the gate and its records ---
    ("budget-size", lambda b: Budget(size_mb=-1), V, "size_mb", "-1"),
    ("budget-latency", lambda b: Budget(latency_ms=NAN), V, "latency_ms", "nan"),
    ("budget-text", lambda b: Budget(latency_ms="100"), V, "latency_ms", "'100'"),
    ("budget-metric", lambda b: Budget(baseline=0.9), V, "baseline", "0.9"),
    ("budget-nan", lambda b: Budget(metric="acc", baseline=NAN), V, "baseline", "nan"),
    ("budget-zero", lambda b: Budget(metric="acc", baseline=0), V, "baseline", "0"),
    ("budget-engine", lambda b: Budget(engine="ort"), V, "engine", "'ort'"),
    ("budget-direction", lambda b: Budget(metric="top1_err", baseline=0.1, mode="max"), V, "metric", "'top1_err'"),
    ("most-accurate", lambda b: most_accurate([], Budget()), V, "metric", "None"),
    ("records-missing", lambda b: read_records(b.home / "no"), V, "HOME/no", "ExportBenchCallback"),
    (  # read_records leaves it out and says so
        "records-schema",
        lambda b: Record.from_json_line((b.home / "runs.jsonl").read_text()),
        V,
        "schema",
        '{"schema": 9}',
    ),
    ("report-missing", lambda b: write_report(b.home / "full"), V, "full/runs.jsonl", "ExportBenchCallback"),
    ("latency-repeats", lambda b: measure_latency({}, repeats=0), V, "repeats", "0"),
    ("latency-none", lambda b: summarise([]), V, "durations_ms", "[]"),
    # --- surgery ---
    ("find", lambda b: find_sublayer(TinyNet(), "cnv1"), V, "TinyNet", "'cnv1'"),
    ("match", lambda b: match_sublayers(TinyNet(), "z*"), V, "TinyNet", "'z*'"),
    ("replace", lambda b: replace_sublayer(TinyNet(), "z", nn.ReLU()), V, "TinyNet", "'z'"),
    ("replace-type", lambda b: replace_sublayer(TinyNet(), "fc", 3), T, "new", "int"),
    ("freeze-sync", lambda b: freeze_norm_(nn.Sequential(nn.SyncBatchNorm(3))), V, "SyncBatchNorm", "['0']"),
    # --- BackboneSwap ---
    ("swap-name", lambda b: BackboneSwap("mobilenet_v3_smal"), V, "backbone", "'mobilenet_v3_smal'"),
    ("swap-stride", lambda b: swap(at="a", taps=[(2.5, 1)]), V, "stride", "(2.5, 1)"),
    ("swap-image", lambda b: swap(at="a", image=1.5), T, "image", "1.5"),
    ("teacher-mode", lambda b: distill(teacher_mode="test"), V, "teacher_mode", "'test'"),
    ("teacher-inputs", lambda b: distill(teacher_inputs=3), T, "teacher_inputs", "int"),
    ("teacher-inputs-count", lambda b: train(distill(teacher_inputs=lambda a, c: a)), T, "teacher_inputs", "(a, c)"),
    ("resize", lambda b: OutputTerm(resize="cubic"), V, "resize", "'cubic'"),
    ("term-resize", lambda b: OutputTerm("mse", resize=2), V, "resize", "2"),
    ("output-type", lambda b: OutputTerm(output=1.5), T, "output", "1.5"),
    ("kl-no-classes", lambda b: losses.kl(A[:, :1], A[:, :1]), V, "class axis", "[2, 1]"),
    ("swap-type", lambda b: BackboneSwap(3), T, "backbone", "int"),
    ("swap-network", lambda b: swap()(3), T, "network", "int"),
    ("swap-model", lambda b: swap()(hapi_model()), T, "network", "paddle.Model"),
    ("swap-at", lambda b: swap(at="bone")(TinyNet(), input_spec=SPEC), V, "TinyNet", "'bone'"),
    ("swap-no-spec", lambda b: swap(at="conv1")(TinyNet()), V, "input_spec", "at='conv1'"),
    (
        "swap-open-spec",
        lambda b: swap(at="conv1")(TinyNet(), input_spec=[InputSpec([None, 3, None, None])]),
        V,
        "input_spec",
        "[-1, 3, -1, -1]",
    ),
    ("swap-taps-text", lambda b: swap(at="b", taps="x"), T, "taps", "'x'"),
    ("swap-taps", lambda b: swap(taps=["x"]), V, "taps", "['x']"),
    ("swap-adapt", lambda b: swap(at="b", adapt="pad"), V, "adapt", "'pad'"),
    ("swap-freeze", lambda b: swap(freeze_stages=-1), V, "freeze_stages", "-1"),
    (
        "swap-weights-missing",
        lambda b: swap(pretrained=b.home / "no.pdparams")(TinyNet()),
        V,
        "pretrained",
        "no.pdparams",
    ),
    ("swap-weights-other", lambda b: swap(pretrained=b.home / "other.pdparams")(TinyNet()), V, "other.pdparams", "(a)"),
    (
        "swap-weights-torn",
        lambda b: swap(pretrained=b.home / "half.pdparams")(TinyNet()),
        V,
        "half.pdparams",
        "UnpicklingError",
    ),
    (
        "swap-weights-evil",
        lambda b: swap(pretrained=b.home / "evil.pdparams")(TinyNet()),
        V,
        "evil.pdparams",
        "builtins.print",
    ),
    ("swap-sha", lambda b: swap(pretrained=b.home / "other.pdparams", sha256="00")(TinyNet()), V, "sha256", "00"),
    (
        "swap-url",
        lambda b: swap(pretrained="http://127.0.0.1:9/x.pdparams")(TinyNet()),
        DownloadError,
        "pretrained",
        "http://127.0.0.1:9/x.pdparams",
    ),
    ("swap-summary", lambda b: swap().summary(), R, "summary", "swap"),
    ("list-name", lambda b: list_backbones("zz*"), V, "backbone", "'zz*'"),
    ("list-source", lambda b: list_backbones(source="timm"), V, "source", "'timm'"),
    # --- models ---
    ("backbone", lambda b: keypoint_net(TinyNet()), T, "backbone", "TinyNet"),
    ("joints", lambda b: keypoint_net(with_channels(), num_joints=0), V, "num_joints", "0"),
    ("guide-weights", lambda b: load_guide_weights_(TinyNet(), {"a": A}), V, "weights", "['a']"),
    # --- files ---
    ("saved-missing", lambda b: read_saved(b.home / "no"), F, "file", "HOME/no"),
    ("model-missing", lambda b: find_model(b.home / "z.onnx"), V, "z.onnx", "half.onnx"),
    ("model-weights", lambda b: find_model(b.home / "other.pdparams"), V, "other.pdparams", "checkpoint"),
    ("onnx-torn", lambda b: input_shapes(find_model(b.home / "half.onnx")), V, "half.onnx", "'xx'"),
    ("input-text", lambda b: parse_input("abc"), V, "input", "'abc'"),
    # --- the command line: exit code 1 and one line ---
    ("cli-bench-missing", lambda b: cli("bench", b.home / "z.onnx", "--input", "1x3x8x8"), R, "bench", "z.onnx"),
    (
        "cli-bench-weights",
        lambda b: cli("bench", b.home / "other.pdparams", "--input", "1x3x8x8"),
        R,
        "bench",
        "other.pdparams",
    ),
    ("cli-bench-input", lambda b: cli("bench", b.home / "half.onnx", "--input", "abc"), R, "input", "'abc'"),
    (
        "cli-bench-threads",
        lambda b: cli("bench", b.home / "half.onnx", "--input", "1x3x8x8", "--threads", "a"),
        R,
        "--threads",
        "'a'",
    ),
    ("cli-bench-torn", lambda b: cli("bench", b.home / "half.onnx", "--input", "1x3x8x8"), R, "half.onnx", "'xx'"),
    (
        "cli-export-onnx",
        lambda b: cli("export", b.home / "half.onnx", b.home / "out", "--input", "1x3x8x8"),
        R,
        "export",
        "half.onnx",
    ),
    (
        "cli-export-file",
        lambda b: cli("export", b.home / "half.json", b.home / "file", "--input", "1x3x8x8"),
        R,
        "HOME/file",
        "a file",
    ),
    (
        "cli-export-full",
        lambda b: cli("export", b.home / "half.json", b.home / "full", "--input", "1x3x8x8"),
        R,
        "HOME/full",
        "mine.txt",
    ),
    ("cli-gate-nothing", lambda b: cli("gate", b.home), R, "gate", "--size-mb"),
    ("cli-gate-negative", lambda b: cli("gate", b.home, "--size-mb", "-3"), R, "size_mb", "-3.0"),
    ("cli-gate-engine", lambda b: cli("gate", b.home, "--size-mb", "3", "--engine", "ort"), R, "engine", "'ort'"),
    ("cli-gate-missing", lambda b: cli("gate", b.home / "no", "--size-mb", "3"), R, "gate", "no/runs.jsonl"),
    ("cli-gate-schema", lambda b: cli("gate", b.home, "--size-mb", "3"), R, "schema", '{"schema": 9}'),
    ("cli-report-missing", lambda b: cli("report", b.home / "no"), R, "report", "no/runs.jsonl"),
    ("cli-backbones", lambda b: cli("backbones", "zz*"), R, "backbone", "'zz*'"),
]


def test_the_table_is_long_and_its_names_are_unique():
    names = [row[0] for row in ROWS]
    assert len(names) == len(set(names)) >= 60


# What a remedy begins with: a sentence or clause in the imperative, so that rewording a message costs no test.
IMPERATIVES = (
    "build|call|check|choose|convert|copy|download|export|fetch|give|increase|install|leave|list|load|look|make|name|"
    "pass|put|raise|read|remove|rename|resize|return|run|save|see|set|start|store|swap|take|train|use|widen|wrap|write"
)
REMEDY = re.compile(rf"(?:^|[.:;,] |\bor |\band |\bthen )(?:{IMPERATIVES})\b", re.IGNORECASE)


def shows(message, text):
    """Whether ``text`` stands in ``message`` as a word of its own: 0 is not shown by 10 or 0.5."""
    return re.search(
        rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)" if text[0] not in "'\"([{<-" else re.escape(text), message
    )


@pytest.mark.parametrize(("call", "error", "named", "given"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS])
def test_bad_input(call, error, named, given, box):
    with pytest.raises(error) as caught:
        call(box)
    message = str(caught.value).replace(str(box.home), "HOME")
    assert type(caught.value) is error
    assert shows(message, named), f"{named} is not named"
    assert shows(message, given), f"the value {given} is not shown"
    assert REMEDY.search(message), "nothing says what to do"


def test_an_empty_loader_exports_nothing(tmp_path):
    with pytest.raises(RuntimeError, match=r"No training batch was seen.*nothing was exported.*at least one batch"):
        without_batches(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["bench"], ["backbones", "--source", "timm"], ["gate", "x", "--size-mb", "big"]])
def test_arguments_that_the_command_line_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_inputs_of_a_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["batch", 3, 8, 8]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "model.onnx"))
    artefact = find_model(tmp_path / "model.onnx")
    for specs, words in (
        ([], ("0 were given", "takes 1 inputs (x)", "one --input")),
        ([parse_input("1x1x8x8")], ("[1, 1, 8, 8] was given", "of [-1, 3, 8, 8]", "give its sizes")),
        ([parse_input("y:1x3x8x8")], ("['x'] were not given", "takes the inputs ['x']", "use the file's names")),
    ):
        with pytest.raises(ValueError, match="takes") as caught:
            random_inputs(artefact, specs)
        assert all(word in str(caught.value) for word in words)
