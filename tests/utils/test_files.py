"""Files and folders that take the place of older ones: what the user had stays, and what cannot be is refused early."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from exporting import grouped
from small_disk import ALONE, on_a_disk_of
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import ExportBenchCallback, cache_teacher
from paddlelite_callbacks.utils import atomic_files as files
from paddlelite_callbacks.utils.atomic_files import (
    check_writable,
    locked,
    staged_file,
    staged_files,
    staged_folder,
)

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}


@pytest.fixture(params=[True, False], ids=["exchanged", "two renames"])
def kind(request, monkeypatch):
    """Both ways in which a folder takes the place of another one."""
    if not request.param:
        monkeypatch.setattr("paddlelite_callbacks.utils.atomic_files._exchanged", lambda one, other: False)


@pytest.mark.usefixtures("kind")
def test_other_files_in_the_older_folder_stay(tmp_path):
    target = tmp_path / "net"
    (target / "checkpoints" / "deep").mkdir(parents=True)
    (target / "checkpoints" / "deep" / "0.pdparams").write_text("mine")
    (target / ".hidden").write_text("mine")
    (target / "gone").symlink_to("nowhere")
    for name in ("model.json", "model.onnx"):
        (target / name).write_text("older")
    with staged_folder(target, dropped=["model.onnx"]) as stage:
        (stage / "model.json").write_text("newer")
    assert (target / "checkpoints" / "deep" / "0.pdparams").read_text() == (target / ".hidden").read_text() == "mine"
    assert (target / "gone").readlink().name == "nowhere"
    assert (target / "model.json").read_text() == "newer"
    assert not (target / "model.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "net").write_text("mine")
    with (
        pytest.raises(FileExistsError, match=r"net is a file, .*give another name"),
        staged_folder(tmp_path / "net"),
    ):
        raise AssertionError("too late")
    assert (tmp_path / "net").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("older", [True, False])
def test_a_link_stays_a_link(older, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real"
    if older:
        target.mkdir()
        (target / "mine").write_text("mine")
    (tmp_path / "net").symlink_to(target)
    with staged_folder(tmp_path / "net") as stage:
        (stage / "file").write_text("new")
    assert (tmp_path / "net").is_symlink()
    assert (target / "file").read_text() == "new"
    assert (target / "mine").exists() == older
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["elsewhere", "real", "net", "file", *(["mine"] if older else [])]
    )


@pytest.mark.parametrize("name", ["n" * 250, "n" * 300, "\u4e2d" * 84], ids=["250", "300", "in bytes"])
def test_a_name_that_is_too_long_is_refused_before_training(name, tmp_path):
    model = hapi_model()
    before = model.network.fc.weight.numpy().copy()
    with pytest.raises(OSError, match=r"folder name .* is too long: .* 255 are allowed\. Give a shorter name"):
        fit(model, [ExportBenchCallback(tmp_path, **grouped(name=name, **QUICK))])
    np.testing.assert_array_equal(model.network.fc.weight.numpy(), before)


def test_a_file_at_the_exports_place_is_refused_before_training(tmp_path):
    (tmp_path / "TinyNet").write_text("mine")
    model = hapi_model()
    before = model.network.fc.weight.numpy().copy()
    with pytest.raises(FileExistsError, match="move the file, or give another name"):
        fit(model, [ExportBenchCallback(tmp_path, **grouped(**QUICK))])
    np.testing.assert_array_equal(model.network.fc.weight.numpy(), before)


def test_a_broken_link_is_no_writable_folder(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PermissionError, match="out is not a folder with write permission"):
        check_writable(tmp_path / "out" / "deeper")


def test_checkpoints_in_the_exports_folder_stay(tmp_path):
    """``save_dir`` of ``fit`` and the run's folder may be one."""
    for _ in range(2):
        callback = ExportBenchCallback(tmp_path, **grouped(name="run", engines=["paddle"], **QUICK))
        fit(hapi_model(), [callback], save_dir=str(tmp_path / "run"))
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert {"final.pdparams", "final.pdopt", "0.pdparams", "model.json", "deploy.json"} <= names
        assert not list(tmp_path.rglob(".*"))


def test_a_cache_takes_nothing_else_away(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "photo.png").write_text("mine")
    (folder / "output_7.npy").write_text("of a teacher with eight outputs")
    cached = cache_teacher(TinyNet(), Images(8), folder, overwrite=True, verbose=0)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checksums.npy", "meta.json", "output_0.npy", "photo.png",
    ]  # fmt: skip
    assert (folder / "photo.png").read_text() == "mine"
    assert len(cached[3]) == 4


