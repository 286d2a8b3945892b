"""Define the record of one run, read by report, pictures and gate."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from paddlelite_callbacks.benchmark.accuracy import FileMetrics
from paddlelite_callbacks.benchmark.latency import Latency
from paddlelite_callbacks.benchmark.machine import Machine
from paddlelite_callbacks.benchmark.unfused_layers import float_layers_of
from paddlelite_callbacks.benchmark.verdicts import file_verdicts
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import LITE_CHECKS, Check, FileVerdict
from paddlelite_callbacks.export.saturation import saturation_of
from paddlelite_callbacks.report.blocks import one_line
from paddlelite_callbacks.report.parse import FieldError, parsed
from paddlelite_callbacks.utils.atomic_files import locked
from paddlelite_callbacks.utils.peak_memory import PeakMemory

__all__ = [
    "ArtefactFigures",
    "LayerPoint",
    "Record",
    "Unreadable",
    "append_record",
    "now",
    "read_records",
    "scan_records",
]

_log = logging.getLogger(__name__)
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ArtefactFigures:
    """Size and checksums of an exported model when measured.

    Args:
        kind: Kind of the artefact, see `Artefact`.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        path: Path of its first file.
        size_mb: Total size of its files, MB (1e6 bytes).
        sha256: SHA-256 by file name.
        error: Reason why there is no file.
        saturation: Of an int8 ONNX file, the channels that may saturate on CPUs without VNNI, see `SaturationReport`.
        float_layers: Of an int8 ONNX file, the quantised layers that ONNX Runtime computes in float; ``None`` where
            they are not known.
    """

    kind: str
    precision: str
    path: str | None = None
    size_mb: float | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    saturation: dict[str, Any] | None = None
    float_layers: tuple[str, ...] | None = None

    @classmethod
    def of(cls, artefact: Artefact) -> ArtefactFigures:
        """Read size and checksums from the files."""
        saturation = saturation_of(artefact.kind, artefact.precision, artefact.path)
        return cls(
            kind=artefact.kind,
            precision=artefact.precision,
            path=str(artefact.path),
            size_mb=artefact.size_mb,
            sha256=artefact.sha256(),
            saturation=None if saturation is None else saturation.figures(),
            float_layers=float_layers_of(artefact.kind, artefact.precision, artefact.path),
        )

    def artefact(self) -> Artefact:
        """Return the artefact for loading.

        Raises:
            ValueError: Nothing was exported, or a file is missing.
        """
        if self.path is None:
            raise ValueError(f"There is no {self.kind} file: {self.error}. Export the network again.")
        path = Path(self.path)
        files = tuple(path.parent / name for name in self.sha256)
        gone = [str(file) for file in files if not file.is_file()]
        if gone:
            raise ValueError(f"The exported files {gone} are missing. Export the network again.")
        return Artefact(kind=self.kind, path=path, files=files, precision=self.precision)


@dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """One file of an accuracy-aware quantisation.

    Args:
        layers: Layers that were put back.
        metric: Metric of the file on the engine that ships.
        latency_ms: Fastest call, milliseconds; ``None`` if it was not timed.
        to: What they were put back to: ``"float"`` or ``"8 bits"``.
        chosen: Whether this file is shipped.
    """

    layers: tuple[str, ...]
    metric: float
    latency_ms: float | None = None
    to: str = "float"
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Record:
    """Results of one run.

    Args:
        name: Name of the run, unique within a ladder.
        created: UTC time, ISO 8601.
        parameters: Number of trained parameters (without batch-norm statistics and quantizer scales).
        artefacts: Exported models.
        latencies: Rows per engine, file and setting; the setting of the first row is the one that is judged.
        checks: Comparisons of the files with the network, per engine.
        metrics: Metrics of the exported weights by hapi's names; the user may add more.
        machine: Machine of the measurements.
        command: Command line of the process.
        notes: Remarks for the reader.
        file_metrics: The same metrics computed from the outputs of the files, per engine.
        macs: Multiply-accumulates per image, in convolutions and linear layers.
        roofline_gflops: Fastest measured matrix product of the machine, GFLOP/s by number of threads.
        history: Metrics of every epoch, each with its ``"epoch"`` (from 1).
        epoch: Epoch of the exported weights; ``None`` if unknown.
        config: What is needed to train again, see `retraining_config`.
        log: Path of the training log.
        weights: Path of the trained weights that the files were exported from.
        failure: Reason why no file was exported; ``None`` where there is one.
        remarks: For each file that an engine computes wrongly: correct engines, likely cause, remedy.
        peak_memory: Peak memory of the export, see `PeakMemory`.
        layer_curve: Files of an accuracy-aware quantisation, in the order of their making.
        retimes: Whether the line only updates the latencies of the run with this name and ``created``, see
            `append_joint_timing`; `read_records` merges it.
    """

    name: str
    created: str
    parameters: int
    artefacts: tuple[ArtefactFigures, ...]
    latencies: tuple[Latency, ...]
    checks: tuple[Check, ...]
    metrics: dict[str, float]
    machine: Machine
    command: str = ""
    notes: tuple[str, ...] = ()
    file_metrics: tuple[FileMetrics, ...] = ()
    macs: int | None = None
    roofline_gflops: dict[str, float] = field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()
    epoch: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    log: str | None = None
    weights: str | None = None
    failure: str | None = None
    remarks: tuple[str, ...] = ()
    peak_memory: PeakMemory | None = None
    layer_curve: tuple[LayerPoint, ...] = ()
    retimes: bool = False

    def __repr__(self) -> str:
        """Return the name and the measurements that one compares."""
        best = None if self.failure else self.best_latency()
        parts = [self.precision]
        if self.size_mb is not None:
            parts.append(f"{self.size_mb:.2f} MB")
        if best is not None and best.p50_ms is not None:
            parts.append(f"{best.p50_ms:.2f} ms on {best.engine}")
        parts += [f"{name} {value:.4g}" for name, value in self.metrics.items()]
        return f"<Record {self.name!r}: {', '.join(parts)}{'; nothing exported' if self.failure else ''}>"

    @property
    def size_mb(self) -> float | None:
        """Return the size of the Paddle export, as the guide's gate counts.

        A file for Paddle Lite comes first, the smallest of several, then the program in Paddle 2's format, the guide's.
        A model without a Paddle program has the size of its smallest ONNX file.
        """
        sizes = [(a.kind, a.size_mb) for a in self.artefacts if a.size_mb is not None]
        order = (tuple(LITE_CHECKS), ("pdmodel",), ("paddle",), ("onnx",))
        found = [[mb for kind, mb in sizes if kind in kinds] for kinds in order]
        return next((min(group) for group in found if group), None)

    @property
    def precision(self) -> str:
        """Return ``"int8"`` for a quantised network, else ``"fp32"``."""
        return "int8" if any(a.precision == "int8" for a in self.artefacts) else "fp32"

    @property
    def verdicts(self) -> tuple[FileVerdict, ...]:
        """Return each engine's verdict on each file."""
        return file_verdicts(self.checks, self.main_latencies())

    def differing(self, engine: str, precision: str) -> str | None:
        """Return how a file differs on an engine; ``None`` if it agrees or did not run."""
        found = [v for v in self.verdicts if (v.engine, v.precision) == (engine, precision) and v.agrees is False]
        return found[0].text if found else None

    @property
    def agreeing(self) -> list[tuple[str, str]]:
        """Return engine and precision of all agreeing checks."""
        return [(check.engine, check.precision) for check in self.checks if check.passed]

    def best_latency(self, *, joint: str | None = None) -> Latency | None:
        """Return the fastest latency of an agreeing file of the record's precision.

        Args:
            joint: Joint timing whose rows are considered; ``None`` for all.
        """
        good = [key for key in self.agreeing if key[1] == self.precision]
        timed = [i for i in self.main_latencies() if (i.engine, i.precision) in good and joint in (None, i.joint)]
        return min((i for i in timed if i.p50_ms is not None and math.isfinite(i.p50_ms)), key=_p50, default=None)

    def main_latencies(self) -> list[Latency]:
        """Return the latencies of the judged threads and batch size."""
        first = self.latencies[:1]
        return [i for i in self.latencies if (i.threads, i.batch_size) == (first[0].threads, first[0].batch_size)]

    def latency_of(self, engine: str) -> Latency | None:
        """Return the latency row of ``engine``, failed or not."""
        rows = [item for item in self.main_latencies() if item.engine == engine]
        own = [item for item in rows if item.precision == self.precision]
        return next(iter(own or rows), None)

    def metric(self, name: str) -> float | None:
        """Return metric ``name`` of the evaluation, else of the judged file.

        ``None`` where it is missing or not finite.
        """
        value = self.metrics[name] if name in self.metrics else self.file_figures.get(name)
        return value if value is not None and math.isfinite(value) else None

    @property
    def file_figures(self) -> dict[str, float]:
        """Return the metrics of the file on the judged engine."""
        best = self.best_latency()
        keys = [] if best is None else [(best.engine, best.precision)]
        keys += [key for key in self.agreeing if key[1] == self.precision]
        by_file = {(row.engine, row.precision): row.metrics for row in self.file_metrics}
        return next((by_file[key] for key in keys if by_file.get(key)), {})

    def metric_of(self, metric: str, engine: str, precision: str) -> float | None:
        """Return a file's metric on an engine; ``None`` if not measured."""
        rows = [i for i in self.file_metrics if (i.engine, i.precision) == (engine, precision)]
        return next((row.metrics.get(metric) for row in rows), None)

    def to_json_line(self) -> str:
        """Serialise to one line of JSON; non-finite numbers become null."""
        return json.dumps({"schema": SCHEMA, **_finite(asdict(self))}, ensure_ascii=False)

    @classmethod
    def from_json_line(cls, line: str) -> Record:
        """Parse the result of `to_json_line`.

        Raises:
            ValueError: Not JSON, another schema, or fields of the wrong type.
        """
        data = json.loads(line)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(
                f"This version reads records of schema {SCHEMA}, the line begins {line[:60]!r}. Read it with the "
                "version that wrote it, or remove the line."
            )
        try:
            return parsed(cls, data)
        except FieldError as error:
            name = data.get("name")
            shown = repr(name[:60]) if isinstance(name, str) else "without a name"
            raise ValueError(f"The record {shown} does not fit schema {SCHEMA}: {error}.") from error


