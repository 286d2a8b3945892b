"""No criterion of the gate switches itself off: what cannot be judged is refused, or fails with its remedy."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
from exporting import grouped
from records import latency, record
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import Budget, ExportBenchCallback
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.export.compare import Check
from paddlelite_callbacks.report.budget import stored_budget
from paddlelite_callbacks.report.gate import judge, most_accurate
from paddlelite_callbacks.report.record import ArtefactFigures, append_record
from paddlelite_callbacks.report.write import last_budget

FAST = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}
ACC = Budget(size_mb=None, latency_ms=None, metric="acc", baseline=0.94)


@pytest.mark.parametrize(
    ("options", "remedies"),
    [
        ({"size_mb": 20, "metric": "acc", "metric_drop": 0.01}, "metric='acc' and baseline=None: give the"),
        ({"metric": "acc"}, "metric='acc' .*baseline.*metric_limit.*metric_drop=None"),
        ({"metric_drop": 0.01}, "metric_drop=0.01 .*baseline=0.93"),
        ({"metric_drop": 0.05}, "metric_drop=0.05 needs a baseline"),  # the default's value, but asked for
        ({"metric_limit": 0.9}, "metric_limit needs metric"),
        ({"metric": "acc", "metric_limit": 0.9, "metric_drop": 0.01}, "metric_drop=0.01 needs a baseline"),
        ({"metric": "acc", "metric_limit": math.nan}, "metric_limit must be a finite number"),
        ({"metric": "rmse", "metric_limit": 0.1, "mode": "max"}, "metric='rmse' .*got mode='max'"),
        ({"metric": ""}, "metric must be the name"),
        ({"metric": 3, "baseline": 1.0}, "metric must be the name"),
        ({"size_mb": 10**400}, "size_mb must be a positive finite number"),
    ],
)
def test_a_budget_without_something_to_hold_against_is_refused(options, remedies):
    with pytest.raises(ValueError, match=remedies):
        Budget(**options)


def test_budgets_that_judge_a_metric_or_say_that_they_do_not():
    assert not Budget().judges_drop
    assert Budget(metric="acc", baseline=0.9).judges_drop
    assert not Budget(metric="acc", baseline=0.9, metric_drop=None).judges_drop
    assert Budget(metric="acc", metric_drop=None).has_limits
    assert not Budget(size_mb=None, latency_ms=None).has_limits
    assert Budget(size_mb=None, latency_ms=None, metric="acc", metric_limit=0.9).has_limits
    assert replace(Budget(), metric="acc", baseline=0.9).metric_drop == 0.05
    assert json.loads(json.dumps(asdict(Budget())))["metric_drop"] == 0.05


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        (0.92, {"metric_limit": 0.9}, "pass: acc 92 >= 90 %"),
        (0.9, {"metric_limit": 0.9}, "pass: acc 90 >= 90 %"),
        (0.06, {"metric_limit": 0.9}, "fail: acc 6 < 90 %"),
        (71.0, {"metric_limit": 70.0}, "pass: acc 71 >= 70"),
        (0.06, {"metric_limit": 0.1, "mode": "min"}, "pass: acc 0.06 <= 0.1"),
        (0.2, {"metric_limit": 0.1, "mode": "min"}, "fail: acc 0.2 > 0.1"),
        (0.93, {"metric_limit": 0.9, "baseline": 1.0}, "fail: drop 7 > 5 %, acc 93 >= 90 %"),
    ],
)
def test_an_absolute_limit(value, options, said):
    budget = Budget(size_mb=None, latency_ms=None, metric="acc", **options)
    verdict = judge(record(acc=value), budget)
    assert str(verdict) == said
    assert f"({verdict.criteria[-1].margin * verdict.criteria[-1].scale:+.4g})" in verdict.table()


def judged(run, budget=ACC):
    verdict = judge(run, budget)
    return verdict.passed, str(verdict)


def measured(engine, error=None, **metrics):
    return FileMetrics(engine=engine, precision="fp32", metrics=metrics, samples=9, error=error)


def test_an_engine_that_answers_otherwise_passes_no_gate():
    """It was timed and named in the budget: its latency and its accuracy are of another function."""
    run = record(agree=("paddle",))
    for budget in (Budget(size_mb=None, engine="onnxruntime"), replace(ACC, engine="onnxruntime")):
        passed, said = judged(run, budget)
        assert not passed
        assert "onnxruntime does not agree with the network on the fp32 file" in said
    assert judged(run, Budget(size_mb=None, engine="paddle"))[0]


def test_without_an_engine_that_agrees_the_networks_own_metric_says_nothing():
    assert judged(record(acc=0.94, agree=())) == (
        False,
        "fail: drop unknown (no engine ran the exported file and agreed with the network)",
    )
    assert judged(replace(record(acc=0.94), checks=(), latencies=()))[0]  # a record of figures alone


def test_an_accuracy_that_failed_on_the_file_is_not_replaced_by_the_trainings():
    run = record(acc=0.94)
    passed, said = judged(replace(run, file_metrics=(measured("onnxruntime", error="labels missing"),)))
    assert not passed
    assert "labels missing" in said
    passed, said = judged(replace(run, file_metrics=(measured("paddle", acc=0.94),)))
    assert not passed
    assert "not measured on the fp32 file by onnxruntime" in said
    added = replace(run, metrics={"ap": 0.93}, file_metrics=(measured("onnxruntime", acc=0.1),))
    assert judged(added, replace(ACC, metric="ap"))[0]  # a figure that the user added, of no file
    assert not judged(added)[0]


def test_a_file_that_could_not_be_timed_is_judged_by_what_was_measured_on_it():
    untimed = replace(record(acc=0.94), latencies=(latency("onnxruntime", None, error="takes exactly 3 images"),))
    run = replace(untimed, file_metrics=(measured("paddle", acc=0.5), measured("onnxruntime", acc=0.94)))
    assert judged(run)[1].startswith("fail: drop 46.81 > 5 %")  # of the first engine that agrees
    assert judged(run, replace(ACC, engine="onnxruntime"))[0]
    assert "takes exactly 3" in judged(run, Budget(size_mb=None))[1]


def test_an_int8_run_is_not_judged_by_its_fp32_file():
    int8 = (ArtefactFigures(kind="paddle", precision="int8", path="/x", size_mb=3.0),)
    rows = (latency("paddle", 50.0, "int8"), latency("openvino", 1.0))
    checks = (
        Check(engine="paddle", precision="int8", passed=True),
        Check(engine="openvino", precision="fp32", passed=True),
    )
    run = replace(record(), artefacts=int8, latencies=rows, checks=checks)
    assert judge(run, Budget(size_mb=None)).criteria[0].value == 50.0
    assert judged(run, Budget(size_mb=None, engine="openvino")) == (
        False,
        "fail: latency unknown (openvino ran no int8 file)",
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_figures_that_are_missing_or_no_numbers_pass_nothing(value):
    for run, budget in (
        (record(size=value), Budget(latency_ms=None)),
        (record(ms=(("paddle", value),)), Budget(size_mb=None)),
        (record(ms=(("paddle", value),)), Budget(size_mb=None, engine="paddle")),
        (replace(record(), artefacts=()), Budget(latency_ms=None)),
        (replace(record(), metrics={}), ACC),
        (replace(record(), metrics={"acc": math.nan if value is None else value}), ACC),
    ):
        passed, said = judged(run, budget)
        assert not passed
        assert " unknown (" in said
        assert most_accurate([run], replace(budget, metric="acc", baseline=0.9)) is None
    fast = record(ms=(("paddle", value), ("onnxruntime", 5.0)))  # a figure that is none hides no other
    assert judged(fast, Budget(size_mb=None)) == (True, "pass: latency 5 <= 100 ms")


def test_the_command_refuses_a_metric_alone(tmp_path, capsys):
    append_record(tmp_path / "runs.jsonl", record(acc=0.06))
    for limits in ([], ["--size-mb", "20"], ["--size-mb", "20", "--all"]):
        assert main(["gate", str(tmp_path), "--metric", "acc", *limits]) == 1
        error = capsys.readouterr().err
        assert "--metric acc " in error
        assert "give --baseline" in error
        assert "--metric-limit" in error
    assert main(["gate", str(tmp_path), "--metric", "acc", "--metric-limit", "0.9"]) == 3
    assert "net: fail: acc 6 < 90 %" in capsys.readouterr().out
    assert main(["gate", str(tmp_path), "--metric", "acc", "--metric-limit", "0.05"]) == 0
    assert main(["gate", str(tmp_path), "--size-mb", "20", "--metric-drop", "0.1"]) == 1
    assert main(["gate", str(tmp_path), "--metric-limit", "0.1"]) == 1


def test_a_run_without_the_metric_fails_beside_one_that_has_it(tmp_path, capsys):
    append_record(tmp_path / "runs.jsonl", replace(record("bare"), metrics={}))
    append_record(tmp_path / "runs.jsonl", record("net", acc=0.94))
    limits = ["gate", str(tmp_path), "--metric", "acc", "--baseline", "0.94"]
    assert main([*limits, "--all"]) == 3
    assert "bare: fail: drop unknown (no metric 'acc', nothing was evaluated" in capsys.readouterr().out
    assert main([*limits, "--run", "bare"]) == 1  # cannot be judged: says which figures there are
    assert main(limits) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gate": "fail", "budget": Budget(size_mb=None, latency_ms=None)},
            r"gate='fail' needs a budget with a limit, got budget=",
        ),
        ({"budget": Budget(engine="openvino"), "engines": ["paddle"]}, r"'openvino', which is not one of the engines"),
    ],
)
def test_a_callback_that_could_never_judge_is_refused_when_made(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ExportBenchCallback(tmp_path, **grouped(**options))


@pytest.mark.parametrize(
    ("metric", "metrics", "evaluate", "message"),
    [
        ("ap", True, True, r"'ap', .*\['acc', 'loss'\]"),
        ("acc", False, True, r"'acc', .*\['loss'\]"),
        ("acc", True, False, "'acc', but nothing is evaluated: give fit"),
    ],
)
@pytest.mark.parametrize("gate", ["report", "fail"])
def test_a_metric_that_nothing_will_measure_is_refused_before_training(
    metric, metrics, evaluate, message, gate, tmp_path
):
    callback = ExportBenchCallback(
        tmp_path, **grouped(engines=["paddle"], budget=Budget(metric=metric, baseline=0.9), gate=gate, **FAST)
    )
    model = hapi_model(metrics=metrics)
    steps = []
    model.network.register_forward_post_hook(lambda *_: steps.append(1))
    with pytest.raises(ValueError, match=message):
        fit(model, [callback], evaluate=evaluate)
    assert not steps


def test_a_metric_that_eval_data_or_the_loss_measures_is_judged(tmp_path):
    with_data = ExportBenchCallback(
        tmp_path, **grouped(engines=["paddle"], eval_data=Images(8), budget=replace(ACC, metric_drop=1.0), **FAST)
    )
    fit(hapi_model(), [with_data], evaluate=False)
    assert with_data.verdict.criteria[0].value is not None
    loss = Budget(metric="loss", metric_limit=100.0, mode="min")
    callback = ExportBenchCallback(tmp_path, **grouped(engines=["paddle"], budget=loss, **FAST))
    fit(hapi_model(metrics=False), [callback])
    assert callback.verdict.criteria[-1].value == callback.record.metrics["loss"]


def test_an_export_without_evaluation_refuses_a_budget_for_a_metric(tmp_path):
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", engines=["paddle"], budget=ACC, **FAST))
    for model in (TinyNet(), hapi_model(), hapi_model(metrics=False)):
        with pytest.raises(ValueError, match="'acc', but nothing is evaluated"):
            callback.export(model, Images(4).images)
    assert not (tmp_path / "n").exists()
    measuring = ExportBenchCallback(
        tmp_path, **grouped(name="n", engines=["paddle"], budget=ACC, eval_data=Images(8), **FAST)
    )
    measuring.export(hapi_model(), Images(4).images)
    assert measuring.verdict.criteria[0].value is not None


def test_budgets_of_older_records_are_read():
    """They hold the default of ``metric_drop``, asked for or not."""
    old = {"size_mb": 20, "latency_ms": 9.0, "metric_drop": 0.05, "metric": None, "baseline": None, "gone": 1}
    for stored, expected in (
        (old, Budget(size_mb=20, latency_ms=9.0)),
        ({**old, "metric": "acc"}, Budget(size_mb=20, latency_ms=9.0, metric="acc", metric_drop=None)),
        ({**old, "metric": "acc", "baseline": 0.9}, Budget(size_mb=20, latency_ms=9.0, metric="acc", baseline=0.9)),
    ):
        assert last_budget([replace(record(), config={"budget": stored})]) == expected
    for budget in (Budget(), ACC, Budget(metric="acc", metric_limit=0.9)):
        stored = json.loads(json.dumps(stored_budget(budget)))
        assert "mode" not in stored
        assert stored["higher_is_better"] is True
        assert last_budget([replace(record(), config={"budget": stored})]) == budget
    for budget in (Budget(metric="rmse", baseline=0.1), Budget(metric="x", metric_limit=0.9, mode="min")):
        stored = json.loads(json.dumps(stored_budget(budget)))
        assert stored["higher_is_better"] is False
        assert last_budget([replace(record(), config={"budget": stored})]) == replace(budget, mode="min")
