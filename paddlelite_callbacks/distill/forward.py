"""How a frozen teacher is run: on which inputs, in which mode, without a trace in it."""

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
TeacherInputs = Callable[..., Any]  # (*the student's inputs[, labels=[...]]) -> the teacher's
Labels = Callable[[], list[Tensor]]  # makes tensors of the batch's labels
TeacherForward = Callable[[Sequence[Tensor], Labels], "list[Seen] | None"]  # (inputs, labels) -> of each teacher


class FrozenForward:
    """Runs one teacher: frozen, under ``no_grad``.

    Args:
        network: the teacher.
        mode: ``"eval"``; ``"train"`` runs the branches of training, see `train_branches_`, and keeps buffers and the
            student's random numbers as they are.
        inputs: gives the teacher's inputs for the student's; ``None`` for the same.
    """

    def __init__(self, network: Layer, *, mode: str = "eval", inputs: TeacherInputs | None = None) -> None:
        self.network, self.mode, self.inputs = network, mode, inputs
        self._streams = RandomStreams()

    def attach(self, scope: ExitStack) -> None:
        """Freeze the network; flags and modes come back with ``scope``."""
        scope.enter_context(frozen(self.network))
        if self.mode == "train":
            train_branches_(self.network)

    def __call__(self, inputs: Sequence[Any], labels: Sequence[Any] = ()) -> Any:
        """Return the teacher's outputs.

        Args:
            inputs: of the student.
            labels: of the batch, for a ``teacher_inputs`` that asks for them.

        Raises:
            ValueError: ``teacher_inputs`` failed.
            NoInputsError: it gave something else than inputs; a ``TypeError``.
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
                f"teacher_inputs failed on a batch with inputs {shapes} ({told(error)}): it is given the "
                "student's inputs, one argument each, and returns the teacher's."
            ) from error
        if isinstance(found, (Tensor, Mapping)):
            return [found]
        if isinstance(found, (list, tuple)) and found:
            return list(found)
        raise NoInputsError(
            "teacher_inputs must return a tensor or a dictionary, the teacher's one input, or a tuple of its inputs; "
            f"got {type(found).__name__}: return what the teacher's forward takes."
        )


class FrozenTeachers:
    """Run frozen teachers on a batch, with taps on their layers.

    Args:
        forwards: one a teacher.
        features: names of the layers to tap, of each.
        scope: thaws the networks and removes the hooks.
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
            inputs: of the student.
            labels: gives those of the batch, where a ``teacher_inputs`` asks for them.
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
        mode: one for all, or one each.
        count: of teachers.

    Raises:
        ValueError: another mode, or another number of them.
    """
    modes = [mode] * count if isinstance(mode, str) or not isinstance(mode, Sequence) else list(mode)
    if len(modes) != count or any(one not in MODES for one in modes):
        raise ValueError(
            f"teacher_mode must be 'eval', 'train' or a list of {count} of these, one per teacher, got {mode!r}: "
            "use 'train' for a teacher whose training outputs are distilled, with norms and dropout frozen."
        )
    return modes


def checked_inputs(function: Any, count: int) -> list[TeacherInputs | None]:
    """Return the function of each teacher that makes its inputs.

    Args:
        function: one for all, one or ``None`` each, or ``None``.
        count: of teachers.

    Raises:
        TypeError: no callable.
        ValueError: another number of them.
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
    except (TypeError, ValueError):  # of C code
        return False
    return parameter is not None and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def check_signature(function: TeacherInputs | None, inputs: int) -> None:
    """Refuse a function that does not take the student's inputs.

    Args:
        function: as `checked_inputs` returned it.
        inputs: how many the student has.

    Raises:
        TypeError: names its parameters.
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
            f"teacher_inputs takes {signature}, but is given {inputs} input(s) of the student ({error}): write one "
            "parameter for each input; one named labels gets the list of the batch's labels."
        ) from error


def check_no_saved_program(network: Layer, mode: str) -> None:
    """Refuse to run a saved program in train mode.

    Args:
        network: the teacher.
        mode: asked for.

    Raises:
        ValueError: a program holds the branches of eval mode alone.
    """
    if mode == "train" and type(network).__module__.startswith("paddle.jit."):  # old programs and new ones
        raise ValueError(
            "teacher_mode='train': a program that paddle.jit.save wrote holds the outputs of eval mode alone. Give the "
            "network itself, or teacher=(checkpoint, network)."
        )
