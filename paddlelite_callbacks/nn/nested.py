"""Handle nested inputs and outputs of networks, and outputs of inner layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.errors import ExportError, near_names
from paddlelite_callbacks.nn.surgery import find_sublayer

__all__ = [
    "Key",
    "Seen",
    "Taps",
    "check_same_shape",
    "comparable",
    "flat_outputs",
    "forward_batch",
    "full_precision",
    "listed",
    "mean_of",
    "paired",
    "picked",
    "shapes_of",
    "summed",
    "tensors_and_arrays",
    "tensors_in",
    "tensors_of",
    "told",
]

Key = int | str | Callable[[Any], Tensor]


@dataclass
class Seen:
    """The ``outputs`` and tapped ``features`` of one network for one batch."""

    outputs: Any
    features: dict[str, Any] = field(default_factory=dict)

    def detached(self) -> Seen:
        """Return the same without gradients."""
        return Seen(mapped(self.outputs, lambda x: x.detach()), mapped(self.features, lambda x: x.detach()))


class Taps:
    """Capture the outputs of named layers, from `start` to `take`.

    Args:
        names: Names of layers, as in ``named_sublayers()``.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        self._kept: dict[str, list[Any]] | None = None

    def attach(self, network: Layer, scope: ExitStack) -> None:
        """Register the hooks; ``scope`` removes them.

        Raises:
            ValueError: There is no such layer.
        """
        for name in self.names:
            hook = find_sublayer(network, name).register_forward_post_hook(self._keep(name))
            scope.callback(hook.remove)
        scope.callback(self.forget)

    def start(self) -> None:
        """Start capturing; earlier captures are dropped."""
        self._kept = {name: [] for name in self.names}

    def forget(self) -> None:
        """Stop capturing."""
        self._kept = None

    def take(self) -> dict[str, Any]:
        """Return the captured outputs by name, and drop them.

        Raises:
            ValueError: A layer did not run, or ran several times, so that its output is ambiguous.
        """
        kept, self._kept = self._kept or {}, None
        wrong = {name: len(found) for name, found in kept.items() if len(found) != 1}
        if wrong:
            raise ValueError(
                f"These layers did not run exactly once in the forward pass, so their feature is ambiguous: {wrong} "
                "(name: times). Choose the layer around them, or one after them."
            )
        return {name: found[0] for name, found in kept.items()}

    def _keep(self, name: str) -> Callable[[Layer, Any, Any], None]:
        def hook(layer: Layer, inputs: Any, output: Any) -> None:
            if self._kept is not None:
                self._kept[name].append(output)

        return hook


def forward_batch(network: Layer, batch: Tensor | Sequence[Any]) -> Any:
    """Return the network's outputs for a batch.

    Args:
        network: Network to run.
        batch: A tensor, or one item per input of the network.
    """
    return network(*([batch] if isinstance(batch, Tensor) else batch))


def tensors_of(outputs: Any, path: str = "") -> dict[str, Tensor]:
    """Return the tensors in ``outputs`` by path.

    A single tensor has the path ``""``, others such as ``"0"``, ``"logits"``, ``"a.1"``.

    Other values (``None``, numbers) are left out.
    """
    return dict(_walk(outputs, path))


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in ``values``, in order and with repetitions."""
    return [tensor for _, tensor in _walk(values, "")]


def _walk(values: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        yield path, values
        return
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        items = values.items()
    elif isinstance(values, (list, tuple)):
        items = enumerate(values)
    for key, value in items:
        yield from _walk(value, f"{path}.{key}" if path else str(key))


def tensors_and_arrays(values: Any) -> list[Tensor | np.ndarray]:
    """Return the tensors and arrays in nested ``values``, in order."""
    if isinstance(values, (Tensor, np.ndarray)):
        return [values]
    items = values.values() if isinstance(values, Mapping) else values if isinstance(values, (list, tuple)) else ()
    return [item for value in items for item in tensors_and_arrays(value)]


def listed(value: Any) -> list[Any]:
    """Return a list or tuple ``value`` as a list, anything else as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def summed(loss: Any) -> Tensor:
    """Return the sum of a ``loss`` of one or several parts."""
    parts = listed(loss)
    return parts[0] if len(parts) == 1 else paddle.add_n(parts)


def comparable(outputs: Any) -> dict[str, Tensor]:
    """Return the tensors in ``outputs`` by path, without losses (no sample axis).

    Args:
        outputs: Outputs of a network; some return losses in training, beside their outputs or alone.
    """
    return {path: tensor for path, tensor in tensors_of(outputs).items() if not _is_loss(path, tensor)}


def _is_loss(path: str, tensor: Tensor) -> bool:
    return tensor.ndim == 0 or (tensor.size == 1 and "loss" in path.rpartition(".")[2].lower())


