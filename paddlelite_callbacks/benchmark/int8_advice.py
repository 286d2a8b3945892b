"""Advise whether int8 pays: faster, and without a loss of accuracy."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.utils.metric_direction import falls_with_quality

__all__ = ["int8_notes"]

_PAIRS = "onnxruntime"  # runs a layer in int8 if both its input and its output are quantised
_SHOWN = 5  # layers in a sentence
_Key = tuple[str, str]  # engine and precision


def int8_notes(
    latencies: Sequence[Latency],
    *,
    agreeing: Collection[_Key] | None = None,
    file_metrics: Sequence[FileMetrics] = (),
    noisy: bool = False,
    float_layers: Sequence[str] = (),
) -> tuple[str, ...]:
    """Compare int8 files with the fp32 files of the same timing, by fastest call.

    Paddle's program with int8 weights counts as neither: it is small, but computes in float. A file that an engine does
    not compute correctly is not compared, and none is recommended whose metrics, as measured on the files, are worse.

    Args:
        latencies: Rows of one benchmark.
        agreeing: Engine and precision of the files whose outputs match the network's; ``None`` for all.
        file_metrics: Metrics measured on the files.
        noisy: Whether the measurements were noisy; speed is then not judged.
        float_layers: Quantised layers that ONNX Runtime computes in float, see `float_layers`.

    Returns:
        One sentence on the best files, one per engine on which int8 is slower, and one on the layers in float; empty
        without an int8 file.
    """
    return (*_speed_notes(latencies, agreeing, file_metrics, noisy), *_float_note(float_layers))


def _float_note(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return (
        f"ONNX Runtime computes {len(names)} quantised layers in float ({shown}): in int8 only those with a quantizer "
        "right behind them (quantize_outputs=True).",
    )


def _speed_notes(
    latencies: Sequence[Latency],
    agreeing: Collection[_Key] | None,
    file_metrics: Sequence[FileMetrics],
    noisy: bool,
) -> tuple[str, ...]:
    """Compare the files; see `int8_notes`."""
    timed = {
        (row.engine, row.precision): row.p50_ms if row.min_ms is None else row.min_ms
        for row in latencies
        if row.p50_ms is not None and (agreeing is None or (row.engine, row.precision) in agreeing)
    }
    engines = [engine for engine, precision in timed if precision == "int8" and (engine, "fp32") in timed]
    if not engines or noisy:
        return ()
    best_int8 = min(engines, key=lambda engine: timed[engine, "int8"])
    best_fp32 = min(engines, key=lambda engine: timed[engine, "fp32"])
    ratio = timed[best_int8, "int8"] / timed[best_fp32, "fp32"]
    worse = _lost(file_metrics, (best_fp32, "fp32"), (best_int8, "int8"))
    fast, slow = timed[best_int8, "int8"], timed[best_fp32, "fp32"]
    if ratio >= 1:
        less = _lost(file_metrics, (best_int8, "int8"), (best_fp32, "fp32"))
        return (
            f"int8 is slower than fp32 on every engine for this network here ({best_int8} {fast:.2f} ms against "
            f"{best_fp32} {slow:.2f} ms): {_advised(less, file_metrics)}",
        )
    notes = [
        f"int8 ({best_int8}, {fast:.2f} ms) takes {ratio:.2f} of the time of the best fp32 file ({best_fp32}, "
        f"{slow:.2f} ms)" + (f", and loses: {worse}." if worse else ".")
    ]
    for engine in engines:
        if timed[engine, "int8"] <= timed[engine, "fp32"]:
            continue
        less = _lost(file_metrics, (engine, "int8"), (engine, "fp32"))
        notes.append(
            f"On {engine} int8 takes {timed[engine, 'int8'] / timed[engine, 'fp32']:.2f} of fp32's time"
            + (f"; model.onnx is faster there, but loses: {less}." if less else ": use model.onnx there.")
            + (" Or train with quantize_outputs=True, which it needs to compute in int8." if engine == _PAIRS else "")
        )
    return tuple(notes)


def _advised(lost: str | None, file_metrics: Sequence[FileMetrics]) -> str:
    if lost:
        return f"model.onnx is the faster file, but loses: {lost}. Ship model.int8.onnx."
    known = "" if any(row.metrics for row in file_metrics) else " Their accuracies were not measured: give eval_data."
    return f"ship model.onnx for speed; model.int8.onnx is the smaller file only.{known}"


def _lost(file_metrics: Sequence[FileMetrics], mine: _Key, other: _Key) -> str | None:
    """Return the metrics that are worse on ``other`` than on ``mine``, or ``None``."""
    by_file = {(row.engine, row.precision): row.metrics for row in file_metrics}
    have, get = by_file.get(mine, {}), by_file.get(other, {})
    worse = [
        f"{name} {get[name]:.4g} against {value:.4g}"
        for name, value in have.items()
        if name in get and (get[name] > value if falls_with_quality(name) else get[name] < value)
    ]
    return ", ".join(worse) or None
