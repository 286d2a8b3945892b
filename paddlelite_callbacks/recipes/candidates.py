"""Choose light networks by their cost on this machine, before training."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import paddle
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.backbone.catalogue import Backbone, list_backbones
from paddlelite_callbacks.benchmark.engines import ENGINES, missing_reason
from paddlelite_callbacks.benchmark.latency import measure_latency, summarise
from paddlelite_callbacks.errors import MissingDependencyError
from paddlelite_callbacks.export.onnx_export import export_onnx
from paddlelite_callbacks.export.paddle_program import export_paddle
from paddlelite_callbacks.nn.cost import count_macs, count_parameters
from paddlelite_callbacks.report.budget import Budget
from paddlelite_callbacks.utils.error_text import reason
from paddlelite_callbacks.utils.isolation import hushed_stdout

__all__ = ["Candidate", "choose", "measure_candidates", "shortlist", "table_lines"]

_GUIDES = ("PPLCNet_x2_5", "MobileNetV3_large_x1_0", "MobileNetV3_small_x1_0")
_FAMILIES = ("PPLCNet_", "MobileNetV3_")  # the guide's families, each exported and quantised once for the catalogue
_INT8_SHARE = 0.3  # size of an int8 file over fp32: weights a quarter, program unchanged
_LAST_WIDTH = 1000  # features in front of the last layer; 960-1280 are usual
_LIGHTER = 0.8  # largest share of the large network's multiply-accumulates


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Light network with its cost on this machine.

    Args:
        name: Name for `BackboneSwap`.
        parameters: Number of weights.
        macs: Multiply-accumulates per image.
        size_mb: Size of the exported fp32 program and parameters, MB; ``None`` if it cannot be exported.
        latency_ms: Median latency of one image on the fastest engine, ms.
        engine: Name of the fastest engine.
        export_seconds: Duration of the export, seconds.
        fits: ``"fp32"`` if the fp32 file meets the budget, ``"int8"`` if only the quantised file may, else ``"no"``.
        error: Reason why there are no measurements.
    """

    name: str
    parameters: int = 0
    macs: int = 0
    size_mb: float | None = None
    latency_ms: float | None = None
    engine: str | None = None
    export_seconds: float = 0.0
    fits: str = "no"
    error: str | None = None


def shortlist(budget: Budget, *, most_macs: int, pixels: int, count: int, classes: int = 1000) -> list[str]:
    """Return the catalogue's names to measure, in descending order of cost.

    These are the networks that were exported and quantised for the catalogue, and the guide's families, if their int8
    file can meet the size limit and they need fewer multiply-accumulates than the large network. If there are too many:
    the guide's own choices, then an even selection over the costs, two thirds of which meet the size limit in fp32.

    Args:
        budget: Budget with the size limit.
        most_macs: Multiply-accumulates of the large network per image.
        pixels: Height times width of an image.
        count: Maximum number of names.
        classes: Number of classes; the catalogue's sizes are for 1,000.
    """
    there = {name: importlib.util.find_spec(name) is not None for name in ("paddleclas", "paddle")}
    scale = pixels / 224**2
    size = math.inf if budget.size_mb is None else budget.size_mb
    pool = [
        one
        for one in list_backbones()
        if one.source != "models"
        and there[one.source.partition(".")[0]]
        and (one.checks.get("onnx") is one.checks.get("pact") is True or one.name.startswith(_FAMILIES))
        and one.macs * scale < _LIGHTER * most_macs
        and _fp32_mb(one, classes) * _INT8_SHARE <= size
    ]
    pool.sort(key=lambda one: -one.macs)
    if len(pool) <= count:
        return [one.name for one in pool]
    chosen = {one.name for one in pool if one.name in _GUIDES and _fp32_mb(one, classes) <= size}
    for part, wanted in (
        ([one for one in pool if _fp32_mb(one, classes) <= size], math.ceil(2 * count / 3)),
        ([one for one in pool if _fp32_mb(one, classes) > size], count),
        (pool, count),
    ):
        for one in _spread([one for one in part if one.name not in chosen], wanted - len(chosen)):
            chosen.add(one.name)
    return [one.name for one in pool if one.name in chosen][:count]


def _fp32_mb(one: Backbone, classes: int) -> float:
    """Return the fp32 size in MB for ``classes``, by the last layer's usual width."""
    saved = _LAST_WIDTH * max(0, 1000 - classes)
    return max(one.trunk_parameters, one.parameters - saved) * 4e-6


def _spread(sorted_ones: Sequence[Backbone], count: int) -> list[Backbone]:
    """Return at most ``count`` items, evenly spaced in the given order."""
    if count <= 0 or not sorted_ones:
        return []
    places = np.linspace(0, len(sorted_ones) - 1, min(count, len(sorted_ones)))
    return [sorted_ones[place] for place in dict.fromkeys(round(place) for place in places)]


