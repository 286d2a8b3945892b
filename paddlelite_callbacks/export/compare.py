"""Is what the exported file computes what the network computes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["PDMODEL_CHECK", "Check", "FileVerdict", "compare_outputs"]

PDMODEL_CHECK = "paddle.pdmodel"  # Paddle Inference on a program in Paddle 2's format, which is checked but not timed

_FLIP_FACTOR = 1.5  # the flips of many rows and draws: nearly the worst is among them
_FEW_ROWS = 4  # among fewer, a row that met a flip cannot be told from the others
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
        largest: largest magnitude of the network's output, in the same units.
    """

    engine: str
    precision: str
    max_abs_diff: float | None = None
    mean_abs_diff: float | None = None
    top1_agreement: float | None = None
    tolerance: float | None = None
    passed: bool = False
    error: str | None = None
    largest: float | None = None

    @property
    def verdict(self) -> str:
        """``"agrees"``, or by how much it differs and what is allowed."""
        if self.passed:
            return "agrees"
        return f"differs by {self.distance}" if self.max_abs_diff is not None else f"differs: {self.error}"

    @property
    def distance(self) -> str:
        """How far off it is: of what, and what is allowed."""
        if self.max_abs_diff is None or self.tolerance is None:
            return str(self.error)
        of = "" if self.largest is None else f" of {self.largest:.3g}"
        within = self.max_abs_diff <= self.tolerance and self.error is not None  # one row, but not most of them
        return f"{self.max_abs_diff:.3g}{of} ({self.error if within else f'allowed {self.tolerance:.3g}'})"


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    """What one engine makes of one file.

    Args:
        engine: its name.
        precision: of the file.
        agrees: whether it computes what the network does; ``None`` where it could not run.
        text: ``"agrees"``, ``"differs by ... (allowed ...)"`` or ``"could not run, because ..."``.
    """

    engine: str
    precision: str
    agrees: bool | None
    text: str

    @property
    def kind(self) -> str:
        """Of the file: ``"paddle"``, ``"onnx"`` or ``"pdmodel"``."""
        if self.engine == PDMODEL_CHECK:
            return "pdmodel"
        return "paddle" if self.engine.startswith("paddle") else "onnx"


def compare_outputs(
    expected: Sequence[np.ndarray],
    got: Sequence[np.ndarray],
    *,
    engine: str,
    precision: str = "fp32",
    atol: float = 1e-4,
    rtol: float = 1e-3,
    noise: Sequence[float] = (),
    middle: Sequence[float] = (),
    flips: Sequence[float] = (),
) -> Check:
    """Compare ``got`` with ``expected``: no difference may exceed ``atol + rtol max |expected| + 4 noise + 1.5 flips``.

    So much may a row (image) of a quantised file be off that met a value on a rounding threshold. A wrong scale or
    weight is off in every row: the middle one, of four and more, must keep ``atol + rtol max |expected| + 4 middle``.

    Args:
        expected: the live network's outputs.
        got: the file's, in the same order.
        engine: for the record.
        precision: for the record.
        atol: in units of the output.
        rtol: relative to the largest expected value of each output.
        noise: per output, how far it moves by rounding alone, see `rounding_noise`; empty for a float file.
        middle: per output, how far the middle row moves by rounding alone, see `middle_noise`; the same.
        flips: per output, how far a value in the next quantisation step moves it, see `flip_noise`; the same.

    Returns:
        The check; other numbers, shapes or non-finite values do not pass and say so.
    """
    shapes = [list(a.shape) for a in expected], [list(b.shape) for b in got]
    if shapes[0] != shapes[1]:
        return Check(engine=engine, precision=precision, error=f"outputs {shapes[1]}, the network gives {shapes[0]}")
    if not expected:
        return Check(engine=engine, precision=precision, error="the network gives no output")
    for who, outputs in (("the network's own ", expected), ("", got)):
        bad = [i for i, output in enumerate(outputs) if not np.isfinite(output).all()]
        if bad:  # no figure equals NaN, and within a tolerance relative to Inf everything does
            return Check(engine=engine, precision=precision, error=f"NaN or Inf in {who}output {bad[0]}")
    differences = [np.abs(a.astype("float64") - b) for a, b in zip(expected, got, strict=True)]
    count = len(expected)
    plain = [atol + rtol * float(np.abs(a).max(initial=0.0)) for a in expected]
    slack = [
        (_NOISE_FACTOR * n, _FLIP_FACTOR * f)
        for n, f in zip(noise or [0.0] * count, flips or [0.0] * count, strict=True)
    ]
    limits = [limit + by_noise + by_flip for limit, (by_noise, by_flip) in zip(plain, slack, strict=True)]
    tight = [limit + _NOISE_FACTOR * value for limit, value in zip(plain, middle, strict=False)]
    off = [i for i, limit in enumerate(tight) if _middle_row(differences[i]) > limit]
    worst = max(range(len(differences)), key=lambda i: differences[i].max(initial=0.0) / limits[i])
    flat = expected[0].ndim == 2 and expected[0].shape[1] > 1
    return Check(
        engine=engine,
        precision=precision,
        max_abs_diff=float(differences[worst].max(initial=0.0)),
        mean_abs_diff=float(differences[worst].mean()),
        top1_agreement=float((expected[0].argmax(1) == got[0].argmax(1)).mean()) if flat else None,
        tolerance=limits[worst],
        passed=bool(differences[worst].max(initial=0.0) <= limits[worst]) and not off,
        error=_said_of_middle(differences[off[0]], tight[off[0]]) if off else None,
        largest=float(np.abs(expected[worst]).max(initial=0.0)),
    )


def _said_of_middle(differences: np.ndarray, limit: float) -> str:
    return f"half of the rows are off by {_middle_row(differences):.3g} and more, allowed {limit:.3g}"


def _middle_row(differences: np.ndarray) -> float:
    """Return the median over rows of each row's largest difference; 0 where there are too few rows."""
    if differences.ndim < 2 or len(differences) < _FEW_ROWS or not differences.size:
        return 0.0
    return float(np.median(differences.reshape(len(differences), -1).max(axis=1)))
