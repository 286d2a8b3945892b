"""Remove layers after the last tapped map, which never run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import paddle
from paddle import Tensor
from paddle.nn import Identity, Layer

from paddlelite_callbacks.backbone.trunk import Trunk
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = ["cut_", "layers_that_ran"]


def cut_(trunk: Trunk, x: Tensor) -> list[str]:
    """Remove sublayers of ``trunk`` that run in neither mode.

    Where the forward still reads one of them, an ``Identity`` replaces it.

    Args:
        trunk: Trunk without projections yet; mode and statistics are restored.
        x: Image batch ``[N, 3, H, W]``.

    Returns:
        Names of the removed layers; those whose weights the network itself reads stay.
    """
    ran: set[int] = set()
    with _kept_state(trunk), paddle.no_grad():
        x = x + paddle.rand(x.shape, dtype=x.dtype)  # zeros would hide a difference
        trunk.train()
        ran |= {id(layer) for layer in layers_that_ran(trunk, x).values()}
    with _kept_state(trunk), paddle.no_grad():
        trunk.eval()
        ran |= {id(layer) for layer in layers_that_ran(trunk, x).values()}
        before = trunk.maps(x)
        idle = list(_idle(trunk, ran))
        if _replaced(trunk, idle, None, x, before):
            return [key for _, key, _ in idle]
        # The forward reads a layer without running it: in ``self.pool(self.norm(x))``, cut after the norm, the pool.
        if _replaced(trunk, idle, Identity(), x, before):
            return [key for _, key, _ in idle]
        return [key for parent, key, child in idle if _replaced(trunk, [(parent, key, child)], Identity(), x, before)]


def _replaced(
    trunk: Trunk, layers: Sequence[tuple[Layer, str, Layer]], by: Layer | None, x: Tensor, before: dict[str, Tensor]
) -> bool:
    """Remove or replace ``layers``, and undo it if the maps change."""
    tables = [(parent, dict(parent._sub_layers)) for parent, _, _ in layers]
    for parent, key, _ in layers:
        if by is None:
            del parent._sub_layers[key]
        else:
            parent._sub_layers[key] = by
    if _still_gives(trunk, x, before):
        return True
    for parent, table in tables:
        parent._sub_layers.clear()
        parent._sub_layers.update(table)
    return False


def _still_gives(trunk: Trunk, x: Tensor, before: dict[str, Tensor]) -> bool:
    try:
        return all(bool(paddle.allclose(value, before[tap])) for tap, value in trunk.maps(x).items())
    except Exception:  # its forward reads a removed layer
        return False


def layers_that_ran(trunk: Trunk, x: Tensor, *, finished: bool = False) -> dict[str, Layer]:
    """Run ``trunk`` and return the sublayers that started, or also finished.

    Args:
        trunk: Trunk; run once.
        x: Image batch ``[N, C, H, W]``.
        finished: Whether to return only those that finished before the last tap.
    """
    ran: dict[str, Layer] = {}

    def mark(name: str) -> object:
        def hook(layer: Layer, *_: object) -> None:
            ran.setdefault(name, layer)

        return hook

    named = list(trunk.named_sublayers())
    hooks = [
        layer.register_forward_post_hook(mark(name)) if finished else layer.register_forward_pre_hook(mark(name))
        for name, layer in named
    ]
    try:
        trunk.maps(x)
    finally:
        for hook in hooks:
            hook.remove()
    return ran


def _idle(parent: Layer, ran: set[int]) -> Iterator[tuple[Layer, str, Layer]]:
    for key, child in list(parent._sub_layers.items()):
        if child is None:
            continue
        if not any(id(layer) in ran for layer in child.sublayers(include_self=True)):
            yield parent, key, child
        else:
            yield from _idle(child, ran)


@contextmanager
def _kept_state(network: Layer) -> Iterator[None]:
    """Restore modes, batch-norm statistics and random generators at the end."""
    state = {key: value.clone() for key, value in network.state_dict().items() if value.stop_gradient}
    with same_modes(network), same_random_streams():
        try:
            yield
        finally:
            now = network.state_dict()
            for key, value in state.items():
                if key in now:
                    now[key].set_value(value)
