"""Files and folders that appear whole or not at all: written under a temporary name, then renamed.

"Whole or not at all" holds for a process that dies at any moment (``kill -9``); what the kernel has taken it keeps. A
power cut may still lose what was not on the disk yet.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

__all__ = [
    "link_or_copy",
    "put_in_place",
    "refuse_no_folder",
    "refuse_unwritable",
    "staged_file",
    "staged_files",
    "staged_folder",
]

_AT_CWD, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_LONGEST = 255  # bytes in the name of a file


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that could not be made or written to, before anything is worked out for it.

    Args:
        folder: may be missing, with parents that are missing too.

    Raises:
        PermissionError: names what stands in the way.
    """
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written to ({existing} is no writable folder): give another folder, or the right to "
            "write there."
        )


def refuse_no_folder(folder: Path) -> None:
    """Refuse a path that `staged_folder` could not put a folder at.

    Args:
        folder: to be written.

    Raises:
        FileExistsError: a file stands there.
        OSError: the name is too long.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise FileExistsError(
            f"{folder} is a file, and a folder of this name is to be written: move the file, or give another name."
        )
    length = len(os.fsencode(_stage_of(folder).name))
    if length > _LONGEST:
        raise OSError(
            errno.ENAMETOOLONG,
            f"The name of the folder {folder.name!r} is too long: with what is put around it while it is written it "
            f"has {length} bytes, {_LONGEST} are allowed. Give a shorter name",
        )


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Give a path beside ``path``, of the same suffix, to write to; it takes its place when the block ends well.

    After an exception the older file stands as it was.
    """
    _remove_left_by_the_dead(path.parent, f".{path.stem}.", path.suffix)
    partial = path.with_name(f".{path.stem}.{_writer()}{path.suffix}")
    try:
        with _named_in_errors(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path, *, dropped: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` to write to; it takes its place when the block ends well.

    After an exception the older ``folder`` stands as it was. What else is in it (files of the user's) is in the new
    one, too. Where the file system cannot exchange two folders at once, and the process dies between the two renames
    that are needed then, the next call puts the older one back.

    Args:
        folder: a symbolic link is followed.
        dropped: globs of names in the older folder that do not come along, besides those that are written anew.

    Raises:
        FileExistsError: ``folder`` is a file.
        OSError: the parent cannot be written to.
    """
    folder = folder.resolve()
    refuse_no_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    old, stage = folder.with_name(f".{folder.name}.old"), _stage_of(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.replace(folder)
    _remove_left_by_the_dead(folder.parent, f".{folder.name}.new-")
    stage.mkdir()
    try:
        with _named_in_errors(folder):
            yield stage
            if folder.exists():
                _take_along(folder, stage, dropped)
        if not folder.exists():
            stage.replace(folder)
        elif not _exchanged(stage, folder):
            folder.replace(old)
            stage.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # empty-handed, or the older one


@contextmanager
def staged_files(prefix: Path, *, last: str) -> Iterator[Path]:
    """Give a prefix in a hidden folder to write ``prefix.a``, ``prefix.b``, ... under; they appear together.

    Files cannot take their places in one go. So the whole set is first renamed to a hidden folder ``.NAME.whole`` of
    ``prefix``'s; then the older file ``last`` goes, the others are put in place, the new ``last`` at the end: where
    that file stands, the set is whole, and of one kind. Should the process die in between, `put_in_place` goes on.

    Args:
        prefix: the files' common path; the folder is made if missing.
        last: suffix of the file without which nobody reads the others, for instance ``".pdparams"``.

    Raises:
        OSError: the folder cannot be written to.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    put_in_place(prefix, last=last)
    _remove_left_by_the_dead(prefix.parent, f".{prefix.name}.new-")
    stage = _stage_of(prefix)
    stage.mkdir()
    try:
        with _named_in_errors(prefix):
            yield stage / prefix.name
        stage.replace(_whole(prefix))
        put_in_place(prefix, last=last)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def put_in_place(prefix: Path, *, last: str) -> None:
    """Finish what a dying `staged_files` left whole but not in its place; does nothing where there is nothing.

    Args:
        prefix: of the set's files.
        last: ending of the file that is put in place behind all others.
    """
    whole = _whole(prefix)
    if not whole.is_dir():
        return
    files = sorted(whole.iterdir(), key=lambda file: (file.suffix == last, file.name))
    if files and files[-1].suffix == last:
        (prefix.parent / files[-1].name).unlink(missing_ok=True)
    for file in files:
        file.replace(prefix.parent / file.name)
    whole.rmdir()


@contextmanager
def _named_in_errors(path: Path) -> Iterator[None]:
    """Let a full disk's error say what was being written: it does not know."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _take_along(older: Path, stage: Path, dropped: Sequence[str]) -> None:
    """Link (else copy) what is in ``older`` and is not written anew into ``stage``."""
    for entry in older.iterdir():
        target = stage / entry.name
        if os.path.lexists(target) or any(fnmatchcase(entry.name, pattern) for pattern in dropped):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(entry, target)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name without taking more of the disk, where the file system can.

    Args:
        source: a file or a symbolic link, which is not followed.
        target: its other name.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _stage_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.new-{_writer()}")


def _whole(prefix: Path) -> Path:
    return prefix.with_name(f".{prefix.name}.whole")


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; ``False`` where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0


def _writer(process: int | None = None) -> str:
    """Name a process, of this one's machine; several machines may share a file system."""
    return f"{platform.node()}-{process or os.getpid()}"


def _remove_left_by_the_dead(folder: Path, before: str, behind: str = "") -> None:
    """Remove ``<before><writer><behind>`` in ``folder`` where the writer is a process of this machine that is no more.

    What another thread of this very process writes under the same name goes too: one at a time.
    """
    for left in folder.glob(f"{glob.escape(before)}*-*{glob.escape(behind)}"):
        writer = left.name[len(before) : len(left.name) - len(behind)]
        process = writer.rpartition("-")[2]
        if not process.isdigit() or writer != _writer(int(process)):
            continue
        if int(process) != os.getpid() and Path("/proc", process).exists():
            continue
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
