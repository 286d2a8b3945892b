"""One run's figures: the single schema that the progress line, the report, the picture and the gate read."""

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
from paddlelite_callbacks.benchmark.verdicts import file_verdicts
from paddlelite_callbacks.export.artefact import Artefact
from paddlelite_callbacks.export.compare import LITE_CHECKS, Check, FileVerdict
from paddlelite_callbacks.export.saturation import saturation_of
from paddlelite_callbacks.report.blocks import one_line
from paddlelite_callbacks.report.parse import FieldError, parsed
from paddlelite_callbacks.utils.atomic_files import locked
from paddlelite_callbacks.utils.peak_memory import PeakMemory

__all__ = ["ArtefactFigures", "Record", "Unreadable", "append_record", "now", "read_records", "scan_records"]

_log = logging.getLogger(__name__)
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ArtefactFigures:
    """Size and checksums of an exported form when measured.

    Args:
        kind: see `Artefact`.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        path: of its first file.
        size_mb: of all its files, MB (1e6 bytes).
        sha256: checksum by file name.
        error: why there is none.
        saturation: of an int8 ONNX file, which channels CPUs without VNNI can compute otherwise: `SaturationReport`'s
            figures.
    """

    kind: str
    precision: str
    path: str | None = None
    size_mb: float | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    saturation: dict[str, Any] | None = None

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
        )

    def artefact(self) -> Artefact:
        """Return the artefact, for an engine to load.

        Raises:
            ValueError: nothing was exported, or a file is gone.
        """
        if self.path is None:
            raise ValueError(f"There is no {self.kind} file: {self.error}.")
        path = Path(self.path)
        files = tuple(path.parent / name for name in self.sha256)
        gone = [str(file) for file in files if not file.is_file()]
        if gone:
            raise ValueError(f"The exported files {gone} are not there any more.")
        return Artefact(kind=self.kind, path=path, files=files, precision=self.precision)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Results of one run.

    Args:
        name: of the run, unique within a ladder.
        created: UTC, ISO 8601.
        parameters: trained numbers in the network (batch-norm statistics and quantizer scales not counted).
        artefacts: what was exported.
        latencies: per engine, file and setting; those of the first row's setting count.
        checks: per engine, exported file against live network.
        metrics: of the evaluation of the weights that were exported, by hapi's names; more may be added by the user.
        machine: that all this was measured on.
        command: that started the process.
        notes: what a reader should know.
        file_metrics: the same metrics computed from what the files answer, per engine.
        macs: multiply-accumulates of one image, in convolutions and linear layers.
        roofline_gflops: fastest measured matrix product of the machine, by number of threads.
        history: figures of every epoch, each with its ``"epoch"`` (from 1).
        epoch: whose weights were exported; ``None`` if unknown.
        config: what is needed to train again, see `retraining_config`.
        log: path of the training log.
        weights: path of the trained weights, from which all files were exported.
        failure: why no file was exported; ``None`` where there is one.
        remarks: per file that an engine does not compute rightly: which do, the likely cause, the remedy.
        peak_memory: that the export took, a multiple of the network's size.
        retimes: whether the line only brings other latencies for the run of this name and ``created`` in an earlier
            line, see `append_joint_timing`; `read_records` gives one record with them.
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

        A file for Paddle Lite comes first, the smallest where there are several, then the program in Paddle 2's
        format, the guide's. Of a model that has no Paddle program, the smallest ONNX file.
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
            joint: only rows of this joint timing; ``None`` for all.
        """
        good = [key for key in self.agreeing if key[1] == self.precision]
        timed = [i for i in self.main_latencies() if (i.engine, i.precision) in good and joint in (None, i.joint)]
        return min((i for i in timed if i.p50_ms is not None and math.isfinite(i.p50_ms)), key=_p50, default=None)

    def main_latencies(self) -> list[Latency]:
        """Return the latencies of the first threads and batch setting."""
        first = self.latencies[:1]
        return [i for i in self.latencies if (i.threads, i.batch_size) == (first[0].threads, first[0].batch_size)]

    def latency_of(self, engine: str) -> Latency | None:
        """Return the latency row of ``engine``, failed or not."""
        rows = [item for item in self.main_latencies() if item.engine == engine]
        own = [item for item in rows if item.precision == self.precision]
        return next(iter(own or rows), None)

    def metric(self, name: str) -> float | None:
        """Return metric ``name`` of the evaluation, else of the file that counts.

        ``None`` where there is none, or it is not finite.
        """
        value = self.metrics[name] if name in self.metrics else self.file_figures.get(name)
        return value if value is not None and math.isfinite(value) else None

    @property
    def file_figures(self) -> dict[str, float]:
        """Return the metrics of the file on the engine that counts."""
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
        """Parse what `to_json_line` wrote.

        Raises:
            ValueError: not JSON, another schema, or fields that do not fit.
        """
        data = json.loads(line)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(
                f"This version reads records of schema {SCHEMA}; the line begins {line[:60]!r}. Read it with the "
                "version that wrote it, or take the line out."
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
    line = record.to_json_line().encode("utf-8", "backslashreplace")  # half a surrogate pair: JSON's own way
    with locked(path), path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        torn = file.read(1) not in (b"", b"\n")  # a writer that died in the middle of its line
        try:
            file.write((b"\n" if torn else b"") + line + b"\n")
            file.flush()
        except BaseException:
            os.ftruncate(file.fileno(), end)  # a full disk leaves no half line
            raise


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A line of a record file that cannot be parsed.

    Args:
        line: its number, from 1.
        name: of the run, where the line tells it.
        reason: why it is none.
    """

    line: int
    name: str | None
    reason: str

    def __str__(self) -> str:
        name = "" if self.name is None else f" ({self.name[:100]!r})"
        return f"line {self.line}{name} {self.reason}"


def read_records(path: Path) -> list[Record]:
    """Read the records of ``path`` with their latest joint timing.

    A line that is no record is left out, with a warning that names it.

    Args:
        path: of the record file.

    Raises:
        ValueError: no such file.
    """
    if not path.is_file():
        raise ValueError(
            f"No record file {path}: give the folder that ExportBenchCallback(folder) was given, once a fit has ended."
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
        content: of the file.
    """
    found: list[Record | Unreadable] = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # names may hold other ends of lines
        if not line.strip():
            continue
        try:
            found.append(Record.from_json_line(line.decode("utf-8-sig")))
        except (json.JSONDecodeError, UnicodeDecodeError):  # torn perhaps in the middle of a letter
            found.append(Unreadable(line=number, name=None, reason="is torn"))
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
