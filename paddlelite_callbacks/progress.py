"""Progress bars that leave no thread behind."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm as _tqdm

__all__ = ["tqdm"]


class tqdm(_tqdm):
    """``tqdm.tqdm`` without its monitor, a thread that the first bar of a process starts, a disabled one too.

    The monitor mends bars whose steps become slower; looking at the clock in each step does as well.

    Args:
        args: those of ``tqdm.tqdm``.
        options: likewise.
    """

    monitor_interval = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"miniters": 1, **options})
