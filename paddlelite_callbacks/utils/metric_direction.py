"""Direction of metrics: higher or lower is better."""

from __future__ import annotations

import re

__all__ = ["MODES", "checked_mode", "falls_with_quality", "keeps_metric"]

MODES = ("auto", "max", "min")

_WORDS = frozenset(
    (
        *("mse", "rmse", "nmse", "nrmse", "rmsle", "mae", "mape", "smape"),
        *("nme", "epe", "mpjpe", "cer", "wer", "eer", "fid", "lpips", "perplexity"),
    )
)  # names of error metrics; losses and other errors are recognised by their endings
_ENDINGS = ("loss", "losses", "err", "error", "errors")


def falls_with_quality(name: str, mode: str = "auto") -> bool:
    """Whether lower values of metric ``name`` are better.

    Args:
        name: Name of the metric, for instance ``"acc"`` or ``"val_rmse"``.
        mode: ``"max"`` or ``"min"`` decides; ``"auto"`` infers it from the name: lower is better where one of its words
            ends in ``loss``, ``err`` or ``error``, or is an error metric (``mae``, ``mse``, ``rmse``, ``nme``, ...).
    """
    if mode != "auto":
        return mode == "min"
    words = [word for word in re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()) if word]
    return any(word in _WORDS or word.endswith(_ENDINGS) for word in words)


def checked_mode(mode: str) -> str:
    """Validate ``mode``.

    Raises:
        ValueError: ``mode`` is not one of `MODES`.
    """
    if mode not in MODES:
        raise ValueError(
            f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}: use 'min' where a smaller "
            "value is better."
        )
    return mode


def keeps_metric(value: float, baseline: float, metric_drop: float, *, falls: bool) -> bool:
    """Whether a metric lost no more than ``metric_drop``.

    Args:
        value: Metric to judge.
        baseline: Metric that it is compared with.
        metric_drop: Accepted drop, as a share of ``baseline``.
        falls: Whether lower is better.
    """
    lost = value - baseline if falls else baseline - value
    return lost <= metric_drop * abs(baseline) + 1e-12
