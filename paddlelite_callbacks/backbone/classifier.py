"""Find the number of classes of a classifier, and fit its head."""

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
    """Return the number of classes of ``network``.

    Raises:
        ValueError: It is not a classifier, or ``input_spec`` is needed to tell.
    """
    if input_spec is not None:
        output = run_on_zeros(network, input_spec)
        if isinstance(output, Tensor) and output.ndim == 2:
            return int(output.shape[1])
        raise ValueError(
            f"A classifier must return [N, classes], {type(network).__name__} returns "
            f"{list(output.shape) if isinstance(output, Tensor) else type(output).__name__}. For another kind of "
            "network "
            "name its backbone: BackboneSwap(name, at='backbone')."
        )
    linears = [layer for layer in network.sublayers(include_self=True) if isinstance(layer, Linear)]
    if not linears:
        raise ValueError(
            f"{type(network).__name__} has no Linear that tells its number of classes: give input_spec=[...]."
        )
    return int(linears[-1].weight.shape[1])


def fit_head_(network: Layer, classes: int, x: Tensor) -> None:
    """Replace the last ``Linear`` unless it returns ``classes`` scores.

    Args:
        network: Classifier.
        classes: Number of classes.
        x: Image batch ``[N, 3, H, W]``.

    Raises:
        ValueError: It does not return ``[N, classes]``, or its head is not a ``Linear``.
    """
    with same_modes(network), paddle.no_grad():
        network.eval()
        output = network(x)
    scores = output[0] if isinstance(output, (list, tuple)) and output else output
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{type(network).__name__} is not a classifier: it must return [N, classes], got {shape}.")
    if scores.shape[1] == classes:
        return
    heads = {name: sub for name, sub in network.named_sublayers() if isinstance(sub, Linear)}
    fitting = [name for name, sub in heads.items() if sub.weight.shape[1] == scores.shape[1]]
    if not fitting:
        raise ValueError(
            f"{type(network).__name__} returns {scores.shape[1]} scores instead of {classes}, and has no Linear to "
            f"rebuild: build it for {classes} classes yourself."
        )
    old = heads[fitting[-1]]
    with default_dtype(parameter_dtype(old.weight)):
        new = Linear(int(old.weight.shape[0]), classes)
    replace_sublayer(network, fitting[-1], new)
