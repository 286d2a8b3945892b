"""The CIFAR-10 ladder: its data against a loop by hand, its trainings after a kill, its tables, the whole command."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import onnxruntime
import paddle
import pytest
from installed import needs
from PIL import Image
from places import ROOT

from paddlelite_callbacks.report.intervals import mean_half_width

SCRIPTS = ROOT / "examples" / "cifar10"
sys.path.insert(0, str(SCRIPTS))

import data  # noqa: E402
import networks  # noqa: E402
import remembered  # noqa: E402
import table  # noqa: E402
import training  # noqa: E402


def windows(image, crop, *, mirrored):
    """All crops of one normalised picture, by hand."""
    padded = np.stack([np.pad(channel, crop, mode="reflect") for channel in image])
    side = image.shape[1]
    found = [padded[:, i : i + side, j : j + side] for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
    return [window[:, :, ::-1] if mirrored else window for window in found]


def test_batches_are_crops_mirrored_in_every_other_epoch():
    pictures = data.Pictures(np.random.default_rng(0).integers(0, 256, [20, 3, 8, 8], "uint8"), np.arange(20))
    batches = data.Batches(pictures, 6, seed=3, crop=1)
    whole = (pictures.images - np.array(data.MEAN).reshape(3, 1, 1)) / np.array(data.STD).reshape(3, 1, 1)
    sides, seen = {}, []
    for epoch in (0, 1):
        batches.epoch = epoch
        for images, labels in batches:
            assert (images.dtype, images.shape) == (np.float32, (6, 3, 8, 8))
            for image, label in zip(images, labels, strict=True):
                fits = [
                    mirrored
                    for mirrored in (False, True)
                    if any(np.allclose(image, w, atol=1e-5) for w in windows(whole[label], 1, mirrored=mirrored))
                ]
                assert len(fits) == 1
                sides[epoch, int(label)] = fits[0]
        seen.append([int(label) for _, labels in batches for label in labels])
    assert all(len(set(order)) == 18 for order in seen)  # no picture twice, 2 of 20 left over
    assert seen[0] != seen[1]
    both = [label for label in range(20) if (0, label) in sides and (1, label) in sides]
    assert all(sides[0, label] != sides[1, label] for label in both)
    assert {sides[0, label] for label in both} == {False, True}


def test_shifts_are_multiples_of_the_step():
    pictures = data.Pictures(np.random.default_rng(0).integers(0, 256, [4, 3, 8, 8], "uint8"), np.arange(4))
    batches = data.Batches(pictures, 4, seed=3, crop=2, step=2)
    whole = (pictures.images - np.array(data.MEAN).reshape(3, 1, 1)) / np.array(data.STD).reshape(3, 1, 1)
    seen = set()
    for epoch in range(120):
        batches.epoch = epoch
        for images, labels in batches:
            for image, label in zip(images, labels, strict=True):
                views = windows(whole[label], 2, mirrored=False) + windows(whole[label], 2, mirrored=True)
                (number,) = [k for k, view in enumerate(views) if np.allclose(image, view, atol=1e-5)]
                seen.add((int(label), number))
    allowed = {25 * side + 5 * top + left for side in (0, 1) for top in (0, 2, 4) for left in (0, 2, 4)}
    assert seen == {(label, number) for label in range(4) for number in allowed}


class Counting(paddle.nn.Layer):
    """Network that counts the images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.count = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(12, 5)), 0

    def forward(self, x):
        self.count += len(x)
        return self.inner(x)


