"""Old spellings of public arguments and attributes: they work, warn with the new spelling, and exclude it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pydoc
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import paddle
import pytest
from paddle.static import InputSpec
from toy import Images, TinyNet, equal_weights, fit, hapi_model, weights_of

import paddlelite_callbacks as pc
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.accuracy import measure_metrics
from paddlelite_callbacks.benchmark.timing import time_files
from paddlelite_callbacks.callbacks.pact.diagnosis import Diagnosis
from paddlelite_callbacks.distill.schedules import cosine
from paddlelite_callbacks.quant.sensitivity import find_skips
from paddlelite_callbacks.report.retime import timed_together

DATA = Images(8)
FOUND = {"metric": "acc", "fp32": 0.5, "fake_quant": 0.4, "int8": None, "engine": "none"}
FOUND |= {"sqnr_db": {}, "gains": {}, "skips": ()}


class Old(NamedTuple):
    """One old spelling: what takes it, the two spellings, the warning's words, and what must come out the same."""

    target: Callable[..., Any]
    old: dict[str, Any]
    new: dict[str, Any]
    said: str
    same: Callable[[Any], Any] = vars


def budget(made):
    return vars(made)


def pact(made):
    return made.config, made.eval_data, made.metric_drop, made.mode


def exporting(**options):
    return pc.ExportBenchCallback("out", **options)


exporting.__signature__ = inspect.signature(pc.ExportBenchCallback)


def bench(made):
    return made.export_options, made.bench_options


def distilling(**options):
    return pc.DistillCallback(TinyNet(), **options)


def distilling_features(**options):
    return pc.DistillCallback(TinyNet(), **{"features": {"conv1": "conv1", "fc": "fc"}, **options})


distilling.__signature__ = distilling_features.__signature__ = inspect.signature(pc.DistillCallback)


def terms(made):
    return made.loss, made.features


FILES = {
    "forms": ["pdmodel"],
    "fp16": True,
    "input_spec": [InputSpec([None, 3, 8, 8])],
    "dynamic_batch": False,
    "sidecar": {"labels": ["a"]},
    "monitor": "acc",
    "mode": "min",
    "preflight": False,
    "strict": True,
    "report": False,
}
TIMES = {"threads": [1, 2], "batch_size": 3, "warmup": 4, "repeats": 5, "peak_memory": False, "roofline": False}

