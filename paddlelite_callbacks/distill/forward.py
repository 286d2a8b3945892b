"""Run frozen teachers in their mode, on their inputs, without side effects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.distill.teacher_mode import same_buffers, still_functions, train_branches_
from paddlelite_callbacks.nn.dry_run import NoInputsError
from paddlelite_callbacks.nn.nested import Seen, Taps, told
from paddlelite_callbacks.nn.surgery import frozen
from paddlelite_callbacks.utils.isolation import RandomStreams

__all__ = [
    "MODES",
    "FrozenForward",
    "FrozenTeachers",
    "Labels",
    "TeacherForward",
    "TeacherInputs",
    "check_no_saved_program",
    "check_signature",
    "checked_inputs",
    "checked_modes",
    "wants_labels",
]

MODES = ("eval", "train")
TeacherInputs = Callable[..., Any]  # (*student's inputs[, labels=[...]]) -> teacher's inputs
Labels = Callable[[], list[Tensor]]  # returns the batch's labels as tensors
TeacherForward = Callable[[Sequence[Tensor], Labels], "list[Seen] | None"]  # (inputs, labels) -> one per teacher


class FrozenForward:
    """Forward pass of one frozen teacher, under ``no_grad``.

    Args:
        network: Teacher network.
        mode: ``"eval"``; ``"train"`` runs the training branches, see `train_branches_`, without changing buffers and
            the student's random states.
        inputs: Computes the teacher's inputs from the student's; ``None`` for the same.
    """

    def __init__(self, network: Layer, *, mode: str = "eval", inputs: TeacherInputs | None = None) -> None:
        self.network, self.mode, self.inputs = network, mode, inputs
        self._streams = RandomStreams()

    def attach(self, scope: ExitStack) -> None:
        """Freeze the network; ``scope`` restores flags and modes."""
        scope.enter_context(frozen(self.network))
        if self.mode == "train":
            train_branches_(self.network)

    def __call__(self, inputs: Sequence[Any], labels: Sequence[Any] = ()) -> Any:
        """Return the teacher's outputs.

        Args:
            inputs: Inputs of the student.
            labels: Labels of the batch, for a ``teacher_inputs`` with a parameter ``labels``.

        Raises:
            ValueError: ``teacher_inputs`` failed.
            NoInputsError: It did not return inputs; a ``TypeError``.
        """
        with paddle.no_grad():
            given = self._given(inputs, labels)
            if self.mode == "eval":
                return self.network(*given)
            with self._streams.used(), still_functions(), same_buffers(self.network):
                return self.network(*given)

    def _given(self, inputs: Sequence[Any], labels: Sequence[Any]) -> list[Any]:
        """Return the teacher's inputs; see `__call__`."""
        if self.inputs is None:
            return list(inputs)
        keywords = {"labels": list(labels)} if wants_labels(self.inputs) else {}
        try:
            found = self.inputs(*inputs, **keywords)
        except Exception as error:
            shapes = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in inputs]
            raise ValueError(
                f"teacher_inputs failed on a batch with inputs {shapes} ({told(error)}): write it to take the "
                "student's inputs, one argument each, and return the teacher's."
            ) from error
        if isinstance(found, (Tensor, Mapping)):
            return [found]
        if isinstance(found, (list, tuple)) and found:
            return list(found)
        raise NoInputsError(
            f"teacher_inputs must return a tensor, a dictionary, or a tuple of inputs, got {type(found).__name__}: "
            "return what the teacher's forward takes."
        )


class FrozenTeachers:
    """Forward passes of frozen teachers, with taps on their layers.

    Args:
        forwards: One per teacher.
        features: Names of the layers to tap, for each.
        scope: Unfreezes the networks and removes the hooks.
    """

    def __init__(self, forwards: Sequence[FrozenForward], features: Sequence[Sequence[str]], scope: ExitStack) -> None:
        self._teachers = [(forward, Taps(names)) for forward, names in zip(forwards, features, strict=True)]
        self._want_labels = any(forward.inputs is not None and wants_labels(forward.inputs) for forward in forwards)
        for forward, taps in self._teachers:
            forward.attach(scope)
            taps.attach(forward.network, scope)

    def __call__(self, inputs: Sequence[Tensor], labels: Labels) -> list[Seen]:
        """Return each teacher's outputs and features.

        Args:
            inputs: Inputs of the student.
            labels: Returns the labels of the batch, for a ``teacher_inputs`` that takes them.
        """
        given, seen = labels() if self._want_labels else [], []
        for forward, taps in self._teachers:
            taps.start()
            outputs = forward(inputs, given)
            seen.append(Seen(outputs, taps.take()))
        return seen


def checked_modes(mode: Any, count: int) -> list[str]:
    """Return the mode of each teacher.

    Args:
        mode: One for all, or one each.
        count: Number of teachers.

    Raises:
        ValueError: Unknown mode, or another number of modes.
    """
    modes = [mode] * count if isinstance(mode, str) or not isinstance(mode, Sequence) else list(mode)
    if len(modes) != count or any(one not in MODES for one in modes):
        raise ValueError(
            f"teacher_mode must be 'eval', 'train' or a list of {count} of these, one per teacher, got {mode!r}: "
            "use 'train' for a teacher whose training outputs are distilled, with norms and dropout frozen."
        )
    return modes


def checked_inputs(function: Any, count: int) -> list[TeacherInputs | None]:
    """Return the input function of each teacher.

    Args:
        function: One for all, one or ``None`` each, or ``None``.
        count: Number of teachers.

    Raises:
        TypeError: Not a callable.
        ValueError: Another number of functions.
    """
    functions = list(function) if isinstance(function, (list, tuple)) else [function] * count
    for one in functions:
        if one is not None and not callable(one):
            raise TypeError(
                f"teacher_inputs must be a function of the student's inputs, or one per teacher in a list, got "
                f"{type(one).__name__}: write one, as lambda x: (x - mean) / std."
            )
    if len(functions) != count:
        raise ValueError(
            f"teacher_inputs holds {len(functions)} functions for {count} teachers: give one for each (None for the "
            "student's own inputs), or one function for all."
        )
    return functions


def wants_labels(function: TeacherInputs) -> bool:
    """Whether ``function`` has a parameter ``labels``, for the labels of the batch."""
    try:
        parameter = inspect.signature(function).parameters.get("labels")
    except (TypeError, ValueError):  # C code
        return False
    return parameter is not None and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def check_signature(function: TeacherInputs | None, inputs: int) -> None:
    """Check that a function accepts the student's inputs.

    Args:
        function: Result of `checked_inputs`.
        inputs: Number of the student's inputs.

    Raises:
        TypeError: It does not; names its parameters.
    """
    if function is None:
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * inputs, **({"labels": []} if wants_labels(function) else {}))
    except TypeError as error:
        raise TypeError(
            f"teacher_inputs takes {signature}, but is called with {inputs} input(s) of the student ({error}): "
            "write one parameter for each input; one named labels gets the list of the batch's labels."
        ) from error


def check_no_saved_program(network: Layer, mode: str) -> None:
    """Check that a saved program is not run in train mode.

    Args:
        network: Teacher network.
        mode: Chosen mode.

    Raises:
        ValueError: A program contains only the branches of eval mode.
    """
    if mode == "train" and type(network).__module__.startswith("paddle.jit."):  # programs of both formats
        raise ValueError(
            "teacher_mode='train' needs the network, a program of paddle.jit.save has only the outputs of eval "
            "mode. Give the network itself, or teacher=(checkpoint, network)."
        )
