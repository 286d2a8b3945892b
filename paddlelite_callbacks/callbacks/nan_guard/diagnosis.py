"""Locate the source of a non-finite loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.callbacks.batch_state import BatchState
from paddlelite_callbacks.nn.nested import tensors_and_arrays, tensors_of
from paddlelite_callbacks.nn.surgery import broken_tensors
from paddlelite_callbacks.utils.distributed import several_ranks

__all__ = ["Finding", "bad_terms", "broken_state", "cure_for", "explained", "is_finite", "not_finite"]

_SUM = "loss"  # name of the finding where the terms are finite and their weighted sum is not


@dataclass(frozen=True)
class Finding:
    """One tensor, array or loss term with non-finite values.

    Args:
        name: Name of the tensor or term.
        text: Description with kind and number of the non-finite values.
    """

    name: str
    text: str


def not_finite(name: str, values: Any) -> list[Finding]:
    """Return the tensors and arrays in ``values`` that hold NaN or Inf.

    Args:
        name: Display name of ``values``.
        values: Tensor or array, or nested lists and dictionaries of them.
    """
    if isinstance(values, (list, tuple, np.ndarray)):
        values = [x if isinstance(x, Tensor) else paddle.to_tensor(x) for x in tensors_and_arrays(values)]
    found = []
    for path, tensor in tensors_of(values).items():
        counted = _counted(tensor)
        if counted:
            place = f"{name} {path}" if path else name
            found.append(Finding(place, f"{place} with {counted} of {tensor.size} values"))
    return found


def is_finite(x: Tensor) -> bool:
    """Return whether every value of ``x`` is finite, in its own type."""
    return not x.is_floating_point() or x.size == 0 or bool(paddle.isfinite(_comparable(x)).all())


def broken_state(name: str, network: Layer) -> list[Finding]:
    """Return the non-finite weights of ``network``.

    Args:
        name: Display name of ``network``.
        network: Network to check.
    """
    return [
        Finding(f"{key} of {name}", f"{key} of {name} with {_counted(tensor)} of {tensor.size} values")
        for key, tensor in broken_tensors(network).items()
    ]


def _counted(tensor: Tensor) -> str:
    if is_finite(tensor):
        return ""
    value = _comparable(tensor)
    nans, infinite = int(paddle.isnan(value).sum()), int(paddle.isinf(value).sum())
    return " and ".join([f"{nans} NaN"] * (nans > 0) + [f"{infinite} infinite"] * (infinite > 0))


def _comparable(x: Tensor) -> Tensor:
    x = x.detach()
    return x if x.dtype == paddle.float64 else x.astype("float32")


def bad_terms(parts: list[Tensor], batch: BatchState) -> list[Finding]:
    """Return the terms of the loss that are not finite.

    Args:
        parts: Parts of the loss.
        batch: State of the batch, with the loss terms.
    """
    terms = dict(batch.terms)
    if not any(name.startswith("task_loss") for name in terms):
        for index, part in enumerate(parts):
            terms[f"task_loss[{index}]" if len(parts) > 1 else "task_loss"] = (part, "")
    bad = [
        Finding(name, f"{name} is {_value(value)}{f' ({what})' if what else ''}")
        for name, (value, what) in terms.items()
        if not is_finite(value)
    ]
    return bad or _overflows(parts, terms)


def _overflows(parts: list[Tensor], terms: Mapping[str, tuple[Tensor, str]]) -> list[Finding]:
    """Return a finding where finite terms sum to a non-finite loss."""
    if all(is_finite(part) for part in parts):
        return []
    finite = " and ".join(f"{name} {_value(value):g}" for name, (value, _) in terms.items())
    total = sum(_value(part) for part in parts)
    return [Finding(_SUM, f"{_SUM} is {total}, the weighted sum of the finite {finite}")]


def _value(value: Tensor) -> float:
    return float(value.astype("float64").sum())


def explained(where: str, terms: list[Finding], causes: list[Finding], broken: list[Finding]) -> str:
    """Return the message for a non-finite loss.

    Args:
        where: Epoch and batch, as text.
        terms: Non-finite terms, from `bad_terms`.
        causes: Findings that may be the cause.
        broken: Those findings that are weights.
    """
    what = f"The loss is not finite at {where}: {'; '.join(term.text for term in terms)}."
    if not terms:
        elsewhere = not causes and several_ranks()
        hidden = "it is on another process" if elsewhere else "the loss hides it, since a ReLU turns NaN into 0"
        what = f"NaN or infinite values at {where}; {hidden}."
    overflow = [term.name for term in terms] == [_SUM] and not causes
    nothing = "weights too large for these terms" if overflow else "finite weights, inputs and outputs: the loss itself"
    traced = "; ".join(cause.text for cause in causes[:6]) or nothing
    more = f" and {len(causes) - 6} more" if len(causes) > 6 else ""
    return f"{what} It comes from {traced}{more}. {cure_for(causes, broken, overflow=overflow)}"


def cure_for(causes: list[Finding], broken: list[Finding], *, overflow: bool = False) -> str:
    """Return the remedy for a non-finite loss.

    Args:
        causes: Findings that may be the cause.
        broken: Those findings that are weights.
        overflow: Whether finite terms have an infinite sum.
    """
    if broken:
        return (
            "An earlier step with a gradient that was not finite made these weights: go back to a checkpoint, and "
            "lower the learning rate or clip gradients (grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0))."
        )
    first = causes[0].name if causes else ""
    if overflow:
        cure = "Lower weight= and task_weight=, or scale the loss"
    elif first.startswith(("input", "label")):
        cure = "Clean this batch of the data"
    elif "teacher" in first:
        cure = "Check the teacher's weights and that it takes these inputs as they are scaled here"
    else:
        cure = "Lower the learning rate, clip gradients, or look for a division or logarithm in the loss"
    return f"The weights are those before this batch. {cure}; on_nan='skip' leaves such batches out."
