"""Learn about a user's network by running it once on zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer
from paddle.static import InputSpec

from paddlelite_callbacks.hapi import in_use_by
from paddlelite_callbacks.surgery import find_sublayer, same_modes

__all__ = ["refuse_unswappable", "run_on_zeros", "seen_at"]


def refuse_unswappable(network: Any) -> None:
    """Raise for what is no plain network.

    Raises:
        TypeError: with what to do instead.
    """
    if isinstance(network, paddle.Model):
        raise TypeError(
            "Swap before paddle.Model is made: BackboneSwap takes the network, got a paddle.Model. Call swap(network) "
            "first."
        )
    if isinstance(network, paddle.DataParallel):
        raise TypeError("Swap before paddle.DataParallel is made: BackboneSwap takes the network inside it.")
    if not isinstance(network, Layer):
        raise TypeError(
            f"network must be a paddle.nn.Layer, got {type(network).__name__}: build the network first, then call the "
            "swap on it."
        )


def seen_at(network: Layer, at: str, input_spec: Sequence[InputSpec]) -> tuple[Tensor, Any]:
    """Run ``network`` once on zeros; return what its sublayer ``at`` was given and what it gave.

    Args:
        network: run once.
        at: name of the sublayer.
        input_spec: one per input; sizes other than the batch are numbers.

    Raises:
        ValueError: there is no such sublayer, it does not run, it takes no single image, or an optimizer or
            ``DataParallel`` already holds its parameters.
    """
    layer = find_sublayer(network, at)
    holder = in_use_by(layer.parameters())
    if holder is not None:
        raise ValueError(
            f"The parameters of {at!r} are already in use by {holder}: the new backbone would never be trained. Swap "
            "first, then make the optimizer, paddle.Model and DataParallel."
        )
    seen: list[tuple[Any, Any]] = []
    hook = layer.register_forward_post_hook(lambda _, x, y: seen.append((x, y)))
    try:
        run_on_zeros(network, input_spec)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"The sublayer {at!r} did not run when the network did: name the one that does.")
    inputs, output = seen[0]
    if len(inputs) != 1 or getattr(inputs[0], "ndim", 0) != 4:
        shapes = [list(item.shape) if isinstance(item, Tensor) else type(item).__name__ for item in inputs]
        raise ValueError(f"The sublayer {at!r} must take one image [N, C, H, W]; it took {shapes}.")
    return inputs[0], output


def run_on_zeros(network: Layer, input_spec: Sequence[InputSpec]) -> Any:
    """Run ``network`` in eval mode on one image of zeros and return its output; its modes come back.

    Raises:
        ValueError: a size in ``input_spec`` is open.
    """
    for spec in input_spec:
        if any(size in (None, -1) for size in list(spec.shape)[1:]):
            raise ValueError(
                f"input_spec {list(spec.shape)}: only the batch may be None here, sizes are measured. Give numbers: "
                "[None, 3, 224, 224]."
            )
    inputs = [paddle.zeros([1, *list(spec.shape)[1:]], dtype=spec.dtype) for spec in input_spec]
    with same_modes(network), paddle.no_grad():
        network.eval()
        return network(*inputs)
