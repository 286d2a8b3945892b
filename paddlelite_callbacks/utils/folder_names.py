"""Messages without the names of temporary folders."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["without_folder"]


def without_folder(text: str, folder: str | Path) -> str:
    """Return ``text`` with paths into ``folder`` shortened to what lies in it.

    Args:
        text: of a message.
        folder: whose name tells the reader nothing, since it is gone when the message is read.
    """
    names = {str(folder), os.path.abspath(folder), os.path.realpath(folder)}  # noqa: PTH100
    for name in sorted(names - {os.sep, os.curdir}, key=len, reverse=True):
        text = text.replace(name.rstrip(os.sep) + os.sep, "")
    return text
