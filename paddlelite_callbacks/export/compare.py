"""Compare the outputs of an exported file with those of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["KIND_OF_CHECK", "LITE_CHECKS", "PDMODEL_CHECK", "Check", "FileVerdict", "compare_outputs"]

PDMODEL_CHECK = "paddle.pdmodel"  # Paddle Inference on a program in Paddle 2's format: checked, not timed
LITE_CHECKS = {"lite-arm": "paddlelite-arm", "lite-x86": "paddlelite-x86"}  # by the kind of the file
KIND_OF_CHECK = {PDMODEL_CHECK: "pdmodel", **{engine: kind for kind, engine in LITE_CHECKS.items()}}
"""Kinds of the files that are checked and not timed, by the names in their checks."""

_FLIP_FACTOR = 1.5  # estimated over many rows and draws, so nearly the worst case is among them
_FEW_ROWS = 4  # with fewer rows, a rounding flip in one row cannot be told from a wrong scale
_NOISE_FACTOR = 4.0  # the noise is a maximum over a few draws on a few images: a sample of what can happen


@dataclass(frozen=True, kw_only=True)
class Check:
    """Comparison of one engine's outputs with the network's, on the same real inputs.

    Args:
        engine: Name of the engine.
        precision: Precision of the file.
        max_abs_diff: Largest absolute difference, in units of the output.
        mean_abs_diff: Mean absolute difference, in units of the output.
        top1_agreement: Share of rows with the same arg max, 0-1; ``None`` unless the output is ``[N, C]``.
        tolerance: Largest ``max_abs_diff`` allowed.
        passed: Whether the difference is within the tolerance.
        error: Reason why nothing could be compared, or what else failed.
        largest: Largest magnitude of the network's output, in units of the output.
        unverified: Reason why the file itself was not run; the rest is then of its program, run by Paddle.
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
    unverified: str | None = None

    @property
    def verdict(self) -> str:
        """``"agrees"``, or the difference and the tolerance."""
        if self.passed and self.unverified is not None:
            return f"not verified here ({self.unverified}); the program that it was made from agrees in Paddle"
        if self.passed:
            return "agrees"
        return f"differs by {self.distance}" if self.max_abs_diff is not None else f"differs: {self.error}"

    @property
    def distance(self) -> str:
        """Difference, magnitude of the output and tolerance, as text."""
        if self.max_abs_diff is None or self.tolerance is None:
            return str(self.error)
        of = "" if self.largest is None else f" of {self.largest:.3g}"
        within = self.max_abs_diff <= self.tolerance and self.error is not None  # one row, but not most of them
        return f"{self.max_abs_diff:.3g}{of} ({self.error if within else f'allowed {self.tolerance:.3g}'})"


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    """Result of one engine on one file.

    Args:
        engine: Name of the engine.
        precision: Precision of the file.
        agrees: Whether the outputs match the network's; ``None`` where the engine could not run the file.
        text: ``"agrees"``, ``"differs by ... (allowed ...)"`` or ``"could not run, because ..."``.
    """

    engine: str
    precision: str
    agrees: bool | None
    text: str

    @property
    def kind(self) -> str:
        """Kind of the file, see `Artefact`."""
        if self.engine in KIND_OF_CHECK:
            return KIND_OF_CHECK[self.engine]
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
    """Compare outputs of a file with those of the network, within a tolerance.

    No output may differ by more than ``atol + rtol max |expected| + 4 noise + 1.5 flips``.

    A row (image) of a quantised file may differ by that much where a value lies on a rounding threshold. A wrong scale
    or weight shifts every row, so with four rows and more the median row must stay within
    ``atol + rtol max |expected| + 4 middle``.

    Args:
        expected: Outputs of the network, ``[N, ...]`` each.
        got: Outputs of the file, in the same order.
        engine: Name of the engine, for the record.
        precision: Precision of the file, for the record.
        atol: Absolute tolerance, in units of the output.
        rtol: Tolerance relative to the largest expected magnitude of each output.
        noise: Per output, its change by rounding alone, see `rounding_noise`; empty for a float file.
        middle: Per output, the change of the median row by rounding alone, see `middle_noise`; empty for a float file.
        flips: Per output, its change when one value falls into the next quantisation step, see `flip_noise`; empty for
            a float file.

    Returns:
        The comparison. Outputs of another number or shape, and NaN or Inf, do not pass; ``error`` says why.
    """
    shapes = [list(a.shape) for a in expected], [list(b.shape) for b in got]
    if shapes[0] != shapes[1]:
        return Check(engine=engine, precision=precision, error=f"outputs {shapes[1]}, the network's are {shapes[0]}")
    if not expected:
        return Check(engine=engine, precision=precision, error="the network returns no output")
    for owner, outputs in (("the network's own ", expected), ("", got)):
        bad = [i for i, output in enumerate(outputs) if not np.isfinite(output).all()]
        if bad:  # NaN equals nothing, and a tolerance relative to Inf allows everything
            return Check(engine=engine, precision=precision, error=f"NaN or Inf in {owner}output {bad[0]}")
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
    """Return the median over rows of each row's largest difference; 0 for few rows."""
    if differences.ndim < 2 or len(differences) < _FEW_ROWS or not differences.size:
        return 0.0
    return float(np.median(differences.reshape(len(differences), -1).max(axis=1)))
