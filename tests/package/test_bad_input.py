"""Bad input, one row each: the exception's type, and a message with what was given, what is allowed, what to do."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec
from paddlelite_callbacks.models import keypoint_net
from paddlelite_callbacks.models.guide_weights import load_guide_weights_
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
)
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.backbone.weights import DownloadError
from paddlelite_callbacks.benchmark.latency import measure_latency, summarise
from paddlelite_callbacks.benchmark.options import BenchOptions
from paddlelite_callbacks.distill import losses, schedules
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.distill.losses import features as feature_losses
from paddlelite_callbacks.distill.losses.afd import AttentionFeatureLoss
from paddlelite_callbacks.export.model_files import find_model, input_shapes, parse_input, random_inputs
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
# id | call | exception | what was given | what is allowed | what to do
ROWS = [
    # --- DistillCallback: who teaches ---
    ("teacher-none", lambda b: DistillCallback(None), T, "NoneType", "paddle.nn.Layer or a paddle.Model", "or a pair"),
    (
        "teacher-path",
        lambda b: DistillCallback("no"),
        F,
        "teacher='no'",
        "no[.pdparams] nor a program",
        "Give the path",
    ),
    ("teacher-empty", lambda b: DistillCallback([]), V, "[]", "at least one network", "leave the callback out"),
    (
        "teacher-other-params",
        lambda b: DistillCallback((b.home / "other.pdparams", TinyNet())),
        *(V, "unknown ['a']", "missing ['conv1.weight'", "Give the architecture that it was saved from"),
    ),
    (
        "teacher-no-state",
        lambda b: DistillCallback((b.home / "list.pdparams", TinyNet())),
        *(V, "but a list", "state_dict", "paddle.save(network.state_dict(), path)"),
    ),
    (
        "teacher-torn",
        lambda b: DistillCallback((b.home / "half.pdparams", TinyNet())),
        *(V, "half.pdparams is torn", "file of paddle.save", "give a whole one"),
    ),
    (
        "teacher-evil",
        lambda b: DistillCallback((b.home / "evil.pdparams", TinyNet())),
        *(V, "asks for builtins.print", "may only hold arrays, numbers and strings", "If you trust whoever made it"),
    ),
    (
        "teacher-builder-type",
        lambda b: DistillCallback((b.home / "other.pdparams", 3)),
        *(T, "got int", "a Layer or a function that builds one", "for instance lambda"),
    ),
    (
        "teacher-builder-gives",
        lambda b: DistillCallback((b.home / "other.pdparams", lambda: 3)),
        *(T, "gave a int", "paddle.nn.Layer", "it must build"),
    ),
    (
        "teacher-program-torn",
        lambda b: DistillCallback(str(b.home / "half")),
        *(
            V,
            "half.pdiparams is torn: it ends after 1 bytes",
            "A whole file of paddle.jit.save",
            "copy or export it again",
        ),
    ),
    (
        "teacher-program-broken",
        lambda b: DistillCallback(str(b.home / "broken")),
        *(V, "broken' cannot be loaded", "paddle.jit.load", "write it again with paddle.jit.save"),
    ),
    ("teacher-is-student", lambda b: with_itself(), V, "shares 9 parameters", "of its own", "copy.deepcopy(network)"),
    (
        "teacher-nan",
        lambda b: with_nan_weights(lambda n: train(DistillCallback(n))),
        *(V, "fc.weight of the teacher with 16 NaN", "must have finite weights", "load another checkpoint"),
    ),
    # --- DistillCallback: losses, weights, features ---
    ("loss-name", lambda b: distill(loss="kll"), V, "'kll'", "near names: ['kl']", "or pass a callable"),
    ("loss-type", lambda b: distill(loss=3), T, "got int", "a name or a callable", "names: ['kl'"),
    ("loss-empty", lambda b: train(distill(loss=[])), V, "loss is empty", "loss='kl' or another name", "or features"),
    (
        "loss-not-chosen",
        lambda b: train(distill(), model=hapi_model(loss=lambda x, y: (x**2).mean())),
        *(V, "task loss <lambda>", "class scores or regressions", "pass loss='kl'"),
    ),
    ("temperature-zero", lambda b: distill(temperature=0), V, "got 0", "must be positive", "None for the loss's own"),
    ("temperature-nan", lambda b: distill(temperature=NAN), V, "got nan", "a finite number", "or None"),
    ("temperature-text", lambda b: distill(temperature="4"), V, "got '4'", "a finite number", "or None"),
    (
        "temperature-mse",
        lambda b: distill(loss="mse", temperature=4),
        V,
        "'mse'",
        "only ['kl', 'jsdiv'",
        "Leave it out",
    ),
    (
        "weight-negative",
        lambda b: distill(weight=-1),
        V,
        "got -1",
        "finite number of at least 0",
        "0 switches the term",
    ),
    ("weight-nan", lambda b: distill(weight=NAN), V, "got nan", "or a schedule", "0 switches the term off"),
    ("task-weight-inf", lambda b: distill(task_weight=INF), V, "got inf", "task_weight must be a finite", "0 switches"),
    ("combine", lambda b: distill(combine="sum"), V, "got 'sum'", "'mean' or 'each'", "leave it out"),
    (
        "teacher-weights-number",
        lambda b: DistillCallback([TinyNet(), TinyNet()], teacher_weights=[1]),
        *(V, "got [1]", "2 numbers of at least 0", "one for each teacher"),
    ),
    (
        "teacher-weights-text",
        lambda b: DistillCallback([TinyNet(), TinyNet()], teacher_weights="ab"),
        *(V, "got 'ab'", "2 numbers of at least 0", "leave it out for equal ones"),
    ),
    (
        "features-list",
        lambda b: distill(features=["a"]),
        T,
        "got ['a']",
        "a list of FeatureTerm",
        "write {'student.layer'",
    ),
    (
        "features-number",
        lambda b: distill(features=3),
        T,
        "got 3",
        "a mapping of the student's",
        "write {'student.layer'",
    ),
    (
        "features-student-name",
        lambda b: train(distill(features={"conv9": "conv1"})),
        *(V, "'conv9'", "near names: ['conv2', 'conv1']", "Names are those of network.named_sublayers()"),
    ),
    (
        "features-teacher-name",
        lambda b: train(distill(features={"conv1": "cnv1"})),
        *(V, "'cnv1'", "near names: ['conv1'", "Names are those of network.named_sublayers()"),
    ),
    (
        "features-counts",
        lambda b: train(distill(features={"conv*": "bn*"})),
        *(V, "'conv*' matches 2", "pairs layers in order", "Write the pairs one by one"),
    ),
    (
        "features-teacher-number",
        lambda b: train(distill(features=FeatureTerm("conv1", "conv1", of=3))),
        *(V, "FeatureTerm(of=3)", "there are 1 teachers", "Give the number of the one"),
    ),
    (
        "output-key",
        lambda b: train(distill(loss=OutputTerm(output="aux"))),
        V,
        "'aux'",
        "it is a lone tensor",
        "leave output= ",
    ),
    (
        "output-teacher-number",
        lambda b: train(distill(loss=OutputTerm("kl", teacher=4))),
        *(V, "OutputTerm(teacher=4)", "there are 1 teachers", "Leave teacher= out"),
    ),
    (
        "shapes",
        lambda b: train(DistillCallback(TinyNet(outputs=7))),
        *(V, "[8, 7]", "must have the same shape", "give both the same number of classes"),
    ),
    (
        "label-number",
        lambda b: train(distill(loss=OutputTerm("dkd", label=5))),
        *(V, "label 5 of each batch", "which has 1", "choose another with OutputTerm"),
    ),
    ("term-label", lambda b: OutputTerm("kl", label=1), V, "'kl' takes no label", "only ['dkd'", "Leave it out"),
    (
        "term-project",
        lambda b: FeatureTerm("a", "b", project=3),
        T,
        "got int",
        "True, False, None or a Layer",
        "leave it",
    ),
    ("term-tuple", lambda b: FeatureTerm("a", ("b",)), T, "'a' and ('b',)", "on both sides", "AttentionFeatureLoss"),
    (
        "term-tuple-named",
        lambda b: FeatureTerm(("a",), ("b",), loss="kl"),
        *(V, "loss='kl'", "a loss of your own", "Pass loss=AttentionFeatureLoss()"),
    ),
    (
        "schedule-value",
        lambda b: schedules.linear(-1, 0),
        V,
        "got -1",
        "start must be a finite number",
        "a weight of 0",
    ),
    ("schedule-epochs", lambda b: schedules.cosine(1, 0, epochs=0), V, "got 0", "must be positive", "or None for all"),
    ("schedule-stop", lambda b: schedules.stop_at(NAN), V, "got nan", "at least 0", "counted from the start"),
    (
        "schedule-gives",
        lambda b: train(distill(weight=lambda epoch, epochs: -1)),
        *(V, "gave -1 at epoch 0", "weights are at least 0", "Let it return a finite number"),
    ),
    ("on-nan", lambda b: distill(on_nan="stop"), V, "got 'stop'", "['raise', 'skip', 'ignore']", "leave it out"),
    (
        "on-nan-differs",
        lambda b: train(distill(on_nan="skip"), PACTQuantCallback(on_nan="raise")),
        *(V, "'PACTQuantCallback': 'raise'", "need the same on_nan", "give it to one of them"),
    ),
    # --- resuming ---
    (
        "resume-missing",
        lambda b: distill(resume=b.home / "no"),
        *(F, "no.pddistill", "beside hapi's checkpoints", "Leave resume= out"),
    ),
    (
        "resume-torn",
        lambda b: distill(resume=b.home / "half"),
        *(V, "half.pddistill is torn", "file of paddle.save", "give a whole one"),
    ),
    (
        "resume-other",
        lambda b: distill(resume=b.home / "other"),
        *(V, "other.pddistill is no state", "['bridges', 'position', 'source']", "give resume= the prefix"),
    ),
    (
        "session",
        lambda b: distill().session,
        R,
        "DistillCallback is not in training",
        "in training",
        "pass it to model.fit",
    ),
    # --- peers, averages ---
    (
        "peer-network",
        lambda b: MutualPeer("x", None),
        T,
        "got str",
        "a paddle.nn.Layer",
        "MutualPeer(network, optimizer)",
    ),
    (
        "peer-optimizer",
        lambda b: MutualPeer(TinyNet(), 0.1),
        T,
        "got float",
        "paddle.optimizer.Optimizer",
        "make one over",
    ),
    ("peer-keep", lambda b: with_peer(keep="best"), V, "got 'best'", "'better' or 'student'", "never exchanges"),
    (
        "peer-monitor",
        lambda b: with_peer(monitor="f1"),
        V,
        "got 'f1'",
        "one of ['loss', 'acc']",
        "given to model.prepare",
    ),
    (
        "peer-strange-optimizer",
        lambda b: with_peer(optimizer=optimizer_of(TinyNet())),
        *(V, "The peer's optimizer (SGD", "holds none of the 7 trainable", "parameters=network.parameters()"),
    ),
    ("ema-decay", lambda b: EMATeacher(1.0), V, "got 1.0", "at least 0 and less than 1", "0.999 is usual"),
    ("ema-text", lambda b: EMATeacher("0.9"), V, "got '0.9'", "at least 0 and less than 1", "0.999 is usual"),
    # --- stored outputs ---
    (
        "cache-iterable",
        lambda b: cache_teacher(TinyNet(), iter([]), b.home / "c"),
        *(T, "got list_iterator", "numbered samples", "Wrap the samples in a map-style"),
    ),
    (
        "cache-empty",
        lambda b: cache_teacher(TinyNet(), Nothing(), b.home / "c"),
        *(V, "is empty", "at least one sample", "give one"),
    ),
    (
        "cache-dtype",
        lambda b: cache_teacher(TinyNet(), Images(), b.home / "c", dtype="int8"),
        *(V, "got 'int8'", "'float32' or 'float16'", "takes half the space"),
    ),
    (
        "cache-batch",
        lambda b: cache_teacher(TinyNet(), Images(), b.home / "c", batch_size=0),
        *(V, "got 0", "batch_size must be a whole number of at least 1", "leave it out"),
    ),
    (
        "cache-inputs",
        lambda b: cache_teacher(TinyNet(), Images(), b.home / "c", inputs=5),
        *(V, "inputs=5", "has 2 fields", "Leave it out for one"),
    ),
    (
        "cache-no-network",
        lambda b: cache_teacher(b.home / "other.pdparams", Images(), b.home / "c"),
        *(V, "A checkpoint alone", "what network it is of", "give teacher=(checkpoint, network)"),
    ),
    (
        "cache-unwritable",
        lambda b: cache_teacher(TinyNet(), Images(), b.home / "file" / "c"),
        *(PermissionError, "file cannot be written to", "writable folder", "give another folder"),
    ),
    (
        "cache-other",
        lambda b: cache_teacher(TinyNet(), Images(24), b.home / "stored"),
        *(V, "count 16 instead of 24", "this teacher's outputs for this data set", "overwrite=True"),
    ),
    (
        "cache-length",
        lambda b: CachedTeacher(Images(3), b.home / "stored"),
        *(V, "the data set has 3", "outputs for 16 samples", "store them anew"),
    ),
    (
        "cache-missing",
        lambda b: CachedTeacher(Images(3), b.home / "no"),
        *(V, "no is no folder", "that cache_teacher wrote", "Store the outputs there first"),
    ),
    (
        "cache-torn",
        lambda b: CachedTeacher(Images(16), b.home / "torn"),
        *(V, "checksums.npy is torn or missing", "a plain array, as cache_teacher", "store the outputs anew"),
    ),
    (
        "cache-torn-meta",
        lambda b: CachedTeacher(Images(16), b.home / "torn-meta"),
        *(V, "meta.json is torn", "property name", "store the outputs anew"),
    ),
    # --- losses as functions ---
    ("kl-shapes", lambda b: losses.kl(A, B), V, "[2, 5]", "must have the same shape", "give both the same number"),
    ("kl-arrays", lambda b: losses.kl(A.numpy(), A), T, "got ndarray", "must be a paddle.Tensor", "paddle.to_tensor"),
    ("mse-none", lambda b: losses.mse(A, None), T, "got NoneType", "must be a paddle.Tensor", "paddle.to_tensor"),
    (
        "smooth-l1-delta",
        lambda b: losses.smooth_l1(A, A, delta=0),
        V,
        "got 0",
        "must be positive",
        "leave it out for 1",
    ),
    (
        "dkd-labels",
        lambda b: losses.dkd(A, A, paddle.to_tensor([1, 2, 3])),
        *(V, "labels [3]", "one class index per row", "OutputTerm('dkd', label=...)"),
    ),
    (
        "dist-maps",
        lambda b: losses.dist(MAPS, MAPS),
        V,
        "got [2, 3, 4, 4]",
        "logits [N, C]",
        "flatten other axes",
    ),
    ("cwd-logits", lambda b: feature_losses.cwd(A, A), V, "got [2, 4]", "maps [N, C, positions...]", "use 'kl'"),
    ("attention-logits", lambda b: feature_losses.attention(A, A), V, "got [2, 4]", "takes maps", "choose layers"),
    ("rkd-batches", lambda b: feature_losses.rkd(A, paddle.ones([3, 4])), V, "2 and 3", "the same samples", "run both"),
    (
        "heatmap-weights",
        lambda b: feature_losses.heatmap_mse(MAPS, MAPS, B),
        *(V, "and [2, 5]", "target weights [N, K]", "OutputTerm('heatmap_mse', label=...)"),
    ),
    ("afd-width", lambda b: AttentionFeatureLoss(0), V, "got 0", "at least 1", "128 is the default"),
    (
        "afd-shapes",
        lambda b: AttentionFeatureLoss(4).prepare_for([[2, 3]], [[2, 3]]),
        *(V, "[[2, 3], [2, 3]]", "maps [N, C, H, W]", "choose layers that give maps"),
    ),
    # --- PACT ---
    ("bits-low", lambda b: PACTConfig(weight_bits=1), V, "got 1", "a whole number in [2, 8]", "leave it out for 8"),
    (
        "bits-high",
        lambda b: PACTConfig(activation_bits=9),
        V,
        "got 9",
        "a whole number in [2, 8]",
        "leave it out for 8",
    ),
    ("bits-true", lambda b: PACTConfig(weight_bits=True), V, "got True", "a whole number in [2, 8]", "leave it out"),
    ("layer-types", lambda b: PACTConfig(layer_types=["LSTM"]), V, "['LSTM']", "some of ['Conv2D'", "leave it out"),
    ("skip-text", lambda b: PACTConfig(skip="fc"), V, "got 'fc'", "a list of strings", "write skip=[...]"),
    ("percentile", lambda b: PACTConfig(alpha_percentile=10), V, "got 10", "(50, 100]", "leave it out for 99.9"),
    (
        "percentile-text",
        lambda b: PACTConfig(alpha_percentile="99"),
        V,
        "got '99'",
        "(50, 100]",
        "leave it out for 99.9",
    ),
    ("decay-nan", lambda b: PACTConfig(alpha_decay=NAN), V, "got nan", "finite number of at least 0", "leave it out"),
    ("lr-scale", lambda b: PACTConfig(lr_scale=0), V, "got 0", "a finite number above 0", "leave it out for 0.5"),
    ("method", lambda b: PACTConfig(method="dorefa"), V, "got 'dorefa'", "['pact', 'lsq']", "leave it out for 'pact'"),
    ("outputs-text", lambda b: PACTConfig(quantize_outputs="yes"), V, "got 'yes'", "True or False", "True for ONNX"),
    ("pact-option", lambda b: PACTQuantCallback(bits=4), T, "'bits'", "near names: [", "help(PACTQuantCallback)"),
    (
        "pact-both",
        lambda b: PACTQuantCallback(PACTConfig(), weight_bits=4),
        *(T, "config and ['weight_bits']", "either config or options", "Leave one out"),
    ),
    ("pact-config", lambda b: PACTQuantCallback({}), T, "got dict", "must be a PACTConfig", "from_config({...})"),
    (
        "pact-metric-drop",
        lambda b: PACTQuantCallback(metric_drop="3"),
        V,
        "got '3'",
        "in [0, 1)",
        "leave it out for 0.03",
    ),
    ("pact-eval-data", lambda b: PACTQuantCallback(eval_data=3), T, "got int", "paddle.io.Dataset", "or leave it out"),
    (
        "pact-eval-data-empty",
        lambda b: PACTQuantCallback(eval_data=Nothing()),
        *(V, "an empty Nothing of length 0", "at least one sample", "or leave it out"),
    ),
    (
        "guide-key",
        lambda b: PACTConfig.from_guide({"weight_bit": 8}),
        *(V, "['weight_bit']", "known are ['activation_bits'", "leave the others out"),
    ),
    (
        "guide-scheme",
        lambda b: PACTConfig.from_guide({"weight_quantize_type": "abs_max"}),
        *(V, "got 'abs_max'", "['channel_wise_abs_max']", "leave the key out"),
    ),
    ("guide-type", lambda b: PACTConfig.from_guide("PACT"), T, "got str", "a dictionary", "for instance {'activation"),
    (
        "pact-skip-name",
        lambda b: train(PACTQuantCallback(skip=["fcc"])),
        *(V, "'fcc'", "near names: ['fc']", "Names are those of network.named_sublayers()"),
    ),
    (
        "pact-nothing",
        lambda b: prepare_pact_(nn.Sequential(nn.ReLU())),
        *(
            V,
            "Sequential has no Conv2D",
            "Functional calls, and subclasses with a forward of their own, are not seen",
            "Widen include, skip",
        ),
    ),
    ("prepare-number", lambda b: prepare_pact_(3), T, "got int", "a paddle.nn.Layer", "build one first"),
    ("prepare-model", lambda b: prepare_pact_(hapi_model()), T, "got Model", "a paddle.nn.Layer", "give model.network"),
    (
        "prepare-config",
        lambda b: prepare_pact_(TinyNet(), {}),
        T,
        "got dict",
        "must be a PACTConfig",
        "from_guide({...})",
    ),
    (
        "pact-never",
        lambda b: train(PACTQuantCallback(start_epoch=3)),
        *(V, "start_epoch=3", "in 1 epochs (they count from 0)", "train longer, or start earlier"),
    ),
    ("pact-amp", lambda b: with_amp(), V, "amp level O1", "needs fp32", "Call model.prepare without amp_configs"),
    (
        "pact-other-bits",
        lambda b: with_other_bits(),
        *(V, "asked are 8, 8", "already quantised with weight_bits=4", "give the same options"),
    ),
    (
        "pact-nan",
        lambda b: with_nan_weights(lambda n: train(PACTQuantCallback(), model=hapi_model(n))),
        *(V, "fc.weight of the network with 16 NaN", "must have finite weights", "load another checkpoint"),
    ),
    (
        "skips-without",
        lambda b: PACTQuantCallback().find_skips(0.1),
        R,
        "NoneType",
        "eval_data=...",
        "call model.fit",
    ),
    (
        "skips-budget",
        lambda b: find_skips(TinyNet(), lambda: 1.0, metric_drop=-1),
        *(V, "got -1", "at least 0", "0.01 is one per cent"),
    ),
    (
        "skips-fp32",
        lambda b: find_skips(TinyNet(), lambda: 1.0, metric_drop=0.1),
        *(V, "TinyNet", "no quantised layer", "convert it first, with prepare_pact_"),
    ),
    (
        "leave-out-name",
        lambda b: leave_one_out((lambda n: (prepare_pact_(n), n)[1])(TinyNet()), lambda: 1.0, ["x"]),
        *(V, "['x']", "near names", "Name some of ['conv1'"),
    ),
    ("ptq-empty", lambda b: ptq_int8(TinyNet(), []), V, "got none", "at least one batch", "give some hundred images"),
    (
        "ptq-option",
        lambda b: ptq_int8(TinyNet(), [A], weight_bit=3),
        T,
        "'weight_bit'",
        "['weight_bits'",
        "help(PACTConfig)",
    ),
    ("ptq-network", lambda b: ptq_int8("n", [A]), T, "got str", "a paddle.nn.Layer", "build one first"),
    (
        "ptq-nan",
        lambda b: ptq_int8(TinyNet(), [paddle.full([2, 3, 8, 8], NAN)]),
        *(V, "not finite", "from which no scale", "clean them of NaN"),
    ),
    # --- both kinds of training ---
    *[
        (
            f"optimizer-of-another-{name}",
            lambda b, make=make: with_a_strange_optimizer(make(b)),
            *(V, "The optimizer (SGD", "holds none of the 7 trainable", "parameters=network.parameters()"),
        )
        for name, make in {
            "distill": lambda b: distill(),
            "pact": lambda b: PACTQuantCallback(),
            "export": lambda b: ExportBenchCallback(b.home / "o"),
        }.items()
    ],
    # --- export ---
    ("export-folder", lambda b: ExportBenchCallback(3), T, "got int", "must be a path", "ExportBenchCallback('out')"),
    ("export-name", lambda b: ExportBenchCallback(b.home, name="a/b"), V, "got 'a/b'", "a plain name", "'run1'"),
    (
        "export-gate",
        lambda b: ExportBenchCallback(b.home, gate="warn"),
        V,
        "got 'warn'",
        "['report', 'fail']",
        "leave it",
    ),
    (
        "export-no-budget",
        lambda b: ExportBenchCallback(b.home, gate="fail"),
        *(V, "got None", "gate='fail' needs", "budget=Budget(...)"),
    ),
    (
        "export-budget",
        lambda b: ExportBenchCallback(b.home, budget=20),
        *(T, "got int", "must be a Budget", "budget=Budget(size_mb=20)"),
    ),
    (
        "export-preflight",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(preflight="no")),
        *(T, "got 'no'", "must be True or False", "leave it out for True"),
    ),
    (
        "export-mode",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(mode="up")),
        V,
        "got 'up'",
        "'auto', 'max', 'min'",
        "where the smaller figure",
    ),
    (
        "export-engine",
        lambda b: ExportBenchCallback(b.home, engines=["onnx"]),
        *(V, "'onnx'", "known are ['onnxruntime'", "None takes all of"),
    ),
    ("export-engine-text", lambda b: BenchOptions(engines="ort"), V, "got 'ort'", "a list of names", "write engines=["),
    (
        "export-threads",
        lambda b: BenchOptions(threads=0),
        V,
        "got 0",
        "whole number of at least 1",
        "leave it out for 1",
    ),
    ("export-batch", lambda b: BenchOptions(batch_size=1.5), V, "got 1.5", "or a list of such", "leave it out for 1"),
    ("export-repeats", lambda b: BenchOptions(repeats=0), V, "got 0", "at least 1", "leave it out for 50"),
    (
        "export-unwritable",
        lambda b: train(ExportBenchCallback(b.home / "file")),
        *(PermissionError, "file cannot be written to", "writable folder", "give another folder"),
    ),
    (
        "export-sidecar",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(sidecar={"mean": 3})),
        *(V, "['mean']", "preprocess, postprocess and labels", "put your own keys into"),
    ),
    (
        "export-labels",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(sidecar={"labels": "cat"})),
        *(V, "got 'cat'", "a list of names in the order", "write ['cat', 'dog']"),
    ),
    (
        "export-sidecar-json",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(sidecar={"preprocess": {"a": object()}})),
        *(V, "object is no JSON", "what JSON can hold", "Give numbers, texts"),
    ),
    (
        "export-monitor",
        lambda b: train(ExportBenchCallback(b.home / "o", which="best", export=ExportOptions(monitor="f1"))),
        *(V, "monitor='f1'", "figures ['acc', 'loss']", "Name one of them"),
    ),
    (
        "export-spec-type",
        lambda b: ExportBenchCallback(b.home, export=ExportOptions(input_spec=[3])),
        *(T, "got [3]", "a list of paddle.static.InputSpec", "input_spec=[InputSpec("),
    ),
    (
        "export-spec-sizes",
        lambda b: train(
            ExportBenchCallback(b.home / "o", export=ExportOptions(input_spec=[InputSpec([None, 1, 8, 8])]))
        ),
        *(V, "[[-1, 1, 8, 8]]", "trained on [[8, 3, 8, 8]]", "or leave it out"),
    ),
    (
        "export-eval-data",
        lambda b: ExportBenchCallback(b.home, eval_data=Nothing()),
        *(V, "an empty Nothing of length 0", "at least one sample", "or leave it out"),
    ),
    (
        "export-summary",
        lambda b: ExportBenchCallback(b.home).summary(),
        R,
        "no figures",
        "ready when",
        "fit() has returned",
    ),
    # --- the gate and its records ---
    (
        "budget-size",
        lambda b: Budget(size_mb=-1),
        V,
        "got -1",
        "a positive finite number or None",
        "leaves the criterion",
    ),
    (
        "budget-latency",
        lambda b: Budget(latency_ms=NAN),
        V,
        "got nan",
        "a positive finite number",
        "leaves the criterion",
    ),
    (
        "budget-text",
        lambda b: Budget(latency_ms="100"),
        V,
        "got '100'",
        "a positive finite number",
        "leaves the criterion",
    ),
    (
        "budget-metric",
        lambda b: Budget(baseline=0.9),
        V,
        "got baseline=0.9 alone",
        "goes with metric=",
        "for instance metric='acc'",
    ),
    (
        "budget-nan",
        lambda b: Budget(metric="acc", baseline=NAN),
        V,
        "got nan",
        "a finite number",
        "the big model's metric",
    ),
    ("budget-zero", lambda b: Budget(metric="acc", baseline=0), V, "got 0", "other than 0", "use relative=False"),
    ("budget-engine", lambda b: Budget(engine="ort"), V, "'ort'", "known are ['paddle'", "Leave engine out"),
    (
        "budget-direction",
        lambda b: Budget(metric="top1_err", baseline=0.1, mode="max"),
        *(V, "metric='top1_err'", "falls where quality grows", "leave mode out"),
    ),
    ("most-accurate", lambda b: most_accurate([], Budget()), V, "metric=None", "needs Budget(metric=", "name a figure"),
    (
        "records-missing",
        lambda b: read_records(b.home / "no"),
        V,
        "No record file",
        "ExportBenchCallback(folder)",
        "give the",
    ),
    (
        "records-schema",
        lambda b: Record.from_json_line((b.home / "runs.jsonl").read_text()),  # read_records leaves it out and says so
        *(V, '{"schema": 9}', "reads records of schema 1", "or take the line out"),
    ),
    (
        "report-missing",
        lambda b: write_report(b.home / "full"),
        V,
        "full/runs.jsonl",
        "ExportBenchCallback",
        "give the",
    ),
    ("latency-repeats", lambda b: measure_latency({}, repeats=0), V, "10 and 0", "repeats at least 1", "50 are usual"),
    ("latency-none", lambda b: summarise([]), V, "got []", "at least one call", "give the milliseconds"),
    # --- surgery ---
    (
        "find",
        lambda b: find_sublayer(TinyNet(), "cnv1"),
        V,
        "'cnv1'",
        "near names: ['conv1'",
        "network.named_sublayers()",
    ),
    ("match", lambda b: match_sublayers(TinyNet(), "z*"), V, "'z*'", "near names: [", "network.named_sublayers()"),
    (
        "replace",
        lambda b: replace_sublayer(TinyNet(), "z", nn.ReLU()),
        V,
        "'z'",
        "near names",
        "network.named_sublayers()",
    ),
    (
        "replace-type",
        lambda b: replace_sublayer(TinyNet(), "fc", 3),
        T,
        "got int",
        "a paddle.nn.Layer",
        "to stand at 'fc'",
    ),
    (
        "freeze-sync",
        lambda b: freeze_norm_(nn.Sequential(nn.SyncBatchNorm(3))),
        *(V, "(['0'])", "SyncBatchNorm cannot be frozen", "freeze first"),
    ),
    # --- BackboneSwap ---
    (
        "swap-name",
        lambda b: BackboneSwap("mobilenet_v3_smal"),
        *(V, "'mobilenet_v3_smal'", "near names: ['mobilenet_v3_small", "list_backbones()"),
    ),
    (
        "swap-stride",
        lambda b: swap(at="a", taps=[(2.5, 1)]),
        *(V, "(2.5, 1)", "a pair (height, width)", "write 16"),
    ),
    ("swap-image", lambda b: swap(at="a", image=1.5), T, "got 1.5", "key, keyword or position", "or leave it out"),
    ("teacher-mode", lambda b: distill(teacher_mode="test"), V, "'test'", "'eval' or 'train'", "'train' lets"),
    ("teacher-inputs", lambda b: distill(teacher_inputs=3), T, "got int", "a function of the", "for instance lambda x"),
    (
        "teacher-inputs-count",
        lambda b: train(distill(teacher_inputs=lambda a, c: a)),
        *(T, "takes (a, c)", "1 input(s) of the student", "write one parameter for each input"),
    ),
    (
        "resize",
        lambda b: OutputTerm(resize="cubic"),
        V,
        "'cubic'",
        "['bilinear', 'nearest']",
        "brings the teacher's maps",
    ),
    ("term-resize", lambda b: OutputTerm("mse", resize=2), V, "got 2", "['bilinear', 'nearest']", "or None to refuse"),
    ("output-type", lambda b: OutputTerm(output=1.5), T, "got 1.5", "an index, a dictionary key", "a mapping"),
    ("kl-no-classes", lambda b: losses.kl(A[:, :1], A[:, :1]), V, "[2, 1]", "at least two classes", "take loss='bce'"),
    ("swap-type", lambda b: BackboneSwap(3), T, "got int", "a name or a paddle.nn.Layer", "see list_backbones()"),
    ("swap-network", lambda b: swap()(3), T, "got int", "a paddle.nn.Layer", "build the network first"),
    (
        "swap-model",
        lambda b: swap()(hapi_model()),
        T,
        "got a paddle.Model",
        "takes the network",
        "Call swap(network) first",
    ),
    ("swap-at", lambda b: swap(at="bone")(TinyNet(), input_spec=SPEC), V, "'bone'", "near names: ['bn1']", "Names are"),
    ("swap-no-spec", lambda b: swap(at="conv1")(TinyNet()), V, "at='conv1'", "runs it once", "give input_spec="),
    (
        "swap-open-spec",
        lambda b: swap(at="conv1")(TinyNet(), input_spec=[InputSpec([None, 3, None, None])]),
        *(V, "[-1, 3, -1, -1]", "only the batch may be None", "Give numbers"),
    ),
    ("swap-taps-text", lambda b: swap(at="b", taps="x"), T, "got 'x'", "taps must be a list", "write taps=['x']"),
    ("swap-taps", lambda b: swap(taps=["x"]), V, "taps=['x']", "go with at='...'", "or leave them out"),
    (
        "swap-adapt",
        lambda b: swap(at="b", adapt="pad"),
        V,
        "adapt='pad'",
        "'project', or 'rebuild'",
        "together with rebuild",
    ),
    ("swap-freeze", lambda b: swap(freeze_stages=-1), V, "got -1", "a whole number of at least 0", "0 freezes none"),
    (
        "swap-weights-missing",
        lambda b: swap(pretrained=b.home / "no.pdparams")(TinyNet()),
        *(V, "No weights file", "a .pdparams file, an address, or True", "give the path"),
    ),
    (
        "swap-weights-other",
        lambda b: swap(pretrained=b.home / "other.pdparams")(TinyNet()),
        *(V, "1 unexpected (a)", "210 missing", "Keys must be the network's own"),
    ),
    (
        "swap-weights-torn",
        lambda b: swap(pretrained=b.home / "half.pdparams")(TinyNet()),
        *(V, "half.pdparams is torn", "file of paddle.save", "give a whole one"),
    ),
    (
        "swap-weights-evil",
        lambda b: swap(pretrained=b.home / "evil.pdparams")(TinyNet()),
        *(V, "asks for builtins.print", "may only hold arrays", "If you trust whoever made it"),
    ),
    (
        "swap-sha",
        lambda b: swap(pretrained=b.home / "other.pdparams", sha256="00")(TinyNet()),
        *(V, "has the sha256", "expected 00", "Fetch it again"),
    ),
    (
        "swap-url",
        lambda b: swap(pretrained="http://127.0.0.1:9/x.pdparams")(TinyNet()),
        *(DownloadError, "http://127.0.0.1:9/x.pdparams", "could not be downloaded", "Download the file elsewhere"),
    ),
    (
        "swap-summary",
        lambda b: swap().summary(),
        R,
        "nothing to compare yet",
        "on a network first",
        "swap(network, ...)",
    ),
    ("list-name", lambda b: list_backbones("zz*"), V, "'zz*'", "near names: [", "list_backbones() gives all"),
    ("list-source", lambda b: list_backbones(source="timm"), V, "'timm'", "sources: ['models'", "Leave it out for all"),
    # --- models ---
    (
        "backbone",
        lambda b: keypoint_net(TinyNet()),
        T,
        "TinyNet",
        "a backbone with `channels`",
        "such as lite_hrnet_18()",
    ),
    ("joints", lambda b: keypoint_net(with_channels(), num_joints=0), V, "got 0", "at least 1", "17 for COCO"),
    (
        "guide-weights",
        lambda b: load_guide_weights_(TinyNet(), {"a": A}),
        *(V, "1 left over (['a'] ...)", "keys missing", "Build the network that the file is of"),
    ),
    # --- files ---
    ("saved-missing", lambda b: read_saved(b.home / "no"), F, "no file", "a file of paddle.save", "give the path"),
    ("model-missing", lambda b: find_model(b.home / "z.onnx"), V, "z.onnx", "an .onnx file, a Paddle program", "give"),
    (
        "model-weights",
        lambda b: find_model(b.home / "other.pdparams"),
        V,
        "other.pdparams",
        "is a checkpoint",
        "Export it",
    ),
    (
        "onnx-torn",
        lambda b: input_shapes(find_model(b.home / "half.onnx")),
        V,
        "half.onnx",
        "no network",
        "Export it again",
    ),
    ("input-text", lambda b: parse_input("abc"), V, "got 'abc'", "1x3x224x224", "sizes with x between"),
    # --- the command line: exit code 1 and one line ---
    (
        "cli-bench-missing",
        lambda b: cli("bench", b.home / "z.onnx", "--input", "1x3x8x8"),
        R,
        "z.onnx",
        "an .onnx file",
        "give",
    ),
    (
        "cli-bench-weights",
        lambda b: cli("bench", b.home / "other.pdparams", "--input", "1x3x8x8"),
        *(R, "other.pdparams", "is a checkpoint", "Export it first"),
    ),
    (
        "cli-bench-input",
        lambda b: cli("bench", b.home / "half.onnx", "--input", "abc"),
        *(R, "got 'abc'", "1x3x224x224", "sizes with x between"),
    ),
    (
        "cli-bench-threads",
        lambda b: cli("bench", b.home / "half.onnx", "--input", "1x3x8x8", "--threads", "a"),
        *(R, "got 'a'", "whole numbers with commas", "for instance 1,2,4"),
    ),
    (
        "cli-bench-torn",
        lambda b: cli("bench", b.home / "half.onnx", "--input", "1x3x8x8"),
        *(R, "half.onnx", "no network", "Export it again"),
    ),
    (
        "cli-export-onnx",
        lambda b: cli("export", b.home / "half.onnx", b.home / "out", "--input", "1x3x8x8"),
        *(R, "is ONNX already", "export takes Paddle programs", "use the file as it is"),
    ),
    (
        "cli-export-file",
        lambda b: cli("export", b.home / "half.json", b.home / "file", "--input", "1x3x8x8"),
        *(R, "file is a file", "a folder", "give a folder"),
    ),
    (
        "cli-export-full",
        lambda b: cli("export", b.home / "half.json", b.home / "full", "--input", "1x3x8x8"),
        *(R, "other files (mine.txt)", "would not speak of", "give a new folder"),
    ),
    ("cli-gate-nothing", lambda b: cli("gate", b.home), R, "no limit", "--size-mb, --latency-ms", "Give at least one"),
    (
        "cli-gate-negative",
        lambda b: cli("gate", b.home, "--size-mb", "-3"),
        *(R, "got -3.0", "a positive finite number", "leaves the criterion out"),
    ),
    (
        "cli-gate-engine",
        lambda b: cli("gate", b.home, "--size-mb", "3", "--engine", "ort"),
        *(R, "'ort'", "known are ['paddle'", "Leave engine out for"),
    ),
    (
        "cli-gate-missing",
        lambda b: cli("gate", b.home / "no", "--size-mb", "3"),
        *(R, "no/runs.jsonl", "ExportBenchCallback(folder)", "give the folder"),
    ),
    (
        "cli-gate-schema",
        lambda b: cli("gate", b.home, "--size-mb", "3"),
        R,
        '{"schema": 9}',
        "of schema 1",
        "take the line",
    ),
    (
        "cli-report-missing",
        lambda b: cli("report", b.home / "no"),
        R,
        "no/runs.jsonl",
        "ExportBenchCallback",
        "give the",
    ),
    ("cli-backbones", lambda b: cli("backbones", "zz*"), R, "'zz*'", "near names: [", "list_backbones() gives all"),
]


def test_the_table_is_long_and_its_names_are_unique():
    names = [row[0] for row in ROWS]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize(
    ("call", "error", "given", "allowed", "remedy"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS]
)
def test_bad_input(call, error, given, allowed, remedy, box):
    with pytest.raises(error) as caught:
        call(box)
    message = str(caught.value)
    assert type(caught.value) is error
    for part, text in (("what was given", given), ("what is allowed", allowed), ("what to do", remedy)):
        assert text in message, f"{part} is not in the message"


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
        ([parse_input("y:1x3x8x8")], ("['x'] were not given", "takes the inputs ['x']", "name them as the file does")),
    ):
        with pytest.raises(ValueError, match="takes") as caught:
            random_inputs(artefact, specs)
        assert all(word in str(caught.value) for word in words)
