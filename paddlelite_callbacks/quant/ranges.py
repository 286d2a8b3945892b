"""Choose the range that an activation is clipped to from its histogram."""

from __future__ import annotations

import numpy as np

from paddlelite_callbacks.quant.functional import grid_levels, shifted_levels
from paddlelite_callbacks.quant.histogram import BINS, ValueHistogram

__all__ = ["kl_range", "mse_range", "quantization_error", "range_and_grid", "range_of"]

_SHALLOW = 0.5  # of the range: a lowest value above that moves the zero point
_SMALLEST = 1 / 256  # of the largest magnitude: the smallest range that is tried
_TRIED, _REFINED = 64, 16
_STRIDE = 16  # bins between two ranges that KL tries


def range_and_grid(
    values: ValueHistogram | float, calibration: str, *, bits: int = 8, lowest: float = 0.0, symmetric: bool = False
) -> tuple[float, tuple[float, float]]:
    """Return the range ``alpha`` and the grid for an activation.

    The grid is unsigned without negative values, and signed with its zero point in the middle where values reach below
    ``-alpha / 2``. Between the two (behind hard-swish, SiLU or GELU) half of the signed grid would stay unused: there
    the zero point is moved, so that the grid ends at ``lowest``.

    Args:
        values: Histogram, not empty; or the range, where it is known already.
        calibration: Method of `range_of`; not used with a known range.
        bits: Grid width in bits, 2-8.
        lowest: Smallest value, in units of the values.
        symmetric: Whether the grid is symmetric, whatever the values are.

    Returns:
        The value of the highest integer; lowest and highest integer.
    """
    signed = lowest < 0
    if isinstance(values, ValueHistogram):
        alpha = range_of(values, calibration, bits=bits, signed=signed, symmetric=symmetric)
    else:
        alpha = values
    if symmetric or not signed or -lowest >= _SHALLOW * alpha:
        return alpha, grid_levels(bits, signed, symmetric=symmetric)
    if isinstance(values, ValueHistogram):
        alpha = range_of(values, calibration, grid=shifted_levels(lowest, alpha, bits))
        lowest = max(lowest, -alpha)
    return alpha, shifted_levels(lowest, alpha, bits)


def range_of(
    histogram: ValueHistogram,
    calibration: str,
    *,
    bits: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    grid: tuple[float, float] | None = None,
) -> float:
    """Return the range ``alpha`` that a calibration method chooses.

    Args:
        histogram: Values, not empty.
        calibration: ``"min_max"`` (the largest magnitude), ``"mse"`` or ``"kl"``.
        bits: Grid width in bits, 2-8.
        signed: Whether the grid includes negative values, see `grid_levels`.
        symmetric: Whether it is symmetric, whatever ``signed`` is.
        grid: Its lowest and highest integer; ``None`` for those of ``bits``, ``signed`` and ``symmetric``.
    """
    if histogram.largest == 0:
        return 1.0
    low, high = grid_levels(bits, signed, symmetric=symmetric) if grid is None else grid
    if calibration == "mse":
        return mse_range(histogram, low=low, high=high)
    return kl_range(histogram, levels=int(high) + 1) if calibration == "kl" else histogram.largest


def quantization_error(histogram: ValueHistogram, alphas: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Return the mean squared error of quantisation for each range.

    ``E[(x - s clip(round(x / s), low, high))^2]`` with ``s = alpha / high``.

    Args:
        histogram: Values, not empty.
        alphas: Ranges, ``[K]``.
        low: Lowest integer of the grid.
        high: Highest integer of the grid.

    Returns:
        Errors, ``[K]``, in squared units of the values.
    """
    values, counts = histogram.points()
    total = counts.sum() + histogram.zeros
    errors = np.empty(len(alphas))
    for place, alpha in enumerate(alphas):
        step = alpha / high
        rounded = np.clip(np.rint(values / step), low, high) * step
        errors[place] = counts @ np.square(values - rounded) / total
    return errors


def mse_range(histogram: ValueHistogram, *, low: float, high: float) -> float:
    """Return the range of the smallest mean squared error, see `quantization_error`.

    The criterion is that of Sung et al. 2015 (arXiv:1511.06488). Ranges between the largest magnitude and its 256th
    part are tried, first in equal ratios, then between the neighbours of the best one.

    Args:
        histogram: Values, not all zero.
        low: Lowest integer of the grid.
        high: Highest integer of the grid.
    """
    alphas = histogram.largest * np.geomspace(1, _SMALLEST, _TRIED)
    best = int(np.argmin(quantization_error(histogram, alphas, low=low, high=high)))
    around = np.linspace(alphas[min(best + 1, _TRIED - 1)], alphas[max(best - 1, 0)], _REFINED)
    alphas = np.append(around, alphas[best])
    return float(alphas[np.argmin(quantization_error(histogram, alphas, low=low, high=high))])


def kl_range(histogram: ValueHistogram, *, levels: int) -> float:
    """Return the range with the smallest loss of information, as TensorRT calibrates.

    Of the histogram of magnitudes, clipped to a range with all outliers in the last bin, the Kullback-Leibler
    divergence to the same histogram merged to ``levels`` bins is computed; the smallest wins (Migacz 2017, "8-bit
    inference with TensorRT"). Zeros, which every grid represents, are not counted.

    Args:
        histogram: Values, not all zero.
        levels: Number of merged bins, that of the grid's values from 0 to its highest.
    """
    counts = histogram.counts.sum(axis=0)
    used = int(np.flatnonzero(counts)[-1]) + 1
    width = histogram.limit / BINS
    if used <= levels:
        return histogram.largest
    ends = np.unique(np.append(np.arange(levels, used, _STRIDE), used))
    divergences = [_divergence(counts, int(end), levels) for end in ends]
    end = int(ends[len(ends) - 1 - int(np.argmin(divergences[::-1]))])  # the largest of equal ones
    return histogram.largest if end == used else end * width


def _divergence(counts: np.ndarray, end: int, levels: int) -> float:
    reference = counts[:end].copy()
    reference[-1] += counts[end:].sum()
    filled = counts[:end] > 0
    merged = np.arange(end) * levels // end
    totals = np.bincount(merged, weights=counts[:end], minlength=levels)
    members = np.bincount(merged, weights=filled, minlength=levels)
    spread = np.where(filled, (totals / np.maximum(members, 1))[merged], 0.0)
    if np.any((reference > 0) & (spread == 0)) or spread.sum() == 0:
        return float("inf")
    share, approximation = reference / reference.sum(), spread / spread.sum()
    some = share > 0
    return float(share[some] @ np.log(share[some] / approximation[some]))
