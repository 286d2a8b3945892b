"""Save the state of a `lighten` run on disk, to resume after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paddle

from paddlelite_callbacks.recipes.plan import Plan
from paddlelite_callbacks.report.record import now
from paddlelite_callbacks.utils.atomic_files import staged_file

__all__ = ["STATE", "Checkpoints", "SaveNewest", "State"]

STATE = "lighten.json"
_VERSION = 1


@dataclass
class State:
    """Progress of a run; changes are on disk when `write` returns.

    Args:
        path: Path of ``lighten.json``.
        settings: Settings that the results depend on; a resumed run must have the same.
        plan: Plan of the run.
        started: Start of the run, UTC; older records of the same names belong to another run.
        finished: Names of the finished rungs.
        baseline: Metric of the large network; ``None`` until it is measured.
    """

    path: Path
    settings: dict[str, Any]
    plan: Plan
    started: str = field(default_factory=now)
    finished: list[str] = field(default_factory=list)
    baseline: float | None = None

    def write(self) -> None:
        """Write the state to disk atomically."""
        held = {
            "version": _VERSION,
            "started": self.started,
            "settings": self.settings,
            "plan": self.plan.to_json(),
            "finished": self.finished,
            "baseline": self.baseline,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(self.path) as partial:
            partial.write_text(json.dumps(held, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Any]) -> State | None:
        """Return the state of an earlier run; ``None`` if there is none.

        Args:
            path: Path of ``lighten.json``.
            settings: Settings of this run.

        Raises:
            ValueError: The state has other settings, or cannot be read.
        """
        if not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["version"] != _VERSION:
                raise ValueError(f"unknown version {held['version']}")
            plan, before = Plan.from_json(held["plan"]), held["settings"]
            state = cls(
                path=path,
                settings=dict(settings),
                plan=plan,
                started=held["started"],
                finished=list(held["finished"]),
                baseline=held["baseline"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): give a new folder, or delete the file.") from error
        wanted = json.loads(json.dumps(dict(settings)))
        other = [name for name in sorted({*wanted, *before}) if wanted.get(name) != before.get(name)]
        if other:
            told = ", ".join(f"{name}={before.get(name)!r} then, {wanted.get(name)!r} now" for name in other)
            raise ValueError(
                f"{path.parent} holds a run with other settings ({told}): give the same settings to resume it, or a "
                "new folder."
            )
        return state


class Checkpoints:
    """Checkpoints of one rung, written by hapi: ``FOLDER/FROM/EPOCH.pdparams``.

    ``FROM`` is the number of epochs finished before the ``fit``.

    Args:
        folder: Folder of this rung only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> tuple[int, str | None]:
        """Return the number of finished epochs, and the prefix of their checkpoint."""
        found = [
            (int(file.parent.name) + int(file.stem) + 1, str(file.with_suffix("")))
            for file in self.folder.glob("*/*.pdparams")
            if file.parent.name.isdigit() and file.stem.isdigit()
        ]
        return max(found, default=(0, None))

    def prefix(self, done: int, epoch: int) -> str:
        """Return the checkpoint prefix of ``epoch`` in a ``fit`` that began at ``done``."""
        return str(self.folder / str(done) / str(epoch))

    def forget_old(self) -> None:
        """Delete all but the newest checkpoint."""
        _, newest = self.newest()
        for file in self.folder.glob("*/*.pd*"):
            if newest is not None and file.with_suffix("") != Path(newest):
                file.unlink(missing_ok=True)

    def delete(self) -> None:
        """Delete all checkpoints of the finished rung."""
        shutil.rmtree(self.folder, ignore_errors=True)


class SaveNewest(paddle.callbacks.Callback):
    """Save a checkpoint after each epoch and delete the previous one.

    Must be last in hapi's list of callbacks.

    ``save_dir`` of hapi would keep all, and print a line for each.

    Args:
        checkpoints: Checkpoints of the rung.
        done: Number of epochs finished before this ``fit``.
    """

    model: paddle.Model

    def __init__(self, checkpoints: Checkpoints, done: int) -> None:
        super().__init__()
        self._checkpoints, self._done = checkpoints, done

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save the checkpoint (called by hapi)."""
        self.model.save(self._checkpoints.prefix(self._done, epoch))
        self._checkpoints.forget_old()
