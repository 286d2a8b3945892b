"""Show progress bars without threads, and print lines between them."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm as _tqdm

from paddlelite_callbacks.utils.terminal import printable

__all__ = ["tqdm", "write_lines"]


class tqdm(_tqdm):
    """``tqdm.tqdm`` without its monitor thread.

    The monitor adapts bars whose steps become slower; checking the clock in each step does the same.

    Args:
        args: Arguments of ``tqdm.tqdm``.
        options: Keyword arguments of ``tqdm.tqdm``.
    """

    monitor_interval = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"miniters": 1, **options})


def write_lines(text: str) -> None:
    """Print ``text`` above progress bars, in the terminal's encoding.

    Args:
        text: One or more lines.
    """
    tqdm.write(printable(text, getattr(sys.stdout, "encoding", None) or "utf-8"))
