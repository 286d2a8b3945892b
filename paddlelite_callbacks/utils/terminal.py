"""Print on terminals with a limited encoding."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["LOOKALIKES", "degrading", "printable"]

LOOKALIKES = "paddlelite_lookalikes"  # name of a codecs error handler
_ASCII = {
    "\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00d7": "x", "\u00b7": "*", "\u2264": "<=", "\u2265": ">=",
    "\u2248": "~", "\u00b1": "+-", "\u2192": "->", "\u2026": "...", "\u00b5": "u", "\u03bc": "u", "\u00b2": "^2",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " ",
}  # fmt: skip


def _lookalikes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error(LOOKALIKES, _lookalikes)


def printable(text: str, encoding: str | None) -> str:
    """Replace characters that ``encoding`` lacks by look-alikes or question marks.

    Args:
        text: Text to write.
        encoding: Encoding of the stream; ``None`` counts as ASCII.
    """
    encoding = encoding or "ascii"
    return text.encode(encoding, LOOKALIKES).decode(encoding)


@contextmanager
def degrading(stream: Any) -> Iterator[None]:
    """Make ``stream`` replace unencodable characters inside the block.

    Args:
        stream: ``sys.stdout`` or its replacement; no effect on one with its own error handler.
    """
    if not isinstance(stream, io.TextIOWrapper) or stream.errors != "strict":
        yield
        return
    stream.reconfigure(errors=LOOKALIKES)
    try:
        yield
    finally:
        stream.reconfigure(errors="strict")
