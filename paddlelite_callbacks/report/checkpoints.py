"""The three check points at which the guide asks for a hand-in, each met or not, with what is missing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from paddlelite_callbacks.deploy.exact import EXACT
from paddlelite_callbacks.report.record import ArtefactFigures, Record

__all__ = ["CheckPoint", "check_points", "file_of"]


@dataclass(frozen=True)
class CheckPoint:
    """One of them.

    Args:
        title: as the guide calls it.
        met: whether all of it is there.
        details: figures and places, or what is missing.
    """

    title: str
    met: bool
    details: tuple[str, ...]


def check_points(record: Record, folder: Path) -> tuple[CheckPoint, CheckPoint, CheckPoint]:
    """Look whether a run's result can be handed in.

    Args:
        record: of the run.
        folder: of the project, where ``runs.jsonl`` is.
    """
    return _result_and_model(record, folder), _size_log_and_path(record, folder), _command_and_config(record)


def file_of(path: str | None, folder: Path) -> Path | None:
    """Return where a recorded file is now: its path, or its place below ``folder``, which may have been moved."""
    if path is None:
        return None
    for place in (Path(path), folder / Path(path).parent.name / Path(path).name):
        if place.is_file():
            return place
    return None


def _result_and_model(record: Record, folder: Path) -> CheckPoint:
    figures = ", ".join(f"{name} {value:.6g}" for name, value in (record.metrics or record.file_figures).items())
    where = "" if record.metrics else " (on the files)"
    details = [f"result{where}: {figures}" if figures else "no metric: fit() ran without evaluation data"]
    wanted = [a for a in record.artefacts if a.path is not None]
    states = [_state(artefact, folder) for artefact in wanted]
    details += [
        f"{a.kind} {a.precision}: {s or 'files and checksums as recorded'}" for a, s in zip(wanted, states, strict=True)
    ]
    engines = [check for check in record.checks if check.engine not in EXACT]
    right = {(verdict.kind, verdict.precision) for verdict in record.verdicts if verdict.agrees}
    agreed = bool(record.checks) and all((a.kind, a.precision) in right for a in wanted)
    details.append(f"{sum(c.passed for c in engines)} of {len(engines)} engine checks agree with the network")
    details += [f"{v.engine} {v.precision} {v.text}" for v in record.verdicts if v.agrees is False]
    finite = all(record.metric(name) is not None for name in record.metrics)
    met = bool(figures and finite and wanted and agreed and not any(states))
    return CheckPoint("Result and model", met, tuple(details))


def _size_log_and_path(record: Record, folder: Path) -> CheckPoint:
    size = "no Paddle export" if record.size_mb is None else f"size: {record.size_mb:.3f} MB (program + parameters)"
    log, first = file_of(record.log, folder), next((a for a in record.artefacts if a.path), None)
    path = None if first is None else file_of(first.path, folder)
    weights = file_of(record.weights, folder)
    details = (
        size,
        f"log: {log}" if log else "no training log",
        f"path: {path}" if path else "the exported files are not there",
        *([f"trained weights: {weights}"] if weights else []),
    )
    return CheckPoint("Size, log, path", record.size_mb is not None and bool(log and path), details)


def _command_and_config(record: Record) -> CheckPoint:
    script = record.config.get("script")
    details = [f"command: {record.command}" if record.command else "no command recorded"]
    details += [f"{key}: {record.config[key]}" for key in ("cwd", "commit") if record.config.get(key)]
    if not script:
        details.append("not started from a script file (a notebook or a prompt), so the code is not pinned")
        return CheckPoint("Exact command and config to train again", False, tuple(details))
    same = _same(Path(script), record.config.get("script_sha256"))
    details.append(f"{script}: {'as it was' if same else 'changed or gone since the run'}")
    return CheckPoint("Exact command and config to train again", bool(record.command) and same, tuple(details))


def _state(artefact: ArtefactFigures, folder: Path) -> str | None:
    if not artefact.sha256:
        return "no checksums were recorded"
    for name, checksum in artefact.sha256.items():
        path = file_of(str(Path(artefact.path or "").parent / name), folder)
        if path is None:
            return f"{name} is gone"
        if not _same(path, checksum):
            return f"{name} is another file by now (a later run of this name?)"
    return None


def _same(path: Path, checksum: str | None) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == checksum
    except OSError:
        return False
