"""Locate the source of a non-finite loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.nested import tensors_of
from paddlelite_callbacks.nn.surgery import broken_tensors

__all__ = [
    "Finding",
    "broken_state",
    "host_is_finite",
    "is_finite",
    "not_finite",
    "tensors_and_arrays",
    "zero_times",
]


@dataclass(frozen=True)
class Finding:
    """One tensor, array or loss term with non-finite values.

    Args:
        name: of the place.
        text: with the kind and number of the values.
    """

    name: str
    text: str


def not_finite(name: str, values: Any) -> list[Finding]:
    """Return the tensors and arrays in ``values`` that hold NaN or Inf.

    Args:
        name: of ``values`` as a whole.
        values: a tensor or array, or lists and dictionaries of them.
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


def tensors_and_arrays(values: Any) -> list[Tensor | np.ndarray]:
    """Return the tensors and arrays in ``values``."""
    items = values if isinstance(values, (list, tuple)) else [values]
    return [item for item in items if isinstance(item, (Tensor, np.ndarray))]


def zero_times(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a scalar per floating tensor: 0 if all of it is finite, else NaN.

    Args:
        tensors: of any type; those of integers are passed over.
    """
    return [x.detach().astype("float32").sum() * 0 for x in tensors if x.is_floating_point()]


def is_finite(x: Tensor) -> bool:
    """Return whether every value of ``x`` is finite, in its own type."""
    return not x.is_floating_point() or x.size == 0 or bool(paddle.isfinite(_comparable(x)).all())


def host_is_finite(values: Sequence[Any]) -> bool:
    """Return whether the NumPy arrays among ``values`` are finite.

    Args:
        values: of a batch; tensors among them are passed over.
    """
    arrays = [x for x in values if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
    return all(math.isfinite(float(x.sum(dtype="float64"))) for x in arrays)


def broken_state(name: str, network: Layer) -> list[Finding]:
    """Return the non-finite weights of ``network``.

    Args:
        name: of ``network``, for messages.
        network: looked through.
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
