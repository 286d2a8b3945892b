"""Pretrained weights: fetch a file whole or not at all, load it, and report what did not fit."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.files import staged_file
from paddlelite_callbacks.saved import read_saved

__all__ = ["LoadReport", "fetch", "is_url", "load_weights", "local_weights"]

_SECONDS = 30  # without an answer


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a weights file gave to a network.

    Args:
        file: that was read.
        loaded: keys taken over.
        missing: keys of the network that the file lacks.
        unexpected: keys of the file that the network does not know.
        mismatched: keys whose shapes differ, with the shape in the file and the one needed.
        head: keys of the classifier for another number of classes, which were left as they were.
    """

    file: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    head: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every key fits, a classifier for other classes aside."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} keys loaded"]
        for name in ("missing", "unexpected", "mismatched", "head"):
            keys = getattr(self, name)
            if keys:
                parts.append(f"{len(keys)} {name} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
        return f"{self.file}: {'; '.join(parts)}"


def is_url(place: str | Path) -> bool:
    """Whether ``place`` is something that `fetch` takes."""
    return str(place).startswith(("http://", "https://", "file://"))


def local_weights(place: str | Path, *, sha256: str | None = None, cached: Path | None = None) -> Path:
    """Return the file at ``place``, fetched if it is an address.

    Args:
        place: a path, whose suffix ``.pdparams`` may be left out, or an address.
        sha256: hexadecimal checksum that the file must have.
        cached: where a fetched file is kept; ``None`` for a folder of this package under ``~/.cache``.

    Raises:
        ValueError: no such file, or another checksum.
        RuntimeError: it cannot be fetched.
    """
    if str(place).startswith("file://"):
        place = Path(urllib.request.url2pathname(urllib.parse.urlsplit(str(place)).path))
    if is_url(place):
        return fetch(str(place), cached or _cache_of(str(place)), sha256=sha256)
    file = Path(place).expanduser()
    if not file.is_file():
        file = file.with_name(file.name + ".pdparams")
    if not file.is_file():
        raise ValueError(f"No weights file {place}: give the path of a .pdparams file, an address, or True.")
    if sha256 is not None and (found := _sha256(file)) != sha256.lower():
        raise ValueError(
            f"{file} has the sha256 {found}, expected {sha256}: it is another file or a broken one. Fetch it again."
        )
    return file


def fetch(url: str, target: Path, *, sha256: str | None = None) -> Path:
    """Download ``url`` to ``target``, which appears only whole; a file that is there already is not fetched again.

    Args:
        url: ``http://`` or ``https://``.
        target: its folder is made if missing. Several processes may fetch the same file at once.
        sha256: hexadecimal checksum; a file there with another one is fetched anew.

    Raises:
        RuntimeError: the server cannot be reached, answers with an error, or breaks off.
        ValueError: the file has another checksum.
    """
    if target.is_file() and sha256 in (None, _sha256(target)):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(target) as partial:
            with urllib.request.urlopen(url, timeout=_SECONDS) as answer, partial.open("wb") as file:
                shutil.copyfileobj(answer, file)
                expected = answer.headers.get("Content-Length")
            if expected is not None and partial.stat().st_size != int(expected):
                raise OSError(f"the connection broke off after {partial.stat().st_size} of {expected} bytes")
            if sha256 is not None and (found := _sha256(partial)) != sha256.lower():
                raise ValueError(f"{url} has the sha256 {found}, expected {sha256}: it is not the file you mean.")
    except OSError as error:
        raise RuntimeError(
            f"The weights could not be downloaded from {url} ({error}). Download the file elsewhere and pass its path: "
            "pretrained='file.pdparams'."
        ) from error
    return target


def load_weights(
    network: Layer,
    file: Path,
    *,
    strict: bool = True,
    num_classes: int | None = None,
    behind_the_cut: Collection[str] = (),
    name: str | None = None,
) -> LoadReport:
    """Load a ``.pdparams`` file into ``network``, which is changed only if the file fits.

    Args:
        network: whose keys are those of the file.
        file: a ``state_dict`` saved with ``paddle.save``; code in it is refused, see `read_saved`.
        strict: ``False`` loads what fits and leaves the rest as it is.
        num_classes: of the network; keys that differ from the file's in this dimension alone are its head, which may
            stay as it is.
        behind_the_cut: further keys that the file may have.
        name: of the network, for messages; its class if ``None``.

    Raises:
        ValueError: no ``state_dict``; nothing fits; or ``strict`` and not all fits. The message counts and names the
            keys.
    """
    report, fitting = _matched(network, file, _read(file), num_classes, behind_the_cut)
    if not report.loaded or (strict and not report.complete):
        raise ValueError(
            f"The weights do not fit {name or type(network).__name__}. {report}."
            + (
                " strict=False loads what fits."
                if report.loaded
                else " Keys must be the network's own, without prefix."
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


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cache_of(url: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = Path(urllib.parse.urlsplit(url).path).name or "weights.pdparams"
    return root / "paddlelite_callbacks" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
