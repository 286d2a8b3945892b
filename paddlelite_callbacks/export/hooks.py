"""List, copy and remove forward hooks, and attributes that forward() sets."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import paddle
from paddle.nn import Layer

from paddlelite_callbacks.nn.surgery import HOOK_TABLES, computes_weight, copy_network, same_modes, unwrapped

__all__ = ["HookKey", "carry_hooks_", "copy_with_hooks", "forget_results_", "forward_hooks", "note_results_"]

HookKey = tuple[str, str, int]  # layer, table, number
_RESULTS = "_results_of_forward"  # attribute set on a copy


def forward_hooks(network: Layer) -> dict[HookKey, Any]:
    """Return forward hooks of ``network`` but weight_norm and spectral_norm."""
    return {
        (name, table, number): hook
        for name, layer in unwrapped(network).named_sublayers(include_self=True)
        for table in HOOK_TABLES
        for number, hook in getattr(layer, table).items()
        if not computes_weight(hook)
    }


def copy_with_hooks(network: Layer, kept: Collection[HookKey] | None = None) -> Layer:
    """Copy ``network`` in eval mode with only the forward hooks ``kept``.

    ``weight_norm`` and ``spectral_norm`` compute a weight at each call: in the copy it is a plain parameter.

    Args:
        network: Network in any mode; not changed.
        kept: Keys of `forward_hooks`; ``None`` for all.

    Raises:
        TypeError: The network cannot be copied, see `copy_network`.
    """
    wanted = None if kept is None else set(kept)
    duplicate = copy_network(network, keep_hook=lambda hook: wanted != set() or computes_weight(hook))
    layers = dict(duplicate.named_sublayers(include_self=True))
    for name, table, number in forward_hooks(duplicate).keys() - wanted if wanted is not None else ():
        getattr(layers[name], table).pop(number)
    for layer in layers.values():
        for number, hook in list(layer._forward_pre_hooks.items()):
            if computes_weight(hook):
                _bake_(layer, hook, number)
    return duplicate


def carry_hooks_(old: Layer, new: Layer) -> None:
    """Move the forward hooks of ``old`` to ``new``, which replaces it."""
    for table in HOOK_TABLES:
        getattr(new, table).update(getattr(old, table))


def note_results_(network: Layer, results: Collection[tuple[str, str]]) -> None:
    """Record which attributes of a copied network are results of its last call.

    `forget_results_` deletes them.

    Args:
        network: Copied network; its own copies have the record too.
        results: Layer and attribute name of each.
    """
    setattr(network, _RESULTS, tuple(results))


def forget_results_(network: Layer) -> None:
    """Delete the tensors that forward() of ``network``, a copy, set as attributes.

    Paddle keeps ``self.features = x`` as a buffer; a traced program would read its value of the last call.
    """
    layers = dict(network.named_sublayers(include_self=True))
    for name, key in getattr(network, _RESULTS, ()):
        if name in layers and key in layers[name]._buffers:
            delattr(layers[name], key)


def _bake_(layer: Layer, hook: Any, number: int) -> None:
    """Replace the parameters that ``hook`` computes a weight from by that weight."""
    with paddle.no_grad(), same_modes(layer):
        layer.training = False  # otherwise spectral_norm continues its power iteration
        hook(layer, ())
        value = getattr(layer, hook.name)
    del layer._forward_pre_hooks[number]
    own, key = None, hook.name
    for name in (key, *(f"{key}_{part}" for part in ("g", "v", "orig", "u"))):
        if name in layer._parameters or name in layer._buffers:
            own = layer._parameters.get(name, own)
            delattr(layer, name)
    with paddle.utils.unique_name.guard():
        parameter = layer.create_parameter(value.shape, dtype=value.dtype)
    parameter.set_value(value)
    if own is not None:
        parameter.name = own.name  # unique within the network
    layer.add_parameter(key, parameter)
