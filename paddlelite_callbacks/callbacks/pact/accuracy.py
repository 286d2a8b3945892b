"""Put layers back to float until the int8 file of a network keeps a limit."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.benchmark.engines import DEFAULT_ENGINES, missing_reason
from paddlelite_callbacks.benchmark.latency import measure_latency
from paddlelite_callbacks.callbacks.pact.diagnosis import kept_inputs, metric_of
from paddlelite_callbacks.callbacks.pact.int8_file import answered_by, int8_file
from paddlelite_callbacks.errors import ExportError, MissingDependencyError
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.quant.layer_search import SearchPoint, search_layers
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.sensitivity import layer_sqnr
from paddlelite_callbacks.quant.switch import put_back, put_back_, quantizers_off
from paddlelite_callbacks.report.record import LayerPoint
from paddlelite_callbacks.utils.distributed import of_first_rank
from paddlelite_callbacks.utils.metric_direction import falls_with_quality, keeps_metric
from paddlelite_callbacks.utils.numbers import check_number
from paddlelite_callbacks.utils.progress import tqdm

__all__ = ["KeptMetric", "keep_metric_"]

_log = logging.getLogger(__name__)
_CALLS = 10  # timed calls of one file


@dataclass(frozen=True, kw_only=True)
class KeptMetric:
    """Result of `keep_metric_`.

    Args:
        metric: Name of the metric.
        fp32: Metric with the quantizers disabled.
        int8: Metric of the int8 file with ``layers`` in float; ``None`` if no file keeps the limit.
        metric_drop: Accepted drop, as a share of ``fp32``.
        engine: Engine that ran the files.
        layers: Layers that were put back to float.
        curve: All files that were made, in order.
    """

    metric: str
    fp32: float
    int8: float | None
    metric_drop: float
    engine: str
    layers: tuple[str, ...]
    curve: tuple[LayerPoint, ...]

    def lines(self) -> tuple[str, ...]:
        """Return the result as lines for a report."""
        limit = f"{100 * self.metric_drop:g} % of fp32's {self.fp32:.4f}"
        if self.int8 is None:
            return (f"No int8 file of {len(self.curve)} keeps {self.metric} within {limit}: no layer was put back.",)
        put = f"put back to float: {', '.join(self.layers)}" if self.layers else "no layer was put back"
        return (f"{self.metric} {self.int8:.4f} of the int8 file ({self.engine}) is within {limit}; {put}.",)


def keep_metric_(
    model: paddle.Model,
    data: Any,
    *,
    metric_drop: float,
    mode: str = "auto",
    engine: str | None = None,
    rebuild: Callable[[frozenset[str]], Layer] | None = None,
    most: int = 40,
    verbose: int = 1,
) -> KeptMetric:
    """Put the fewest layers back to float so that the int8 file keeps a limit.

    Layers are ranked by their noise (see `layer_sqnr`), then searched by the metric of the exported file, see
    `search_layers`. For networks trained with `PACTQuantCallback`; with ``rebuild`` for `ptq_int8`, which corrects
    biases again for each set of layers.

    Args:
        model: Prepared model with a quantised network, which is changed only where a file keeps the limit; with
            ``rebuild`` with the float network, which is not changed.
        data: ``Dataset`` or ``DataLoader`` with labels. With several processes all must call this.
        metric_drop: Accepted drop, as a share of the fp32 metric, in [0, 1).
        mode: ``"max"``, ``"min"`` or ``"auto"``, see `falls_with_quality`.
        engine: Engine that ships, ``"onnxruntime"`` or ``"openvino"``; ``None`` for the first that is installed.
        rebuild: Returns the quantised network with these layers in float; ``None`` puts them back in ``model``.
        most: Largest number of files to make.
        verbose: 1 shows a progress bar, 0 nothing.

    Raises:
        ValueError: ``metric_drop`` is out of range, the engine reads no ONNX files, or nothing is quantised.
        MissingDependencyError: There is no engine for ONNX files.
        ExportError: The int8 file cannot be written.

    Example:
        >>> model = paddle.Model(network)  # doctest: +SKIP
        >>> model.prepare(metrics=paddle.metric.Accuracy())  # doctest: +SKIP
        >>> rebuild = lambda skip: ptq_int8(network, images, skip=list(skip))  # doctest: +SKIP
        >>> found = keep_metric_(model, eval_data, metric_drop=0.01, rebuild=rebuild)  # doctest: +SKIP
        >>> quantised = ptq_int8(network, images, skip=found.layers)  # doctest: +SKIP
    """
    words = "a share of the fp32 metric in [0, 1)"
    check_number("metric_drop", metric_drop, lambda drop: 0 <= drop < 1, words, remedy="give 0.01 for one per cent")
    network, chosen = model.network, _engine(engine)
    quantised = network if rebuild is None else rebuild(frozenset())
    names = [name for name, layer in quantized_layers(quantised).items() if layer.weight_quanter is not None]
    if not names:
        raise ValueError(
            f"{type(network).__name__} has no quantised layer: train it with PACTQuantCallback, or call ptq_int8."
        )
    with same_modes(network), kept_inputs(network) as batches, quantizers_off(network):
        metric, plain = metric_of(model, data)
    falls = falls_with_quality(metric, mode)
    noisy = of_first_rank(layer_sqnr(quantised, batches))
    bar = tqdm(desc="layers in float", unit="file", leave=False, disable=not verbose)

    def evaluate(layers: frozenset[str]) -> SearchPoint:
        if len(layers) == len(names):
            return SearchPoint(layers=layers, metric=plain)
        if rebuild is not None:
            value, latency = _of_the_file(model, rebuild(layers), data, batches, chosen)
        else:
            with put_back(network, layers):
                value, latency = _of_the_file(model, network, data, batches, chosen)
        bar.update()
        return SearchPoint(layers=layers, metric=value, latency_ms=latency)

    def keeps(value: float) -> bool:
        return keeps_metric(value, plain, metric_drop, falls=falls)

    ranked = [name for name in noisy if name in names]
    with same_modes(network), bar:
        found = search_layers(ranked, evaluate, keeps, higher_is_better=not falls, most=most)
    best = None if found.best is None or len(found.best.layers) == len(names) else found.best
    if best is not None and rebuild is None:
        put_back_(network, best.layers)
    points = [
        LayerPoint(layers=tuple(sorted(p.layers)), metric=p.metric, latency_ms=p.latency_ms) for p in found.points
    ]
    made = KeptMetric(
        metric=metric,
        fp32=plain,
        int8=None if best is None else best.metric,
        metric_drop=metric_drop,
        engine=chosen,
        layers=() if best is None else tuple(sorted(best.layers)),
        curve=tuple(replace(p, chosen=best is not None and frozenset(p.layers) == best.layers) for p in points),
    )
    if best is None:
        _log.warning("%s", made.lines()[0])
    return made


def _engine(name: str | None) -> str:
    engines = {engine.name: engine for engine in DEFAULT_ENGINES.values() if engine.kind == "onnx"}
    if name is not None and name not in engines:
        raise ValueError(f"engine must be one of {list(engines)}, which read ONNX files, got {name!r}: leave it out.")
    chosen = [one for one in engines.values() if name in (None, one.name)]
    reasons = [missing_reason(engine) for engine in chosen]
    if None not in reasons:
        raise MissingDependencyError(f"The int8 file needs an engine: {'; '.join(map(str, reasons))}.")
    return chosen[reasons.index(None)].name


def _of_the_file(
    model: paddle.Model, quantised: Layer, data: Any, batches: list[list[paddle.Tensor]], engine: str
) -> tuple[float, float]:
    """Return metric and fastest call, in ms, of the exported int8 file."""
    with tempfile.TemporaryDirectory() as folder:
        file, why = int8_file(quantised, batches[0], Path(folder))
        if file is None:
            raise ExportError(f"There is no int8 file: {why}.")
        predict = DEFAULT_ENGINES[engine].load(file, threads=1)
        first = [item[:1].numpy() for item in batches[0]]
        times = measure_latency({"file": lambda: predict(first)}, warmup=3, repeats=_CALLS, settle=1)["file"]
        with answered_by(model.network, predict):
            return metric_of(model, data)[1], min(times)
