"""Remove names of temporary folders from messages."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["without_folder"]


def without_folder(text: str, folder: str | Path) -> str:
    """Make paths inside ``folder`` in ``text`` relative.

    Args:
        text: Message.
        folder: Temporary folder, deleted before the message is read.
    """
    names = {str(folder), os.path.abspath(folder), os.path.realpath(folder)}  # noqa: PTH100
    for name in sorted(names - {os.sep, os.curdir}, key=len, reverse=True):
        text = text.replace(name.rstrip(os.sep) + os.sep, "")
    return text
