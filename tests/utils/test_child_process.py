"""Child processes: nothing of the working folder is imported, UTF-8 whatever the locale, nothing POSIX has alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from installed import needs
from paddle.static import InputSpec
from places import ROOT
from toy import TinyNet

from paddlelite_callbacks.benchmark.footprint import measure_footprint
from paddlelite_callbacks.benchmark.roofline import measure_roofline
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.utils.child_process import last_words, run_module

PACKAGE = ROOT / "paddlelite_callbacks"
TRAP = "raise SystemExit('a file of the working folder was imported')\n"
TRAPS = ("onnx", "paddle", "paddle2onnx", "onnxruntime", "json", "numpy", "runpy", "argparse", "psutil")


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """A working folder full of files that are called like what a child imports."""
    here = tmp_path / "here"
    here.mkdir()
    for name in TRAPS:
        (here / f"{name}.py").write_text(TRAP)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # which means the working folder
    return here


@needs("paddle2onnx")
def test_children_import_nothing_of_the_working_folder(trapped, tmp_path):
    program = export_paddle(TinyNet(), tmp_path / "out", input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    onnx = export_onnx(program, tmp_path / "out" / "model.onnx")
    x = [np.zeros([1, 3, 8, 8], "float32")]
    for engine, file in (("onnxruntime", onnx), ("paddle", program)):
        taken = measure_footprint(engine, file, x, threads=1)
        assert taken.error is None
        assert taken.peak_mb > 0
    measure_roofline.cache_clear()
    assert set(measure_roofline(1)) == {"numpy", "onnxruntime", "openvino"}


def test_a_script_beside_the_traps_starts_children_that_do_not_see_them(trapped):
    """``sys.path[0]`` of a script is its own folder, which need not be the working one."""
    (trapped / "train.py").write_text(
        "import sys; here = sys.path.pop(0)\n"
        "from paddlelite_callbacks.utils.child_process import run_module\n"
        "sys.path.insert(0, here)\n"
        "done = run_module('benchmark.roofline', '1', seconds=120)\n"
        "sys.stdout.write(f'{done.returncode} {done.stdout}{done.stderr}')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(trapped / "train.py")], capture_output=True, text=True, env=environment, cwd="/"
    )
    assert done.stdout.startswith('0 {"numpy"'), done.stderr


@needs("paddle2onnx")
def test_a_package_that_is_not_installed_but_on_the_path_is_found(tmp_path):
    """Run from a checkout: the package lies in the working folder, beside traps."""
    (tmp_path / "paddlelite_callbacks").symlink_to(PACKAGE)
    (tmp_path / "onnx.py").write_text(TRAP)
    code = (
        "import sys, site\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import paddlelite_callbacks.utils.child_process as c\n"
        "assert c.__file__.startswith(sys.argv[1]), c.__file__\n"
        "done = c.run_module('benchmark.roofline', '1', seconds=120)\n"
        "sys.stdout.write(f'{done.returncode} {done.stdout}{done.stderr}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith('0 {"numpy"'), done.stderr


@pytest.mark.parametrize("module", ["benchmark.footprint", "benchmark.crash_probe", "benchmark.roofline"])
def test_what_runs_an_onnx_file_does_not_import_paddle(module):
    """It would take a second more for each file and engine, and a quarter of a GB."""
    code = f"import sys, paddlelite_callbacks.{module}; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@needs("paddle2onnx")
def test_paths_and_output_of_children_are_utf8_in_an_ascii_locale(tmp_path):
    """The converter prints the path that it writes to."""
    program = export_paddle(TinyNet(), tmp_path / "größe \u4e2d", input_spec=[InputSpec([None, 3, 8, 8], name="x")])
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from paddlelite_callbacks.utils.child_process import run_module\n"
        "assert sys.getfilesystemencoding() != 'utf-8'\n"
        "done = run_module('export.onnx_worker', *sys.argv[1:], seconds=120)\n"
        "sys.stdout.write(f'{done.returncode}{done.stderr!a}')\n"
    )
    target = program.path.with_suffix(".onnx")
    command = [sys.executable, "-c", code, *map(str, program.files), str(target), "17", "yes"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ASCII})
    assert done.stdout.startswith("0"), (done.stdout, done.stderr)
    assert target.is_file()


def test_how_a_child_ended_is_said(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], capture_output=True, text=True
    )
    assert last_words(killed) == "it was killed by SIGSEGV"
    failed = run_module("benchmark.footprint", "onnxruntime", "1", str(tmp_path / "no.npz"), "a", "a", seconds=120)
    assert failed.returncode == 1
    assert last_words(failed).startswith("FileNotFoundError: ")


POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline", "curses"}


def imported_at_the_top(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_at_its_top_what_windows_lacks(path):
    assert not imported_at_the_top(path) & POSIX_ONLY


def test_all_modules_import_without_what_windows_lacks():
    """Whatever the standard library and Paddle import themselves is there before; ours come behind."""
    code = (
        "import sys, warnings, importlib, pkgutil; warnings.simplefilter('ignore')\n"
        "import paddle, subprocess, filelock, psutil, multiprocessing, numpy, tqdm, urllib.request, http.client\n"
        "FileLock = filelock.FileLock\n"
        f"for name in {sorted(POSIX_ONLY)}: sys.modules[name] = None\n"
        "import paddlelite_callbacks as package\n"
        "names = [m.name for m in pkgutil.walk_packages(package.__path__, 'paddlelite_callbacks.')]\n"
        "for name in names:\n"
        "    if not name.endswith('__main__'): importlib.import_module(name)\n"
        "print(len(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 100


def test_every_module_that_is_run_in_a_child_is_there():
    """A child without its module ends with 1, as one in which Python raised: the crash probe would see no crash."""
    named, starters = {}, ("run_module", "run_engine_child")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in starters:
                if path.name == "engine_child.py" and isinstance(node.args[0], ast.Name):
                    continue  # hands on what `run_engine_child` is given
                assert isinstance(node.args[0], ast.Constant), (path, node.lineno)
                named[node.args[0].value] = path
    assert {"export.onnx_worker", "benchmark.crash_probe", "benchmark.footprint", "benchmark.roofline"} <= named.keys()
    for name in named:
        source = PACKAGE / f"{name.replace('.', '/')}.py"
        assert source.is_file(), name
        assert '__name__ == "__main__"' in source.read_text(encoding="utf-8"), name
