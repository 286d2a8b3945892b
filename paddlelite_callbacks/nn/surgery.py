"""Find, replace, freeze and copy layers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.errors import near_names
from paddlelite_callbacks.nn.kinds import is_norm
from paddlelite_callbacks.workarounds.constructor_leak import without_argument_lists

try:
    from paddle.nn.utils.spectral_norm_hook import SpectralNorm
    from paddle.nn.utils.weight_norm_hook import WeightNorm
except (ImportError, AttributeError):  # moved by a later Paddle: their hooks are treated like any other
    _REPARAMETRISED: tuple[type, ...] = ()
else:
    _REPARAMETRISED = (WeightNorm, SpectralNorm)

__all__ = [
    "HOOK_TABLES",
    "broken_tensors",
    "computes_weight",
    "copy_network",
    "find_sublayer",
    "freeze_norm_",
    "freeze_parameters_",
    "frozen",
    "match_sublayers",
    "matches_any",
    "replace_sublayer",
    "restored",
    "same_modes",
    "unwrapped",
    "whole_again_after_an_error",
]

HOOK_TABLES = ("_forward_pre_hooks", "_forward_post_hooks")  # attributes of every layer
_HOOK_FLAGS = (
    "_forward_pre_hooks_with_kwargs_flag",
    "_forward_post_hooks_with_kwargs_flag",
    "_forward_post_hooks_always_called",
)
_LAYERS_OWN = ("_parameters", "_buffers", "_sub_layers", *HOOK_TABLES, *_HOOK_FLAGS)


def broken_tensors(network: Layer) -> dict[str, Tensor]:
    """Return non-finite parameters, and buffers with NaN, by name.

    A buffer may be infinite, such as an attention mask.

    Args:
        network: Network to search.
    """
    parameters, broken = {name for name, _ in network.named_parameters()}, {}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            value = tensor.detach().astype("float32")
            good = paddle.isfinite(value) if name in parameters else ~paddle.isnan(value)
            if tensor.size and not bool(good.all()):
                broken[name] = tensor
    return broken


def unwrapped(network: Layer) -> Layer:
    """Return the network inside ``paddle.DataParallel``."""
    while isinstance(network, paddle.DataParallel):
        network = network._layers
    return network


def computes_weight(hook: Any) -> bool:
    """Whether a hook is that of ``weight_norm`` or ``spectral_norm``."""
    return isinstance(hook, _REPARAMETRISED)


def copy_network(network: Layer, *, keep_hook: Callable[[Any], bool] | None = None, keep_modes: bool = False) -> Layer:
    """Return a deep copy in eval mode, by default without hooks.

    What cannot be copied (locks, open files, process groups) is shared with the copy; ``paddle.DataParallel`` is
    unwrapped. Tensors inside a gradient graph are copied as plain values. Paddle numbers the names of copied parameters
    over the life of a process and keeps each name that a program uses: here every copy counts from zero, so that all
    copies of a network have the same names.

    Args:
        network: Network in any mode.
        keep_hook: Whether the copy has a given forward hook, too; it is copied with the network, or shared where that
            is impossible. ``None`` keeps none.
        keep_modes: Whether each layer keeps its mode instead of eval.

    Raises:
        TypeError: It cannot be copied; says why.
    """
    network = unwrapped(network)
    with paddle.utils.unique_name.guard(), without_argument_lists(), paddle.no_grad():
        try:
            duplicate, memo = _deep_copy(network, [])
        except Exception:
            try:
                duplicate, memo = _deep_copy(network, _uncopyable(network))
            except Exception as error:
                raise TypeError(
                    f"{type(network).__name__} cannot be copied ({type(error).__name__}: {error}): remove what "
                    "cannot be copied from its layers, or give its class a __deepcopy__."
                ) from error
        if keep_hook is not None:
            for layer in _layers(network):
                if (twin := memo.get(id(layer), layer)) is not layer:
                    _copy_hooks(layer, twin, keep_hook, memo)
    if not keep_modes:
        duplicate.eval()
    return duplicate


def _layers(network: Layer) -> list[Layer]:
    return [layer for layer in network.sublayers(include_self=True) if not isinstance(layer, paddle.DataParallel)]


def _deep_copy(network: Layer, shared: list[Any]) -> tuple[Layer, dict[int, Any]]:
    """Copy without hooks, sharing ``shared``; return copies by id of originals too."""
    memo: dict[int, Any] = {id(item): item for item in shared}
    every = network.sublayers(include_self=True)
    for layer in every:
        for table in (*HOOK_TABLES, *_HOOK_FLAGS):
            if table in vars(layer):
                memo[id(vars(layer)[table])] = OrderedDict()
        for tensor in layer._buffers.values():
            if tensor is not None and not tensor.is_leaf:
                memo[id(tensor)] = _plain_copy(tensor)
    for wrapper in reversed([layer for layer in every if isinstance(layer, paddle.DataParallel)]):  # inner ones first
        memo[id(wrapper)] = copy.deepcopy(wrapper._layers, memo)
    return copy.deepcopy(network, memo), memo


def _plain_copy(tensor: Tensor) -> Tensor:
    new = tensor.detach().clone()
    new.stop_gradient = tensor.stop_gradient
    new.name = tensor.name + paddle.utils.unique_name.generate("_deepcopy")
    return new


def _copy_hooks(layer: Layer, duplicate: Layer, keep: Callable[[Any], bool], memo: dict[int, Any]) -> None:
    for table in HOOK_TABLES:
        for number, hook in getattr(layer, table).items():
            if keep(hook):
                getattr(duplicate, table)[number] = _copied_hook(hook, memo)
    for table in _HOOK_FLAGS:
        getattr(duplicate, table, {}).update(getattr(layer, table, {}))


def _copied_hook(hook: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(hook, dict(memo))
    except Exception:  # for instance a bound method whose object has an open file
        return hook


def _uncopyable(network: Layer) -> list[Any]:
    """Return the layer attributes that cannot be copied."""
    layers = {id(layer): layer for layer in network.sublayers(include_self=True)}
    found: list[Any] = []
    for layer in layers.values():
        for name, value in vars(layer).items():
            if name not in _LAYERS_OWN:
                found += _offenders(value, layers, set())
    return found


def _offenders(value: Any, known: dict[int, Any], seen: set[int]) -> list[Any]:
    """Return the smallest parts of ``value`` to share so that the rest can be copied."""
    if id(value) in seen or id(value) in known:
        return []
    seen.add(id(value))
    try:
        copy.deepcopy(value, dict(known))
    except Exception:
        inside = [part for item in _parts(value) for part in _offenders(item, known, seen)]
        try:
            copy.deepcopy(value, {**known, **{id(part): part for part in inside}})
        except Exception:
            return [value]
        return inside
    return []


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    return [] if isinstance(value, ModuleType) else list(getattr(value, "__dict__", {}).values())


def find_sublayer(network: Layer, name: str) -> Layer:
    """Return the sublayer ``name`` of ``network``, as in ``named_sublayers()``.

    Raises:
        ValueError: There is none; the message lists similar names.
    """
    layers = dict(network.named_sublayers())
    if name not in layers:
        raise ValueError(
            f"{type(network).__name__} has no sublayer {name!r}; near names: {near_names(name, layers)}. List all "
            "with network.named_sublayers()."
        )
    return layers[name]


def match_sublayers(network: Layer, pattern: str) -> list[str]:
    """Return the sublayer names that ``pattern`` matches, in network order.

    Raises:
        ValueError: None matches; the message lists similar names.
    """
    names = [name for name, _ in network.named_sublayers()]
    found = [name for name in names if matches_any(name, [pattern])]
    if not found:
        raise ValueError(
            f"No sublayer of {type(network).__name__} matches {pattern!r}; near names: "
            f"{near_names(pattern, names)}. List all with network.named_sublayers()."
        )
    return found


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the globs ``patterns`` matches a layer's ``name``.

    A name may contain brackets (paddleclas calls stages ``blocks[2]``): the exact name always matches.
    """
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def replace_sublayer(network: Layer, name: str, new: Layer) -> Layer:
    """Replace sublayer ``name`` by ``new``, under every name of a shared layer.

    Args:
        network: Network; changed in place.
        name: Name as in ``named_sublayers()``.
        new: Replacement; gets the old one's mode (``training``).

    Returns:
        The old layer, for restoring it with a second call.

    Raises:
        TypeError: ``new`` is not a layer.
        ValueError: There is no such sublayer.
    """
    if not isinstance(new, Layer):
        raise TypeError(
            f"new must be a paddle.nn.Layer, got {type(new).__name__}: give the layer that replaces {name!r}."
        )
    old = find_sublayer(network, name)
    for parent in [network, *network.sublayers()]:
        for key, child in list(parent._sub_layers.items()):  # named_children() yields a shared layer only once
            if child is old:
                setattr(parent, key, new)
    if new.training != old.training:
        new.train() if old.training else new.eval()
    return old