@pytest.mark.parametrize("staged", [staged_file, staged_folder, lambda path: staged_files(path, last=".a")])
def test_a_full_disk_is_told_with_the_place(staged, tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*/net'"), staged(tmp_path / "net"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


ON_A_SMALL_DISK = """
import sys
import threading
import time
from toy import Images, TinyNet
from paddlelite_callbacks import cache_teacher
try:
    cache_teacher(TinyNet(width=8), Images(3000), sys.argv[1] + "/cache", verbose=0, overwrite=True)
except OSError as error:
    sys.stdout.write(f"told: {error}")
"""


@pytest.mark.skipif(not ALONE, reason="no name spaces for users here")
@pytest.mark.parametrize("kilobytes", [24, 60])
def test_a_cache_on_a_disk_that_is_really_full(kilobytes, tmp_path):
    """Memory that is mapped to a file without room under it kills who writes there (SIGBUS)."""
    done = on_a_disk_of(kilobytes, tmp_path, ON_A_SMALL_DISK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("told: [Errno 28] No space left on device")
    assert "/cache" in done.stdout


TOKEN = "new-{}-0123456789abcdef"


def left_over(folder, *, machine=None, age: float = 0.0, lock: bool = True):
    """What a killed writer of ``net.bin`` leaves."""
    left = folder / f".net.{TOKEN.format(machine or files._machine())}.bin"
    left.write_text("half")
    if lock:
        left.with_name(left.name + ".lock").touch()
    os.utime(left, (time.time() - age,) * 2)
    return left


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({}, True),
        ({"machine": "00000000"}, False),
        ({"machine": "00000000", "age": 90_000}, True),
        ({"lock": False}, False),
        ({"lock": False, "age": 90_000}, True),
    ],
    ids=["of this machine", "of another", "of another, old", "without a lock", "without a lock, old"],
)
def test_what_a_killed_writer_left_goes_where_it_is_sure(options, gone, tmp_path):
    left = left_over(tmp_path, **options)
    other = tmp_path / ".net.mine.bin"
    other.write_text("mine")
    with staged_file(tmp_path / "net.bin") as partial:
        partial.write_text("new")
    assert left.exists() != gone
    assert left.with_name(left.name + ".lock").exists() == (options.get("lock", True) and not gone)
    assert other.read_text() == "mine"


@pytest.mark.parametrize("what", ["file", "folder"])
def test_two_threads_of_one_process_write_the_same_path_at_once(what, tmp_path):
    staged = staged_file if what == "file" else staged_folder
    with staged(tmp_path / "net") as one:
        with staged(tmp_path / "net") as other:
            for path, text in ((one, "one"), (other, "other")):
                (path if what == "file" else path / "f").write_text(text)
        place = tmp_path / "net" if what == "file" else tmp_path / "net" / "f"
        assert place.read_text() == "other"
    assert place.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


SLOW_WRITER = """
import sys, time
from pathlib import Path
from paddlelite_callbacks.utils.atomic_files import staged_file, staged_folder
folder, out = Path(sys.argv[1]), sys.stdout
with staged_file(folder / "net.bin") as partial, staged_folder(folder / "net") as stage:
    partial.write_text("slow")
    (stage / "f").write_text("slow")
    out.write("ready\\n"), out.flush()
    sys.stdin.readline()
"""


@pytest.mark.skipif(not ALONE, reason="no name spaces for users here")
def test_containers_with_one_host_name_leave_each_others_files_alone(tmp_path):
    """A process of another PID name space is in nobody's ``/proc``, and may have the number of one that is dead."""
    alone = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    with subprocess.Popen(
        [*alone, sys.executable, "-c", SLOW_WRITER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as writer:  # fmt: skip
        assert writer.stdout.readline() == "ready\n"
        with staged_file(tmp_path / "net.bin") as partial, staged_folder(tmp_path / "net") as stage:
            partial.write_text("quick")
            (stage / "f").write_text("quick")
        assert (tmp_path / "net.bin").read_text() == (tmp_path / "net" / "f").read_text() == "quick"
        writer.stdin.write("\n")
        writer.stdin.close()
        assert writer.wait(20) == 0
    assert (tmp_path / "net.bin").read_text() == (tmp_path / "net" / "f").read_text() == "slow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "net.bin"]


def test_the_lock_of_a_path_is_held_by_one_at_a_time_and_leaves_nothing(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(20):
            with locked(tmp_path / "runs.jsonl"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def no_lock(self, *arguments, **options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", no_lock)
    with staged_file(tmp_path / "net.bin") as partial:
        partial.write_text("new")
    with locked(tmp_path / "net.bin"):
        pass
    assert (tmp_path / "net.bin").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["net.bin"]


def test_errors_name_the_path_that_was_asked_for(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"'[^']*/nowhere/net\.bin'$"),
        staged_file(tmp_path / "nowhere/net.bin"),
    ):
        raise AssertionError("too late")
