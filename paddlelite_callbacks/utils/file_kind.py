"""Detect mistaken files by their first bytes."""

from __future__ import annotations

from pathlib import Path

__all__ = ["mistaken_kind"]

_BYTES = 1024
_BEGINS = {
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS, the file itself was not fetched: git lfs pull",
    b"/annex/objects/": "a pointer of git-annex, the file itself was not fetched: git annex get",
    b"<?xml": "an XML document",
    b"PK\x03\x04": "a zip archive (or a PyTorch file): unpack it",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ\x00": "an xz archive: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!\x1a\x07": "a rar archive: unpack it",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF document",
    b"MZ": "a program of Windows",
    b"\x7fELF": "a program of Linux",
}


def mistaken_kind(path: Path) -> str | None:
    """Return what ``path`` really is, if it is not a model file.

    Args:
        path: File that should be a program, an ONNX file, parameters or weights; JSON is not detected.
    """
    with path.open("rb") as file:
        first = file.read(_BYTES)
    if not first:
        return "empty"
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:14].lower() == b"<!doctype html" or b"<html" in text[:256].lower():
        return "an HTML page, not the file behind the link: download the raw file (a login may be needed)"
    for begin, what in _BEGINS.items():
        if text.startswith(begin):
            return what
    if first[257:262] == b"ustar":
        return "a tar archive: unpack it"
    if first[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if not any(first):
        return "only zeros: the download or copy was interrupted"
    if _is_text(first) and not text.startswith(b"{"):
        return f"a text that begins {first[:40].decode(errors='replace')!r}"
    return None


def _is_text(first: bytes) -> bool:
    try:
        decoded = first.decode("utf-8")
    except UnicodeDecodeError as error:  # the last character may be incomplete
        if len(first) < _BYTES or error.start < _BYTES - 4:
            return False
        decoded = first[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\t\r\n" for letter in decoded)
