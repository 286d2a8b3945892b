"""Write files and folders atomically: under a temporary name, then renamed.

Atomicity holds for a process that dies at any moment (``kill -9``); a power cut may still lose what the kernel had not
written to the disk.

Temporary names are random, and each is locked by a file beside it as long as its writer lives: process numbers and host
names say nothing where containers share a folder. Leftovers of a killed writer are removed by the next write: at once
if the lock is free and of this machine, else after a day, since some network file systems lock only within one machine,
and some not at all.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import glob
import logging
import os
import platform
import re
import secrets
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = [
    "check_appendable",
    "check_path",
    "check_replaceable",
    "check_writable",
    "link_or_copy",
    "locked",
    "put_in_place",
    "staged_file",
    "staged_files",
    "staged_folder",
]

_log = logging.getLogger(__name__)

_AT_CWD, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_LONGEST = 255  # bytes in a file name
_LOCK = ".lock"
_TOKEN = re.compile(r"new-([0-9a-f]{8})-[0-9a-f]{16}")  # the machine and a random number
_STALE_SECONDS = 24 * 3600.0  # age of leftovers where a lock cannot tell
_CLAIM_SECONDS = 10.0  # a cleaner holds a lock only briefly
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # file systems without locks


def check_path(path: Path) -> None:
    """Check that C++ libraries can open a path.

    They expect UTF-8. In a locale with another encoding Python encodes paths otherwise.

    Args:
        path: Absolute path, or as given.

    Raises:
        ValueError: A character cannot be encoded; names it.
    """
    text = str(path)
    if "\0" in text:
        raise ValueError(f"The path {text!r} holds a NUL character: remove it.")
    try:
        same = os.fsencode(text) == text.encode("utf-8")
    except UnicodeError:
        same = False
    if not same:
        raise ValueError(
            f"{text!a} is not UTF-8 as this process writes paths (encoding {sys.getfilesystemencoding()}), so "
            "the engines cannot open it. Start Python with PYTHONUTF8=1, or rename the folder."
        )


def check_appendable(file: Path) -> None:
    """Check that lines can be appended to a file.

    Args:
        file: File in a checked folder.

    Raises:
        PermissionError: Not writable, or not a file.
    """
    if os.path.lexists(file) and not (file.is_file() and os.access(file, os.W_OK)):
        what = "is not writable" if file.is_file() else "is not a file"
        raise PermissionError(f"{file} {what}: give another folder, or move it out of the way.")


def check_writable(folder: Path) -> None:
    """Check that a folder can be made and written to.

    Args:
        folder: May be missing, with its parents.

    Raises:
        PermissionError: A path on the way is not writable; names it.
        ValueError: See `check_path`.
    """
    check_path(Path(os.path.abspath(folder)))  # noqa: PTH100
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise PermissionError(
            f"{folder} is not writable ({existing} is not a folder with write permission): give another folder, or "
            "make it writable."
        )


def check_replaceable(folder: Path) -> None:
    """Check that `staged_folder` can replace a path.

    Args:
        folder: Folder to be written.

    Raises:
        FileExistsError: The path is a file.
        PermissionError: The path is a folder of another user.
        OSError: The name is too long.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, but must become a folder: move the file, or give another name.")
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):  # noqa: PTH112 (no error for long names)
        raise PermissionError(f"{folder} is not writable: give another name, or make it writable.")
    length = len(os.fsencode(f".{folder.name}.{_token()}{_LOCK}"))
    if length > _LONGEST:
        raise OSError(
            errno.ENAMETOOLONG,
            f"The folder name {folder.name!r} is too long: with a temporary suffix it has {length} bytes, {_LONGEST} "
            "are allowed. Give a shorter name",
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock ``path`` among processes and threads inside the block.

    The lock is a hidden file beside it, ``.NAME.lock``, removed at the end. On a file system without locks the block
    runs at once.

    Args:
        path: Path, existing or not, in an existing folder.

    Raises:
        OSError: The folder is not writable.
    """
    with _held(path.with_name(f".{path.name}{_LOCK}"), seconds=-1, instead=path):
        yield


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds.

    After an exception the older file is unchanged.
    """
    with _named_in_errors(path), _temporary(path, path.suffix) as partial:
        yield partial
        partial.replace(path)


@contextmanager
def staged_folder(folder: Path, *, dropped: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` if the block succeeds.

    After an exception the older ``folder`` is unchanged. Its other files (the user's) are kept in the new one. Where
    the file system cannot exchange two folders atomically and the process dies between the two renames, the next call
    restores the older one.

    Args:
        folder: Target; a symbolic link is followed.
        dropped: Globs of names in the older folder that are not kept, besides those written again.

    Raises:
        FileExistsError: ``folder`` is a file.
        OSError: The parent is not writable.
    """
    folder = folder.resolve()
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.old")
    with _named_in_errors(folder), _temporary(folder) as stage:
        with locked(folder):
            if old.exists():
                shutil.rmtree(old) if folder.exists() else old.replace(folder)
        stage.mkdir()
        yield stage
        with locked(folder):
            if folder.exists():
                _take_along(folder, stage, dropped)
            if not folder.exists():
                stage.replace(folder)
            elif not _exchanged(stage, folder):
                folder.replace(old)
                stage.replace(folder)
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staged_files(prefix: Path, *, last: str) -> Iterator[Path]:
    """Yield a temporary prefix; its files replace ``prefix.*`` together.

    Several files cannot be replaced atomically. So the whole set is first renamed to a hidden folder ``.NAME.whole`` of
    ``prefix``'s; then the older file ``last`` is deleted, the others are moved, and the new ``last`` at the end: if
    that file exists, the set is complete and consistent. If the process dies in between, `put_in_place` completes it.

    Args:
        prefix: Common path of the files; the folder is created if missing.
        last: Suffix of the file that readers look for first, for instance ``".pdparams"``.

    Raises:
        OSError: The folder is not writable.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    put_in_place(prefix, last=last)
    with _named_in_errors(prefix), _temporary(prefix) as stage:
        stage.mkdir()
        yield stage / prefix.name
        with locked(prefix):
            _put_in_place(prefix, last)  # left by another writer meanwhile
            stage.replace(_whole(prefix))
            _put_in_place(prefix, last)


def put_in_place(prefix: Path, *, last: str) -> None:
    """Complete an interrupted `staged_files` whose files were all written.

    Args:
        prefix: Common path of the files.
        last: Suffix of the file that is moved last.
    """
    if _whole(prefix).is_dir():
        with locked(prefix):
            _put_in_place(prefix, last)


def _put_in_place(prefix: Path, last: str) -> None:
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
    """Name the target in write errors."""
    try:
        yield
    except OSError as error:
        hidden = error.filename is not None and _TOKEN.search(os.fsdecode(error.filename)) is not None
        if error.errno is not None and (error.filename is None or (hidden and error.filename2 is None)):
            error.filename = str(path)
        raise


def _take_along(older: Path, stage: Path, dropped: Sequence[str]) -> None:
    """Hard-link (or copy) files of ``older`` that are not written again."""
    for entry in older.iterdir():
        target = stage / entry.name
        if os.path.lexists(target) or any(fnmatchcase(entry.name, pattern) for pattern in dropped):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(entry, target)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, or copy it where links are not possible.

    Args:
        source: File or symbolic link, which is not followed.
        target: New path.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # the latter on Windows
        shutil.copy2(source, target, follow_symlinks=False)


def _whole(prefix: Path) -> Path:
    return prefix.with_name(f".{prefix.name}.whole")


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths atomically; ``False`` where not supported."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform.startswith("linux") else None
    return rename is not None and rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0


@contextmanager
def _temporary(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a locked random name beside ``path``, removed at the end."""
    before = f".{path.name[: len(path.name) - len(suffix)]}."
    _remove_stale_temporaries(path.parent, before, suffix)
    temporary = path.with_name(f"{before}{_token()}{suffix}")
    with _held(temporary.with_name(temporary.name + _LOCK), seconds=_CLAIM_SECONDS, instead=path):
        try:
            yield temporary
        finally:
            _remove(temporary)


@contextmanager
def _held(file: Path, *, seconds: float, instead: Path) -> Iterator[None]:
    """Hold a lock file inside the block."""
    if not file.parent.is_dir():  # filelock would create it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(instead))
    lock = FileLock(file, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=seconds)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            error.filename = str(instead)
            raise
        _log.debug("The file system of %s knows no locks: %s", instead, error)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it once it is released
            file.unlink()
        lock.release()


def _token() -> str:
    return f"new-{_machine()}-{secrets.token_hex(8)}"


@functools.cache
def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _remove_stale_temporaries(folder: Path, before: str, behind: str) -> None:
    """Remove temporary files in ``folder`` whose writers are gone."""
    for left in folder.glob(f"{glob.escape(before)}new-*"):
        name = left.name.removesuffix(_LOCK)
        token = _TOKEN.fullmatch(name[len(before) : len(name) - len(behind)])
        if token is None or not name.endswith(behind):
            continue
        temporary, file = left.with_name(name), left.with_name(name + _LOCK)
        stale = _age(temporary) > _STALE_SECONDS
        if not file.exists():  # file systems without locks
            if stale:
                _remove(temporary)
            continue
        lock = FileLock(file, thread_local=False, fallback_to_soft=False)
        with suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            try:
                if stale or token[1] == _machine():
                    _remove(temporary)
                    file.unlink(missing_ok=True)
            finally:
                lock.release()


def _age(path: Path) -> float:
    """Return the seconds since ``path`` last changed."""
    with suppress(OSError):
        return time.time() - max(item.lstat().st_mtime for item in (path, *path.rglob("*")))
    return 0.0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
