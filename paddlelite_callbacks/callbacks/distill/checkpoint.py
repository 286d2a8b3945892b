"""Projections, their optimizer state and the schedule position, saved and loaded."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor

from paddlelite_callbacks.distill.load_teacher import load_weights_
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.hapi import (
    WEIGHTS,
    optimizer_state_of,
    prepared_optimizer,
    set_optimizer_state_of,
    trained_also,
)
from paddlelite_callbacks.nn.nested import Seen
from paddlelite_callbacks.utils.atomic_files import put_in_place, staged_file
from paddlelite_callbacks.utils.distributed import mean_over_ranks
from paddlelite_callbacks.utils.safe_load import read_saved
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = [
    "BridgeTrainer",
    "Position",
    "check_same_options",
    "check_same_teacher",
    "load_state",
    "save_state",
    "save_state_beside",
]

_ENDING = ".pddistill"
_OTHER = "take the checkpoint of another epoch."
_SAME = "Give the features= and the teacher that it was written with, or leave resume= out."


class Position:
    """Count trained epochs, with fractions where the loader's length is known.

    Attributes:
        offset: epochs before this ``fit``, of the run that it resumes.
    """

    def __init__(self) -> None:
        self.offset = 0.0
        self._epochs: float = 1
        self._steps: int | None = None
        self._counted = False  # by us, epoch for epoch
        self._epoch, self._batch = 0, 0

    def begin(self, params: dict[str, Any]) -> None:
        """Start a ``fit`` with hapi's ``Callback.params``."""
        self._epochs = params.get("epochs") or 1
        self._steps = params.get("steps")
        self._counted = self._steps is None
        self._epoch, self._batch = 0, 0

    @property
    def steps(self) -> int | None:
        """Batches of an epoch; ``None`` in the first epoch over a loader that has no length."""
        return self._steps

    def at_epoch(self, epoch: int) -> None:
        """Set the position to ``epoch`` epochs of this ``fit``."""
        if self._counted and self._batch:
            self._steps = self._batch
        self._epoch, self._batch = epoch, 0

    def after_batch(self) -> None:
        """Advance by one batch."""
        self._batch += 1

    @property
    def epoch(self) -> float:
        """Return the epochs trained so far."""
        return self.offset + self._epoch + (min(1.0, self._batch / self._steps) if self._steps else 0.0)

    @property
    def epochs(self) -> float:
        """Return the epochs in all."""
        return self.offset + self._epochs


