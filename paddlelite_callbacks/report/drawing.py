"""Share size and text options among the pictures of a report."""

from __future__ import annotations

import functools
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddlelite_callbacks.errors import require
from paddlelite_callbacks.report.blocks import one_line
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["COLOURS", "WIDTH", "figure_of", "fitted", "saved_figure", "styled", "text_options"]

WIDTH = 5.0  # inches
COLOURS = ("#4c6ef5", "#f59f00", "#37b24d", "#e64980", "#7048e8", "#1098ad", "#f76707", "#868e96")
_DPI = 144
_PLAIN = {"parse_math": False, "usetex": False}  # a name may hold dollar signs
_CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS"),
)


def figure_of(height: float, *, needed_for: str) -> Any:
    """Return an empty figure of `WIDTH`, without pyplot's global state.

    Args:
        height: Height in inches.
        needed_for: Feature named in the error.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", needed_for=needed_for)
    require("matplotlib.backends.backend_agg", needed_for=needed_for)
    return figure_module.Figure(figsize=(WIDTH, height), dpi=_DPI)


def saved_figure(figure: Any, path: Path) -> None:
    """Save ``figure`` to ``path`` atomically.

    Args:
        figure: Result of `figure_of`.
        path: Path of the PNG.
    """
    with staged_file(path) as partial, _without_glyph_warnings():
        figure.savefig(partial, pil_kwargs={"compress_level": 4})


def styled(axes: Any, *, shares: bool) -> None:
    """Set grid, spines and ticks of ``axes``.

    Args:
        axes: Axes of a figure.
        shares: Whether the vertical axis is in per cent.
    """
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.yaxis.get_major_locator().set_params(nbins=7)
    if shares:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")


def text_options() -> dict[str, Any]:
    """Return options for untrusted text: no mathematics, a CJK font if any."""
    return {**_PLAIN, "fontfamily": list(_families())}


@functools.cache
def _families() -> tuple[str, ...]:
    fonts = require("matplotlib.font_manager", needed_for="the fonts of a picture").fontManager.ttflist
    known = {font.name for font in fonts}
    return ("DejaVu Sans", *[name for name in _CHINESE if name in known][:1])


def fitted(text: object, most: int) -> str:
    """Shorten text to ``most`` columns, cut in its middle; CJK characters take two.

    Names of runs often differ only at their ends.

    Args:
        text: Any object.
        most: Largest number of columns.
    """
    line = one_line(text).replace("\t", " ")
    if _columns(line) <= most:
        return line
    tail = _first(line[::-1], most // 3)[::-1]
    return f"{_first(line, most - 1 - _columns(tail))}\u2026{tail}"


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _first(text: str, most: int) -> str:
    kept = text[:most]
    while _columns(kept) > most:
        kept = kept[:-1]
    return kept


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    with warnings.catch_warnings():  # a character without a glyph is drawn as a box
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield
