"""``kill -9`` in training, while a checkpoint, a cache, an export, a record and a report are written; then go on.

Each scene is a process of its own that the kernel ends at a chosen moment (see `crashing`). A run that goes on from
the newest checkpoint comes to the weights of one that was never stopped, bit for bit: one process, the same seeds, the
data in order, or shuffled by a sampler that is told the epoch (`scenes.shuffled`). It cannot where the user's own
randomness hangs on how many numbers were drawn before (dropout, augmentation), where hapi shuffles, which begins with
epoch 0 in every ``fit``, or where several threads add up in turn.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from crashing import Server
from scenes import CALLBACKS, features
from toy import Images

from paddlelite_callbacks.callbacks.distill.checkpoint import load_state
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.report.record import read_records
from paddlelite_callbacks.utils.safe_load import read_saved

EPOCHS, KILLED, SIZE, TIMER = 4, 9, 25, 14
ENDINGS = (".pdparams", ".pdopt", ".pddistill")


@pytest.fixture(scope="module")
def server():
    server = Server("scenes")
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """Weights of runs that were never stopped, by name of the scene's callbacks."""
    known = {}

    def weights(what: str) -> dict[str, np.ndarray]:
        if what not in known:
            out = tmp_path_factory.mktemp("whole") / "w.npz"
            assert server.run("train", out.parent, what=what, epochs=EPOCHS, out=str(out)) == 0
            known[what] = dict(np.load(out))
        return known[what]

    return weights


def newest(folder: Path) -> int:
    """The last whole epoch's number, -1 without one; whatever stands there must be whole."""
    numbers = [int(file.stem) for file in folder.glob("*.pdparams") if file.stem.isdigit()]
    for file in folder.glob("*.pd*"):
        with file.open("rb") as stream:
            assert pickle.load(stream), file
        assert file.with_suffix(".pdopt").is_file() or not file.with_suffix(".pdparams").is_file(), file
    return max(numbers, default=-1)


def goes_on(server, whole, folder: Path, what: str) -> None:
    """Resume from the newest checkpoint, or start anew where there is none, and compare."""
    done = newest(folder / "ck") + 1
    resume = {"resume": str(folder / "ck" / str(done - 1)), "done": done} if done else {}
    out = str(folder / "resumed.npz")
    assert server.run("train", folder, what=what, epochs=EPOCHS - done, out=out, **resume) == 0
    resumed, expected = np.load(out), whole(what)
    assert set(resumed) == set(expected)
    for key in expected:
        np.testing.assert_array_equal(resumed[key], expected[key], err_msg=key)


@pytest.mark.parametrize("what", CALLBACKS)
def test_killed_between_backward_pass_and_step(what, server, whole, tmp_path):
    ck = str(tmp_path / "ck")
    assert server.run("train", tmp_path, what=what, epochs=EPOCHS, save_dir=ck, kill={"batch": 5}) == KILLED
    assert newest(tmp_path / "ck") == 1
    goes_on(server, whole, tmp_path, what)


@pytest.mark.parametrize("event", range(0, 14, 2))
def test_killed_at_every_other_step_of_a_checkpoint(event, server, whole, tmp_path):
    ck = str(tmp_path / "ck")
    options = {"what": "both", "epochs": EPOCHS, "save_dir": ck, "arm": 1}
    assert server.run("train", tmp_path, kill={"event": event}, **options) == KILLED
    assert newest(tmp_path / "ck") in (0, 1)
    goes_on(server, whole, tmp_path, "both")


@pytest.mark.parametrize("size", [100, 1200, 3000])
def test_killed_in_the_middle_of_a_file(size, server, whole, tmp_path):
    ck = str(tmp_path / "ck")
    options = {"what": "both", "epochs": EPOCHS, "save_dir": ck, "arm": 1}
    assert server.run("train", tmp_path, kill={"bytes": size}, **options) == SIZE
    assert newest(tmp_path / "ck") == 0
    goes_on(server, whole, tmp_path, "both")


@pytest.mark.parametrize("what", ["average", "mutual_and_pact"])
def test_killed_at_any_time(what, server, whole, tmp_path):
    seconds = random.Random().uniform(0.02, 0.4)  # truly random: the property holds for all
    ck = str(tmp_path / "ck")
    options = {"what": what, "epochs": EPOCHS, "save_dir": ck, "arm": "start"}
    assert server.run("train", tmp_path, kill={"seconds": seconds}, **options) in (TIMER, 0), seconds
    goes_on(server, whole, tmp_path, what)


