"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["refuse_unwritable", "staged_file", "staged_folder"]


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that could not be made or written to, before anything is worked out for it.

    Args:
        folder: may be missing, with parents that are missing too.

    Raises:
        PermissionError: names what stands in the way.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written to ({existing} is no writable folder): give another folder, or the right to "
            "write there."
        )


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Give a path beside ``path``, of the same suffix, to write to; it takes its place when the block ends well.

    After an exception the older file stands as it was.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` to write to; it takes its place when the block ends well.

    After an exception the older ``folder`` stands as it was. Should the process die between the two renames, the
    next call puts the older one back.

    Raises:
        OSError: the parent cannot be written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    old, stage = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("old", f"new-{os.getpid()}"))
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.replace(folder)
    _remove_stages_of_the_dead(folder)
    stage.mkdir()
    try:
        yield stage
        if folder.exists():
            folder.replace(old)
        stage.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _remove_stages_of_the_dead(folder: Path) -> None:
    for left in folder.parent.glob(f".{folder.name}.new-*"):
        process = left.name.rpartition("-")[2]
        if not process.isdigit() or int(process) == os.getpid() or not Path("/proc", process).exists():
            shutil.rmtree(left, ignore_errors=True)