@contextmanager
def same_modes(network: Layer) -> Iterator[None]:
    """Restore the ``training`` flags of ``network`` at the end of the block."""
    modes = [(layer, layer.training) for layer in network.sublayers(include_self=True)]
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextmanager
def restored(network: Layer) -> Iterator[None]:
    """Restore classes, attributes, hooks and sublayers of all layers after the block.

    Names of tensors are restored, too. ``paddle.jit`` changes what it traces; a copy for it would take the memory of
    another network. The values of tensors stay as the block leaves them.

    Args:
        network: Network that the block changes.
    """
    layers = network.sublayers(include_self=True)
    held = [
        (
            layer,
            type(layer),
            dict(vars(layer)),
            {k: copy.copy(v) for k, v in vars(layer).items() if isinstance(v, dict)},
        )
        for layer in layers
    ]
    names = [
        (t, t.name)
        for layer in layers
        for t in (*layer._parameters.values(), *layer._buffers.values())
        if t is not None
    ]
    try:
        yield
    finally:
        for layer, kind, attributes, tables in held:
            layer.__class__ = kind
            vars(layer).clear()
            vars(layer).update(attributes)
            for key, table in tables.items():
                attributes[key].clear()
                attributes[key].update(table)
        for tensor, name in names:
            tensor.name = name


