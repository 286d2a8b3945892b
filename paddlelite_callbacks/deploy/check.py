"""Is what the exported file computes what the network computes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Check", "compare_outputs"]

_NOISE_FACTOR = 4.0  # the noise is the largest of a few draws on a few images: a sample of what can happen


@dataclass(frozen=True, kw_only=True)
class Check:
    """One engine's outputs against the live network's on the same real inputs.

    Args:
        engine: its name.
        precision: of the file.
        max_abs_diff: largest difference, in units of the output.
        mean_abs_diff: mean difference.
        top1_agreement: share of rows with the same largest entry; ``None`` unless the output is ``[N, C]``.
        tolerance: that ``max_abs_diff`` had to keep.
        passed: whether it did.
        error: what went wrong where nothing could be compared.
    """

    engine: str
    precision: str
    max_abs_diff: float | None = None
    mean_abs_diff: float | None = None
    top1_agreement: float | None = None
    tolerance: float | None = None
    passed: bool = False
    error: str | None = None


def compare_outputs(
    expected: Sequence[np.ndarray],
    got: Sequence[np.ndarray],
    *,
    engine: str,
    precision: str = "fp32",
    atol: float = 1e-4,
    rtol: float = 1e-3,
    noise: Sequence[float] = (),
) -> Check:
    """Compare ``got`` with ``expected``: passed where no difference exceeds ``atol + rtol max |expected| + 4 noise``.

    Args:
        expected: the live network's outputs.
        got: the file's, in the same order.
        engine: for the record.
        precision: for the record.
        atol: in units of the output.
        rtol: relative to the largest expected value of each output.
        noise: per output, how far it moves by rounding alone, see `rounding_noise`; empty for a float file.

    Returns:
        The check; other numbers, shapes or non-finite values do not pass and say so.
    """
    shapes = [list(a.shape) for a in expected], [list(b.shape) for b in got]
    if shapes[0] != shapes[1]:
        return Check(engine=engine, precision=precision, error=f"outputs {shapes[1]}, the network gives {shapes[0]}")
    bad = [i for i, b in enumerate(got) if not np.isfinite(b).all() and np.isfinite(expected[i]).all()]
    if bad:
        return Check(engine=engine, precision=precision, error=f"NaN or Inf in output {bad[0]}")
    differences = [np.abs(a.astype("float64") - b) for a, b in zip(expected, got, strict=True)]
    slack = [_NOISE_FACTOR * value for value in noise] or [0.0] * len(expected)
    limits = [atol + rtol * float(np.abs(a).max(initial=0.0)) + s for a, s in zip(expected, slack, strict=True)]
    worst = max(range(len(differences)), key=lambda i: differences[i].max(initial=0.0) / limits[i])
    flat = expected[0].ndim == 2 and expected[0].shape[1] > 1
    return Check(
        engine=engine,
        precision=precision,
        max_abs_diff=float(differences[worst].max(initial=0.0)),
        mean_abs_diff=float(differences[worst].mean()),
        top1_agreement=float((expected[0].argmax(1) == got[0].argmax(1)).mean()) if flat else None,
        tolerance=limits[worst],
        passed=bool(differences[worst].max(initial=0.0) <= limits[worst]),
    )
