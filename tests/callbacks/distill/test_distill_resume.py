"""Stopping in the middle and going on in a new process comes to the very same weights."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest
from byhand import Log
from paddle.utils import unique_name
from toy import TinyNet, equal_weights, fit, hapi_model, weights_of

from paddlelite_callbacks import DistillCallback, EMATeacher, MutualPeer
from paddlelite_callbacks.distill.schedules import linear, stop_at, warm_up


def features(peer, **options):
    return DistillCallback(TinyNet(width=8), loss="kl", features={"conv*": "conv*"}, **options)


def schedules(peer, **options):
    weight = warm_up(1, linear(1.0, 0.0, epochs=4))
    return DistillCallback(TinyNet(width=8), weight=weight, task_weight=linear(0.5, 1.0, epochs=4), **options)


def average(peer, **options):
    return DistillCallback(EMATeacher(0.9), weight=0.5, **options)


def mutual(peer, **options):
    rate = paddle.optimizer.lr.StepDecay(0.02, step_size=3, gamma=0.5)
    return DistillCallback(
        MutualPeer(peer, paddle.optimizer.Adam(rate, parameters=peer.parameters()), keep="student"), **options
    )


def process(seed=0):
    """What a new process finds: automatic names from the start, seeds set; the student first, as FACTS has it."""
    paddle.seed(seed)
    return unique_name.guard()


@pytest.mark.parametrize("at", ["1", "final"])
@pytest.mark.parametrize("optimizer", ["Momentum", "Adam"])
@pytest.mark.parametrize("make", [features, schedules, average, mutual])
def test_resumed_equals_uninterrupted(make, optimizer, at, tmp_path):
    with process():
        whole = hapi_model(optimizer=optimizer)
        peer = TinyNet()
        callback = make(peer)
        fit(whole, [callback], epochs=4, evaluate=False)
    with process():
        first = hapi_model(optimizer=optimizer)
        fit(first, [make(TinyNet())], epochs=2, evaluate=False, save_dir=str(tmp_path))
    with process(seed=0):
        second = hapi_model(optimizer=optimizer)
        other = TinyNet()
        again = make(other, resume=str(tmp_path / at))
        second.load(str(tmp_path / at))
        paddle.seed(99)  # nothing may hang on the random stream
        log = Log()
        fit(second, [log, again], epochs=2, evaluate=False)
    for key, value in weights_of(whole.network).items():
        np.testing.assert_array_equal(weights_of(second.network)[key], value, err_msg=key)
    if make is mutual:
        for key, value in weights_of(peer).items():
            np.testing.assert_array_equal(weights_of(other)[key], value, err_msg=key)
    if make is schedules:
        assert log.seen[0]["distill_weight"] == pytest.approx(0.5)


def test_the_file_is_written_whole_or_not_at_all_and_only_where_needed(tmp_path, monkeypatch):
    fit(hapi_model(), [DistillCallback(TinyNet())], save_dir=str(tmp_path / "plain"))
    assert not list((tmp_path / "plain").glob("*.pddistill"))
    fit(hapi_model(), [features(None)], save_dir=str(tmp_path / "a"), epochs=2)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert [name for name in names if name.endswith("pddistill")] == ["0.pddistill", "1.pddistill", "final.pddistill"]
    assert not any(name.endswith(".tmp") for name in names)
    good = (tmp_path / "a/0.pddistill").read_bytes()

    def fails(state, path):
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("paddlelite_callbacks.callbacks.distill.checkpoint.paddle.save", fails)
    callback = features(None)
    with pytest.raises(OSError, match="disk full"):
        callback.save(tmp_path / "a/0")
    assert (tmp_path / "a/0.pddistill").read_bytes() == good
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    with pytest.raises(FileNotFoundError, match=r"There is no .*nothing\.pddistill: DistillCallback writes it beside"):
        features(None, resume=tmp_path / "nothing")


def test_projections_of_another_shape_are_refused(tmp_path):
    fit(hapi_model(), [features(None)], save_dir=str(tmp_path))
    callback = DistillCallback(TinyNet(width=6), loss="kl", features={"conv*": "conv*"}, resume=tmp_path / "final")
    with pytest.raises(ValueError, match="The saved projections does not fit LayerDict"):
        fit(hapi_model(), [callback])


def test_the_state_goes_through_dictionaries_too():
    model, callback = hapi_model(), features(None)
    fit(model, [callback])
    state = callback.state_dict()
    assert state["position"] == 1
    other = features(None)
    other.set_state_dict(state)
    fit(hapi_model(), [other])
    assert other.state_dict()["position"] == 2


def test_when_distillation_stops_the_teacher_runs_no_more():
    teacher, calls, log = TinyNet(width=8), [], Log()
    teacher.register_forward_post_hook(lambda *_: calls.append(1))
    callback = DistillCallback(teacher, weight=stop_at(2, 0.5))
    fit(hapi_model(), [log, callback], epochs=4)
    assert len(calls) == 4
    assert [logs.get("distill_weight") for logs in log.seen] == [0.5] * 4 + [None] * 4
    assert all(("distill_loss" in logs) == (step < 4) for step, logs in enumerate(log.seen))
    assert all("task_loss" in logs for logs in log.seen)


def test_early_stopping_and_visualdl_see_the_terms(tmp_path):
    visualdl = pytest.importorskip("visualdl")
    callback = DistillCallback(TinyNet(), loss={"kl": 1.0, "dist": 0.5}, weight=linear(1.0, 0.5))
    stop = paddle.callbacks.EarlyStopping(
        monitor="distill_loss", patience=1, min_delta=1e9, mode="min", save_best_model=False, verbose=0
    )
    log = Log()
    fit(hapi_model(), [log, callback, stop, paddle.callbacks.VisualDL(str(tmp_path))], epochs=4)
    assert len(log.seen) == 2 * 2  # the second evaluation does not better the first by 1e9
    (file,) = tmp_path.rglob("vdlrecords*")
    tags = visualdl.LogReader(file_path=str(file)).get_tags()["scalar"]
    wanted = {"task_loss", "distill_loss", "distill_kl", "distill_dist", "distill_weight"}
    assert wanted <= {tag.rpartition("/")[2] for tag in tags if tag.startswith("train/")}


def test_term_weights_may_be_schedules():
    log = Log()
    callback = DistillCallback(TinyNet(), loss={"kl": linear(1.0, 0.0, epochs=2), "mse": stop_at(1)})
    fit(hapi_model(), [log, callback], epochs=3)
    for step, logs in enumerate(log.seen):
        kl = max(1 - step / 4, 0)
        expected = (kl * logs["distill_kl"] if kl else 0) + (logs["distill_mse"] if step < 2 else 0)
        assert ("distill_mse" in logs) == (step < 2)
        if step < 4:
            assert logs["distill_loss"] == pytest.approx(expected, rel=1e-5)


def saved_by(make, folder) -> str:
    """Train an epoch with ``make()``, whose state is then beside the checkpoint."""
    fit(hapi_model(), [make()], evaluate=False, save_dir=str(folder))
    return str(folder / "0")


def peer():
    network = TinyNet()
    return DistillCallback(MutualPeer(network, paddle.optimizer.SGD(0.01, parameters=network.parameters())))


KINDS = {
    "frozen": lambda **more: DistillCallback(TinyNet(width=8), loss="kl", features={"conv*": "conv*"}, **more),
    "average": lambda **more: DistillCallback(EMATeacher(0.9), **more),
    "peer": lambda **more: _resumed(peer(), **more),
}


def _resumed(callback, resume=None):
    if resume is not None:
        callback.load(resume)
    return callback


@pytest.mark.parametrize(("wrote", "reads"), itertools.permutations(KINDS, 2))
def test_the_state_of_another_kind_of_teacher_is_refused(wrote, reads, tmp_path):
    path = saved_by(KINDS[wrote], tmp_path)
    model = hapi_model()
    before = weights_of(model.network)
    with pytest.raises(ValueError, match=r"holds .* of its teacher, .* resumes from .*: give the kind of teacher"):
        fit(model, [KINDS[reads](resume=path)], evaluate=False)
    assert equal_weights(before, weights_of(model.network))


def test_projections_of_other_features_are_refused_with_what_to_do(tmp_path):
    path = saved_by(KINDS["frozen"], tmp_path)
    other = DistillCallback(TinyNet(width=16), loss="kl", features={"conv*": "conv*"}, resume=path)
    with pytest.raises(ValueError, match=r"projections does not fit .* Give the features= and the teacher that it was"):
        fit(hapi_model(), [other], evaluate=False)


@pytest.mark.parametrize(
    "change", [{"position": "x"}, {"position": -1.0}, {"position": float("nan")}, {"bridges": 3}, {"source": [1]}]
)
def test_a_state_with_strange_contents_is_refused(change, tmp_path):
    path = saved_by(KINDS["frozen"], tmp_path)
    state = paddle.load(f"{path}.pddistill")
    paddle.save({**state, **change}, f"{path}.pddistill")
    with pytest.raises(ValueError, match="is not a state of DistillCallback"):
        KINDS["frozen"](resume=path)
