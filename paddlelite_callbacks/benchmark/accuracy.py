"""Compute the user's metrics on exported files, engine by engine."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from paddlelite_callbacks.benchmark.engines import Predict, in_batches
from paddlelite_callbacks.nn.nested import listed
from paddlelite_callbacks.utils.deprecation import Renamed, old_arguments
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.progress import tqdm
from paddlelite_callbacks.workarounds.data_loader import known_length

__all__ = ["FileMetrics", "measure_metrics"]


@dataclass(frozen=True, kw_only=True)
class FileMetrics:
    """Metrics of one file on one engine.

    Args:
        engine: Name of the engine.
        precision: Precision of the file.
        metrics: Values by the names that ``paddle.Model.evaluate`` uses.
        samples: Number of images evaluated.
        error: Reason why there are no metrics.
    """

    engine: str
    precision: str
    metrics: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    error: str | None = None


@old_arguments(progress=Renamed("verbose", int))
def measure_metrics(
    files: Mapping[tuple[str, str], Predict],
    metrics: Sequence[paddle.metric.Metric],
    batches: Iterable[Any],
    *,
    inputs: int = 1,
    used: Sequence[int] | None = None,
    rows: int | None = None,
    verbose: int = 1,
) -> tuple[FileMetrics, ...]:
    """Evaluate all files on the same batches, each loaded once.

    Args:
        files: Predict function by engine and precision.
        metrics: Metrics of ``model.prepare``; copies are used.
        batches: Batches as ``paddle.Model.evaluate`` takes them, inputs before labels, nested or not.
        inputs: Number of a batch's items that the network takes.
        used: Indices of the inputs that the files take; ``None`` for all.
        rows: Exact number of images per call; ``None`` for any.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        One row per file, with a reason where it or a metric failed.
    """
    runs = {key: _Run(in_batches(predict, rows), metrics) for key, predict in files.items()}
    total = known_length(batches)  # tqdm would fail on a loader over an IterableDataset
    for batch in tqdm(batches, desc="accuracy of the files", total=total, leave=False, disable=not verbose):
        items = paddle.utils.flatten(batch)
        given = [items[i] for i in (range(len(items[:inputs])) if used is None else used)]
        arrays = [np.ascontiguousarray(item.numpy() if isinstance(item, Tensor) else item) for item in given]
        labels = [item if isinstance(item, Tensor) else paddle.to_tensor(item) for item in items[inputs:]]
        for run in runs.values():
            run.step(arrays, labels)
    return tuple(run.result(*key) for key, run in runs.items())


class _Run:
    def __init__(self, predict: Predict, metrics: Sequence[paddle.metric.Metric]) -> None:
        self._predict, self._metrics, self._samples = predict, copy.deepcopy(list(metrics)), 0
        self._error: str | None = None
        for metric in self._metrics:
            metric.reset()

    def step(self, arrays: list[np.ndarray], labels: list[Tensor]) -> None:
        if self._error is not None:
            return
        try:
            outputs = [paddle.to_tensor(array) for array in self._predict(arrays)]
            for metric in self._metrics:
                computed = listed(metric.compute(*outputs, *labels))
                metric.update(*[item.numpy() if isinstance(item, Tensor) else item for item in computed])
            self._samples += len(arrays[0])
        except Exception as error:
            self._error = reason(error)

    def result(self, engine: str, precision: str) -> FileMetrics:
        error = self._error or ("the evaluation data gave no batch" if not self._samples else None)
        figures: dict[str, float] = {}
        for metric in self._metrics if error is None else ():
            figures.update(zip(listed(metric.name()), map(float, listed(metric.accumulate())), strict=True))
        return FileMetrics(engine=engine, precision=precision, metrics=figures, samples=self._samples, error=error)
