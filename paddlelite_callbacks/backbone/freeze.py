"""Freeze the first stages of a network, found by running it."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.backbone.features import OUTPUT, Tap
from paddlelite_callbacks.backbone.strides import Stride, coarseness
from paddlelite_callbacks.backbone.truncate import layers_that_ran
from paddlelite_callbacks.backbone.trunk import Trunk
from paddlelite_callbacks.nn.surgery import freeze_norm_, same_modes

__all__ = ["freeze_stages_"]


def freeze_stages_(network: Layer, taps: Sequence[Tap], x: Tensor, *, stages: int, stop_grad: bool = True) -> list[str]:
    """Freeze weights and batch-norm statistics up to stage ``stages``.

    Args:
        network: Whole network, not yet in a `Trunk`.
        taps: Its taps, see `find_taps`; stage ``i`` ends with the ``i``-th default map, so stage 1 is the stem.
        x: Image batch ``[N, 3, H, W]``.
        stages: Number of stages, from the input on.
        stop_grad: ``False`` holds the statistics alone; weights go on learning.

    Returns:
        The names of the frozen layers.

    Raises:
        ValueError: The network has fewer stages; the message names them.
    """
    ends = _ends(taps)
    if not 1 <= stages <= len(ends):
        raise ValueError(
            f"freeze_stages must be from 0 to {len(ends)} for {type(network).__name__}, got {stages}: choose among "
            f"its stages, which end with {ends}."
        )
    trunk = Trunk(network, ends[:stages])
    with same_modes(network), paddle.no_grad():
        trunk.eval()
        done = layers_that_ran(trunk, x, finished=True)
    for layer in done.values():
        freeze_norm_(layer, stop_grad=stop_grad)
        for parameter in layer.parameters() if stop_grad else ():
            parameter.stop_gradient = True
    return list(done)


def _ends(taps: Sequence[Tap]) -> list[str]:
    """Return the layer that ends each stage."""
    by_stride: dict[Stride, str] = {}
    for tap in sorted(taps, key=lambda tap: (tap.default, not tap.name.startswith(OUTPUT))):
        if not tap.name.startswith(OUTPUT) or tap.stride not in by_stride:
            by_stride[tap.stride] = tap.name
    defaults = {tap.stride for tap in taps if tap.default}
    return [by_stride[stride] for stride in sorted(by_stride, key=coarseness) if stride in defaults]