class BridgeTrainer:
    """Train an objective's projections with the user's optimizer, for one ``fit``."""

    def __init__(self) -> None:
        self._model: Any = None
        self._scope: ExitStack | None = None
        self._accumulators: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}
        self._parameters: list[Tensor] | None = None
        self._objective: Objective | None = None

    def attach(self, model: paddle.Model, objective: Objective, scope: ExitStack) -> None:
        """Begin a ``fit``; projections are made and registered in its first batch."""
        self._model, self._scope, self._objective, self._parameters = model, scope, objective, None
        scope.callback(self._end)

    def build(self, student: Seen, teachers: Sequence[Seen]) -> None:
        """Make the projections in the first batch and register them with the optimizer.

        Raises:
            ValueError: see `Objective.check_fit`.
        """
        if self._parameters is not None:
            return
        objective, scope = self._ready()
        objective.check_fit(student, teachers)
        parameters = self._parameters = objective.build(student, teachers)
        if not parameters:
            return
        if self._weights:
            load_weights_(objective.bridges, self._weights, "The saved projections", cure=_SAME)
            self._weights = {}
        optimizer = prepared_optimizer(self._model)
        with uninterrupted():
            scope.callback(objective.bridges.clear_gradients)
            scope.enter_context(trained_also(optimizer, parameters, keep=lambda: False))
            set_optimizer_state_of(optimizer, self._named(objective), self._accumulators)
            scope.callback(self._keep_accumulators)  # before the optimizer drops them
        if paddle.distributed.get_world_size() > 1:
            for parameter in parameters:  # made behind hapi's DataParallel, which does not know them
                paddle.distributed.broadcast(parameter, src=0)
                scope.callback(parameter.register_hook(mean_over_ranks).remove)

    def after_batch(self, updated: bool) -> None:
        """Clear the projections' gradients; hapi clears only the network's."""
        if updated and self._parameters:
            for parameter in self._parameters:
                parameter.clear_gradient()

    def state_dict(self, objective: Objective) -> dict[str, Any]:
        """Return weights and accumulators, by names stable across processes."""
        if self._parameters:
            self._keep_accumulators()
        return {"weights": dict(objective.bridges.state_dict()), "accumulators": self._accumulators}

    def take_up(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned, once the projections are made."""
        self._weights, self._accumulators = state.get("weights", {}), state.get("accumulators", {})

    def _keep_accumulators(self) -> None:
        objective, _ = self._ready()
        self._accumulators = optimizer_state_of(prepared_optimizer(self._model), self._named(objective))

    def _ready(self) -> tuple[Objective, ExitStack]:
        if self._objective is None or self._scope is None:
            raise RuntimeError("The bridges are made in training, which is not under way.")
        return self._objective, self._scope

    @staticmethod
    def _named(objective: Objective) -> dict[str, Tensor]:
        return dict(objective.bridges.named_parameters())

    def _end(self) -> None:
        self._scope, self._parameters = None, None


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Write ``state`` to ``path.pddistill`` atomically."""
    file = Path(f"{path}{_ENDING}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(file) as partial:
        paddle.save(state, str(partial))


def save_state_beside(state: dict[str, Any], path: str | Path) -> None:
    """Write ``state`` and record which checkpoint ``path.pdparams`` it belongs to.

    Args:
        state: see `save_state`.
        path: prefix of the checkpoint.
    """
    weights = Path(f"{path}{WEIGHTS}")
    save_state({**state, "weights": _checksum(weights)} if weights.is_file() else state, path)


def load_state(path: str | Path) -> dict[str, Any]:
    """Return what `save_state` wrote.

    Args:
        path: prefix of the checkpoint.

    Raises:
        FileNotFoundError: there is none beside the checkpoint.
        ValueError: it is torn, holds code, is another kind of file, or belongs to another ``path.pdparams`` than the
            one there.
    """
    file, weights = Path(f"{path}{_ENDING}"), Path(f"{path}{WEIGHTS}")
    put_in_place(Path(path), last=WEIGHTS)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}: DistillCallback writes it beside hapi's checkpoints if there is something to go on "
            "from (schedules, projections, an average or a peer). Leave resume= out if there was not."
        )
    try:
        state = read_saved(file)
    except ValueError as error:
        raise ValueError(f"{error} Or {_OTHER}") from error
    wanted = {"position": float, "bridges": dict, "source": dict}
    whole = isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in wanted.items())
    if not whole or not 0 <= state["position"] < math.inf:
        raise ValueError(
            f"{file} is no state of DistillCallback, which holds {sorted(wanted)}: give resume= the prefix of a "
            "checkpoint of this package, for instance 'checkpoints/3'."
        )
    belongs = state.pop("weights", None)
    if belongs is not None and weights.is_file() and belongs != _checksum(weights):
        raise ValueError(f"{file} was written beside other weights than {weights.name}, which is there now: {_OTHER}")
    return state


def check_same_teacher(saved: Mapping[str, Any], wanted: Collection[str], teacher: str) -> None:
    """Check that a state belongs to this kind of teacher.

    Args:
        saved: what the file holds of it.
        wanted: the names that this kind holds; empty for a frozen one.
        teacher: that was given, for the message.

    Raises:
        ValueError: names both.
    """
    if set(saved) != set(wanted):
        raise ValueError(
            f"The state that resume= names holds {sorted(saved) or 'nothing'} of its teacher, the teacher given here "
            f"({teacher}) goes on from {sorted(wanted) or 'nothing'}: give the kind of teacher that it was written "
            "with, or leave resume= out."
        )


def check_same_options(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a state was written with these teacher options.

    Args:
        saved: what the file holds of them; nothing in a file from before there were any.
        given: the same of the callback.

    Raises:
        ValueError: names both.
    """
    other = [
        f"{name}={saved[name]!r}, got {value!r}" for name, value in given.items() if saved.get(name, value) != value
    ]
    if other:
        raise ValueError(
            f"The state that resume= names was written with {'; '.join(other)}: the training would go on with another "
            "teacher's knowledge. Give the options that it was written with, or leave resume= out."
        )


def _checksum(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
