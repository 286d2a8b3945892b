"""Metrics of each epoch, and the weights of the best one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.utils.metric_direction import falls_with_quality
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = ["History"]

_ASIDE = ("step", "batch_size", "steps")


class History:
    """Metrics of the epochs of one ``fit``, and a copy of the best weights.

    Args:
        keep_best: Whether to keep a copy of the best weights.
        monitor: Name of an evaluation metric; ``None`` takes the first metric, or the loss if there is none.
        mode: ``"max"``, ``"min"`` or ``"auto"``, see `falls_with_quality`.

    Attributes:
        rows: One dictionary per epoch: ``epoch`` (from 1), training metrics, evaluation metrics as ``eval_<name>``.
        metrics: Metrics of the evaluation whose weights are in `state`, or of the last one.
        state: ``state_dict`` of the best epoch as NumPy arrays; ``None`` if none was kept.
        epoch: Epoch of ``metrics``, from 1.
    """

    def __init__(self, *, keep_best: bool, monitor: str | None, mode: str) -> None:
        self.rows: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        self.state: dict[str, np.ndarray] | None = None
        self.epoch: int | None = None
        self._keep_best, self._monitor, self._mode, self._best = keep_best, monitor, mode, math.nan

    def trained(self, epoch: int, logs: Mapping[str, Any] | None, names: Collection[str]) -> None:
        """Add the metrics of a training epoch.

        Args:
            epoch: Index of the epoch, from 0.
            logs: ``logs`` of hapi, one dictionary for all models of the process, so it may hold those of others.
            names: Names of this model's metrics.
        """
        mine = {key: value for key, value in figures_of(logs).items() if key in ("loss", *names)}
        if self.rows and self.rows[-1]["epoch"] == epoch + 1:  # evaluated before its end, in the user's own loop
            self.rows[-1].update(mine)
        else:
            self.rows.append({"epoch": epoch + 1, **mine})

    def evaluated(self, network: Layer, logs: Mapping[str, Any] | None, names: Collection[str]) -> None:
        """Add the metrics of an evaluation; keep the weights if they are the best.

        Args:
            network: Evaluated network.
            logs: ``logs`` of hapi, see `trained`.
            names: Names of this model's metrics.

        Raises:
            ValueError: The evaluation has no metric ``monitor``.
        """
        figures = {key: value for key, value in figures_of(logs).items() if key in ("loss", *names)}
        if self.rows:
            self.rows[-1].update({f"eval_{key}": value for key, value in figures.items()})
        if self._keep_best and not self._better(figures):
            return
        self.metrics, self.epoch = figures, int(self.rows[-1]["epoch"]) if self.rows else None
        if self._keep_best:
            self.state = {key: value.numpy().copy() for key, value in network.state_dict().items()}

    def consider(self, figures: dict[str, float], state: dict[str, np.ndarray]) -> None:
        """Keep the weights from before training, if they are the best.

        Args:
            figures: Evaluation metrics by name; ignored where the monitored one is missing.
            state: ``state_dict`` as NumPy arrays.
        """
        if self._keep_best and self.state is not None and self._monitored(figures) in figures and self._better(figures):
            self.metrics, self.epoch, self.state = figures, 0, state

    @contextmanager
    def best_weights(self, network: Layer) -> Iterator[None]:
        """Load the kept weights into ``network`` inside the block, if any.

        Raises:
            RuntimeError: The network's layers have changed since.
        """
        if self.state is None:
            yield
            return
        now = network.state_dict()
        if now.keys() != self.state.keys():
            other = sorted(now.keys() ^ self.state.keys())
            raise RuntimeError(f"The best epoch's weights do not fit the network as it is now: {other[:5]} differ.")
        last = {key: value.numpy().copy() for key, value in now.items()}
        try:
            network.set_state_dict(self.state)
            yield
        finally:
            with uninterrupted():
                network.set_state_dict(last)

    def _monitored(self, figures: dict[str, float]) -> str:
        return self._monitor or next((key for key in figures if key != "loss"), "loss")

    def _better(self, figures: dict[str, float]) -> bool:
        name = self._monitored(figures)
        if name not in figures:
            raise ValueError(f"Unknown metric monitor={name!r}; available: {sorted(figures)}. Name one of them.")
        value = -figures[name] if falls_with_quality(name, self._mode) else figures[name]
        if math.isnan(self._best) or value > self._best:
            self._best = value
            return True
        return False


def figures_of(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the numbers in hapi's ``logs``; for a list (losses) its first item."""
    figures = {}
    for key, value in (logs or {}).items():
        number = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(number, Tensor):
            continue
        if key not in _ASIDE and isinstance(number, (int, float, np.floating)):
            figures[key] = float(number)
    return figures
