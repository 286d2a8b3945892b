"""Save, load and check the state of a distillation beside a checkpoint."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import paddle

from paddlelite_callbacks.hapi import WEIGHTS
from paddlelite_callbacks.utils.atomic_files import put_in_place, staged_file
from paddlelite_callbacks.utils.safe_load import read_saved

__all__ = [
    "check_same_options",
    "check_same_teacher",
    "load_state",
    "save_state",
    "save_state_beside",
]

_ENDING = ".pddistill"
_OTHER = "take the checkpoint of another epoch."


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Write ``state`` to ``path.pddistill`` atomically."""
    file = Path(f"{path}{_ENDING}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(file) as partial:
        paddle.save(state, str(partial))


def save_state_beside(state: dict[str, Any], path: str | Path) -> None:
    """Write ``state`` and record which checkpoint ``path.pdparams`` it belongs to.

    Args:
        state: State of the callback, see `save_state`.
        path: Prefix of the checkpoint.
    """
    weights = Path(f"{path}{WEIGHTS}")
    save_state({**state, "weights": _checksum(weights)} if weights.is_file() else state, path)


def load_state(path: str | Path) -> dict[str, Any]:
    """Return what `save_state` wrote.

    Args:
        path: Prefix of the checkpoint.

    Raises:
        FileNotFoundError: There is no state beside the checkpoint.
        ValueError: The file is truncated, contains code, is of another kind, or belongs to other weights than
            ``path.pdparams``.
    """
    file, weights = Path(f"{path}{_ENDING}"), Path(f"{path}{WEIGHTS}")
    put_in_place(Path(path), last=WEIGHTS)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}: DistillCallback writes it beside hapi's checkpoints if there is state to resume "
            "from (schedules, projections, an average or a peer). Leave resume= out if there was none."
        )
    try:
        state = read_saved(file)
    except ValueError as error:
        raise ValueError(f"{error} Or {_OTHER}") from error
    wanted = {"position": float, "bridges": dict, "source": dict}
    whole = isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in wanted.items())
    if not whole or not 0 <= state["position"] < math.inf:
        raise ValueError(
            f"{file} is not a state of DistillCallback, which holds {sorted(wanted)}: give resume= the prefix of a "
            "checkpoint of this package, for instance 'checkpoints/3'."
        )
    belongs = state.pop("weights", None)
    if belongs is not None and weights.is_file() and belongs != _checksum(weights):
        raise ValueError(f"{file} was written beside other weights than {weights.name}, which is there now: {_OTHER}")
    return state


def check_same_teacher(saved: Mapping[str, Any], wanted: Collection[str], teacher: str) -> None:
    """Check that a state belongs to this kind of teacher.

    Args:
        saved: Saved state of the teacher, by name.
        wanted: Names in the state of this kind of teacher; empty for a frozen one.
        teacher: Kind of the given teacher, for the message.

    Raises:
        ValueError: The names differ; the message has both.
    """
    if set(saved) != set(wanted):
        raise ValueError(
            f"The state given by resume= holds {sorted(saved) or 'nothing'} of its teacher, but the teacher given here "
            f"({teacher}) resumes from {sorted(wanted) or 'nothing'}: give the kind of teacher that it was written "
            "with, or leave resume= out."
        )


def check_same_options(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a state was written with these teacher options.

    Args:
        saved: Options in the file; empty in files of older versions.
        given: Options of the callback.

    Raises:
        ValueError: An option differs; the message has both values.
    """
    other = [
        f"{name}={saved[name]!r}, got {value!r}" for name, value in given.items() if saved.get(name, value) != value
    ]
    if other:
        raise ValueError(
            f"The state given by resume= was written with {'; '.join(other)}: the training would continue with another "
            "teacher. Give the options that it was written with, or leave resume= out."
        )


def _checksum(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