def test_a_remembered_teacher_computes_each_view_once_over_all_trainings(tmp_path):
    network, views = Counting(), paddle.randn([10, 3, 2, 2])
    teacher = remembered.RememberedTeacher(network, tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()
    first = teacher(views[:6])
    assert network.count == 6
    some = teacher(paddle.concat([views[3:9], views[4:5]]))
    assert network.count == 9
    right = network.inner(views).numpy()
    np.testing.assert_allclose(first.numpy(), right[:6], atol=1e-6)
    np.testing.assert_allclose(some.numpy(), right[[3, 4, 5, 6, 7, 8, 4]], atol=1e-6)
    teacher.save()
    again = Counting()
    loaded = remembered.RememberedTeacher(again, tmp_path / "outputs")
    np.testing.assert_allclose(loaded(views[:9]).numpy(), right[:9], atol=1e-6)
    assert again.count == 0
    loaded.save()
    assert len(list((tmp_path / "outputs").glob("*.npz"))) == 1  # nothing new, nothing written


def test_batches_of_an_epoch_are_the_same_whatever_was_read_before():
    pictures = data.drawn(64, seed=0)
    first, second = data.Batches(pictures, 16, seed=1, cutout=6), data.Batches(pictures, 16, seed=1, cutout=6)
    list(first)
    first.epoch = second.epoch = 2
    for (a, labels), (b, same) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(labels, same)
    with pytest.raises(ValueError, match="64 pictures make no batch of 65"):
        data.Batches(pictures, 65, seed=0)


def test_cutout_blanks_one_square():
    pictures = data.Pictures(np.full([4, 3, 32, 32], 255, "uint8"), np.zeros(4, "int64"))
    for image in next(iter(data.Batches(pictures, 4, seed=0, cutout=10)))[0]:
        rows, columns = (np.nonzero((image == 0).any(axis=(0, axis)))[0] for axis in (2, 1))
        assert (len(rows), len(columns)) == (10, 10)
        assert (image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()
        assert (image == 0).sum() == 300


def archive(path, images, labels):
    """A file as the makers of CIFAR-10 hand it out."""
    parts = {f"data_batch_{k + 1}": slice(10 * k, 10 * k + 10) for k in range(5)} | {"test_batch": slice(50, 60)}
    with tarfile.open(path, "w:gz") as tar:
        for name, part in parts.items():
            held = {b"data": images[part].reshape(-1, 3072), b"labels": labels[part].tolist()}
            content = pickle.dumps(held, protocol=2)
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_archive_and_folder_give_the_same_pictures_from_the_cache_too(tmp_path):
    pictures = data.drawn(60, seed=5)
    archive(tmp_path / "cifar.tar.gz", pictures.images, pictures.labels)
    for k, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
        folder = tmp_path / "images" / ("test" if k >= 50 else "train") / data.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{k:02d}.png")
    sources = {"archive": tmp_path / "cifar.tar.gz", "folder": tmp_path / "images"}
    for name, path in sources.items():
        for _ in ("read", "from the cache"):
            given = {"archive": None, "folder": None, name: path}
            train, test = data.load(**given, cache=tmp_path / "cache")
            assert (len(train), len(test), train.labels.dtype) == (50, 10, np.int64)
            for part, own in ((train, slice(0, 50)), (test, slice(50, 60))):
                order, mine = np.lexsort(part.images.reshape(len(part), -1).T), pictures.part(own)
                other = np.lexsort(mine.images.reshape(len(mine), -1).T)
                np.testing.assert_array_equal(part.images[order], mine.images[other])
                np.testing.assert_array_equal(part.labels[order], mine.labels[other])
    assert len(list((tmp_path / "cache").iterdir())) == 2
    with pytest.raises(SystemExit, match="Give either --data"):
        data.load(archive=None, folder=None, cache=tmp_path)
    with pytest.raises(SystemExit, match="There is no"):
        data.load(archive=tmp_path / "none", folder=None, cache=tmp_path)
    with pytest.raises(SystemExit, match="must hold 10 folders"):
        data.load(archive=None, folder=tmp_path / "cache", cache=tmp_path)


def test_the_pictures_held_out_are_as_many_of_each_class_and_apart():
    train = data.drawn(200, seed=0)
    rest, apart = data.held_out(train, 50)
    assert (len(rest), len(apart)) == (150, 50)
    assert np.bincount(apart.labels).tolist() == [5] * 10
    keys = [{image.tobytes() for image in part.images} for part in (rest, apart)]
    assert not keys[0] & keys[1]


def test_whitened_patches_are_uncorrelated():
    images = np.random.default_rng(0).integers(0, 256, [40, 3, 32, 32], "uint8")
    images[:, 1] = images[:, 0] // 2 + images[:, 1] // 2  # correlated channels
    network = networks.whiten_(networks.ResNet9((4, 4, 4)), images, least=0.0)
    outputs = paddle.nn.functional.conv2d(paddle.to_tensor(data.normalized(images)), network.stem.weight).numpy()
    covariance = np.cov(outputs.transpose(1, 0, 2, 3).reshape(24, -1)[:12])
    np.testing.assert_allclose(covariance, np.eye(12), atol=1e-3)
    np.testing.assert_allclose(outputs[:, 12:], -outputs[:, :12], atol=1e-5)


def test_convolutions_of_the_teacher_begin_as_the_identity_and_its_scales_are_not_trained():
    network = networks.ResNet9((4, 8, 8))
    x = paddle.rand([2, 24, 5, 5])
    block = network.blocks[1]
    np.testing.assert_array_equal(block.conv1(x[:, :4]).numpy()[:, :4], x.numpy()[:, :4])
    np.testing.assert_array_equal(block.conv2(x[:, :8]).numpy(), x.numpy()[:, :8])
    assert abs(block.conv1.weight.numpy()[4:]).max() <= (4 * 9) ** -0.5
    before = {name: value.numpy() for name, value in network.state_dict().items()}
    optimizer = paddle.optimizer.Momentum(
        0.01, momentum=0.0, parameters=[p for p in network.parameters() if not p.stop_gradient], weight_decay=0.5
    )
    network(paddle.rand([4, 3, 32, 32])).sum().backward()
    gradient = block.norm1.bias.grad.numpy()
    optimizer.step()
    after = network.state_dict()
    assert all(
        (after[name].numpy() == before[name]).all() for name in before if name.endswith(("norm1.weight", "stem.weight"))
    )
    moved = after["blocks.1.norm1.bias"].numpy() - before["blocks.1.norm1.bias"]
    np.testing.assert_allclose(moved, -64 * 0.01 * gradient, rtol=1e-4, atol=1e-6)


class Killed(Exception):
    pass


class KillAt(paddle.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_batch_end(self, step, logs=None):
        if step == 1 and self.epoch == 0:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        self.epoch -= 1


def trained(folder, *callbacks, cutout=4):
    """Train in a process's own way: the names of parameters count from 0."""
    with paddle.utils.unique_name.guard():
        paddle.seed(7)
        network = networks.whiten_(networks.ResNet9((4, 8, 8)), data.drawn(64, seed=0).images)
        recipe = training.Recipe(epochs=3, batch=16, cutout=cutout)
        training.fit(network, data.drawn(64, seed=0), recipe, folder, seed=5, callbacks=callbacks)
    return {key: value.numpy() for key, value in network.state_dict().items()}


def test_a_training_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path):
    whole = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "killed", KillAt(2))
    assert [json.loads(line)["epoch"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]
    again = trained(tmp_path / "killed")
    for key, value in whole.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    last = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1]) for name in ("whole", "killed")]
    assert last[0]["loss"] == last[1]["loss"]
    finished = trained(tmp_path / "killed")
    np.testing.assert_array_equal(finished["fc.weight"], whole["fc.weight"])
    with pytest.raises(SystemExit, match="give the same options, or remove"):
        trained(tmp_path / "killed", cutout=5)


