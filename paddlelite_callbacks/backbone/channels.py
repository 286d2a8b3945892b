"""Check images without three channels, which ready-made networks do not accept."""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.nn import Conv2D, Layer

from paddlelite_callbacks.nn.surgery import same_modes

__all__ = ["channels_taken", "check_input_channels", "runs_on"]


def channels_taken(network: Layer) -> int | None:
    """Return the input channels of the first convolution; ``None`` without one.

    Args:
        network: Any network.
    """
    first = next((layer for layer in network.sublayers() if isinstance(layer, Conv2D)), None)
    return None if first is None else int(first.weight.shape[1]) * int(first._groups)


def check_input_channels(name: str, new: Layer, x: Tensor, *, instead_of: Layer | None = None) -> None:
    """Check that a backbone can run on the channels of ``x``.

    Args:
        name: Name of the backbone.
        new: The backbone.
        x: Its future input, ``[N, C, H, W]``.
        instead_of: Whole network that it replaces, where only that network tells the channels.

    Raises:
        ValueError: It cannot; the message says how to use such images.
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
        f"{name} takes {taken} channels, but would get {given}: put paddle.nn.Conv2D({given}, {taken}, 1) before "
        f"it, let the data have {taken} channels (a grey image three times), or give a network of your own that "
        f"takes {given}."
    )


def runs_on(network: Layer, x: Tensor) -> bool:
    """Whether ``network`` runs on ``x`` in eval mode.

    Args:
        network: Network in any mode.
        x: Image batch ``[N, C, H, W]``.
    """
    try:
        with same_modes(network), paddle.no_grad():
            network.eval()
            network(x)
    except Exception:
        return False
    return True