def mapped(outputs: Any, change: Callable[[Tensor], Any]) -> Any:
    """Apply ``change`` to each tensor of nested ``outputs``."""
    if isinstance(outputs, Tensor):
        return change(outputs)
    if isinstance(outputs, Mapping):
        return {key: mapped(value, change) for key, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return [mapped(value, change) for value in outputs]
    return outputs


def picked(outputs: Any, key: Key | None, whose: str) -> Tensor:
    """Return the tensor ``key`` of ``outputs``.

    Args:
        outputs: Outputs of a network or layer.
        key: An index, a dictionary key, a path such as ``"aux.0"``, or a function of ``outputs`` that returns the
            tensor; ``None`` for a single tensor.
        whose: Subject of the error message, for instance ``"The teacher's output"``.

    Raises:
        ValueError: There is no such tensor, or ``key`` is ``None`` and there are several.
    """
    if callable(key):
        return _picked_by(key, outputs, whose)
    found, alone = tensors_of(outputs), comparable(outputs)
    if key is None and len(alone) == 1:
        return next(iter(alone.values()))
    name = "" if key is None else str(key)
    if isinstance(key, int) and isinstance(outputs, (list, tuple)) and -len(outputs) <= key < 0:
        name = str(len(outputs) + key)
    if name not in found:
        wanted = "is not a single tensor" if key is None else f"has no tensor {key!r}"
        if list(found) == [""]:
            raise ValueError(f"{whose} {wanted}: it is a single tensor. Leave output= (or pick=) out.")
        raise ValueError(
            f"{whose} {wanted}; near names: {near_names(name, found)} "
            f"of {len(found)} ({type(outputs).__name__}). Name one with output= (or pick=)."
        )
    return found[name]


def _picked_by(function: Callable[[Any], Tensor], outputs: Any, whose: str) -> Tensor:
    name = getattr(function, "__name__", type(function).__name__)
    try:
        found = function(outputs)
    except Exception as error:
        raise ValueError(
            f"{whose} {shapes_of(outputs)} cannot be picked from by {name} ({told(error)}): give output= (or pick=) "
            "a function of all outputs of the network that returns one tensor."
        ) from error
    if not isinstance(found, Tensor):
        raise ValueError(
            f"{whose}: the function {name} in output= (or pick=) must return a tensor, got {type(found).__name__}: "
            "return one of the outputs."
        )
    return found


def paired(student: Any, teacher: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Pair two outputs' tensors: by key for dictionaries, else by position.

    Losses are left out.

    Returns:
        ``(path in the student's output, student's tensor, teacher's tensor)`` each.

    Raises:
        ValueError: The numbers or the keys differ; names both networks' shapes.
    """
    ours, theirs = comparable(student), comparable(teacher)
    by_key = isinstance(student, Mapping) and isinstance(teacher, Mapping)
    empty = [who for who, found in (("student", ours), ("teacher", theirs)) if not found]
    if empty:
        given = shapes_of(student if empty[0] == "student" else teacher)
        raise ValueError(
            f"The {empty[0]} returns no output to compare, but {given}: losses cannot be distilled. Compare layers "
            "with features=, or let forward return its outputs beside the losses."
        )
    if len(ours) != len(theirs) or (by_key and ours.keys() != theirs.keys()):
        raise ValueError(
            f"The student returns {len(ours)} outputs {shapes_of(student)}, the teacher {len(theirs)} "
            f"{shapes_of(teacher)}: distillation pairs them {'by key' if by_key else 'in order'}, so they must be the "
            "same in number" + (" and keys" if by_key else "") + ". Name the ones to distil with output=, or use "
            "teacher_mode='train' for the teacher's outputs of training."
        )
    if by_key:
        return [(path, tensor, theirs[path]) for path, tensor in ours.items()]
    return [(path, a, b) for (path, a), b in zip(ours.items(), theirs.values(), strict=True)]


def shapes_of(outputs: Any) -> Any:
    """Return the shapes of nested outputs.

    Args:
        outputs: Outputs of a network.
    """
    found = {path: list(tensor.shape) for path, tensor in tensors_of(outputs).items()}
    if isinstance(outputs, Mapping):
        return found
    return found[""] if list(found) == [""] else list(found.values())


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Check that a pair of outputs has one shape.

    Args:
        student: Output of the student.
        teacher: Output of the teacher.

    Raises:
        TypeError: One of them is not a tensor.
        ValueError: The shapes differ; names both.
    """
    for name, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a paddle.Tensor, got {type(value).__name__}: make one with paddle.to_tensor."
            )
    if list(student.shape) != list(teacher.shape):
        raise ValueError(
            f"The student's output {list(student.shape)} and the teacher's {list(teacher.shape)} must have the same "
            "shape: give both the same number of classes or outputs, or distil with a callable that bridges them."
        )


def mean_of(outputs: Sequence[Any], weights: Sequence[float]) -> Any:
    """Return the weighted mean of several outputs, tensor by tensor.

    The ``weights`` sum to 1.

    Raises:
        ValueError: The outputs differ in number or shape; names all shapes.
    """
    columns = [list(tensors_of(output).values()) for output in outputs]
    if len({str([list(tensor.shape) for tensor in column]) for column in columns}) != 1:
        raise ValueError(
            f"The teachers' outputs {[shapes_of(output) for output in outputs]} cannot be averaged: their shapes "
            "differ. Give each teacher terms of its own, or combine='each'."
        )
    means = iter(
        [
            paddle.add_n([w * full_precision(x) for w, x in zip(weights, row, strict=True)])
            for row in zip(*columns, strict=True)
        ]
    )
    return mapped(outputs[0], lambda _: next(means))


def told(error: Exception) -> str:
    """Format an error's class and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is in half precision."""
    return x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x


def flat_outputs(output: Any) -> list[Tensor]:
    """Return the output tensors in the order of ``paddle.jit.save``.

    Args:
        output: A tensor, or lists, tuples and dictionaries of tensors.

    Raises:
        ExportError: It holds something else.
    """
    if isinstance(output, dict):
        output = [output[key] for key in sorted(output)]
    if isinstance(output, (list, tuple)):
        return [item for part in output for item in flat_outputs(part)]
    if not isinstance(output, Tensor):
        raise ExportError(
            f"The network's output holds a {type(output).__name__}: in eval mode forward() must return tensors, or "
            "lists, tuples and dictionaries of them."
        )
    return [output]
