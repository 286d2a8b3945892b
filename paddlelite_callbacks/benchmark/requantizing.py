"""Estimate the cost of moving a network to Paddle Lite's symmetric grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer

from paddlelite_callbacks.benchmark.accuracy import measure_metrics
from paddlelite_callbacks.benchmark.engines import Predict
from paddlelite_callbacks.export.hooks import copy_with_hooks
from paddlelite_callbacks.nn.nested import flat_outputs
from paddlelite_callbacks.quant.prepare import activation_quantizers
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.workarounds.data_loader import ended_with_the_epoch

__all__ = ["NOT_ON_LITE_GRID", "on_symmetric_grid", "requantizing_note"]

NOT_ON_LITE_GRID = (
    "No int8 file for Paddle Lite will be written: the network is quantised on grids that Paddle Lite does not have. "
    "Train with activation_symmetric=True."
)


def on_symmetric_grid(network: Layer) -> Layer:
    """Return a copy with every activation on the symmetric grid of the same range.

    Args:
        network: Quantised by `prepare_pact_`; not changed.
    """
    duplicate = copy_with_hooks(network)
    for quantizer in activation_quantizers(duplicate).values():
        if quantizer.calibrated:
            quantizer.make_symmetric()
    return duplicate


def requantizing_note(
    network: Layer,
    sample: Sequence[np.ndarray],
    *,
    metrics: Sequence[paddle.metric.Metric] = (),
    batches: Callable[[], Iterable[Any]] | None = None,
    inputs: int = 1,
    used: Sequence[int] | None = None,
) -> str:
    """Return why there is no int8 file for Paddle Lite, and what its grid costs.

    Args:
        network: Quantised on other grids, in eval mode; not changed.
        sample: Inputs, one array each.
        metrics: Metrics of ``model.prepare``; without them the change of the outputs on ``sample`` is reported.
        batches: Function that returns the evaluation data.
        inputs: Number of items of a batch that are inputs.
        used: Indices of the inputs that ``network`` takes; ``None`` for all.
    """
    begin = "No int8 file for Paddle Lite: the network was quantised on grids that Paddle Lite does not have."
    end = "Train with activation_symmetric=True for a file that is as good as the training says."
    try:
        moved = on_symmetric_grid(network)
        if batches is not None and metrics:
            forms = {("as trained", "int8"): _predict(network), ("symmetric", "int8"): _predict(moved)}
            with ended_with_the_epoch(batches()) as data:
                rows = measure_metrics(forms, metrics, data, inputs=inputs, used=used, verbose=0)
            if failed := [row.error for row in rows if row.error]:
                return f"{begin} What moving it there would cost was not measured: {failed[0]}. {end}"
            now, then = rows[0].metrics, rows[1].metrics
            said = ", ".join(f"{name} {now[name]:.4g} -> {then[name]:.4g}" for name in now)
            return f"{begin} Moved to its grid without training it would lose: {said} ({rows[0].samples} images). {end}"
        changes = [
            (float(np.abs(a - b).max(initial=0.0)), float(np.abs(a).max(initial=0.0)))
            for a, b in zip(_predict(network)(sample), _predict(moved)(sample), strict=True)
        ]
        largest, of = max(changes)
        return f"{begin} Moved to its grid without training its output would change by {largest:.3g} of {of:.3g}. {end}"
    except Exception as error:  # the other exported files are valid nevertheless
        return f"{begin} What moving it there would cost was not measured: {reason(error)}. {end}"


def _predict(network: Layer) -> Predict:
    def predict(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with paddle.no_grad():
            return [item.numpy() for item in flat_outputs(network(*[paddle.to_tensor(item) for item in arrays]))]

    return predict
