"""Processes that die at a chosen moment: a server that has everything imported forks a child for each scene.

``python crashing.py`` reads a line of JSON per scene and answers with one. A child can be told to die

- ``{"event": n}``: before its n-th file operation (open for writing, rename, remove, ...) inside the folder,
- ``{"bytes": n}``: in the middle of a write, when a file grows beyond n bytes (the kernel's ``RLIMIT_FSIZE``),
- ``{"batch": n}``: in the n-th training batch, between backward pass and step,
- ``{"seconds": s}``: whatever it is doing then (the kernel's timer);

always by a signal that runs no Python code any more, as ``kill -9`` does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from places import HELPERS

__all__ = ["Server", "die_from_now_on", "die_in_training"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
_kill: dict = {}


class Server:
    """The forking process, for a fixture; `run` plays a scene of the module that it was started with."""

    def __init__(self, module: str):
        here = HELPERS
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here / "crashing.py"), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=here,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, scene: str, folder: Path, *, kill: dict | None = None, **arguments) -> int:
        """Return the signal that the scene died of, 0 if it came to its end; an error of its own is raised here."""
        line = json.dumps({"scene": scene, "folder": str(folder), "kill": kill or {}, "arguments": arguments})
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert not answer["error"], answer["error"]
        return answer["signal"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(20) == 0


def die_from_now_on(folder: str) -> None:
    """Arm what the scene was told: called by a scene behind what is to survive."""
    if "bytes" in _kill:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_kill["bytes"], _kill["bytes"]))
    if "seconds" in _kill:
        signal.setitimer(signal.ITIMER_REAL, _kill["seconds"])
    if "event" in _kill:
        left = _kill["event"]

        def hook(event: str, arguments: tuple) -> None:
            nonlocal left
            step = event in _STEPS or (event == "open" and int(arguments[2] or 0) & _WRITES)
            inside = step and any(folder in os.fsdecode(path) for path in arguments if isinstance(path, (str, bytes)))
            if inside or (event == "ctypes.dlsym" and arguments[1] == "renameat2"):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(hook)


def die_in_training(model) -> None:
    """Arm ``{"batch": n}``."""
    minimize, left = model._optimizer.minimize, _kill.get("batch", -1)

    def dying(*arguments):
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return minimize(*arguments)

    model._optimizer.minimize = dying


def _play(scenes, order: dict, report: int) -> None:
    _kill.update(order["kill"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        getattr(scenes, order["scene"])(order["folder"], **order["arguments"])
    except BaseException:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2) if "bytes" not in _kill else None
        os.write(report, traceback.format_exc()[-3000:].encode())
    os._exit(0)


def _serve(module: str) -> None:
    scenes = __import__(module)
    getattr(scenes, "warm", int)()
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _play(scenes, json.loads(line), writing)
        os.close(writing)
        with os.fdopen(reading) as said:
            error = said.read()
        _, status = os.waitpid(child, 0)
        answer = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "error": error}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    import crashing  # the one that the scenes import

    crashing._serve(sys.argv[1])
