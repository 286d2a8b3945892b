"""Teacher sources: frozen networks, the student's EMA, or cached outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.batch_state import BatchState
from paddlelite_callbacks.distill.cache import CachedTeacher
from paddlelite_callbacks.distill.ema import EMATeacher
from paddlelite_callbacks.distill.forward import (
    FrozenForward,
    FrozenTeachers,
    Labels,
    TeacherForward,
    TeacherInputs,
    check_no_saved_program,
    check_signature,
    wants_labels,
)
from paddlelite_callbacks.distill.identity import function_digest, function_name
from paddlelite_callbacks.distill.load_teacher import TeacherLike, check_files_exist, loaded_teacher
from paddlelite_callbacks.distill.objective import Objective
from paddlelite_callbacks.hapi import LoopModel, LossFunction, input_count, labels_through
from paddlelite_callbacks.nn.dry_run import UNKNOWN_BATCH, InputSpecs, seen_on_zeros
from paddlelite_callbacks.nn.nested import Seen

__all__ = ["CacheSource", "EMASource", "FrozenSource", "Source", "check_cache_options", "layers_to_tap"]


class Source:
    """Interface of a teacher source; methods in the order of their calls."""

    taps_features = True
    has_state = False
    state_keys: tuple[str, ...] = ()  # of `state_dict`
    learns = False  # trains itself, also when the student's distillation weight is 0
    figures: tuple[str, ...] = ()
    called = "teacher"  # in messages
    networks: Sequence[Layer | None] = ()

    def described(self) -> str:
        """Return the kind of teacher, for a ``repr``."""
        return type(self).__name__.removesuffix("Source")

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """Check the teachers and return their networks, to resolve feature names.

        The entry is ``None`` for a teacher without a network.

        Raises:
            ValueError: The student cannot learn from a teacher.
        """
        raise NotImplementedError

    def seen_on_zeros(self, specs: InputSpecs, features: Sequence[Sequence[str]], hooks: bool) -> list[Seen] | None:
        """Return each teacher's outputs for zero inputs; ``None`` where unknown."""
        return None

    def attach(self, model: paddle.Model, features: Sequence[Sequence[str]], scope: ExitStack) -> TeacherForward:
        """Register hooks and freeze; ``features`` are the layers to tap, per network.

        Returns:
            Function that runs before each forward pass of the student, inside its ``auto_cast``.
        """
        raise NotImplementedError

    def learn(self, task_loss: LossFunction, labels: Sequence[Tensor], batch: BatchState, distil: Any) -> Tensor | None:
        """Learn from the student in turn; return the loss, if any."""
        return None

    def skipped(self) -> None:
        """Discard what was computed for a skipped batch."""

    def watch(self, inputs: Sequence[Tensor]) -> None:
        """Receive the inputs of an evaluation batch of the student."""

    def evaluated(self, task_loss: LossFunction, outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Receive the student's outputs of an evaluation batch."""

    def after_batch(self, updated: bool) -> None:
        """Update after a batch; ``updated`` says whether the optimizer took a step."""

    def after_evaluation(self, logs: dict[str, Any]) -> dict[str, float]:
        """Return metrics for ``logs`` after an evaluation."""
        return {}

    def end(self, model: paddle.Model) -> None:
        """Finish at train end, before ``model`` is saved."""

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {}

    def set_state_dict(self, state: dict[str, Any], model: paddle.Model) -> None:
        """Load what `state_dict` returned; called after `settle`."""


class FrozenSource(Source):
    """Frozen networks, run once per batch without gradients.

    Args:
        teachers: Teachers, as `DistillCallback` takes them.
        modes: Mode of each teacher, ``"eval"`` or ``"train"``.
        inputs: Function for each teacher that computes its inputs from the student's; ``None`` for the same inputs.
    """

    def __init__(
        self, teachers: Sequence[TeacherLike], *, modes: Sequence[str], inputs: Sequence[TeacherInputs | None]
    ) -> None:
        for teacher in teachers:
            check_files_exist(teacher)
        self._given = list(teachers)
        self._modes, self._inputs = list(modes), list(inputs)
        self.networks = [loaded_teacher(teacher) for teacher in teachers]

    def described(self) -> str:
        """Return class names or paths of the networks."""
        pairs = zip(self._given, self.networks, strict=True)
        names = [repr(str(given)) if network is None else type(network).__name__ for given, network in pairs]
        return names[0] if len(names) == 1 else f"[{', '.join(names)}]"

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """Load the remaining networks and check them and their options.

        A network that shares parameters with the student is an error.
        """
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
        self._check_options(model)
        return list(self.networks)

    def _check_options(self, model: paddle.Model) -> None:
        for network, mode in zip(self._ready(), self._modes, strict=True):
            check_no_saved_program(network, mode)
        for function in self._inputs:
            check_signature(function, input_count(model))

    def _ready_forwards(self) -> list[FrozenForward]:
        parts = zip(self._ready(), self._modes, self._inputs, strict=True)
        return [FrozenForward(network, mode=mode, inputs=inputs) for network, mode, inputs in parts]

    def seen_on_zeros(self, specs: InputSpecs, features: Sequence[Sequence[str]], hooks: bool) -> list[Seen] | None:
        """Run every network on zeros."""
        if any(function is not None and wants_labels(function) for function in self._inputs):
            return None  # there are no labels yet
        seen = [
            seen_on_zeros(one.network, specs, names, training=False, hooks=hooks, forward=one)
            for one, names in zip(self._ready_forwards(), features, strict=True)
        ]
        return None if any(one is None for one in seen) else [one for one in seen if one is not None]

    def _ready(self) -> list[Layer]:
        return [network for network in self.networks if network is not None]

    def attach(self, model: paddle.Model, features: Sequence[Sequence[str]], scope: ExitStack) -> TeacherForward:
        """Freeze the networks and register their taps."""
        return FrozenTeachers(self._ready_forwards(), features, scope)


class EMASource(FrozenSource):
    """Exponential moving average of the student.

    Args:
        average: Exponential moving average to update.
        mode: Mode of the average, ``"eval"`` or ``"train"``.
        inputs: Function that computes its inputs from the student's; ``None`` for the same inputs.
    """

    has_state = True
    state_keys = ("network", "steps")
    called = "teacher (the student's average)"

    def __init__(self, average: EMATeacher, *, mode: str, inputs: TeacherInputs | None) -> None:
        super().__init__([], modes=[mode], inputs=[inputs])
        self.average = average

    def described(self) -> str:
        """Return the average with its options."""
        return repr(self.average)

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """Initialise the average from the student."""
        self.networks = [self.average.follow(model.network)]
        self._check_options(model)
        return list(self.networks)

    def after_batch(self, updated: bool) -> None:
        """Update the average after each optimizer step."""
        if updated:
            self.average.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return self.average.state_dict()

    def set_state_dict(self, state: dict[str, Any], model: paddle.Model) -> None:
        """Load a saved average."""
        self.average.set_state_dict(state, model.network)


def layers_to_tap(objective: Objective, teachers: int) -> tuple[list[str], list[list[str]]]:
    """Return the student's and each teacher's layers that ``objective`` compares.

    Args:
        objective: Objective with its terms.
        teachers: Number of teachers.
    """
    features = objective.feature_terms()
    return (
        [name for term in features for name in term.layers()[0]],
        [[name for term in features if term.of == index for name in term.layers()[1]] for index in range(teachers)],
    )


class CacheSource(Source):
    """Cached teacher outputs, removed from each batch before loss and metrics.

    Args:
        cached: Data set returned by `cache_teacher`.
    """

    taps_features = False
    called = "stored teacher"

    def __init__(self, cached: CachedTeacher) -> None:
        self._cached = cached
        self.networks = [None]
        self._given: list[Tensor] | None = None
        self._own_loop = False

    def described(self) -> str:
        """Return the data set with its folder."""
        return repr(self._cached)

    def settle(self, model: paddle.Model) -> list[Layer | None]:
        """Return ``[None]``: there is no network."""
        return [None]

    def seen_on_zeros(self, specs: InputSpecs, features: Sequence[Sequence[str]], hooks: bool) -> list[Seen] | None:
        """Return zeros in the shapes of the cached outputs."""
        shapes = [[specs[0][0][0] or UNKNOWN_BATCH, *array.shape[1:]] for array in self._cached.arrays()]
        return [Seen(self._cached.outputs_from([paddle.zeros(shape, dtype="float32") for shape in shapes]))]

    def attach(self, model: paddle.Model, features: Sequence[Sequence[str]], scope: ExitStack) -> TeacherForward:
        """Separate the cached outputs from each batch's labels."""
        self._own_loop = isinstance(model, LoopModel)
        scope.callback(self._forget)
        scope.enter_context(labels_through(model, self._without_outputs))
        return self._stored

    def _without_outputs(self, inputs: list[Any], labels: list[Any]) -> list[Any]:
        cached = self._cached
        if len(inputs) + len(labels) != cached.fields + cached.added:
            raise ValueError(
                f"The batch has {len(inputs) + len(labels)} fields; the data set with stored outputs gives "
                f"{cached.fields} + {cached.added}. Train on what cache_teacher returned: "
                "model.fit(cached, callbacks=[DistillCallback(cached)])."
            )
        kept, added = labels[: -cached.added], [_tensor(label) for label in labels[-cached.added :]]
        check = int(added[-1].min())
        if check < 0:
            raise ValueError(
                f"Sample {-1 - check} differs from the stored one: the data set changed, or it augments at "
                "random. Store the outputs again (overwrite=True), or see allow_random= of cache_teacher."
            )
        self._given = added[:-1]
        return kept

    def _stored(self, inputs: Sequence[Tensor], labels: Labels) -> list[Seen] | None:
        """Return the cached outputs of the batch."""
        given, self._given = self._given, None
        if given is None and self._own_loop:
            raise RuntimeError(
                "The batch has no stored outputs: iterate over what cache_teacher returned, and take each batch's "
                "fields from loop.batch(data)."
            )
        return None if given is None else [Seen(self._cached.outputs_from(given))]

    def _forget(self) -> None:
        self._given = None


def check_cache_options(cached: CachedTeacher, mode: str, inputs: TeacherInputs | None) -> None:
    """Check that the cached outputs were made with these teacher options.

    Args:
        cached: Data set with stored outputs.
        mode: ``teacher_mode`` of `DistillCallback`.
        inputs: ``teacher_inputs`` of `DistillCallback`.

    Raises:
        ValueError: An option differs; the message has both values.
    """
    if mode not in ("eval", cached.meta["teacher_mode"]):
        raise ValueError(
            f"The stored outputs were made with teacher_mode={cached.meta['teacher_mode']!r}, got {mode!r}: give it to "
            "cache_teacher, with overwrite=True."
        )
    if inputs is not None and function_digest(inputs) != cached.meta["teacher_inputs"]:
        raise ValueError(
            f"The stored outputs were made with {'another' if cached.meta['teacher_inputs'] else 'no'} teacher_inputs, "
            f"got {function_name(inputs)}: give it to cache_teacher, with overwrite=True."
        )


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else paddle.to_tensor(value)
