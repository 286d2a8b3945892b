"""Check the three points at which the guide asks for a hand-in."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paddlelite_callbacks.benchmark.exact_reference import EXACT
from paddlelite_callbacks.export.compare import KIND_OF_CHECK
from paddlelite_callbacks.report.blocks import Cell, Part
from paddlelite_callbacks.report.record import ArtefactFigures, Record
from paddlelite_callbacks.report.tables import number
from paddlelite_callbacks.utils.checksum import sha256_of

__all__ = ["CheckPoint", "check_points", "file_of"]

_FIGURES = 30  # metrics of an evaluation
_LARGEST = 16e9  # bytes of a file that is read


@dataclass(frozen=True)
class CheckPoint:
    """One item of the hand-in checklist.

    Args:
        title: Title in the guide.
        met: Whether nothing is missing.
        details: Values and paths, or what is missing.
    """

    title: str
    met: bool
    details: tuple[Cell, ...]


def check_points(record: Record, folder: Path) -> tuple[CheckPoint, CheckPoint, CheckPoint]:
    """Check that a run's model, log, commands and results can be handed in.

    Args:
        record: Record of the run.
        folder: Project folder, with ``runs.jsonl``.
    """
    return _result_and_model(record, folder), _size_log_and_path(record, folder), _command_and_config(record)


def file_of(path: str | None, folder: Path) -> Path | None:
    """Return the current path of a recorded file, also after ``folder`` was moved."""
    if path is None:
        return None
    for place in (Path(path), folder / Path(path).parent.name / Path(path).name):
        try:
            if place.is_file():
                return place
        except (OSError, ValueError):  # an impossible file name
            continue
    return None


def _result_and_model(record: Record, folder: Path) -> CheckPoint:
    measured = list((record.metrics or record.file_figures).items())[:_FIGURES]
    figures = ", ".join(f"{name} {value:.6g}" for name, value in measured)
    where = "" if record.metrics else " (on the files)"
    details: list[Cell] = [f"result{where}: {figures}" if figures else "no metric: fit() ran without evaluation data"]
    wanted = [a for a in record.artefacts if a.path is not None][:_FIGURES]
    states = [_state(artefact, folder) for artefact in wanted]
    details += [
        f"{a.kind} {a.precision}: {s or 'files and checksums as recorded'}" for a, s in zip(wanted, states, strict=True)
    ]
    engines = [check for check in record.checks if check.engine not in EXACT]
    verdicts = record.verdicts
    right = {(verdict.kind, verdict.precision) for verdict in verdicts if verdict.agrees}
    right |= {(KIND_OF_CHECK.get(c.engine, ""), c.precision) for c in record.checks if c.passed}  # by its program
    agreed = bool(record.checks) and all((a.kind, a.precision) in right for a in wanted)
    details.append(f"{sum(c.passed for c in engines)} of {len(engines)} engine checks agree with the network")
    details += [f"{v.engine} {v.precision} {v.text}" for v in verdicts if v.agrees is False][:_FIGURES]
    finite = all(record.metric(name) is not None for name in record.metrics)
    met = bool(figures and finite and wanted and agreed and not any(states))
    return CheckPoint("Result and model", met, tuple(details))


def _size_log_and_path(record: Record, folder: Path) -> CheckPoint:
    size = (
        "no Paddle export" if record.size_mb is None else f"size: {number(record.size_mb, 3)} MB (program + parameters)"
    )
    log, first = file_of(record.log, folder), next((a for a in record.artefacts if a.path), None)
    path = None if first is None else file_of(first.path, folder)
    weights = file_of(record.weights, folder)
    details: tuple[Cell, ...] = (
        size,
        f"log: {log}" if log else "no training log",
        f"path: {path}" if path else "the exported files are not there",
        *([f"trained weights: {weights}"] if weights else []),
    )
    return CheckPoint("Size, log, path", record.size_mb is not None and bool(log and path), details)


def _command_and_config(record: Record) -> CheckPoint:
    title, script = "Exact command and config to train again", record.config.get("script")
    command: Cell = ("command: ", Part(record.command, "code")) if record.command else "no command recorded"
    details = [command]
    details += [f"{key}: {record.config[key]}" for key in ("cwd", "commit") if record.config.get(key)]
    if not script or not isinstance(script, str):
        details.append("not started from a script file (a notebook or a prompt), so the code is not pinned")
        return CheckPoint(title, False, tuple(details))
    same = _same(Path(script), record.config.get("script_sha256"))
    details.append(f"{script}: {'as it was' if same else 'changed or gone since the run'}")
    return CheckPoint(title, bool(record.command) and same, tuple(details))


def _state(artefact: ArtefactFigures, folder: Path) -> str | None:
    if not artefact.sha256:
        return "no checksums were recorded"
    for name, checksum in list(artefact.sha256.items())[:_FIGURES]:
        inside = PurePosixPath(name)
        if not name or inside.is_absolute() or ".." in inside.parts:  # external data may be in a subfolder
            return f"{name!r} is not a file name"
        path = file_of(str(Path(artefact.path or "").parent / name), folder)
        if path is None:
            return f"{name} is missing"
        if not _same(path, checksum):
            return f"{name} is another file by now (a later run of this name?)"
    return None


def _same(path: Path, checksum: object) -> bool:
    try:
        state = path.stat()
        if not path.is_file() or state.st_size > _LARGEST:
            return False
        return _sha256(path, state.st_size, state.st_mtime_ns, state.st_ino) == checksum
    except (OSError, ValueError):
        return False


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *_: int) -> str:
    """Return a file's checksum, cached by path, size and time."""
    return sha256_of(path)
