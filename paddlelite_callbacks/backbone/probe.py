"""Learn about a user's network by running it once on zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.backbone.image import ImagePlace, image_place
from paddlelite_callbacks.hapi import in_use_by
from paddlelite_callbacks.surgery import find_sublayer, same_modes

__all__ = ["refuse_unswappable", "run_on_zeros", "seen_at", "zeros_of"]


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


def seen_at(
    network: Layer, at: str, input_spec: Sequence[Any], *, image: str | int | None = None
) -> tuple[Tensor, ImagePlace, Any]:
    """Run ``network`` once on zeros; return the image that its sublayer ``at`` was given, where, and what it gave.

    Args:
        network: run once.
        at: name of the sublayer.
        input_spec: one per input, or dictionaries and lists of them; sizes other than the batch are numbers.
        image: key, keyword or position of the image, where the user named it.

    Raises:
        ValueError: there is no such sublayer, it does not run, it cannot be told which of its arguments is the image,
            or an optimizer or ``DataParallel`` already holds its parameters.
    """
    layer = find_sublayer(network, at)
    holder = in_use_by(layer.parameters())
    if holder is not None:
        raise ValueError(
            f"The parameters of {at!r} are already in use by {holder}: the new backbone would never be trained. Swap "
            "first, then make the optimizer, paddle.Model and DataParallel."
        )
    seen: list[tuple[Any, Any, Any]] = []
    hook = layer.register_forward_post_hook(lambda _, x, k, y: seen.append((x, k, y)), with_kwargs=True)
    try:
        run_on_zeros(network, input_spec)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"The sublayer {at!r} did not run when the network did: name the one that does.")
    inputs, keywords, output = seen[0]
    place = image_place(inputs, keywords, asked=image, name=at)
    return place.of(inputs, keywords), place, output


def run_on_zeros(network: Layer, input_spec: Sequence[Any]) -> Any:
    """Run ``network`` in eval mode on one image of zeros and return its output; its modes come back.

    Raises:
        ValueError: a size in ``input_spec`` is open.
    """
    inputs = zeros_of(input_spec)
    with same_modes(network), paddle.no_grad():
        network.eval()
        return network(*inputs)


def zeros_of(input_spec: Sequence[Any]) -> list[Any]:
    """Return the inputs of ``input_spec``, a batch of one: zeros, but ones for vectors such as a scale factor.

    Args:
        input_spec: one ``InputSpec`` per input, or dictionaries and lists of them.

    Raises:
        ValueError: a size is open.
        TypeError: something else than an ``InputSpec`` is among them.
    """
    return [_zeros(spec) for spec in input_spec]


def _zeros(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {key: _zeros(item) for key, item in spec.items()}
    if isinstance(spec, (list, tuple)):
        return [_zeros(item) for item in spec]
    if not hasattr(spec, "shape") or not hasattr(spec, "dtype"):
        raise TypeError(f"input_spec holds a {type(spec).__name__}: give paddle.static.InputSpec([None, 3, 224, 224]).")
    if any(size in (None, -1) for size in list(spec.shape)[1:]):
        raise ValueError(
            f"input_spec {list(spec.shape)}: only the batch may be None here, sizes are measured. Give numbers: "
            "[None, 3, 224, 224]."
        )
    vector = len(spec.shape) < 3 and "float" in str(spec.dtype)
    return (paddle.ones if vector else paddle.zeros)([1, *list(spec.shape)[1:]], dtype=spec.dtype)
