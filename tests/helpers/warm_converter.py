"""Convert to ONNX in forks of one process that has Paddle's converter imported: importing it takes two seconds each.

``WarmConverter().run_module`` stands in for `utils.child_process.run_module` where `export.onnx_export` calls it. Each
conversion still has a process of its own, with the same arguments, environment, folder and search path, which runs the
same module as ``__main__``; what it says, its exit code and the signal that it dies of come back the same. A test that
has changed environment variables or the search path gets `run_module` itself, and so does one marked ``own_children``.
"""

from __future__ import annotations

import contextlib
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

__all__ = ["WarmConverter"]

_MODULE = "export.onnx_worker"


class WarmConverter:
    """The forking process: started by the first conversion, nobody's child, ends with this process."""

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
        with self._turn, tempfile.TemporaryDirectory() as folder:
            if self._orders is None:
                self._start()
            told = {
                "arguments": [f"paddlelite_callbacks.{module}", *arguments],
                "environment": wanted,
                "paths": paths,
                "here": here,
                "said": folder,
                "seconds": seconds,
            }
            code = self._code_of(told)
            said = [Path(folder, name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")]
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(told["arguments"], seconds)
        return subprocess.CompletedProcess(told["arguments"], code, *said)

    def close(self):
        """End the forking process, now or when its last conversion has ended."""
        if self._orders is not None:
            self._orders.close()
            self._answers.close()
            self._orders = self._answers = None

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
            [sys.executable, "-X", "utf8", "-W", "ignore", str(HELPERS / "warm_converter.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # a Ctrl-C of a test's is for the test
        )
        assert started.wait() == 0
        self._orders, self._answers = started.stdin, started.stdout


def _lasting(environment) -> dict:
    """Return what a child may have read while it imported.

    scikit-learn, which paddleclas imports, sets two variables of OpenMP for good.
    """
    own = ("TMPDIR", "PYTEST_CURRENT_TEST")
    return {key: value for key, value in environment.items() if key not in own and not key.startswith("KMP_")}


def _convert(told: dict) -> None:
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
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what imports print
    import onnx  # noqa: F401
    import paddle2onnx  # noqa: F401

    import paddlelite_callbacks.export.clean_onnx
    import paddlelite_callbacks.export.old_program  # noqa: F401

    if os.fork():  # what measures the children of the tests' process does not find this one
        os._exit(0)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _convert(json.loads(line))
        answers.write(f"{child}\n")
        answers.flush()
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
