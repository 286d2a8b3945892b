"""Hand-made records."""

from __future__ import annotations

import functools

from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.benchmark.machine import this_machine
from paddlelite_callbacks.export.compare import Check
from paddlelite_callbacks.report.record import ArtefactFigures, Record

machine_once = functools.cache(this_machine)  # it reads the metadata of all packages; some tests make 1,000 records


def latency(engine, p50, precision="fp32", error=None):
    return Latency(
        engine=engine,
        precision=precision,
        threads=1,
        batch_size=1,
        warmup=1,
        repeats=3,
        p50_ms=p50,
        p90_ms=p50,
        error=error,
    )


def record(
    name="net", acc=0.9, size=10.0, ms=(("paddle", 50.0), ("onnxruntime", 5.0)), agree=("paddle", "onnxruntime")
):
    return Record(
        name=name,
        created="2026-01-01T00:00:00+00:00",
        parameters=1_000_000,
        artefacts=(ArtefactFigures(kind="paddle", precision="fp32", path="/x", size_mb=size),),
        latencies=tuple(latency(engine, p50) for engine, p50 in ms),
        checks=tuple(Check(engine=engine, precision="fp32", passed=engine in agree) for engine, _ in ms),
        metrics={"acc": acc},
        machine=machine_once(),
    )