def test_the_rate_rises_and_falls_to_zero():
    at = training.Recipe(epochs=1, warmup=0.25).rate_at(40)
    values = [at(step) for step in range(41)]
    assert values[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(values) == values[9] == values[10] == 1
    assert values[25] == pytest.approx(0.5)
    assert values[40] == 0


def line(rung, seed, accuracy, *, int8=None, failed=()):
    files = {"model.onnx on openvino": accuracy, "model.onnx on onnxruntime": accuracy + 0.01}
    precision = "fp32" if int8 is None else "int8"
    if int8 is not None:
        files |= {"model.int8.onnx on openvino": int8, "model.int8.onnx on onnxruntime": int8 + 0.02}
    return {
        "rung": rung, "seed": seed, "light": None if rung == "teacher" else "lcnet", "holdout": False,
        "accuracy": accuracy, "recipe": {"epochs": 4}, "files": {**files, "model.json on paddle": "no such engine"},
        "failed": dict.fromkeys(failed, "differs"), "parameters": 250_000, "cpu": "a CPU",
        "size_mb": {f"{precision} paddle": 1.1, f"{precision} onnx": 1.0},
    }  # fmt: skip


def test_gains_are_paired_by_seed_and_on_the_worst_engine_of_the_right_precision():
    lines = [line("teacher", 0, 0.93), *(line("light", s, 0.80 + s / 100) for s in (0, 1, 2))]
    lines += [line("kl+pact", s, 0.85 + s / 100, int8=0.84 + s / 100) for s in (2, 0)]
    text = table.markdown(lines)
    assert "| kl+pact, int8 file, against light | +4.00 ± 0.00 | 2 |" in text
    assert "| kl+pact, int8 file, against its own weights in fp32 | -1.00 ± 0.00 | 2 |" in text
    assert "kl against light" not in text
    half = 4.303 * np.std([0.80, 0.81, 0.82], ddof=1) / np.sqrt(3)
    assert f"| light | 3 | 4 | 81.00 ± {100 * half:.2f} | 81.00 ± {100 * half:.2f} |" in text
    assert table.file_accuracy(line("kl+pact", 0, 0.8, int8=0.7, failed=["int8 openvino"]), "int8") == 0.72
    assert np.isnan(table.file_accuracy(line("light", 0, 0.8), "int8"))


def test_the_summary_has_the_lowest_accuracy_and_the_interval_over_seeds():
    lines = [line("light", seed, 0.70 + 0.01 * seed) for seed in range(3)]
    lines += [line("kl+pact", 0, 0.8, int8=0.79), line("dkd", 0, 0.9)]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.summary(lines).splitlines()[2:]]
    assert [row[0] for row in rows] == ["light network alone", "distilled, int8 with PACT"]
    half = 4.302653 * np.std([70, 71, 72], ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    lowest = min(table.accuracies(lines[0], "fp32").values())
    assert rows[0][1] == f"{100 * lowest + 1:.2f} ± {half:.2f}"
    assert rows[0][2:3] == ["3"]
    assert rows[1][2] == "1"
    assert "±" not in rows[1][1]
    assert mean_half_width([0.5]) == 0


def shipped_with_a_card(out, entry):
    """The files of a rung with a card, and what the demo says of pictures with them."""
    for script, *given in (
        (SCRIPTS / "cards.py", "--out", out, "--rungs", "kl+pact", "--to", out / "models"),
        (ROOT / "examples" / "classify.py", out / "models" / "cifar10-lcnet-kl-pact-0", out / "1.png", out / "2.png"),
    ):
        pictures = data.drawn(2, seed=9)
        for k, image in enumerate(pictures.images, start=1):
            Image.fromarray(image.transpose(1, 2, 0)).save(out / f"{k}.png")
        done = subprocess.run(
            [sys.executable, str(script), *map(str, given)], capture_output=True, text=True, check=False, timeout=100
        )
        assert done.returncode == 0, done.stderr[-2000:]
    folder = out / "models" / "cifar10-lcnet-kl-pact-0"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "deploy.json", "model.int8.onnx", "model.pdiparams", "model.pdmodel")
    ]
    session = onnxruntime.InferenceSession(str(folder / "model.int8.onnx"), providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: data.normalized(pictures.images)})[0]
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for line, share in zip(done.stdout.splitlines(), shares, strict=True):
        assert line.split(": ")[1] == f"{data.CLASSES[share.argmax()]} {100 * share.max():.1f} %"
    told = json.loads((folder / "deploy.json").read_text())
    assert {name for file in told["files"] for name in file["sha256"]} == {
        *("model.int8.onnx", "model.pdiparams", "model.pdmodel")
    }
    card = (folder / "README.md").read_text()
    assert f"| `model.int8.onnx` | onnxruntime | {100 * entry['files']['model.int8.onnx on onnxruntime']:.2f} |" in card
    assert f"- `model.int8.onnx`: {(folder / 'model.int8.onnx').stat().st_size / 1e6:.2f} MB" in card


