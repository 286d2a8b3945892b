"""Whole classifiers: how many classes, and a head for as many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer, Linear

from paddlelite_callbacks.backbone.validate import run_on_zeros
from paddlelite_callbacks.nn.dtypes import default_dtype, parameter_dtype
from paddlelite_callbacks.nn.surgery import replace_sublayer, same_modes

__all__ = ["fit_head_", "number_of_classes"]


def number_of_classes(network: Layer, input_spec: Sequence[Any] | None) -> int:
    """Return the number of classes that ``network`` scores.

    Raises:
        ValueError: it is no classifier, or cannot be told without ``input_spec``.
    """
    if input_spec is not None:
        output = run_on_zeros(network, input_spec)
        if isinstance(output, Tensor) and output.ndim == 2:
            return int(output.shape[1])
        raise ValueError(
            f"A classifier gives [N, classes]; {type(network).__name__} gives "
            f"{list(output.shape) if isinstance(output, Tensor) else type(output).__name__}. For a network of another "
            "kind name its backbone: BackboneSwap(name, at='backbone')."
        )
    linears = [layer for layer in network.sublayers(include_self=True) if isinstance(layer, Linear)]
    if not linears:
        raise ValueError(
            f"{type(network).__name__} has no Linear to tell its number of classes: give input_spec=[...]."
        )
    return int(linears[-1].weight.shape[1])


def fit_head_(network: Layer, classes: int, x: Tensor) -> None:
    """Replace the last ``Linear`` if it does not give ``classes`` scores.

    Args:
        network: a classifier.
        classes: wanted.
        x: ``[N, 3, H, W]``.

    Raises:
        ValueError: it gives no ``[N, classes]``, or its head is no ``Linear``.
    """
    with same_modes(network), paddle.no_grad():
        network.eval()
        output = network(x)
    scores = output[0] if isinstance(output, (list, tuple)) and output else output
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{type(network).__name__} is no classifier: it gives {shape}, not [N, classes].")
    if scores.shape[1] == classes:
        return
    heads = {name: sub for name, sub in network.named_sublayers() if isinstance(sub, Linear)}
    fitting = [name for name, sub in heads.items() if sub.weight.shape[1] == scores.shape[1]]
    if not fitting:
        raise ValueError(
            f"{type(network).__name__} gives {scores.shape[1]} scores, wanted are {classes}, and it has no Linear to "
            "rebuild for that: build it for the right number yourself."
        )
    old = heads[fitting[-1]]
    with default_dtype(parameter_dtype(old.weight)):
        new = Linear(int(old.weight.shape[0]), classes)
    replace_sublayer(network, fitting[-1], new)
