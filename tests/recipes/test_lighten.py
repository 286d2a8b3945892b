"""`lighten`: choosing, planning, climbing, going on after ``kill -9``, handing over; and its command."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest
from installed import needs
from lightening import EPOCHS, NAME, QUICK, small
from paddle import nn
from PIL import Image
from places import HELPERS
from toy import CLASSES, Images, TinyNet

from paddlelite_callbacks import Budget, lighten, list_backbones
from paddlelite_callbacks.__main__ import main
from paddlelite_callbacks.callbacks.export.options import ExportOptions
from paddlelite_callbacks.export.model_files import find_model
from paddlelite_callbacks.recipes.candidates import Candidate, choose, measure_candidates, shortlist
from paddlelite_callbacks.recipes.plan import Plan, Rung, clock_text
from paddlelite_callbacks.recipes.state import Checkpoints, State
from paddlelite_callbacks.report.record import read_records
from paddlelite_callbacks.utils.safe_load import read_saved


def candidate(name, macs, fits="fp32", **figures):
    return Candidate(name=name, macs=macs, fits=fits, size_mb=1.0, latency_ms=1.0, **figures)


def test_the_shortlist_is_the_catalogue_within_size_and_cost():
    names = shortlist(Budget(size_mb=2), most_macs=4_000_000_000, pixels=224**2, count=40)
    known = {one.name: one for one in list_backbones()}
    assert names
    for name in names:
        assert known[name].parameters * 4e-6 * 0.3 <= 2
        assert known[name].checks.get("pact") is True or name.startswith(("PPLCNet_", "MobileNetV3_"))
    macs = [known[name].macs for name in names]
    assert macs == sorted(macs, reverse=True)
    fit = shortlist(Budget(size_mb=12), most_macs=4_000_000_000, pixels=224**2, count=6)
    assert len(fit) == 6
    assert sum(known[name].parameters * 4e-6 <= 12 for name in fit) >= 4, "most keep the size without quantisation"
    guides = {"PPLCNet_x2_5", "MobileNetV3_large_x1_0", "MobileNetV3_small_x1_0"}  # 30, 20 and 10 MB in the guide
    for size, classes, wanted in ((40, 1000, 3), (20, 10, 2), (10, 10, 1)):
        names = shortlist(Budget(size_mb=size), most_macs=4_000_000_000, pixels=224**2, count=6, classes=classes)
        assert len(guides & set(names)) == wanted, (size, names)
    few = shortlist(Budget(size_mb=20), most_macs=4_000_000_000, pixels=224**2, count=5)
    assert len(few) == 5
    assert all(known[name].macs < 100e6 for name in shortlist(Budget(), most_macs=125_000_000, pixels=224**2, count=40))


def test_the_larger_of_those_that_fit_is_chosen_and_int8_comes_after():
    measured = [candidate("a", 5), candidate("b", 9, "int8"), candidate("c", 7), candidate("d", 99, "no")]
    assert [one.name for one in choose(measured, 2)] == ["c", "a"]
    assert [one.name for one in choose(measured, 9)] == ["c", "a", "b"]
    with pytest.raises(ValueError, match=r"No candidate meets the budget on this machine: d: 1 MB, 1 ms"):
        choose(measured[3:], 2)


def test_candidates_are_measured_and_judged():
    networks = {"small": TinyNet(4), "large": TinyNet(64)}

    def make(name):
        if name == "broken":
            raise ValueError("no such thing")
        return networks[name]

    image = [np.zeros([1, 3, 8, 8], "float32")]
    found = measure_candidates(
        ["small", "large", "broken"], make, image, Budget(size_mb=0.05, latency_ms=1000), engines=["paddle"], repeats=2
    )
    small_one, large, broken = found
    assert small_one.parameters == (9 * 3 * 4 + 4) + 2 * 4 + 9 * 4 * 4 + (4 * CLASSES + CLASSES)
    assert small_one.macs == 8 * 8 * 9 * (3 * 4 + 4 * 4) + 4 * CLASSES
    assert (small_one.fits, small_one.engine) == ("fp32", "paddle")
    assert small_one.latency_ms > 0
    assert large.size_mb > 0.05
    assert large.fits in ("int8", "no")
    assert (broken.fits, broken.error) == ("no", "ValueError: no such thing")


def test_a_plan_comes_back_from_json():
    rung = Rung(name="a-int8", kind="int8", backbone="a", epochs=3, seconds=61.5)
    plan = Plan(measured=(candidate("a", 5),), rungs=(rung,))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.chosen == ("a",)
    assert "| a-int8 | 3 | 62 s |" in str(plan)
    assert [clock_text(seconds) for seconds in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]


def test_the_newest_checkpoint_counts_what_was_done_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() == (0, None)
    for name in ("0/0", "0/1", "2/0", "2/final", "2/x"):
        for ending in (".pdparams", ".pdopt"):
            (tmp_path / f"{name}{ending}").parent.mkdir(exist_ok=True)
            (tmp_path / f"{name}{ending}").write_text("")
    (tmp_path / "2" / "1.pdopt").write_text("")  # .pdparams comes last: this set is not whole
    assert checkpoints.newest() == (3, str(tmp_path / "2" / "0"))
    checkpoints.forget_old()
    assert sorted(file.name for file in tmp_path.glob("*/*")) == ["0.pdopt", "0.pdparams"]


def test_another_runs_folder_is_refused(tmp_path):
    plan = Plan(measured=(), rungs=())
    State(path=tmp_path / "lighten.json", settings={"epochs": 3, "seed": 0}, plan=plan, baseline=0.5).write()
    again = State.read(tmp_path / "lighten.json", {"epochs": 3, "seed": 0})
    assert (again.plan, again.baseline) == (plan, 0.5)
    with pytest.raises(ValueError, match=r"other settings \(epochs=3 then, 4 now\): give the same"):
        State.read(tmp_path / "lighten.json", {"epochs": 4, "seed": 0})
    (tmp_path / "lighten.json").write_text("torn")
    with pytest.raises(ValueError, match="cannot be read"):
        State.read(tmp_path / "lighten.json", {})


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1, got 0"),
        ({"int8_epochs": -1}, ValueError, "int8_epochs must be a whole number of at least 0"),
        ({"candidates": 0}, ValueError, "candidates must be a number of at least 1 or a list of names, got 0"),
        ({"candidates": "PPLCNet_x1_0"}, ValueError, "candidates must be a number"),
        ({"candidates": ["PPLCNet_x9"]}, ValueError, "Unknown backbone 'PPLCNet_x9'"),
        ({"distill": {"loss": "kll"}}, ValueError, "kll"),
        ({"metric_drop": -1}, ValueError, "metric_drop must be a positive finite number or None, got -1"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be a positive number, got 0"),
        ({"eval_data": Images(0)}, ValueError, "The data are empty"),
        ({"budget": Budget(metric="f1", metric_drop=None)}, ValueError, "Unknown metric 'f1' in the budget"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(changes, error, said, tmp_path):
    with pytest.raises(error, match=said):
        small(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
    with pytest.raises(TypeError, match=r"network must be a paddle\.nn\.Layer, got Model"):
        lighten(paddle.Model(TinyNet()), Images(), Images(), folder=tmp_path)


@needs("paddleclas")
def test_a_dry_run_plans_and_writes_nothing(tmp_path):
    made = small(tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert [rung.name for rung in made.plan.rungs] == ["teacher", NAME, f"{NAME}-int8"]
    assert [rung.epochs for rung in made.plan.rungs] == list(EPOCHS.values())
    assert all(rung.seconds > 0 for rung in made.plan.rungs)
    assert made.records == ()
    assert str(made) == str(made.plan)


@needs("paddleclas")
def test_other_sizes_and_options_are_another_run(tmp_path):
    plan = Plan(measured=(), rungs=())
    State(path=tmp_path / "lighten.json", settings={"sample": [[3, 32, 32], []]}, plan=plan).write()
    with pytest.raises(ValueError, match=r"sample=\[\[3, 32, 32\], \[\]\] then, \[\[3, 48, 48\], \[\]\] now"):
        small(tmp_path, eval_data=Images(8, 48))
    with pytest.raises(ValueError, match=r"distill=None then, \{'temperature': 2.0\} now"):
        small(tmp_path, distill={"temperature": 2.0})


def run_script(folder):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HELPERS / "lightening.py"), str(folder)],
        cwd=HELPERS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    process = run_script(folder)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return folder


@needs("paddleclas")
@pytest.mark.slow
def test_what_is_handed_over(whole):
    records = {record.name: record for record in read_records(whole / "runs.jsonl")}
    assert list(records) == ["teacher", NAME, f"{NAME}-int8"]
    assert len(records[NAME].history) == EPOCHS["epochs"]
    told = json.loads((whole / "best" / "lighten.json").read_text())
    best = max((NAME, f"{NAME}-int8"), key=lambda name: (records[name].metrics["acc"], -records[name].size_mb))
    assert told["name"] == best
    assert told["metrics"]["acc"] == records[best].metrics["acc"]
    assert "lightening.py" in told["command"]
    assert find_model(whole / "best").path.is_file()
    for file in (whole / best).iterdir():
        if file.is_file():
            assert (whole / "best" / file.name).read_bytes() == file.read_bytes()
    joints = {row.joint for record in records.values() for row in record.latencies if row.p50_ms}
    assert len(joints) == 1, "all files are timed in turn"
    assert None not in joints
    assert (whole / "report.html").is_file()
    assert not list((whole / ".lighten").glob("*/*")), "checkpoints of finished rungs"


@needs("paddleclas")
@pytest.mark.slow
def test_killed_at_any_rung_it_comes_to_the_same_weights(whole, tmp_path):
    """``kill -9`` in each training, once at a random moment, and again and again in one folder."""
    seconds = random.Random().uniform(0, 1)  # truly random: the property holds for all
    moments = [
        ".lighten/teacher/*/0.pdparams",
        f".lighten/{NAME}/*/1.pdparams",
        f"{NAME}/model.pdparams",  # weights are written, the export is under way
        f".lighten/{NAME}-int8/*/0.pdparams",
    ]
    killed = 0
    for moment in moments:
        process = run_script(tmp_path)
        deadline = time.monotonic() + 300
        while process.poll() is None and not list(tmp_path.glob(moment)) and time.monotonic() < deadline:
            time.sleep(0.005)
        if moment == moments[1]:
            time.sleep(seconds)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 3
    process = run_script(tmp_path)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    for name in ("teacher", NAME, f"{NAME}-int8"):
        resumed, expected = (read_saved(folder / name / "model.pdparams") for folder in (tmp_path, whole))
        assert resumed.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(resumed[key].numpy(), expected[key].numpy(), err_msg=f"{name} {key}")
    files = [json.loads((folder / "best" / "lighten.json").read_text()) for folder in (tmp_path, whole)]
    assert files[0]["name"] == files[1]["name"]
    process = run_script(tmp_path)  # all is done: nothing is trained again
    assert process.communicate(timeout=600)[0].endswith(f"best: {files[0]['name']}\n")
    assert len(read_records(tmp_path / "runs.jsonl")) <= len(read_records(whole / "runs.jsonl")) + killed


class Segmenter(nn.Layer):
    """A network of another task: a backbone and a map of classes."""

    def __init__(self):
        super().__init__()
        self.backbone = paddle.vision.models.resnet18(num_classes=0, with_pool=False)
        self.head = nn.Conv2D(512, 2, 1)

    def forward(self, x):
        return self.head(self.backbone(x))


class Maps(paddle.io.Dataset):
    """Noise, and of each cell of 32x32 whether it is bright."""

    def __init__(self, count):
        stream = np.random.RandomState(0)
        bright = stream.randint(0, 2, [count, 1, 2, 2])
        self.images = (stream.randn(count, 3, 64, 64) + np.kron(bright, np.ones([1, 1, 32, 32]))).astype("float32")
        self.labels = bright[:, 0].astype("int64")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class CellAccuracy(paddle.metric.Metric):
    """Share of the cells that are right."""

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self):
        self.right = self.all = 0

    def update(self, got, labels):
        self.right += float((got.argmax(1) == labels).sum())
        self.all += labels.size
        return self.right / self.all

    def accumulate(self):
        return self.right / max(1, self.all)

    def name(self):
        return "cells"


@pytest.mark.slow
def test_another_task_with_the_readers_own_loss_and_metric(tmp_path):
    paddle.seed(0)

    def loss(maps, labels):
        return nn.functional.cross_entropy(maps, labels, axis=1)

    made = lighten(
        Segmenter(),
        Maps(8),
        Maps(4),
        Budget(size_mb=20, latency_ms=1000),
        metric_drop=None,
        folder=tmp_path,
        candidates=["mobilenet_v3_small"],
        at="backbone",
        loss=loss,
        metric=CellAccuracy(),
        distill={"loss": "mse"},
        epochs=1,
        int8_epochs=0,
        batch_size=4,
        benchmark=QUICK,
        export=ExportOptions(preflight=False),
        verbose=0,
    )
    assert [record.name for record in made.records] == ["teacher", "mobilenet_v3_small"]
    assert made.best.name == "mobilenet_v3_small"
    assert 0 <= made.best.metrics["cells"] <= 1
    assert made.budget.metric == "cells"
    assert made.verdict.passed


def pictures(folder, classes=("a", "b")):
    stream = np.random.RandomState(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = stream.randint(0, 100, [20, 20, 3]) + 100 * number
            Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{i}.png")
    return folder


FLAGS = ["--size", "32", "--network", "MobileNet_V3_small", "--light", "mobilenet_v3_SMALL", "--batch-size", "4"]


def test_the_command_shows_its_plan_as_json(tmp_path, capsys):
    images = str(pictures(tmp_path / "images"))
    given = ["lighten", "--images", images, "--out", str(tmp_path / "out"), *FLAGS, "--dry-run", "--json"]
    assert main([*given, "--metric-drop", "5%", "--loss", "KL"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [rung["name"] for rung in said["plan"]["rungs"]][1:] == ["mobilenet_v3_small", "mobilenet_v3_small-int8"]
    assert said["plan"]["seconds"] > 0
    assert said["best"] is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--images", "{}/none"], "must hold pictures in one sub-folder per class"),
        (["--images", "{}", "--network", "resnet51"], "There is no network 'resnet51' in paddle.vision.models"),
        (["--images", "{}", "--light", "mobilnet"], "Unknown backbone 'mobilnet'"),
        (["--images", "{}", "--size-mb", "-1"], "size_mb must be a positive"),
    ],
)
def test_the_command_refuses_in_one_line(flags, said, tmp_path, capsys):
    images = pictures(tmp_path / "images")
    given = [flag.replace("{}", str(images)) for flag in flags]
    assert main(["lighten", *given, "--out", str(tmp_path / "out"), "--json"]) == 1
    streams = capsys.readouterr()
    assert said in streams.err.splitlines()[-1]
    assert streams.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["150%", "1.5", "many", "-3%"])
def test_a_share_is_written_as_one(text, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["lighten", "--images", "x", f"--metric-drop={text}"])
    assert ended.value.code == 2
    assert "write 5% or 0.05" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_does_it_all_and_says_whether_one_passes(tmp_path):
    images = str(pictures(tmp_path / "images"))
    command = [
        sys.executable,
        "-m",
        "paddlelite_callbacks",
        "lighten",
        "--images",
        images,
        "--out",
        str(tmp_path / "o"),
    ]
    flags = [*FLAGS, "--teacher-epochs", "1", "--epochs", "1", "--int8-epochs", "0", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *flags, "--size-mb", "0.01"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 3, done.stderr
    said = json.loads(done.stdout)
    assert said["best"] is None
    assert [run["passed"] for run in said["runs"]] == [False, False]
    labels = json.loads((tmp_path / "o" / "mobilenet_v3_small" / "deploy.json").read_text())["labels"]
    assert labels == ["a", "b"]