@pytest.fixture(scope="module")
def two_runs(server, tmp_path_factory):
    """Folders of two whole runs with other seeds, to tell whose file is whose."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("run")
        assert server.run("train", folder, what="features", epochs=1, seed=seed, save_dir=str(folder / "ck")) == 0
        folders.append(folder / "ck")
    return folders


def test_killed_while_a_checkpoint_takes_the_place_of_an_older_one(server, two_runs, tmp_path):
    """``final`` of a second run in the same folder: never the one's weights with the other's state."""
    old, new = ({end: (run / f"final{end}").read_bytes() for end in ENDINGS} for run in two_runs)
    seen = set()
    for event in range(80):
        folder = tmp_path / str(event)
        shutil.copytree(two_runs[0], folder / "ck")
        options = {"what": "features", "epochs": 1, "seed": 1, "save_dir": str(folder / "ck"), "arm": "end"}
        ended = server.run("train", folder, kill={"event": event}, **options) == 0
        found = {end: (folder / f"ck/final{end}") for end in ENDINGS}
        if found[".pdparams"].is_file():  # a whole set, and one kind
            assert {end: file.read_bytes() for end, file in found.items()} in (old, new)
            seen.add("old" if found[".pdparams"].read_bytes() == old[".pdparams"] else "new")
        else:  # hapi refuses to load it; the new set waits whole, and is put in place when asked for
            seen.add("waiting")
        load_state(folder / "ck/final")
        assert {end: file.read_bytes() for end, file in found.items()} in (old, new)
        if ended:
            break
    assert ended
    assert seen == {"old", "waiting", "new"}


def test_a_torn_or_strange_state_is_refused_by_name(server, two_runs, tmp_path):
    shutil.copytree(two_runs[0], tmp_path / "ck")
    state = tmp_path / "ck/final.pddistill"
    whole = state.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"what?"):
        state.write_bytes(torn)
        with pytest.raises(ValueError, match=r"final\.pddistill is truncated, .*take the checkpoint of another epoch"):
            features(resume=tmp_path / "ck/final")
    state.write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(ValueError, match=r"final\.pddistill is not a state of DistillCallback"):
        features(resume=tmp_path / "ck/final")
    state.write_bytes((two_runs[1] / "final.pddistill").read_bytes())
    with pytest.raises(ValueError, match=r"written beside other weights than final\.pdparams, which is there now"):
        features(resume=tmp_path / "ck/final")
    features(resume=two_runs[1] / "final")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_killed_while_teacher_outputs_are_stored(server, tmp_path):
    folder = tmp_path / "cache"
    assert server.run("cache", tmp_path, weights=2) == 0
    new = contents(folder)
    assert server.run("cache", tmp_path, weights=1, overwrite=True) == 0
    old = contents(folder)
    for event in range(80):
        ended = server.run("cache", tmp_path, weights=2, overwrite=True, kill={"event": event}) == 0
        assert contents(folder) in (old, new)
        assert len(CachedTeacher(Images(24), folder)[3]) == 4
        for weights in (2, 1):
            assert server.run("cache", tmp_path, weights=weights, overwrite=True) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # what the dead left went with the next writing
        assert contents(folder) == old
        if ended:
            break
    assert ended
    shutil.rmtree(folder)
    assert server.run("cache", tmp_path, weights=1, kill={"bytes": 200}) == SIZE
    assert not folder.exists()
    assert server.run("cache", tmp_path, weights=1) == 0
    assert contents(folder) == old


def checked_export(folder: Path) -> int:
    """Hold the exported files against their own list of checksums; returns the width of the network."""
    listed = json.loads((folder / "deploy.json").read_text())
    for item in listed["files"]:
        for name, checksum in item["sha256"].items():
            assert sha256((folder / name).read_bytes()).hexdigest() == checksum, name
    return json.loads((folder / "train_log.jsonl").read_text().splitlines()[0])["epoch"] and len(
        (folder / "model.pdiparams").read_bytes()
    )


@pytest.mark.slow
def test_killed_while_an_export_is_written(server, tmp_path):
    """The old set, then the new weights with the old set aside, then the new set: nothing in between."""
    home, sizes = tmp_path / "n", []
    assert server.run("export", tmp_path, width=5, report=False) == 0
    new = checked_export(home)
    assert server.run("export", tmp_path, report=False) == 0
    old, lines = checked_export(home), (tmp_path / "runs.jsonl").read_bytes()
    for event in range(80):
        ended = server.run("export", tmp_path, width=5, report=False, kill={"event": event}) == 0
        aside = home / "previous_export"
        if aside.exists():
            assert sorted(path.name for path in home.iterdir()) == [
                "model.pdparams", "previous_export", "train_log.jsonl",
            ]  # fmt: skip
            assert len(read_saved(home / "model.pdparams")["conv1.weight"]) == 5
        sizes.append(("aside" if aside.exists() else "whole", checked_export(aside if aside.exists() else home)))
        assert (tmp_path / "runs.jsonl").read_bytes().startswith(lines)
        assert read_records(tmp_path / "runs.jsonl")
        if ended:
            break
    assert ended
    assert list(dict.fromkeys(sizes)) == [("whole", old), ("aside", old), ("whole", new)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n", "runs.jsonl"]


def test_killed_while_a_record_and_a_report_are_written(server, tmp_path):
    assert server.run("export", tmp_path) == 0
    (first,) = read_records(tmp_path / "runs.jsonl")
    lines = (tmp_path / "runs.jsonl").read_bytes()
    assert server.run("record", tmp_path, kill={"bytes": len(lines) + 300}) == SIZE
    assert (tmp_path / "runs.jsonl").read_bytes()[: len(lines)] == lines  # then half a line
    assert read_records(tmp_path / "runs.jsonl") == [first]
    assert server.run("record", tmp_path) == 0
    assert read_records(tmp_path / "runs.jsonl") == [first, first]
    before = {name: (tmp_path / name).read_bytes() for name in ("report.md", "report.html", "pareto.png")}
    for kill in ({"event": 7}, {"event": 10}, {"bytes": 2000}):
        assert server.run("report", tmp_path, kill=kill) in (KILLED, SIZE)
        for name, content in before.items():
            now = (tmp_path / name).read_bytes()
            ends = {"md": b"\n", "html": b"</html>\n", "png": b"IEND\xaeB`\x82"}[name.rpartition(".")[2]]
            assert now == content or now.endswith(ends), (name, kill)
        assert read_records(tmp_path / "runs.jsonl") == [first, first]
    assert server.run("report", tmp_path) == 0
    assert b"2 runs" in (tmp_path / "report.md").read_bytes()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
