"""Images of other than three channels: the ready-made networks do not take them, and the refusal says what does."""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.nn import Conv2D, Layer

from paddlelite_callbacks.nn.surgery import same_modes

__all__ = ["channels_taken", "check_input_channels", "runs_on"]


def channels_taken(network: Layer) -> int | None:
    """Return the input channels of the first convolution; ``None`` without one.

    Args:
        network: any.
    """
    first = next((layer for layer in network.sublayers() if isinstance(layer, Conv2D)), None)
    return None if first is None else int(first.weight.shape[1]) * int(first._groups)


def check_input_channels(name: str, new: Layer, x: Tensor, *, instead_of: Layer | None = None) -> None:
    """Raise if a backbone cannot run on ``x`` because of its number of channels.

    Args:
        name: of the backbone.
        new: the backbone.
        x: what it would be given, ``[N, C, H, W]``.
        instead_of: the whole network that it replaces, where nothing but that network tells the channels.

    Raises:
        ValueError: says how a network gets such images.
    """
    if instead_of is not None:
        old = channels_taken(instead_of)
        if old in (None, int(x.shape[1])) or runs_on(instead_of, x):
            return
        x = paddle.zeros([1, old, *x.shape[2:]], dtype=x.dtype)
    taken = channels_taken(new)
    if x.ndim != 4 or taken in (None, int(x.shape[1])) or runs_on(new, x):
        return
    given = int(x.shape[1])
    raise ValueError(
        f"{name} takes {taken} channels, but would be given {given}: put paddle.nn.Conv2D({given}, {taken}, 1) in "
        f"front of it, have the data give {taken} channels (a grey image three times), or give a network of your own "
        f"that takes {given}."
    )


def runs_on(network: Layer, x: Tensor) -> bool:
    """Return whether ``network`` runs on ``x`` in eval mode.

    Args:
        network: any mode.
        x: an image batch ``[N, C, H, W]``.
    """
    try:
        with same_modes(network), paddle.no_grad():
            network.eval()
            network(x)
    except Exception:
        return False
    return True
