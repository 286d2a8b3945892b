"""Download pretrained weights atomically, load them, and report what did not fit."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.utils.atomic_files import check_writable, staged_file
from paddlelite_callbacks.utils.checksum import sha256_of
from paddlelite_callbacks.utils.file_kind import mistaken_kind
from paddlelite_callbacks.utils.safe_load import check_no_code, read_saved

__all__ = ["DownloadError", "LoadReport", "fetch", "is_url", "load_weights", "local_weights"]

_SECONDS = 30.0  # time limit of an answer
_DEADLINE = 3600.0  # time limit of a file
_BLOCK = 1 << 16


class DownloadError(RuntimeError):
    """A download failed or was not a weights file; nothing is kept."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Keys that a weights file filled, lacked or did not fit.

    Args:
        file: File that was read.
        loaded: Keys that were loaded.
        missing: Keys of the network that the file lacks.
        unexpected: Keys of the file that the network does not have.
        mismatched: Keys whose shapes differ, with both shapes.
        head: Keys of a classifier for another number of classes, which were not loaded.
    """

    file: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    head: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every key fits, except a classifier with other classes."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __repr__(self) -> str:
        return f"<LoadReport {self}>"

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} keys loaded"]
        for name in ("missing", "unexpected", "mismatched", "head"):
            keys = getattr(self, name)
            if keys:
                parts.append(f"{len(keys)} {name} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
        return f"{self.file}: {'; '.join(parts)}"


def is_url(place: str | Path) -> bool:
    """Whether `fetch` accepts ``place``."""
    return str(place).lower().startswith(("http://", "https://", "file://"))


def local_weights(place: str | Path, *, sha256: str | None = None, cached: Path | None = None) -> Path:
    """Return the local file for a path or URL.

    Args:
        place: Path, optionally without its suffix ``.pdparams``, or an address.
        sha256: Expected checksum of the file, hexadecimal.
        cached: Target of a download; ``None`` for a folder of this package under ``~/.cache``.

    Raises:
        ValueError: No such file, or another checksum.
        DownloadError: It cannot be downloaded.
        PermissionError: The target is not writable.
    """
    if str(place).lower().startswith("file://"):
        place = Path(urllib.request.url2pathname(urllib.parse.urlsplit(str(place)).path))
    if is_url(place):
        return fetch(str(place), cached or _cache_of(str(place)), sha256=sha256)
    file = Path(place).expanduser()
    if not file.is_file():
        file = file.with_name(file.name + ".pdparams")
    if not file.is_file():
        raise ValueError(
            f"pretrained={str(place)!r} does not exist: give the path of a .pdparams file, an address, or True."
        )
    if sha256 is not None and (found := sha256_of(file)) != sha256.lower():
        raise ValueError(
            f"{file} has the sha256 {found}, expected {sha256}: it is another file or a damaged one. Fetch it again."
        )
    return file


def fetch(url: str, target: Path, *, sha256: str | None = None, seconds: float = _DEADLINE) -> Path:
    """Download a file atomically to ``target``, unless it exists.

    Files that are not of ``paddle.save``, such as a login page, are neither kept nor used from the cache.

    Args:
        url: ``http://`` or ``https://`` address.
        target: Target file; its folder is created if missing. Several processes may fetch the same file at once.
        sha256: Expected checksum, hexadecimal; an existing file with another one is downloaded again.
        seconds: Time limit of the download.

    Raises:
        DownloadError: The server cannot be reached, answers with an error, disconnects, takes too long, or does not
            send a weights file.
        ValueError: The file has another checksum.
        PermissionError: ``target`` is not writable.
    """
    if target.is_file() and (_is_weights(target) if sha256 is None else sha256.lower() == sha256_of(target)):
        return target
    try:
        check_writable(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"The weights of {url} cannot be kept in {target.parent} ({error}). Set XDG_CACHE_HOME or HOME to a "
            "writable folder, or download the file yourself and pass its path: pretrained='file.pdparams'."
        ) from error
    with staged_file(target) as partial:
        _download(url, partial, seconds)
        if sha256 is not None and (found := sha256_of(partial)) != sha256.lower():
            raise ValueError(f"{url} has the sha256 {found}, expected {sha256}: check the address and the checksum.")
        if (what := _why_no_weights(partial)) is not None:
            raise _failed(url, what)
    return target


def _download(url: str, partial: Path, seconds: float) -> None:
    """Write the response of ``url`` to ``partial``, in a thread with a deadline."""
    begin, failures, stopped = time.monotonic(), list[BaseException](), threading.Event()

    def work() -> None:
        try:
            with urllib.request.urlopen(url, timeout=min(_SECONDS, seconds)) as answer:
                if stopped.is_set():
                    return
                with partial.open("wb") as file:
                    while not stopped.is_set() and (block := answer.read1(_BLOCK)):
                        file.write(block)
                    size, expected = file.tell(), answer.headers.get("Content-Length")
            if expected is not None and size != int(expected):
                raise ConnectionError(f"the connection broke off after {size} of {expected} bytes")
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=work, name="download", daemon=True)
    worker.start()
    try:
        worker.join(seconds)
    finally:
        stopped.set()
    if worker.is_alive():
        raise _failed(url, f"it was not finished after {time.monotonic() - begin:.0f} s")
    for error in failures:
        if isinstance(error, (OSError, http.client.HTTPException, ValueError)):  # ValueError: not an address
            said = " ".join(str(error).split()) or type(error).__name__
            raise _failed(url, said if isinstance(error, OSError) else f"{type(error).__name__}: {said}") from error
        raise error


def _failed(url: str, why: str) -> DownloadError:
    return DownloadError(
        f"The weights could not be downloaded from {url} ({why}). Download the file elsewhere and pass its path: "
        "pretrained='file.pdparams'."
    )


def _is_weights(file: Path) -> bool:
    return _why_no_weights(file) is None


def _why_no_weights(file: Path) -> str | None:
    """Return why ``file`` is not a file of ``paddle.save``, or ``None``."""
    if (what := mistaken_kind(file)) is not None:
        return f"what came is {what}"
    with file.open("rb") as stream:
        if stream.read(1) != b"\x80":  # first byte of a pickle from protocol 2 on
            return "what came is not a file of paddle.save"
    with suppress(MemoryError):
        try:
            check_no_code(file)
        except ValueError as error:
            return f"what came cannot be read: {error}".replace(str(file), "it")
    return None


def load_weights(
    network: Layer,
    file: Path,
    *,
    strict: bool = True,
    num_classes: int | None = None,
    behind_the_cut: Collection[str] = (),
    name: str | None = None,
) -> LoadReport:
    """Load a ``.pdparams`` file into ``network``, if it fits.

    Args:
        network: Network with the keys of the file.
        file: ``state_dict`` saved with ``paddle.save``; code in it is rejected, see `read_saved`.
        strict: ``False`` loads what fits and leaves the rest unchanged.
        num_classes: Number of classes of the network; keys that differ from the file's only in this dimension are its
            head, which may stay unchanged.
        behind_the_cut: Further keys that the file may have.
        name: Name of the network, for messages; its class if ``None``.

    Raises:
        ValueError: Not a ``state_dict``; nothing fits; or ``strict`` and not everything fits. The message counts and
            lists the keys.
    """
    report, fitting = _matched(network, file, _read(file), num_classes, behind_the_cut)
    if not report.loaded or (strict and not report.complete):
        raise ValueError(
            f"The weights do not fit {name or type(network).__name__}. {report}."
            + (
                " Use strict=False to load what fits."
                if report.loaded
                else " Rename the keys to the network's own, without a prefix."
            )
        )
    network.set_state_dict({**network.state_dict(), **fitting})
    return report


def _read(file: Path) -> Mapping[str, Any]:
    given = read_saved(file)
    if not isinstance(given, Mapping) or not all(hasattr(value, "shape") for value in given.values()):
        raise ValueError(f"{file} holds no state_dict: save weights with paddle.save(network.state_dict(), path).")
    return given


def _matched(
    network: Layer, file: Path, given: Mapping[str, Any], num_classes: int | None, behind: Collection[str]
) -> tuple[LoadReport, dict[str, Any]]:
    wanted = network.state_dict()
    shared = [key for key in wanted if key in given]
    fitting = {key: given[key] for key in shared if list(given[key].shape) == list(wanted[key].shape)}
    differing = [key for key in shared if key not in fitting]
    head = [k for k in differing if _is_head(list(given[k].shape), list(wanted[k].shape), num_classes)]
    report = LoadReport(
        file=str(file),
        loaded=tuple(fitting),
        missing=tuple(key for key in wanted if key not in given),
        unexpected=tuple(key for key in given if key not in wanted and key not in behind),
        mismatched=tuple(f"{k} {list(given[k].shape)} not {list(wanted[k].shape)}" for k in differing if k not in head),
        head=tuple(head),
    )
    return report, fitting


def _is_head(given: list[int], wanted: list[int], num_classes: int | None) -> bool:
    differing = [want for have, want in zip(given, wanted, strict=False) if have != want]
    return len(given) == len(wanted) and differing == [num_classes]


def _cache_of(url: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = Path(urllib.parse.urlsplit(url).path).name or "weights.pdparams"
    return root / "paddlelite_callbacks" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