def _p50(row: Latency) -> float:
    return math.inf if row.p50_ms is None else row.p50_ms


def now() -> str:
    """Return the time in UTC, ISO 8601, seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def append_record(path: Path, record: Record) -> None:
    """Append ``record`` to ``path`` under a lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = record.to_json_line().encode("utf-8", "backslashreplace")  # halves of surrogate pairs as JSON escapes
    with locked(path), path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        torn = file.read(1) not in (b"", b"\n")  # the writer of the last line died
        try:
            file.write((b"\n" if torn else b"") + line + b"\n")
            file.flush()
        except BaseException:
            os.ftruncate(file.fileno(), end)  # remove the partial line on a full disk
            raise


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A line of a record file that cannot be parsed.

    Args:
        line: Line number, from 1.
        name: Name of the run, where readable.
        reason: Reason why it cannot be parsed.
    """

    line: int
    name: str | None
    reason: str

    def __str__(self) -> str:
        name = "" if self.name is None else f" ({self.name[:100]!r})"
        return f"line {self.line}{name} {self.reason}"


def read_records(path: Path) -> list[Record]:
    """Read the records of ``path`` with their latest joint timing.

    Lines that cannot be parsed are left out with a warning.

    Args:
        path: Path of the record file.

    Raises:
        ValueError: There is no such file.
    """
    if not path.is_file():
        raise ValueError(
            f"No record file {path}: give the folder of ExportBenchCallback(folder), after a fit has ended."
        )
    found = []
    for item in scan_records(path.read_bytes()):
        if isinstance(item, Record):
            found.append(item)
        else:
            _log.warning("%s, %s and left out.", path, one_line(item))
    return found


def scan_records(content: bytes) -> list[Record | Unreadable]:
    """Parse a record file line by line, unreadable lines included.

    Args:
        content: Content of the file.
    """
    found: list[Record | Unreadable] = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # names may hold other line ends
        if not line.strip():
            continue
        try:
            found.append(Record.from_json_line(line.decode("utf-8-sig")))
        except (json.JSONDecodeError, UnicodeDecodeError):  # perhaps truncated within a character
            found.append(Unreadable(line=number, name=None, reason="is truncated"))
        except (ValueError, RecursionError) as error:
            reason = "is nested too deeply" if isinstance(error, RecursionError) else f"cannot be read: {error}"
            found.append(Unreadable(line=number, name=_name_in(line), reason=reason.rstrip(".")))
    return _with_joint_timings(found)


def _with_joint_timings(found: Sequence[Record | Unreadable]) -> list[Record | Unreadable]:
    kept: list[Record | Unreadable] = []
    latest: dict[tuple[str, str], tuple[int, Record]] = {}
    for item in found:
        if not isinstance(item, Record):
            kept.append(item)
            continue
        key, record = (item.name, item.created), replace(item, retimes=False)
        place = len(kept)
        if item.retimes and key in latest:
            place, of = latest[key]
            record = kept[place] = replace(of, latencies=item.latencies)
        else:
            kept.append(record)
        latest[key] = place, record
    return kept


def _name_in(line: bytes) -> str | None:
    try:
        name = json.loads(line)["name"]
    except (ValueError, RecursionError, TypeError, KeyError, IndexError):
        return None
    return name if isinstance(name, str) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
