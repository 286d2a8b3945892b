"""Check and time exported files on several engines, all on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from paddlelite_callbacks.deploy.check import Check, compare_outputs
from paddlelite_callbacks.deploy.engines import ENGINES, Engine, Predict, missing_reason, reason
from paddlelite_callbacks.deploy.export import Artefact
from paddlelite_callbacks.deploy.forms import Reference
from paddlelite_callbacks.deploy.latency import Latency, measure_latency, summarise
from paddlelite_callbacks.errors import near_names

__all__ = ["BenchOptions", "bench", "latency_row", "repeated_rows"]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How files are timed.

    Args:
        engines: names from `ENGINES`; ``None`` for all.
        threads: CPU threads of each engine, at least 1.
        batch_size: images a call, at least 1.
        warmup: calls not counted, at least 0.
        repeats: calls counted, at least 1.
        atol: a check's absolute tolerance, in units of the output.
        rtol: a check's tolerance relative to the largest output.

    Raises:
        ValueError: an unknown engine, or a number out of range.
    """

    engines: Sequence[str] | None = None
    threads: int = 1
    batch_size: int = 1
    warmup: int = 10
    repeats: int = 50
    atol: float = 1e-4
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        if isinstance(self.engines, str):
            raise ValueError(f"engines must be a list of names, got {self.engines!r}.")
        if self.engines is not None and not self.engines:
            raise ValueError(f"engines must name at least one of {list(ENGINES)}, or be None for all.")
        for name in self.engines or ():
            if name not in ENGINES:
                raise ValueError(f"No engine {name!r}; known are {near_names(name, ENGINES)}.")
        for name, least in (("threads", 1), ("batch_size", 1), ("warmup", 0), ("repeats", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")

    def chosen(self) -> list[Engine]:
        """Return the engines asked for, present or not."""
        return list(ENGINES.values()) if self.engines is None else [ENGINES[name] for name in self.engines]


def bench(
    artefacts: Sequence[Artefact],
    inputs: Sequence[np.ndarray],
    references: Mapping[str, Reference],
    options: BenchOptions,
    *,
    errors: Mapping[tuple[str, str], str] | None = None,
    progress: bool = True,
) -> tuple[tuple[Check, ...], tuple[Latency, ...]]:
    """Load every file with every engine of its kind, compare its outputs, then time all of them in turn.

    Args:
        artefacts: the exported files.
        inputs: real inputs, ``[N, ...]`` each; for the timing rows are repeated up to ``options.batch_size``.
        references: by precision of the file, what the live network computes for ``inputs``.
        options: see `BenchOptions`.
        errors: by kind and precision of an artefact, why there is no such file.
        progress: whether to show a bar.

    Returns:
        One check and one latency per engine and file; what failed carries its reason.
    """
    checks: list[Check] = []
    failed: list[Latency] = []
    ready: dict[tuple[str, str], Predict] = {}
    for engine in options.chosen():
        files = [artefact for artefact in artefacts if artefact.kind == engine.kind]
        absent = {precision: why for (kind, precision), why in (errors or {}).items() if kind == engine.kind}
        if missing := missing_reason(engine):
            files, absent = [], {"fp32": missing}
        elif not files and not absent:
            absent = {"fp32": "no such file exported"}
        failed += [latency_row(engine.name, precision, options, error=why) for precision, why in absent.items()]
        for artefact in files:
            try:
                predict = engine.load(artefact, threads=options.threads)
                checks.append(_checked(engine, artefact, predict(inputs), references[artefact.precision], options))
                ready[engine.name, artefact.precision] = predict
            except Exception as exception:
                failed.append(latency_row(engine.name, artefact.precision, options, error=reason(exception)))
    return tuple(checks), (*_timed(ready, repeated_rows(inputs, options.batch_size), options, progress), *failed)


def _checked(
    engine: Engine, artefact: Artefact, got: list[np.ndarray], reference: Reference, options: BenchOptions
) -> Check:
    return compare_outputs(
        reference.outputs,
        got,
        engine=engine.name,
        precision=artefact.precision,
        atol=options.atol,
        rtol=options.rtol,
        noise=reference.noise,
    )


def _timed(
    ready: dict[tuple[str, str], Predict], batch: list[np.ndarray], options: BenchOptions, progress: bool
) -> list[Latency]:
    if not ready:
        return []
    calls: dict[tuple[str, str], Callable[[], object]] = {
        key: (lambda predict=predict: predict(batch))  # type: ignore[misc]
        for key, predict in ready.items()
    }
    rounds = options.warmup + options.repeats
    with tqdm(total=rounds, desc="CPU latency", unit="round", leave=False, disable=not progress) as bar:
        durations = measure_latency(calls, warmup=options.warmup, repeats=options.repeats, progress=bar.update)
    return [
        latency_row(engine, precision, options, figures=summarise(durations[engine, precision]))
        for engine, precision in ready
    ]


def latency_row(
    engine: str,
    precision: str,
    options: BenchOptions,
    *,
    figures: dict[str, float] | None = None,
    error: str | None = None,
) -> Latency:
    """Return ``figures`` of `summarise`, or the ``error`` in their place, with how they were got."""
    return Latency(
        engine=engine,
        precision=precision,
        threads=options.threads,
        batch_size=options.batch_size,
        warmup=options.warmup,
        repeats=options.repeats,
        error=error,
        **(figures or {}),
    )


def repeated_rows(inputs: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Return ``inputs`` with their rows repeated until there are ``size``."""
    return [np.ascontiguousarray(np.resize(array, (size, *array.shape[1:]))) for array in inputs]
