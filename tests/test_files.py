"""Files and folders that take the place of older ones: what the user had stays, and what cannot be is refused early."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from toy import Images, TinyNet, fit, hapi_model

from paddlelite_callbacks import ExportBenchCallback, cache_teacher
from paddlelite_callbacks.files import refuse_unwritable, staged_file, staged_files, staged_folder

QUICK = {"warmup": 0, "repeats": 1, "verbose": 0, "peak_memory": False, "roofline": False, "report": False}


def _alone() -> bool:
    """Whether a user may have a mount name space here."""
    command = ["unshare", "--map-root-user", "--mount", "true"]
    return shutil.which("unshare") is not None and not subprocess.run(command, check=False, stderr=-3).returncode


ALONE = _alone()


@pytest.fixture(params=[True, False], ids=["exchanged", "two renames"])
def kind(request, monkeypatch):
    """Both ways in which a folder takes the place of another one."""
    if not request.param:
        monkeypatch.setattr("paddlelite_callbacks.files._exchanged", lambda one, other: False)


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
        pytest.raises(FileExistsError, match="net is a file, and a folder of this name"),
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
    with pytest.raises(OSError, match=r"name of the folder .* is too long: .* 255 are allowed\. Give a shorter name"):
        fit(model, [ExportBenchCallback(tmp_path, name=name, **QUICK)])
    np.testing.assert_array_equal(model.network.fc.weight.numpy(), before)


def test_a_file_at_the_exports_place_is_refused_before_training(tmp_path):
    (tmp_path / "TinyNet").write_text("mine")
    model = hapi_model()
    before = model.network.fc.weight.numpy().copy()
    with pytest.raises(FileExistsError, match="move the file, or give another name"):
        fit(model, [ExportBenchCallback(tmp_path, **QUICK)])
    np.testing.assert_array_equal(model.network.fc.weight.numpy(), before)


def test_a_broken_link_is_no_writable_folder(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PermissionError, match="out is no writable folder"):
        refuse_unwritable(tmp_path / "out" / "deeper")


def test_checkpoints_in_the_exports_folder_stay(tmp_path):
    """``save_dir`` of ``fit`` and the run's folder may be one."""
    for _ in range(2):
        callback = ExportBenchCallback(tmp_path, name="run", engines=["paddle"], **QUICK)
        fit(hapi_model(), [callback], save_dir=str(tmp_path / "run"))
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert {"final.pdparams", "final.pdopt", "0.pdparams", "model.json", "deploy.json"} <= names
        assert not list(tmp_path.rglob(".*"))


def test_a_cache_takes_nothing_else_away(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "photo.png").write_text("mine")
    (folder / "output_7.npy").write_text("of a teacher with eight outputs")
    cached = cache_teacher(TinyNet(), Images(8), folder, overwrite=True, progress=False)
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
from toy import Images, TinyNet
from paddlelite_callbacks import cache_teacher
try:
    cache_teacher(TinyNet(width=8), Images(3000), sys.argv[1] + "/cache", progress=False, overwrite=True)
except OSError as error:
    sys.stdout.write(f"told: {error}")
"""


def on_a_disk_of(kilobytes: int, folder, code: str) -> subprocess.CompletedProcess:
    """Run ``code`` where ``folder`` is a file system of that size, in a mount name space of its own."""
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$1" && exec "$2" -W ignore -c "$3" "$1"'
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    return subprocess.run(
        [*alone, str(folder), sys.executable, code],
        cwd=os.path.dirname(__file__),  # noqa: PTH120
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not ALONE, reason="no name spaces for users here")
@pytest.mark.parametrize("kilobytes", [24, 60])
def test_a_cache_on_a_disk_that_is_really_full(kilobytes, tmp_path):
    """Memory that is mapped to a file without room under it kills who writes there (SIGBUS)."""
    done = on_a_disk_of(kilobytes, tmp_path, ON_A_SMALL_DISK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("told: [Errno 28] No space left on device")
    assert "/cache" in done.stdout