@contextmanager
def whole_again_after_an_error(network: Layer) -> Iterator[None]:
    """Restore sublayers and parameters of ``network`` if the block raises."""
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
    """Freeze ``network`` in the block: eval mode and ``stop_gradient`` everywhere.

    Batch-norm statistics are frozen, too. Modes and ``stop_gradient`` flags are restored one by one.
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
    """Permanently freeze the norm layers of ``network``, with batch-norm statistics.

    A frozen batch norm uses its stored statistics in training mode too (``use_global_stats``), so that neither
    ``network.train()``, a copy, saving and loading, nor a quantised convolution before it unfreezes it.

    Args:
        network: Network, or a norm layer itself.
        stop_grad: Whether to freeze scale and shift too; ``False`` freezes only the statistics.

    Returns:
        Names of the frozen layers.

    Raises:
        ValueError: A ``SyncBatchNorm``, which cannot use stored statistics in training.
    """
    norms = {name: layer for name, layer in network.named_sublayers(include_self=True) if is_norm(layer)}
    synced = [name for name, layer in norms.items() if isinstance(layer, paddle.nn.SyncBatchNorm)]
    if synced:
        raise ValueError(f"SyncBatchNorm cannot be frozen ({synced[:3]}): freeze first, then convert the other layers.")
    for layer in norms.values():
        if hasattr(layer, "_use_global_stats"):
            layer._use_global_stats = True
        if stop_grad:
            freeze_parameters_(layer)
    return list(norms)


def freeze_parameters_(network: Layer) -> None:
    """Set ``stop_gradient`` on all parameters of ``network``, permanently."""
    for parameter in network.parameters():
        parameter.stop_gradient = True
