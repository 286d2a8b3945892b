"""Progress bars without threads, and lines between them."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm as _tqdm

from paddlelite_callbacks.utils.terminal import printable

__all__ = ["tqdm", "write_lines"]


class tqdm(_tqdm):
    """``tqdm.tqdm`` without its monitor thread.

    The monitor mends bars whose steps become slower; looking at the clock in each step does as well.

    Args:
        args: those of ``tqdm.tqdm``.
        options: likewise.
    """

    monitor_interval = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"miniters": 1, **options})


def write_lines(text: str) -> None:
    """Print ``text`` above progress bars, in the terminal's encoding.

    Args:
        text: one line or more.
    """
    tqdm.write(printable(text, getattr(sys.stdout, "encoding", None) or "utf-8"))
