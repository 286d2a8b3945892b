"""What is needed to train a recorded run again: command, place, version of the script, options."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle

__all__ = ["plain_options", "retraining_config"]

_PLAIN = (bool, int, float, str, type(None))


def retraining_config(**parts: Any) -> dict[str, Any]:
    """Describe this process so that it can be started again, with ``parts`` added.

    Returns:
        ``cwd``, ``script`` and its ``script_sha256``, the ``commit`` of the script's git repository (``-dirty`` where
        files differ from it), ``seed`` and ``OMP_NUM_THREADS``, and ``parts``.
    """
    script = _script()
    config: dict[str, Any] = {"cwd": str(Path.cwd())}
    if script is not None:
        config |= {"script": str(script), "script_sha256": hashlib.sha256(script.read_bytes()).hexdigest()}
        config |= {"commit": _commit(script.parent)}
    config |= {"seed": int(paddle.get_rng_state()[0].current_seed()) if _seeded() else None}
    config |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    return {**config, **parts}


def plain_options(instance: object) -> dict[str, Any]:
    """Return the class of ``instance`` and those of its public attributes that JSON can hold."""
    options: dict[str, Any] = {"class": type(instance).__name__}
    for name, value in vars(instance).items():
        if name.startswith("_"):
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {key: item for key, item in vars(value).items() if _is_plain(item)}
        if _is_plain(value):
            options[name] = value
        elif isinstance(value, Path):
            options[name] = str(value)
    return options


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 32 and all(_is_plain(item) for item in value)
    if isinstance(value, Mapping):
        return len(value) <= 32 and all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN)


def _script() -> Path | None:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    path = Path(main).resolve() if main else None
    return path if path is not None and path.is_file() else None


def _seeded() -> bool:
    return bool(paddle.get_rng_state()) and hasattr(paddle.get_rng_state()[0], "current_seed")


def _commit(folder: Path) -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None
