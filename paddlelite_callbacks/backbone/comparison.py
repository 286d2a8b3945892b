"""Compare a network before and after a swap: weights, MACs, size, latency."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.benchmark.engines import ENGINES
from paddlelite_callbacks.benchmark.latency import measure_latency, summarise
from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.nn.cost import count_macs, count_parameters
from paddlelite_callbacks.nn.surgery import replace_sublayer
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.numbers import counted

__all__ = ["Cost", "SwapSummary", "compare"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters, MACs, size and latency of a network.

    Args:
        name: Name of its class.
        parameters: Number of weights.
        macs: Multiply-accumulates for one image.
        size_mb: Size of its exported files, in MB (1e6 bytes).
        p50_ms: Median latency for one image, milliseconds.
        error: Reason for a missing size or latency.
    """

    name: str
    parameters: int
    macs: int
    size_mb: float | None = None
    p50_ms: float | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class SwapSummary:
    """Cost before and after a swap; latencies were interleaved in one process.

    Args:
        before: Cost of the original network.
        after: Cost with the new backbone.
        engine: Engine that was timed.
        threads: Its number of CPU threads.
        repeats: Number of timed calls.
    """

    before: Cost
    after: Cost
    engine: str
    threads: int
    repeats: int

    @property
    def latency_ratio(self) -> float | None:
        """Return latency after over before; ``None`` where one is missing."""
        before, after = self.before.p50_ms, self.after.p50_ms
        return None if before is None or after is None else after / before

    def __str__(self) -> str:
        ratio = "" if self.latency_ratio is None else f"; latency x{self.latency_ratio:.2f}"
        rows = [
            f"{self.engine}, {counted(self.threads, 'thread')}, batch 1, median of {self.repeats} in turn{ratio}",
            "",
        ]
        rows += ["| | parameters M | MACs M | size MB | ms |", "|---|---|---|---|---|"]
        for name, cost in (("before", self.before), ("after", self.after)):
            size = "-" if cost.size_mb is None else f"{cost.size_mb:.2f}"
            latency = f"no figure: {cost.error}" if cost.p50_ms is None else f"{cost.p50_ms:.2f}"
            rows.append(f"| {name} | {cost.parameters / 1e6:.2f} | {cost.macs / 1e6:.0f} | {size} | {latency} |")
        return "\n".join(rows)


def compare(
    old: Layer,
    new: Layer,
    *,
    at: str | None,
    old_layer: Layer | None,
    inputs: Sequence[Any],
    new_inputs: Sequence[Any] | None = None,
    engine: str = "paddle",
    threads: int = 1,
    warmup: int = 5,
    repeats: int = 30,
) -> SwapSummary:
    """Export both networks to a temporary folder and benchmark them.

    Args:
        old: Network before the swap; after one in place, the network in a copy of which ``old_layer`` is restored.
        new: Network after the swap.
        at: Name of the swapped sublayer, if inside.
        old_layer: Original sublayer.
        inputs: One image for each input, or dictionaries and lists of them.
        new_inputs: Inputs of ``new``, where it takes others.
        engine: Name in `ENGINES`.
        threads: Number of CPU threads.
        warmup: Number of uncounted rounds.
        repeats: Number of counted rounds.

    Raises:
        ValueError: Unknown engine, or a number out of range.
    """
    if engine not in ENGINES:
        raise ValueError(f"Unknown engine {engine!r}; near names: {near_names(engine, ENGINES)}. Choose one of these.")
    before = copy.deepcopy(old)
    if at is not None and old_layer is not None:
        replace_sublayer(before, at, copy.deepcopy(old_layer))
    networks, costs, calls = {"before": before, "after": new}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for key, network in networks.items():
            given = inputs if key == "before" or new_inputs is None else new_inputs
            cost = Cost(
                name=type(network).__name__, parameters=count_parameters(network), macs=count_macs(network, given)
            )
            try:
                size, calls[key] = _loaded(network, Path(folder, key), given, engine, threads)
                costs[key] = replace(cost, size_mb=size)
            except Exception as error:
                costs[key] = replace(cost, error=reason(error))
        for key, durations in measure_latency(calls, warmup=warmup, repeats=repeats).items():
            costs[key] = replace(costs[key], p50_ms=summarise(durations)["p50_ms"])
    return SwapSummary(before=costs["before"], after=costs["after"], engine=engine, threads=threads, repeats=repeats)


def _loaded(
    network: Layer, folder: Path, inputs: Sequence[Any], engine: str, threads: int
) -> tuple[float, Callable[[], object]]:
    flat = paddle.utils.flatten(list(inputs))
    specs = [InputSpec([None, *x.shape[1:]], dtype=str(x.numpy().dtype), name=f"x{i}") for i, x in enumerate(flat)]
    artefact = export_paddle(network, folder, input_spec=paddle.utils.pack_sequence_as(list(inputs), specs))
    if ENGINES[engine].kind == "onnx":
        artefact = export_onnx(artefact, folder / "model.onnx")
    predict = ENGINES[engine].load(artefact, threads=threads)
    random = np.random.RandomState(0)
    arrays = [random.rand(*x.shape).astype(x.numpy().dtype) for x in flat]
    predict(arrays)
    return artefact.size_mb, lambda: predict(arrays)
