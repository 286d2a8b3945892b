"""Run a module of this package in an isolated child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["last_words", "run_command", "run_module"]

_BEGIN = """
import sys
_, count, *rest = sys.argv
sys.path[:] = rest[:int(count)]
sys.argv[:] = rest[int(count):]
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run_module(
    module: str, *arguments: str, seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``module`` as ``__main__`` and return its output and exit code.

    ``python -m`` would import a ``json.py`` or ``onnx.py`` in the user's working folder. The child gets this process's
    search path instead, without that folder and the script's, and ignores ``PYTHON*`` variables. It uses UTF-8 whatever
    the locale; paths given as separate arguments arrive byte for byte.

    Args:
        module: Dotted name inside ``paddlelite_callbacks``.
        arguments: ``sys.argv[1:]`` of the child.
        seconds: Time limit, after which it is killed.
        environment: Additional variables.

    Raises:
        subprocess.TimeoutExpired: The time limit was reached.
        OSError: The child cannot be started.
    """
    paths = _search_path()
    command = [sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-c", _BEGIN, str(len(paths)), *paths]
    return run_command(
        [*command, f"paddlelite_callbacks.{module}", *arguments],
        seconds=seconds,
        environment={**os.environ, **(environment or {})},
    )


def run_command(
    command: Sequence[str],
    *,
    seconds: float,
    folder: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command without standard input and capture what it prints.

    Args:
        command: Program and its arguments.
        seconds: Time limit, seconds.
        folder: Working folder; ``None`` for this process's.
        environment: All environment variables; ``None`` for this process's.

    Returns:
        Exit code and output; undecodable bytes are replaced.

    Raises:
        subprocess.TimeoutExpired: The time limit was reached.
        OSError: The command cannot be started.
    """
    return subprocess.run(
        list(command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
        check=False,
        cwd=folder,
        env=environment,
    )


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Describe how a child failed: signal name or last line of its stderr.

    Args:
        done: Result of `run_module`.
    """
    if done.returncode < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"it was killed by {known.get(-done.returncode, f'signal {-done.returncode}')}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else f"it ended with {done.returncode}"


def _search_path() -> list[str]:
    """Return ``sys.path`` without working folder and script folder."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    hidden = {os.path.realpath(Path(script).parent)} if script else set()
    with suppress(FileNotFoundError):  # the working folder may be deleted
        hidden.add(os.path.realpath(Path.cwd()))
    paths = [os.path.abspath(path) for path in sys.path if path and os.path.realpath(path) not in hidden]  # noqa: PTH100
    return [*paths, str(Path(__file__).absolute().parents[2])]
