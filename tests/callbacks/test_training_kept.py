"""What was trained is written before anything is exported from it, whole, whatever happens behind."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import paddle
import pytest
from crashing import Server
from exporting import grouped
from test_killed import KILLED, checked_export, server  # noqa: F401
from toy import Images, TinyNet, copied_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import ExportBenchCallback, PACTQuantCallback, load_pact_
from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.report.record import read_records
from paddlelite_callbacks.utils.safe_load import read_saved

FAST = {"engines": ["paddle"], "warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False}


def arrays(path) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in read_saved(path).items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


class Untraceable(TinyNet):
    def forward(self, x):
        if not paddle.in_dynamic_mode():
            raise NotImplementedError("eager only")
        return super().forward(x)


def test_every_export_fails_and_weights_log_record_and_report_stand(tmp_path):
    model = hapi_model(Untraceable())
    callback = ExportBenchCallback(tmp_path, **grouped(name="n", preflight=False, **{**FAST, "engines": None}))
    with pytest.raises(ExportError, match="eager only"):
        fit(model, [callback], epochs=2)
    assert sorted(path.name for path in (tmp_path / "n").iterdir()) == ["model.pdparams", "train_log.jsonl"]
    fresh = TinyNet()
    fresh.set_state_dict(read_saved(tmp_path / "n" / "model.pdparams"))
    assert same(weights_of(fresh), weights_of(model.network))
    assert [json.loads(line)["epoch"] for line in (tmp_path / "n" / "train_log.jsonl").open()] == [1, 2]
    (run,) = read_records(tmp_path / "runs.jsonl")
    assert run == callback.record
    assert "eager only" in run.failure
    assert run.metrics["acc"] == model.evaluate(Images(), batch_size=8, verbose=0)["acc"]
    for said in ((tmp_path / "report.md").read_text(), callback.summary()):
        assert "eager only" in said
        assert str(tmp_path / "n" / "model.pdparams") in said
    assert "Nothing was exported" in (tmp_path / "report.html").read_text()


def test_the_best_epoch_s_weights_and_the_last(tmp_path):
    """An accuracy that falls makes the first epoch the best; both sets of weights are kept."""
    kept = []

    class Keep(paddle.callbacks.Callback):
        def on_eval_end(self, logs=None):
            kept.append(weights_of(self.model.network))
            logs["acc"] = 1.0 / len(kept)

    fit(hapi_model(), [Keep(), ExportBenchCallback(tmp_path, **grouped(name="n", which="best", **FAST))], epochs=3)
    assert same(arrays(tmp_path / "n" / "model.pdparams"), kept[0])
    assert same(arrays(tmp_path / "n" / "last.pdparams"), kept[2])
    fit(hapi_model(), [ExportBenchCallback(tmp_path, **grouped(name="n", **FAST))])
    assert not (tmp_path / "n" / "last.pdparams").exists()


@pytest.mark.parametrize("method", ["pact", "lsq"])
def test_weights_of_a_quantised_network_load_into_one(method, tmp_path):
    start = TinyNet()
    model = hapi_model()
    copied_weights(start, model.network)
    fit(model, [PACTQuantCallback(method=method), ExportBenchCallback(tmp_path, **grouped(name="n", **FAST))])
    load_pact_(start, tmp_path / "n" / "model.pdparams")
    start.eval()
    model.network.eval()
    x = paddle.to_tensor(Images().images)
    np.testing.assert_array_equal(start(x).numpy(), model.network(x).numpy())


def test_export_without_a_fit_writes_the_weights_and_leaves_the_log(tmp_path):
    network = TinyNet()
    fit(hapi_model(network), [ExportBenchCallback(tmp_path, **grouped(name="n", **FAST))])
    log = (tmp_path / "n" / "train_log.jsonl").read_text()
    with paddle.no_grad():
        network.fc.bias.set_value(network.fc.bias + 1)
    ExportBenchCallback(tmp_path, **grouped(name="n", **FAST)).export(network, Images().images)
    assert same(arrays(tmp_path / "n" / "model.pdparams"), weights_of(network))
    assert (tmp_path / "n" / "train_log.jsonl").read_text() == log


def test_ctrl_c_while_the_weights_are_written_waits_for_them(tmp_path, monkeypatch):
    save, model = paddle.save, hapi_model()

    def interrupted(state, path):
        os.kill(os.getpid(), signal.SIGINT)
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(paddle, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(model, [ExportBenchCallback(tmp_path, **grouped(name="n", **FAST))])
    assert same(arrays(tmp_path / "n" / "model.pdparams"), weights_of(model.network))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n"]
    fit(model, [ExportBenchCallback(tmp_path, **grouped(name="n", **FAST))])
    checked_export(tmp_path / "n")


def test_killed_while_the_weights_are_written(server: Server, tmp_path):  # noqa: F811
    """The older export as a whole at first, then the new weights with the older export aside."""
    assert server.run("export", tmp_path, report=False) == 0
    home = tmp_path / "n"
    old, seen = {path.name: path.read_bytes() for path in home.iterdir()}, set()
    for event in range(30):
        assert server.run("export", tmp_path, width=5, report=False, kill={"event": event}) in (KILLED, 0)
        now = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
        if now == old:
            seen.add("old")
            assert not (home / "previous_export").exists()
            continue
        assert set(now) == {"model.pdparams", "train_log.jsonl"}
        seen.add("weights")
        assert {path.name: path.read_bytes() for path in (home / "previous_export").iterdir()} == old
        assert arrays(home / "model.pdparams")["conv1.weight"].shape[0] == 5
        break
    assert seen == {"old", "weights"}
    assert server.run("export", tmp_path, width=6, report=False) == 0
    assert sorted(path.name for path in home.iterdir()) == sorted(old)
    assert arrays(home / "model.pdparams")["conv1.weight"].shape[0] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n", "runs.jsonl"]
