"""Convert to ONNX in forks of one process that has Paddle's converter imported: importing it takes two seconds each.

``WarmConverter().run_module`` stands in for `utils.child_process.run_module` where `export.onnx_export` calls it. Each
conversion still has a process of its own, with the same arguments, environment, folder and search path, which runs the
same module as ``__main__``; what it says, its exit code and the signal that it dies of come back the same. A test that
has changed environment variables or the search path gets `run_module` itself, and so does one marked ``own_children``.

``run_script`` does the same for whole scripts: each has a process of its own, forked from one that has Paddle,
paddleclas and matplotlib imported, and its conversions are forked too.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from places import HELPERS, ROOT

if __name__ == "__main__":
    sys.path.append(str(ROOT))
from paddlelite_callbacks.utils import child_process

__all__ = ["WarmConverter", "run_script"]

_MODULE = "export.onnx_worker"


class WarmConverter:
    """The forking process: started by the first conversion, nobody's child, ends with this process."""

    serves = "conversions"

    def __init__(self):
        self._orders, self._answers, self._turn = None, None, threading.Lock()
        self._paths, self._environment = child_process._search_path(), _lasting(os.environ)

    def run_module(self, module, *arguments, seconds, environment=None):
        """Do as `utils.child_process.run_module`."""
        paths, wanted = child_process._search_path(), {**os.environ, **(environment or {})}
        try:
            here = os.getcwd()  # noqa: PTH109
        except FileNotFoundError:  # it is gone
            here = None
        if here is None or module != _MODULE or paths != self._paths or _lasting(wanted) != self._environment:
            return child_process.run_module(module, *arguments, seconds=seconds, environment=environment)
        return self._run([f"paddlelite_callbacks.{module}", *arguments], wanted, paths, here, seconds)

    def close(self):
        """End the forking process, now or when its last conversion has ended."""
        if self._orders is not None:
            self._orders.close()
            self._answers.close()
            self._orders = self._answers = None

    def _run(self, arguments, environment, paths, here, seconds):
        with self._turn, tempfile.TemporaryDirectory() as folder:
            if self._orders is None:
                self._start()
            told = {
                "arguments": arguments,
                "environment": environment,
                "paths": paths,
                "here": here,
                "said": folder,
                "seconds": seconds,
            }
            code = self._code_of(told)
            said = [Path(folder, name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")]
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(arguments, seconds)
        return subprocess.CompletedProcess(arguments, code, *said)

    def _code_of(self, told: dict) -> int:
        """Return the exit code of one conversion; an interrupt in between kills it, as `subprocess.run` would."""
        child = None
        try:
            self._orders.write(json.dumps(told) + "\n")
            self._orders.flush()
            child = int(self._answers.readline())
            return int(self._answers.readline())
        except BaseException:
            if child is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self.close()  # its next answer would be that of this conversion
            raise

    def _start(self):
        started = subprocess.Popen(
            [sys.executable, "-X", "utf8", "-W", "ignore", str(HELPERS / "warm_converter.py"), self.serves],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # a Ctrl-C of a test's is for the test
        )
        assert started.wait() == 0
        self._orders, self._answers = started.stdin, started.stdout


class _WarmScripts(WarmConverter):
    serves = "scripts"

    def run_script(self, script, arguments, *, cwd, environment, seconds):
        ours = {HELPERS, Path.cwd(), *(ROOT / "examples").rglob("*")}  # what tests have put there
        paths = [path for path in sys.path if path and Path(path) not in ours]
        return self._run(
            [str(script), *map(str, arguments)],
            environment,
            [str(Path(script).absolute().parent), *paths],
            str(cwd),
            seconds,
        )


class _ConverterOfAScript(WarmConverter):
    """Whatever the script's search path and variables are."""

    def run_module(self, module, *arguments, seconds, environment=None):
        self._paths, self._environment = child_process._search_path(), _lasting({**os.environ, **(environment or {})})
        return super().run_module(module, *arguments, seconds=seconds, environment=environment)


@functools.cache
def _warm_scripts() -> _WarmScripts:
    return _WarmScripts()


def run_script(script, *arguments, cwd, environment=None, seconds=850) -> subprocess.CompletedProcess:
    """Run a script as ``python SCRIPT ARGUMENTS...`` would in ``cwd``, without warnings; return what came of it."""
    variables = dict(os.environ if environment is None else environment)
    return _warm_scripts().run_script(script, arguments, cwd=cwd, environment=variables, seconds=seconds)


def _lasting(environment) -> dict:
    """Return what a child may have read while it imported.

    scikit-learn, which paddleclas imports, sets two variables of OpenMP for good.
    """
    own = ("TMPDIR", "PYTEST_CURRENT_TEST")
    return {key: value for key, value in environment.items() if key not in own and not key.startswith("KMP_")}


def _convert(told: dict, *, script: bool) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(told["said"], name), os.O_WRONLY | os.O_CREAT), number)  # noqa: PTH118
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, told["seconds"])
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["here"])
    tempfile.tempdir = None
    sys.path[:], sys.argv[:] = told["paths"], told["arguments"]
    code = 0
    try:
        if script:
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    if script:
        threading._shutdown()
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(what: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what imports print
    if what == "scripts":
        _import_for_scripts()
    else:
        for name in ("paddle2onnx", "onnx", "onnxoptimizer", "onnxslim"):
            if importlib.util.find_spec(name):  # paddle2onnx brings no onnxoptimizer on Python 3.12
                importlib.import_module(name)
        for name in ("clean_onnx", "old_program"):
            importlib.import_module(f"paddlelite_callbacks.export.{name}")

    if os.fork():  # what measures the children of the tests' process does not find this one
        os._exit(0)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _convert(json.loads(line), script=what == "scripts")
        answers.write(f"{child}\n")
        answers.flush()
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        answers.flush()


def _import_for_scripts() -> None:
    for name in ("paddle", "paddleclas", "onnx", "sklearn.datasets", "matplotlib.figure"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    importlib.import_module("matplotlib.backends.backend_agg")
    importlib.import_module("paddlelite_callbacks.callbacks.export.callback")
    if importlib.util.find_spec("paddle2onnx"):
        from paddlelite_callbacks.export import onnx_export

        converter = _ConverterOfAScript()
        converter._start()
        onnx_export.run_module = converter.run_module


if __name__ == "__main__":
    _serve(sys.argv[1])
