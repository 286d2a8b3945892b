"""Layers by their name in ``named_sublayers()``: find, replace, freeze."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import paddle
from paddle import Tensor
from paddle.nn import BatchNorm, GroupNorm, Layer, LayerNorm
from paddle.nn.layer.norm import _BatchNormBase, _InstanceNormBase

from paddlelite_callbacks.errors import near_names

__all__ = [
    "broken_tensors",
    "find_sublayer",
    "freeze_norm_",
    "freeze_parameters_",
    "frozen",
    "match_sublayers",
    "replace_sublayer",
    "same_modes",
    "whole_again_after_an_error",
]

_NORMS = (BatchNorm, _BatchNormBase, _InstanceNormBase, GroupNorm, LayerNorm)


def broken_tensors(network: Layer) -> dict[str, Tensor]:
    """Return the parameters that hold NaN or infinite values, and the buffers that hold NaN, by name.

    A buffer may well be infinite: masks of attention are.

    Args:
        network: looked through.
    """
    parameters, broken = {name for name, _ in network.named_parameters()}, {}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            value = tensor.detach().astype("float32")
            good = paddle.isfinite(value) if name in parameters else ~paddle.isnan(value)
            if tensor.size and not bool(good.all()):
                broken[name] = tensor
    return broken


def find_sublayer(network: Layer, name: str) -> Layer:
    """Return the sublayer ``name`` of ``network``, as ``named_sublayers()`` spells it.

    Raises:
        ValueError: there is none; the message lists the names that look alike.
    """
    layers = dict(network.named_sublayers())
    if name not in layers:
        raise ValueError(
            f"{type(network).__name__} has no sublayer {name!r}; near names: {near_names(name, layers)}. "
            "Names are those of network.named_sublayers()."
        )
    return layers[name]


def match_sublayers(network: Layer, pattern: str) -> list[str]:
    """Return the names of the sublayers that the glob ``pattern`` matches, in the network's order.

    Raises:
        ValueError: none matches.
    """
    names = [name for name, _ in network.named_sublayers()]
    # A name may hold brackets of its own (paddleclas calls stages "blocks[2]"): the very name always matches.
    found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not found:
        raise ValueError(
            f"No sublayer of {type(network).__name__} matches {pattern!r}; near names: {near_names(pattern, names)}. "
            "Names are those of network.named_sublayers()."
        )
    return found


def replace_sublayer(network: Layer, name: str, new: Layer) -> Layer:
    """Put ``new`` where the sublayer ``name`` stands, under every name that this same layer has (shared layers).

    Args:
        network: changed in place.
        name: as in ``named_sublayers()``.
        new: the replacement; takes over the old one's mode (``training``).

    Returns:
        The old layer, for putting it back with a second call.

    Raises:
        TypeError: ``new`` is no layer.
        ValueError: there is no such sublayer.
    """
    if not isinstance(new, Layer):
        raise TypeError(f"new must be a paddle.nn.Layer to stand at {name!r}, got {type(new).__name__}.")
    old = find_sublayer(network, name)
    for parent in [network, *network.sublayers()]:
        for key, child in list(parent._sub_layers.items()):  # named_children() names a shared layer only once
            if child is old:
                setattr(parent, key, new)
    if new.training != old.training:
        new.train() if old.training else new.eval()
    return old


@contextmanager
def same_modes(network: Layer) -> Iterator[None]:
    """Give every layer of ``network`` its ``training`` flag back at the end of the block."""
    modes = [(layer, layer.training) for layer in network.sublayers(include_self=True)]
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextmanager
def whole_again_after_an_error(network: Layer) -> Iterator[None]:
    """Put every sublayer and parameter of ``network`` back under its name if the block is left by an exception."""
    before = [
        (layer, dict(layer._sub_layers), dict(layer._parameters)) for layer in network.sublayers(include_self=True)
    ]
    try:
        yield
    except BaseException:
        for layer, sub_layers, parameters in before:
            for now, then in ((layer._sub_layers, sub_layers), (layer._parameters, parameters)):
                now.clear()
                now.update(then)
        raise


@contextmanager
def frozen(network: Layer) -> Iterator[None]:
    """Hold ``network`` still inside the block: eval mode (batch-norm statistics too) and ``stop_gradient`` everywhere.

    Modes and ``stop_gradient`` flags come back one by one as they were.
    """
    flags = [(parameter, parameter.stop_gradient) for parameter in network.parameters()]
    with same_modes(network):
        try:
            network.eval()
            for parameter, _ in flags:
                parameter.stop_gradient = True
            yield
        finally:
            for parameter, flag in flags:
                parameter.stop_gradient = flag


def freeze_norm_(network: Layer, *, stop_grad: bool = True) -> list[str]:
    """Hold the norm layers of ``network`` still for good: scale and shift, and the statistics of batch norms.

    A frozen batch norm computes with its stored statistics in training mode too (``use_global_stats``), so that
    neither ``network.train()``, a copy, saving and loading, nor a quantised convolution in front of it wakes it.

    Args:
        network: may itself be a norm layer.
        stop_grad: ``False`` holds the statistics alone; scale and shift go on learning.

    Returns:
        The names of the frozen layers.

    Raises:
        ValueError: a ``SyncBatchNorm``, which cannot compute with stored statistics in training.
    """
    norms = {name: layer for name, layer in network.named_sublayers(include_self=True) if isinstance(layer, _NORMS)}
    synced = [name for name, layer in norms.items() if isinstance(layer, paddle.nn.SyncBatchNorm)]
    if synced:
        raise ValueError(f"SyncBatchNorm cannot be frozen ({synced[:3]}): freeze first, convert the others behind it.")
    for layer in norms.values():
        if hasattr(layer, "_use_global_stats"):
            layer._use_global_stats = True
        if stop_grad:
            freeze_parameters_(layer)
    return list(norms)


def freeze_parameters_(network: Layer) -> None:
    """Set ``stop_gradient`` on every parameter of ``network``, for good; optimizers leave such parameters alone."""
    for parameter in network.parameters():
        parameter.stop_gradient = True
