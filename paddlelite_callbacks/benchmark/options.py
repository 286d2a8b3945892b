"""Define options and result rows of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paddlelite_callbacks.benchmark.engines import DEFAULT_ENGINES, ENGINES, Engine
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.utils.numbers import is_whole
from paddlelite_callbacks.utils.representation import constructor_repr

__all__ = ["BenchOptions", "latency_row", "repeated_rows"]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of a benchmark.

    Args:
        engines: Some of ``"paddle"``, ``"paddle-onednn"``, ``"onnxruntime"``, ``"openvino"``; ``None`` for all
            of these. ``"mnn"`` and ``"ncnn"`` (extra ``edge``) convert the ONNX file and run only if named.
        threads: CPU threads of each engine, at least 1; a list measures each, and the gate uses the first.
        batch_size: Images per call, at least 1; a list measures each, and the gate uses the first.
        warmup: Number of uncounted calls, at least 0.
        repeats: Number of counted calls, at least 1.
        max_warmup: Largest number of uncounted calls while their times still change; ``None`` for five times
            ``warmup``.
        atol: Absolute tolerance of checks, in units of the output.
        rtol: Tolerance of checks relative to the largest output.
        peak_memory: Whether to measure load time and peak memory, in one child process per file and engine (1-2 s
            each).
        roofline: Whether to measure this machine's fastest matrix product (2 s per process).

    Raises:
        TypeError: A switch is not a bool.
        ValueError: An unknown engine, or a number out of range.

    Example:
        >>> ExportBenchCallback("out", benchmark=BenchOptions(threads=[1, 4], repeats=100))  # doctest: +SKIP
    """

    engines: Sequence[str] | None = None
    threads: int | Sequence[int] = 1
    batch_size: int | Sequence[int] = 1
    warmup: int = 10
    repeats: int = 50
    max_warmup: int | None = None
    atol: float = 1e-4
    rtol: float = 1e-3
    peak_memory: bool = True
    roofline: bool = True

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        if isinstance(self.engines, str):
            raise ValueError(
                f"engines must be a list of names, got {self.engines!r}: write engines=[{self.engines!r}]."
            )
        if self.engines is not None and not self.engines:
            raise ValueError(
                f"engines must name at least one of {list(ENGINES)}, got []: leave it out for {list(DEFAULT_ENGINES)}."
            )
        for name in self.engines or ():
            if name not in ENGINES:
                raise ValueError(
                    f"Unknown engine {name!r} in engines; near names: {near_names(name, ENGINES)}. Choose among "
                    f"{list(ENGINES)}, or leave it out for {list(DEFAULT_ENGINES)}."
                )
        for name, least in (("threads", 1), ("batch_size", 1), ("warmup", 0), ("repeats", 1)):
            given = getattr(self, name)
            values = list(given) if isinstance(given, (list, tuple)) and least and name != "repeats" else [given]
            if not values or not all(is_whole(value, least) for value in values):
                several = " (or a list of such)" if name in ("threads", "batch_size") else ""
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {given!r}{several}: leave it out for "
                    f"{type(self).__dataclass_fields__[name].default}."
                )
        for name in ("peak_memory", "roofline"):
            if not isinstance(switch := getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {switch!r}: leave it out for True.")

    def chosen(self) -> list[Engine]:
        """Return the chosen engines, installed or not."""
        return list(DEFAULT_ENGINES.values()) if self.engines is None else [ENGINES[name] for name in self.engines]

    @property
    def settings(self) -> list[tuple[int, int]]:
        """Threads and batch size of each measurement; the gate uses the first."""
        threads, sizes = (
            list(dict.fromkeys([value] if isinstance(value, int) else value))
            for value in (self.threads, self.batch_size)
        )
        return [(count, size) for count in threads for size in sizes]


def latency_row(
    engine: str,
    precision: str,
    options: BenchOptions,
    *,
    setting: tuple[int, int] | None = None,
    warmup: int | None = None,
    figures: Mapping[str, float | None] | None = None,
    error: str | None = None,
    joint: str | None = None,
) -> Latency:
    """Build a row from ``figures`` of `summarise`, or from an ``error``.

    Args:
        engine: Name of the engine.
        precision: Precision of the file.
        options: Options of the benchmark.
        setting: Threads and batch size; ``None`` for the first of the options.
        warmup: Number of uncounted calls; ``None`` for that of the options.
        figures: Values of fields of `Latency`.
        error: Reason why there are none.
        joint: See `Latency`.
    """
    threads, batch_size = setting or options.settings[0]
    row = dict(figures or {})
    if row.get("p50_ms"):
        row["images_per_s"] = 1e3 * batch_size / (row["p50_ms"] or 1.0)
    return Latency(
        engine=engine,
        precision=precision,
        threads=threads,
        batch_size=batch_size,
        warmup=options.warmup if warmup is None else warmup,
        repeats=options.repeats,
        error=error,
        joint=joint,
        **row,
    )


def repeated_rows(inputs: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Repeat the rows of ``inputs`` up to ``size`` rows."""
    return [np.ascontiguousarray(np.resize(array, (size, *array.shape[1:]))) for array in inputs]
