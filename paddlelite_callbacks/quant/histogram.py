"""Collect histograms of tensors over many batches, in bounded memory."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["BINS", "ValueHistogram", "sampling_stride"]

BINS = 4096  # of each sign


def sampling_stride(count: int, most: int) -> int:
    """Return a step through values in rows that visits all rows and columns.

    Args:
        count: Number of values.
        most: Number of values to visit, at least about half as many.
    """
    stride = max(1, count // most)
    while stride < count and math.gcd(stride, count) > 1:
        stride += 1
    return stride


class ValueHistogram:
    """Streaming histogram of values, whose range grows by doubling.

    Each bin holds the number of its values and their sum, so that a value that occurs often (the 6 of a ReLU6) is
    represented exactly. Zeros are counted apart.

    Attributes:
        limit: Upper end of the last bin, in units of the values; 0 before the first value.
        counts: Number of values per bin, ``[2, BINS]``: those below and above zero, by magnitude.
        sums: Sum of their magnitudes, ``[2, BINS]``.
        zeros: Number of zeros.
        largest: Largest magnitude.
    """

    def __init__(self) -> None:
        self.limit, self.zeros, self.largest = 0.0, 0.0, 0.0
        self.counts, self.sums = np.zeros([2, BINS]), np.zeros([2, BINS])

    def add(self, values: np.ndarray, *, largest: float | None = None) -> None:
        """Add values.

        Args:
            values: Sample of any shape, finite.
            largest: Largest magnitude of all values, if ``values`` are a sample of them.
        """
        values = np.asarray(values).ravel()
        magnitudes = np.abs(values)  # exact in the dtype of the values, and there in half the time
        most = max(float(magnitudes.max(initial=0.0)), largest or 0.0)
        self.largest = max(self.largest, most)
        self._grow(most)
        found = np.count_nonzero(magnitudes)
        self.zeros += float(values.size - found)
        if not found:
            return
        if found < values.size:
            other = magnitudes > 0
            values, magnitudes = values[other], magnitudes[other]
        magnitudes = magnitudes.astype("float64")
        places = (magnitudes * (BINS / self.limit)).astype("int64")
        np.minimum(places, BINS - 1, out=places)
        if values.min() < 0:
            places += BINS * (values > 0)
            signs = slice(0, 2)
        else:
            signs = slice(1, 2)
        size = BINS * (signs.stop - signs.start)
        self.counts[signs] += np.bincount(places, minlength=size).reshape(-1, BINS)
        self.sums[signs] += np.bincount(places, weights=magnitudes, minlength=size).reshape(-1, BINS)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return values and their numbers, without zeros: the means of the bins in use."""
        signs, used = np.array([[-1.0], [1.0]]), self.counts > 0
        means = signs * self.sums / np.where(used, self.counts, 1.0)
        return means[used], self.counts[used]

    def _grow(self, largest: float) -> None:
        if self.limit == 0:
            self.limit = largest
        if largest <= self.limit or self.limit == 0:
            return
        doublings = max(1, math.ceil(math.log2(largest / self.limit)))
        self.limit *= 2.0**doublings
        for _ in range(min(doublings, BINS.bit_length())):
            for name in ("counts", "sums"):
                pairs = getattr(self, name).reshape(2, BINS // 2, 2).sum(axis=2)
                setattr(self, name, np.concatenate([pairs, np.zeros_like(pairs)], axis=1))
