"""Where the knowledge comes from in one ``fit``: frozen networks, or an average of the student."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.distill.dry_run import InputSpecs, seen_on_zeros
from paddlelite_callbacks.distill.ema import EMATeacher
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.distill.outputs import Seen
from paddlelite_callbacks.distill.taps import Taps
from paddlelite_callbacks.distill.teachers import TeacherLike, loaded_teacher, refuse_missing_files
from paddlelite_callbacks.hapi import LossFunction
from paddlelite_callbacks.surgery import frozen

__all__ = ["EMASource", "FrozenSource", "Source", "layers_to_tap"]


class Source:
    """What `DistillCallback` asks of it; the steps are in the order in which they are called."""

    taps_features = True
    has_state = False
    state_keys: tuple[str, ...] = ()  # of `state_dict`
    learns = False  # runs on where distillation has stopped, for its own sake
    figures: tuple[str, ...] = ()
    called = "teacher"  # in messages
    networks: Sequence[Layer | None] = ()

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """Return the networks for names of features to be resolved in; ``None`` where there is none to look into.

        Raises:
            ValueError: the student cannot learn from it.
        """
        raise NotImplementedError

    def seen_on_zeros(self, specs: InputSpecs, features: Sequence[Sequence[str]], hooks: bool) -> list[Seen] | None:
        """Return what it gives for zeros, per teacher, to compare shapes; ``None`` where that is not known."""
        return None

    def attach(self, model: paddle.Model, features: Sequence[Sequence[str]], scope: ExitStack) -> None:
        """Make the edits; ``features`` are the layers to tap, per network."""

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Work out what it has to say on the student's ``inputs``; inside the student's ``auto_cast``."""

    def take(self) -> list[Seen] | None:
        """Return it, per teacher, and forget it; ``None`` if `run` was not called."""
        raise NotImplementedError

    def learn(self, task_loss: LossFunction, labels: Sequence[Tensor], student: Seen, distil: Any) -> Tensor | None:
        """Learn from the student in turn; returns the loss, for a figure."""
        return None

    def skipped(self) -> None:
        """The batch is left out: forget what was worked out for it."""

    def watch(self, inputs: Sequence[Tensor]) -> None:
        """The student is being evaluated on ``inputs``."""

    def evaluated(self, task_loss: LossFunction, outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """The student gave ``outputs`` in an evaluation."""

    def after_batch(self, updated: bool) -> None:
        """The student's optimizer took a step, or a batch without one is done."""

    def after_evaluation(self, logs: dict[str, Any]) -> dict[str, float]:
        """An evaluation is done; returns figures for ``logs``."""
        return {}

    def end(self, model: paddle.Model) -> None:
        """Training came to its end; ``model`` is about to be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {}

    def set_state_dict(self, state: dict[str, Any], model: paddle.Model) -> None:
        """Take up what `state_dict` returned; called behind `settle`."""


class FrozenSource(Source):
    """Frozen networks, run once a batch under ``no_grad``.

    Args:
        teachers: as `DistillCallback` takes them.
    """

    def __init__(self, teachers: Sequence[TeacherLike]) -> None:
        for teacher in teachers:
            refuse_missing_files(teacher)
        self._given = list(teachers)
        self.networks = [loaded_teacher(teacher) for teacher in teachers]
        self._taps: list[Taps] = []
        self._seen: list[Seen] | None = None

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """Load what needed the student; refuse a network that shares parameters with it."""
        student = model.network
        self.networks = [
            loaded_teacher(given, student) if network is None else network
            for given, network in zip(self._given, self.networks, strict=True)
        ]
        own = {id(parameter) for parameter in student.parameters()}
        for network in self._ready():
            shared = [name for name, parameter in network.named_parameters() if id(parameter) in own]
            if shared:
                raise ValueError(
                    f"The teacher shares {len(shared)} parameters with the student ({shared[:3]} ...): it would be "
                    "frozen with it. Pass a network of its own, for instance copy.deepcopy(network)."
                )
        return list(self.networks)

    def seen_on_zeros(self, specs: InputSpecs, features: Sequence[Sequence[str]], hooks: bool) -> list[Seen] | None:
        """Run every network on zeros."""
        seen = [
            seen_on_zeros(network, specs, names, training=False, hooks=hooks)
            for network, names in zip(self._ready(), features, strict=True)
        ]
        return None if any(one is None for one in seen) else [one for one in seen if one is not None]

    def _ready(self) -> list[Layer]:
        return [network for network in self.networks if network is not None]

    def attach(self, model: paddle.Model, features: Sequence[Sequence[str]], scope: ExitStack) -> None:
        """Freeze the networks and set their taps."""
        self._taps = [Taps(names) for names in features]
        scope.callback(self.take)
        for network, taps in zip(self._ready(), self._taps, strict=True):
            scope.enter_context(frozen(network))
            taps.attach(network, scope)

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Run every network."""
        self._seen = []
        with paddle.no_grad():
            for network, taps in zip(self._ready(), self._taps, strict=True):
                taps.start()
                outputs = network(*inputs)
                self._seen.append(Seen(outputs, taps.take()))

    def take(self) -> list[Seen] | None:
        """Return what the last `run` gave."""
        seen, self._seen = self._seen, None
        return seen


class EMASource(FrozenSource):
    """The average of the student."""

    has_state = True
    state_keys = ("network", "steps")
    called = "teacher (the student's average)"

    def __init__(self, average: EMATeacher) -> None:
        super().__init__([])
        self.average = average

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """Start to follow the student."""
        self.networks = [self.average.follow(model.network)]
        return list(self.networks)

    def after_batch(self, updated: bool) -> None:
        """Average after each step of the optimizer."""
        if updated:
            self.average.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return self.average.state_dict()

    def set_state_dict(self, state: dict[str, Any], model: paddle.Model) -> None:
        """Take up a saved average."""
        self.average.set_state_dict(state, model.network)


def layers_to_tap(objective: Objective, teachers: int) -> tuple[list[str], list[list[str]]]:
    """Return the layers that the terms of ``objective`` look at: the student's, and each teacher's.

    Args:
        objective: with its terms.
        teachers: how many there are.
    """
    features = objective.feature_terms()
    return (
        [name for term in features for name in term.layers()[0]],
        [[name for term in features if term.of == index for name in term.layers()[1]] for index in range(teachers)],
    )
