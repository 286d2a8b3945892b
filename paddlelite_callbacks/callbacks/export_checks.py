"""Options of `ExportBenchCallback`, checked before anything is trained."""

from __future__ import annotations

import os
from pathlib import Path

from paddlelite_callbacks.report.gate import Budget

__all__ = ["check_choices", "check_writable"]


def check_choices(
    folder: str | Path, name: str | None, *, gate: str, which: str, mode: str, budget: Budget | None
) -> None:
    """Refuse a name that is no plain folder name, and words that are none of the choices.

    Raises:
        ValueError: says what was given and what is allowed.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name or name.startswith(".")):
        raise ValueError(f"name becomes a folder inside {folder}, so it must be a plain name, got {name!r}.")
    _one_of("gate", gate, ("report", "fail"))
    _one_of("which", which, ("last", "best"))
    _one_of("mode", mode, ("auto", "max", "min"))
    if gate == "fail" and budget is None:
        raise ValueError("gate='fail' needs a budget=Budget(...) to hold the figures against.")


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to or made.

    Raises:
        PermissionError: names what is in the way.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to ({existing} is no writable folder).")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}, got {value!r}.")