@pytest.mark.slow
@needs("paddleclas", "paddle2onnx", "onnxruntime")
def test_the_ladder_quick(tmp_path):
    rungs = ["teacher", "light", "kl", "kl+ptq", "kl+pact"]
    command = [sys.executable, str(SCRIPTS / "ladder.py"), "--quick", "--out", "out", "--engines", "onnxruntime"]
    done = subprocess.run(
        [*command, "--rungs", *rungs], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=800
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    lines = [json.loads(text) for text in (tmp_path / "out" / "ladder.jsonl").read_text().splitlines()]
    assert [entry["rung"] for entry in lines] == ["teacher", "light", "kl", "kl+ptq", "kl+pact"]
    for entry in lines:
        assert not entry["failed"], entry["rung"]
        file = "model.int8.onnx" if "+" in entry["rung"] else "model.onnx"
        assert entry["files"][f"{file} on onnxruntime"] == pytest.approx(entry["accuracy"], abs=0.04)
    assert lines[2]["distillation"]["teacher_sha256"]
    assert (lines[4]["pact"]["weight_bits"], lines[4]["pact"]["lr_scale"]) == (8, 1.0)
    assert lines[4]["size_mb"]["int8 onnx"] < 0.35 * lines[1]["size_mb"]["fp32 onnx"]
    assert (tmp_path / "out" / "logs" / "lcnet-kl-0.jsonl").is_file()
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| kl+pact (int8) | 1 | 1 |" in text
    assert "| distilled, int8 with PACT |" in (tmp_path / "out" / "short.md").read_text()
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    shipped_with_a_card(tmp_path / "out", lines[4])
    again = subprocess.run(
        [*command, "--rungs", *rungs], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=100
    )
    assert again.returncode == 0
    assert "===" not in again.stdout  # all finished: nothing is run
    assert (tmp_path / "out" / "table.md").read_text() == text


@pytest.mark.slow
@needs("paddleclas")
def test_the_ladder_goes_on_past_a_rung_that_fails(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lcnet-light-0").write_text("a file where the rung's folder has to be")
    rungs = ["teacher", "light", "light-longer", "kl"]
    command = [sys.executable, str(SCRIPTS / "ladder.py"), "--quick", "--out", "out", "--engines", "paddle"]
    done = subprocess.run(
        [*command, "--rungs", *rungs], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=800
    )
    assert done.returncode == 1, done.stdout[-1000:] + done.stderr[-2000:]
    lines = [json.loads(text) for text in (tmp_path / "out" / "ladder.jsonl").read_text().splitlines()]
    assert [entry["rung"] for entry in lines] == ["teacher", "kl"]
    ended = [line for line in done.stdout.splitlines() if line.startswith("Not finished: ")]
    assert [line.split(".")[0] for line in ended] == [f"Not finished: {n}, seed 0" for n in ("light", "light-longer")]