def measure_candidates(
    names: Sequence[str],
    make: Callable[[str], Layer],
    images: Sequence[np.ndarray],
    budget: Budget,
    *,
    engines: Sequence[str] | None = None,
    warmup: int = 3,
    repeats: int = 15,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Candidate]:
    """Build, export and time each on one CPU thread, interleaved in this process.

    Args:
        names: Names of the candidates.
        make: Function that builds a network by its name.
        images: One array per input, with batch size 1.
        budget: Budget for `Candidate.fits`; if it names an engine, only that is timed.
        engines: Some of `ENGINES`; ``None`` for all that are installed.
        warmup: Number of warm-up rounds.
        repeats: Number of timed rounds.
        progress: Function called with each name before it is built.

    Returns:
        One `Candidate` per name; ``error`` is set if it cannot be built or exported.
    """
    found: dict[str, Candidate] = {}
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    wanted = [budget.engine] if budget.engine else list(engines or ENGINES)
    usable = [ENGINES[name] for name in wanted if missing_reason(ENGINES[name]) is None]
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            progress(name)
            try:
                with paddle.utils.unique_name.guard(f"candidate_{number}_"):
                    network = make(name)
                network.eval()
                begin = time.perf_counter()
                size, loaded = _exported(network, Path(folder) / str(number), images, [e.name for e in usable])
                found[name] = Candidate(
                    name=name,
                    parameters=count_parameters(network),
                    macs=count_macs(network, [paddle.to_tensor(image) for image in images]),
                    size_mb=size,
                    export_seconds=time.perf_counter() - begin,
                )
                calls.update({(name, engine): call for engine, call in loaded.items()})
            except Exception as error:
                found[name] = Candidate(name=name, error=reason(error))
        with hushed_stdout():
            durations = measure_latency(calls, warmup=warmup, repeats=repeats, shuffle=True) if calls else {}
    for (name, engine), values in durations.items():
        median, best = summarise(values)["p50_ms"], found[name].latency_ms
        if best is None or median < best:
            found[name] = replace(found[name], latency_ms=median, engine=engine)
    return [replace(one, fits=_fits(one, budget)) for one in found.values()]


def _exported(
    network: Layer, folder: Path, images: Sequence[np.ndarray], engines: Sequence[str]
) -> tuple[float, dict[str, Callable[[], object]]]:
    specs = [InputSpec([None, *x.shape[1:]], dtype=str(x.dtype), name=f"x{i}") for i, x in enumerate(images)]
    with hushed_stdout():
        program = export_paddle(network, folder, input_spec=specs)
        files = {"paddle": program}
        if any(ENGINES[name].kind == "onnx" for name in engines):
            with contextlib.suppress(MissingDependencyError):
                files["onnx"] = export_onnx(program, folder / "model.onnx")
        calls: dict[str, Callable[[], object]] = {}
        for name in engines:
            if (file := files.get(ENGINES[name].kind)) is None:
                continue
            with contextlib.suppress(Exception):  # a failing engine gives no latency, the others do
                predict = ENGINES[name].load(file, threads=1)
                predict(images)
                calls[name] = lambda predict=predict: predict(images)  # type: ignore[misc]
    if not calls:
        raise RuntimeError(f"none of {list(engines)} runs it")
    return program.size_mb, calls


def _fits(one: Candidate, budget: Budget) -> str:
    if one.size_mb is None or one.latency_ms is None:
        return "no"
    size, latency = (math.inf if limit is None else limit for limit in (budget.size_mb, budget.latency_ms))
    if one.size_mb <= size and one.latency_ms <= latency:
        return "fp32"
    return "int8" if one.size_mb * _INT8_SHARE <= size and one.latency_ms <= 1.5 * latency else "no"


def choose(measured: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the ``count`` probably most accurate candidates within the budget.

    Larger networks of one family are more accurate as a rule, and nothing is trained yet. Candidates are therefore
    ordered by multiply-accumulates, those that meet the budget in fp32 before those that may only in int8.

    Args:
        measured: Result of `measure_candidates`.
        count: Maximum number of candidates.

    Raises:
        ValueError: No candidate can meet the budget.
    """
    order = {"fp32": 0, "int8": 1}
    fitting = sorted((one for one in measured if one.fits in order), key=lambda one: (order[one.fits], -one.macs))
    if not fitting:
        near = "; ".join(_why(one) for one in measured[:5]) or "there was none to measure"
        raise ValueError(
            f"No candidate meets the budget on this machine: {near}. Raise --size-mb or --latency-ms (Budget(size_mb=, "
            "latency_ms=)), make the pictures smaller, or name candidates of your own."
        )
    return fitting[:count]


def _why(one: Candidate) -> str:
    if one.error:
        return f"{one.name}: {one.error}"
    return f"{one.name}: {one.size_mb:.3g} MB, {one.latency_ms:.3g} ms"


def table_lines(measured: Sequence[Candidate], chosen: Mapping[str, object] | Sequence[str]) -> Iterator[str]:
    """Yield the lines of a Markdown table of the candidates.

    Args:
        measured: Result of `measure_candidates`.
        chosen: Names of the candidates to train.
    """
    yield "| candidate | params M | MACs M | fp32 MB | ms | engine | keeps the budget | |"
    yield "|---|---:|---:|---:|---:|---|---|---|"
    for one in measured:
        mark = "chosen" if one.name in chosen else ""
        if one.size_mb is None or one.latency_ms is None:
            yield f"| {one.name} | | | | | | no: {one.error} | {mark} |"
            continue
        fits = {"fp32": "yes", "int8": "in int8 perhaps", "no": "no"}[one.fits]
        yield (
            f"| {one.name} | {one.parameters / 1e6:.2f} | {one.macs / 1e6:.0f} | {one.size_mb:.2f} "
            f"| {one.latency_ms:.2f} | {one.engine} | {fits} | {mark} |"
        )