SPELLINGS = {
    "PACTQuantCallback-evaluate_on": Old(
        pc.PACTQuantCallback, {"evaluate_on": DATA}, {"eval_data": DATA}, "evaluate_on=... is now eval_data=...", pact
    ),
    "PACTQuantCallback-allowed_drop": Old(
        pc.PACTQuantCallback,
        {"allowed_drop": 0.1},
        {"metric_drop": 0.1},
        "allowed_drop=0.1 is now metric_drop=0.1",
        pact,
    ),
    **{
        f"PACTQuantCallback-{name}": Old(
            pc.PACTQuantCallback,
            {name: value},
            {"advanced": pc.AdvancedPACTOptions(**{name: value})},
            f"{name}={value!r} is now advanced=AdvancedPACTOptions({name}={value!r})",
            pact,
        )
        for name, value in {
            "layer_types": ["Conv2D"],
            "activation": "paddleslim",
            "alpha_percentile": 99.0,
            "calibration_batches": 3,
            "observer_momentum": 0.5,
            "alpha_lr_scale": 2.0,
            "alpha_decay": 0.1,
            "fp32_epochs": 7,
        }.items()
    },
    **{
        f"ExportBenchCallback-{name}": Old(
            exporting,
            {name: value},
            {group: kind(**{name: value})},
            f" is now {group}={kind.__name__}({name}=",
            bench,
        )
        for group, kind, options in (("export", pc.ExportOptions, FILES), ("benchmark", pc.BenchOptions, TIMES))
        for name, value in options.items()
    },
    "DistillCallback-output": Old(
        distilling, {"output": "x"}, {"loss": pc.OutputTerm(output="x")}, "loss=OutputTerm(..., output='x')", terms
    ),
    "DistillCallback-output-resize": Old(
        distilling,
        {"output": 0, "resize": "nearest"},
        {"loss": pc.OutputTerm(output=0, resize="nearest")},
        "output=0, resize='nearest' is now loss=OutputTerm(..., output=0, resize='nearest')",
        terms,
    ),
    "DistillCallback-feature_loss": Old(
        distilling_features,
        {"feature_loss": "rkd"},
        {"features": [pc.FeatureTerm("conv1", "conv1", loss="rkd"), pc.FeatureTerm("fc", "fc", loss="rkd")]},
        "feature_loss='rkd' is now features=[FeatureTerm(..., loss='rkd')]",
        terms,
    ),
    "Diagnosis-allowed_drop": Old(
        Diagnosis,
        {**FOUND, "allowed_drop": 0.1},
        {**FOUND, "metric_drop": 0.1},
        "allowed_drop=0.1 is now metric_drop=0.1",
    ),
    "Diagnosis-higher_is_better": Old(
        Diagnosis,
        {**FOUND, "metric_drop": 0.1, "higher_is_better": False},
        {**FOUND, "metric_drop": 0.1, "mode": "min"},
        "higher_is_better=False is now mode='min'",
    ),
    "Budget-lower": Old(
        pc.Budget,
        {"metric": "acc", "baseline": 0.5, "higher_is_better": False},
        {"metric": "acc", "baseline": 0.5, "mode": "min"},
        "Budget: higher_is_better=False is now mode='min'",
    ),
    "Budget-higher": Old(
        pc.Budget,
        {"metric": "acc", "baseline": 0.5, "higher_is_better": True},
        {"metric": "acc", "baseline": 0.5, "mode": "max"},
        "Budget: higher_is_better=True is now mode='max'",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_old_spelling_works_and_says_the_new_one(name):
    target, old, new, said, same = SPELLINGS[name]
    with pytest.warns(DeprecationWarning, match=re.escape(said)) as told:
        made = target(**old)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(target(**new)) == same(made)


@pytest.mark.parametrize("name", SPELLINGS)
def test_old_and_new_at_once_are_refused(name):
    target, old, new, _, _ = SPELLINGS[name]
    first = next(key for key in old if key not in new)
    with pytest.raises(TypeError, match=rf"was given {first}= and .*Give \w+=? alone"):
        target(**{**old, **new})


@pytest.mark.parametrize(
    "target",
    [
        *dict.fromkeys(old.target for old in SPELLINGS.values()),
        pc.ExportBenchCallback,
        pc.DistillCallback,
        pc.PACTQuantCallback.find_skips,
        pc.ptq_int8,
        pc.cache_teacher,
    ],
    ids=lambda target: target.__qualname__,
)
def test_signatures_show_the_new_spellings_alone(target):
    parameters = inspect.signature(target).parameters
    gone = {key for old in SPELLINGS.values() if old.target is target for key in old.old if key not in old.new}
    assert not gone & set(parameters)
    assert {key for old in SPELLINGS.values() if old.target is target for key in old.new} <= set(parameters)
    assert not [one.name for one in parameters.values() if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    assert all(one.annotation is not one.empty for one in parameters.values() if one.name != "self")


def test_an_unknown_argument_is_refused_with_near_names():
    with pytest.raises(TypeError, match=r"has no argument 'metrics_drop'; near names: \['metric_drop'"):
        pc.PACTQuantCallback(metrics_drop=0.1)
    with pytest.raises(TypeError, match=r"'max_warmup': it goes into benchmark=BenchOptions\(max_warmup=...\)"):
        pc.ExportBenchCallback("out", max_warmup=3)
    with pytest.raises(TypeError, match=r"Budget has no argument 'latency'; near names: \['latency_ms'"):
        pc.Budget(latency=3)


def test_old_arguments_of_both_groups_at_once():
    with pytest.warns(DeprecationWarning, match=r"=ExportOptions\(fp16=True, strict=True\); .*BenchOptions") as told:
        made = pc.ExportBenchCallback("out", fp16=True, repeats=3, engines=["paddle"], strict=True)
    assert len(told) == 1
    assert made.export_options == pc.ExportOptions(fp16=True, strict=True)
    assert made.bench_options == pc.BenchOptions(engines=["paddle"], repeats=3)


def test_the_engines_are_given_once():
    with pytest.raises(TypeError, match="Give the engines once, got engines="):
        pc.ExportBenchCallback("out", engines=["paddle"], benchmark=pc.BenchOptions(engines=["openvino"]))
    assert pc.ExportBenchCallback("out", benchmark=pc.BenchOptions(engines=["openvino"])).bench_options.engines


@pytest.mark.parametrize("name", [*FILES, "options"])
def test_old_attributes_of_an_export(name):
    made = pc.ExportBenchCallback("out", export=pc.ExportOptions(**FILES))
    new = "bench_options" if name == "options" else f"export_options.{name}"
    with pytest.warns(DeprecationWarning, match=rf"ExportBenchCallback\.{name} is now {new};") as told:
        value = getattr(made, name)
    assert told[0].filename == __file__
    assert value == (made.bench_options if name == "options" else getattr(made.export_options, name))


@pytest.mark.parametrize(
    ("loss", "old", "new"),
    [
        ("kl", {"output": 0}, [pc.OutputTerm("kl", output=0)]),
        ({"kl": 2.0, "mse": 1.0}, {"output": 0}, [pc.OutputTerm("kl", 2.0, output=0), pc.OutputTerm("mse", output=0)]),
        (["mse", pc.OutputTerm("kl")], {"output": 0}, [pc.OutputTerm("mse", output=0), pc.OutputTerm("kl")]),
        ("mse", {"output": None, "resize": None}, "mse"),
        (None, {"output": 0, "features": {"fc": "fc"}}, None),
    ],
)
def test_the_old_output_goes_into_each_term(loss, old, new):
    with pytest.warns(DeprecationWarning, match=r"DistillCallback: output=\w+"):
        made = pc.DistillCallback(TinyNet(), loss=loss, **old)
    assert made.loss == new


def doubled(outputs):
    return 2 * outputs


def test_old_and_new_spelling_train_the_same_weights():
    start, teacher, spellings = TinyNet(), TinyNet(width=8), []
    options = {"loss": {"kl": 0.5, "mse": 2.0}, "output": doubled, "temperature": 3.0, "feature_loss": "attention"}
    options["features"] = {"conv1": "conv1"}
    new = {
        "loss": [pc.OutputTerm("kl", 0.5, output=doubled), pc.OutputTerm("mse", 2.0, output=doubled)],
        "features": [pc.FeatureTerm("conv1", "conv1", loss="attention")],
        "temperature": 3.0,
    }
    warm = pc.OutputTerm("kl", 0.5, output=doubled, temperature=3.0)
    hand = {**new, "loss": [warm, *new["loss"][1:]], "temperature": None}
    for given in (options, new, hand):
        network = copy.deepcopy(start)
        fit(hapi_model(network), [pc.DistillCallback(teacher, **given)], evaluate=False)
        spellings.append(weights_of(network))
    assert equal_weights(spellings[0], spellings[1])
    assert equal_weights(spellings[0], spellings[2])
    assert not equal_weights(spellings[0], weights_of(start))


def test_a_temperature_that_no_term_takes_is_refused():
    for loss in ("mse", [pc.OutputTerm("mse")], {"mse": 1.0}):
        with pytest.raises(ValueError, match=r"temperature.*Leave it out"):
            pc.DistillCallback(TinyNet(), loss=loss, temperature=2.0)
    kept = pc.DistillCallback(
        TinyNet(), loss=[pc.OutputTerm("kl", temperature=1.0), pc.OutputTerm("mse")], temperature=2.0
    )
    assert kept.loss[0].temperature == 1.0


@pytest.mark.parametrize("held", [None, "nearest", "bilinear"])
def test_a_checkpoint_of_the_old_spelling_is_resumed(held, tmp_path):
    """It told of the argument ``resize``, and of the terms nothing."""
    teacher, model, loss = TinyNet(width=8), hapi_model(), pc.OutputTerm("kl", resize="nearest")
    fit(model, [pc.DistillCallback(teacher, loss=loss, weight=cosine(1.0, 0.0))], save_dir=str(tmp_path))
    file = tmp_path / "final.pddistill"
    state = paddle.load(str(file))
    assert state["options"].pop("resize_of_terms") is True
    assert state["options"]["resize"] == "nearest"
    paddle.save({**state, "options": {**state["options"], "resize": held}}, str(file))
    for given in ({"loss": loss}, {"loss": "kl", "resize": "nearest"}):
        callback = pc.DistillCallback(teacher, weight=cosine(1.0, 0.0), resume=tmp_path / "final", **given)
        if held == "bilinear":
            with pytest.raises(ValueError, match="resize='bilinear', got 'nearest'"):
                fit(model, [callback])
        else:
            fit(model, [callback])


def test_old_attributes_of_a_distillation():
    made = pc.DistillCallback(TinyNet(), loss=[pc.OutputTerm(output=0), pc.OutputTerm(resize="nearest")])
    for name, value, new in (
        ("output", 0, "loss"),
        ("resize", "nearest", "loss"),
        ("feature_loss", "fitnet", "features"),
    ):
        with pytest.warns(DeprecationWarning, match=rf"DistillCallback\.{name} is now {new};"):
            assert getattr(made, name) == value


ATTRIBUTES = {
    "evaluate_on": (lambda: pc.PACTQuantCallback(eval_data=DATA), DATA, "eval_data"),
    "allowed_drop": (lambda: pc.PACTQuantCallback(metric_drop=0.2), 0.2, "metric_drop"),
    "higher_is_better": (lambda: pc.Budget(metric="rmse", baseline=1.0), False, "mode"),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_old_attribute_works_and_says_the_new_one(name):
    make, value, new = ATTRIBUTES[name]
    made = make()
    with pytest.warns(DeprecationWarning, match=rf"{type(made).__name__}\.{name} is now {new};") as told:
        assert getattr(made, name) is value
    assert told[0].filename == __file__


@pytest.mark.parametrize("kind", [pc.ExportBenchCallback, pc.DistillCallback, pc.PACTQuantCallback, pc.Budget])
def test_old_attributes_are_not_shown(kind):
    made = {pc.ExportBenchCallback: ["out"], pc.DistillCallback: [TinyNet()]}.get(kind, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = {*dir(kind(*made)), *re.findall(r"^ \|  (\w+)$", pydoc.plain(pydoc.render_doc(kind)), re.MULTILINE)}
        copied = copy.copy(kind(*made))
    assert not shown & {"fp16", "options", "evaluate_on", "allowed_drop", "feature_loss", "higher_is_better"}
    with pytest.raises(AttributeError, match=rf"'{kind.__name__}' object has no attribute 'nothing'"):
        _ = copied.nothing


def test_old_attributes_of_a_diagnosis():
    found = Diagnosis(**FOUND, metric_drop=0.1, mode="min")
    with pytest.warns(DeprecationWarning, match="metric_drop"):
        assert found.allowed_drop == 0.1
    with pytest.warns(DeprecationWarning, match="mode"):
        assert found.higher_is_better is False


def test_the_drop_of_find_skips_was_called_budget():
    with (
        pytest.warns(DeprecationWarning, match=r"find_skips: budget=-1 is now metric_drop=-1"),
        pytest.raises(ValueError, match=r"metric_drop .*at least 0, got -1"),
    ):
        find_skips(TinyNet(), lambda: 1.0, budget=-1)
    with (
        pytest.warns(DeprecationWarning, match=r"PACTQuantCallback.find_skips: budget=0.1 is now metric_drop=0.1"),
        pytest.raises(RuntimeError, match="needs PACTQuantCallback"),
    ):
        pc.PACTQuantCallback().find_skips(budget=0.1)
    with pytest.raises(TypeError, match="budget= and metric_drop="):
        pc.PACTQuantCallback().find_skips(0.1, budget=0.1)  # by position, too


def test_old_options_of_ptq():
    images = [paddle.to_tensor(DATA.images)]
    same = [
        (pc.ptq_int8, {"percentile": 90.0}, {"alpha_percentile": 90.0}, "percentile=90.0 is now alpha_percentile=90.0"),
        (
            pc.ptq_int8,
            {"method": "lsq", "weight_bits": 4},
            {"config": pc.PACTConfig(method="lsq"), "weight_bits": 4},
            "method='lsq' is now config=PACTConfig(method='lsq')",
        ),
    ]
    network = TinyNet()
    for function, old, new, said in same:
        with pytest.warns(DeprecationWarning, match=f"ptq_int8: {re.escape(said)}"):
            made = function(network, images, **old)
        assert equal_weights(weights_of(made), weights_of(function(network, images, **new)))
        with pytest.raises(TypeError, match=r"Give .* alone"):
            function(network, images, **{**old, **new})
    assert not equal_weights(weights_of(made), weights_of(pc.ptq_int8(network, images)))
    by_config = pc.ptq_int8(network, images, config=pc.PACTConfig(weight_bits=4, alpha_percentile=80.0))
    assert equal_weights(
        weights_of(by_config), weights_of(pc.ptq_int8(network, images, weight_bits=4, alpha_percentile=80.0))
    )
    with pytest.raises(TypeError, match=r"ptq_int8 has no argument 'weight_bit'; near names: \['weight_bits'"):
        pc.ptq_int8(network, images, weight_bit=4)
    with pytest.raises(TypeError, match="config must be a PACTConfig, got dict"):
        pc.ptq_int8(network, images, config={})


@pytest.mark.parametrize(
    "function", [pc.cache_teacher, time_files, timed_together, measure_metrics], ids=lambda target: target.__qualname__
)
def test_progress_bars_are_switched_by_verbose(function):
    assert "verbose" in inspect.signature(function).parameters
    assert "progress" not in inspect.signature(function).parameters
    with pytest.raises(TypeError, match="progress= and verbose="):
        function(progress=False, verbose=0)
    positional = [None] * sum(
        one.kind is one.POSITIONAL_OR_KEYWORD for one in inspect.signature(function).parameters.values()
    )
    with pytest.warns(DeprecationWarning, match="progress=False is now verbose=0"), contextlib.suppress(Exception):
        function(*positional, progress=False)


def test_a_cache_is_stored_under_the_old_spelling(tmp_path, capfd):
    with pytest.warns(DeprecationWarning, match="cache_teacher: progress=False is now verbose=0"):
        stored = pc.cache_teacher(TinyNet(), DATA, tmp_path / "c", progress=False)
    assert len(stored) == len(DATA)
    assert "teacher" not in capfd.readouterr().err
    pc.cache_teacher(TinyNet(), DATA, tmp_path / "d", verbose=1)
    assert "teacher" in capfd.readouterr().err


def test_the_gate_takes_mode(tmp_path, capsys):
    from records import record

    from paddlelite_callbacks.report.record import append_record

    append_record(tmp_path / "runs.jsonl", record())
    value = record().metrics["acc"]
    limit = ["gate", str(tmp_path), "--metric", "acc", "--metric-limit"]
    below, above = str(value - 0.1), str(min(1.0, value + 0.05))
    assert main([*limit, below]) == main([*limit, below, "--mode", "max"]) == 0
    assert main([*limit, below, "--mode", "min"]) == 3
    assert main([*limit, above, "--mode", "min"]) == 0
    capsys.readouterr()
    assert main([*limit, above, "--lower-is-better"]) == 0
    assert "--lower-is-better is now --mode min" in capsys.readouterr().err
    assert main([*limit, above, "--lower-is-better", "--mode", "min"]) == 1
    assert "give --mode alone" in capsys.readouterr().err
