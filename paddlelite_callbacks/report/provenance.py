"""Record what is needed to train a run again: command, script version, options."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle

__all__ = ["plain_options", "retraining_config"]

_PLAIN = (bool, int, float, str, type(None))
_ITEMS = 32  # of a list or mapping that is recorded
_NOTHING = object()


def retraining_config(**parts: Any) -> dict[str, Any]:
    """Return what is needed to start this process again.

    Returns:
        ``cwd``, ``script`` and its ``script_sha256``, the ``commit`` of the script's git repository (``-dirty`` with
        uncommitted changes), ``seed`` and ``OMP_NUM_THREADS``, and ``parts``.
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
    """Return class name and JSON-compatible attributes of ``instance``.

    Paths and functions are recorded by their names, dataclasses by their fields.
    """
    options: dict[str, Any] = {"class": type(instance).__name__}
    return options | {
        name: plain
        for name, value in vars(instance).items()
        if not name.startswith("_") and (plain := _plain(value)) is not _NOTHING
    }


def _plain(value: Any) -> Any:
    """Return the JSON form of ``value``, or `_NOTHING`."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {key: _plain(item) for key, item in vars(value).items()}
        return {key: item for key, item in fields.items() if item is not _NOTHING}
    if inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return items if len(items) <= _ITEMS and _NOTHING not in items else _NOTHING
    if isinstance(value, Mapping):
        named = {str(_plain(key)): _plain(item) for key, item in value.items()}
        keys = all(isinstance(key, _PLAIN) or inspect.isroutine(key) for key in value)
        return named if keys and len(named) <= _ITEMS and _NOTHING not in named.values() else _NOTHING
    return _NOTHING


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
