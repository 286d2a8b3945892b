"""Copy a trained network in eval mode with all that its forward hooks compute.

Forward hooks are of three kinds. Those of ``weight_norm`` and ``spectral_norm`` compute a weight: it is computed once
and stored as a plain parameter. Hooks that only observe (logging, taps) are left out. Hooks that change the result
stay. The kinds are told apart by running the network: the copy must compute the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.errors import ExportError
from paddlelite_callbacks.export.compare import compare_outputs
from paddlelite_callbacks.export.hooks import HookKey, copy_with_hooks, forward_hooks, note_results_
from paddlelite_callbacks.nn.nested import flat_outputs
from paddlelite_callbacks.nn.surgery import HOOK_TABLES, same_modes, unwrapped
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = ["eval_copy", "eval_outputs"]

_ATOL, _RTOL = 1e-6, 1e-5  # the same operations on the same machine
_FEW = 64  # largest number of hooks that are tested one by one

Inputs = Sequence[Tensor]


def eval_outputs(network: Layer, inputs: Inputs) -> list[np.ndarray]:
    """Run ``network`` in eval mode, hooks included, and restore its state.

    Modes, buffers and random generators are restored.

    Args:
        network: Network in any mode.
        inputs: Arguments of ``forward``.

    Raises:
        ExportError: An output is not a tensor.
    """
    with paddle.no_grad(), same_random_streams(), same_modes(network), _same_buffers(network):
        network.eval()
        return [item.numpy() for item in flat_outputs(network(*inputs))]


def eval_copy(network: Layer, inputs: Inputs | None, *, expected: Sequence[np.ndarray] | None = None) -> Layer:
    """Copy ``network`` in eval mode with the fewest hooks that keep its outputs.

    Args:
        network: Network in any mode; not changed.
        inputs: Inputs to compare on; ``None`` where they are unknown, which keeps only ``weight_norm`` and
            ``spectral_norm``.
        expected: Outputs of ``network`` for ``inputs``, where they are known.

    Raises:
        ExportError: No copy computes the same outputs; names the hooks.
        TypeError: The network cannot be copied, see `copy_network`.
    """
    bare = copy_with_hooks(network, ())
    if inputs is None:
        return bare
    expected = eval_outputs(network, inputs) if expected is None else expected
    found = _agreeing(network, bare, inputs, expected)
    note_results_(found, _results(found, inputs, expected))
    return found


def _agreeing(network: Layer, bare: Layer, inputs: Inputs, expected: Sequence[np.ndarray]) -> Layer:
    if _agrees(bare, inputs, expected):
        return bare
    hooks = forward_hooks(network)
    if hooks:
        every = copy_with_hooks(network, hooks)
        changing = _returning_something_else(every, inputs)
        for kept in dict.fromkeys((changing, frozenset(hooks))):
            duplicate = every if len(kept) == len(hooks) else copy_with_hooks(network, kept)
            if kept and _agrees(duplicate, inputs, expected):
                return duplicate if kept == changing else _fewest(network, duplicate, set(kept), inputs, expected)
    if not compare_outputs(expected, eval_outputs(network, inputs), engine="again").passed:
        return bare  # not deterministic: the export reports it
    raise ExportError(_said(network, sorted({name or "the network itself" for name, _, _ in hooks})))


def _returning_something_else(network: Layer, inputs: Inputs) -> frozenset[HookKey]:
    """Return the hooks that returned another object than they were given."""
    found: set[HookKey] = set()

    def watched(key: HookKey, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(layer: Layer, *given: Any) -> Any:
            result = hook(layer, *given)
            before = given[-1] if key[1] == HOOK_TABLES[1] else given[0]
            same = result is None or result is before
            if not same and isinstance(before, tuple):
                now = result if isinstance(result, tuple) else (result,)
                same = len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
            if not same:
                found.add(key)
            return result

        return call

    layers = dict(network.named_sublayers(include_self=True))
    hooks = forward_hooks(network)
    try:
        for key, hook in hooks.items():
            getattr(layers[key[0]], key[1])[key[2]] = watched(key, hook)
        eval_outputs(network, inputs)
    finally:
        for key, hook in hooks.items():
            getattr(layers[key[0]], key[1])[key[2]] = hook
    return frozenset(found)


def _fewest(
    network: Layer, duplicate: Layer, kept: set[HookKey], inputs: Inputs, expected: Sequence[np.ndarray]
) -> Layer:
    """Remove hooks of ``duplicate`` one by one as long as its outputs stay the same."""
    if len(kept) > _FEW:
        return duplicate
    for key in sorted(kept):
        without = copy_with_hooks(network, kept - {key})
        if _agrees(without, inputs, expected):
            kept, duplicate = kept - {key}, without
    return duplicate


def _agrees(duplicate: Layer, inputs: Inputs, expected: Sequence[np.ndarray]) -> bool:
    got = eval_outputs(duplicate, inputs)
    if [a.shape for a in got] != [a.shape for a in expected]:
        return False
    return all(np.allclose(a, b, rtol=_RTOL, atol=_ATOL, equal_nan=True) for a, b in zip(got, expected, strict=True))


def _results(network: Layer, inputs: Inputs, expected: Sequence[np.ndarray]) -> list[tuple[str, str]]:
    """Return layer and name of tensors that forward() sets before it reads them."""
    layers = dict(network.named_sublayers(include_self=True))
    before = {(name, key): tensor for name, layer in layers.items() for key, tensor in layer._buffers.items()}
    with _same_buffers(network):
        with paddle.no_grad(), same_modes(network):
            network.eval()
            network(*inputs)
        found = [
            (name, key)
            for name, layer in layers.items()
            for key, tensor in layer._buffers.items()
            if before.get((name, key)) is not tensor and key in layer._non_persistable_buffer_names_set
        ]
        if not found:
            return []
        for name, key in found:
            layers[name]._buffers.pop(key)
        try:
            return found if _agrees(network, inputs, expected) else []
        except Exception:  # forward() reads what an earlier call left
            return []


@contextmanager
def _same_buffers(network: Layer) -> Iterator[None]:
    """Restore buffers at the end of the block: tensor objects and values."""
    held = [(layer, dict(layer._buffers)) for layer in network.sublayers(include_self=True)]
    tensors = [tensor for _, buffers in held for tensor in buffers.values() if tensor is not None]
    values = [
        (one, one.detach().clone()) for one in tensors if one._is_initialized()
    ]  # without the dropout state of RNNs
    try:
        yield
    finally:
        for layer, buffers in held:
            layer._buffers.clear()
            layer._buffers.update(buffers)
        for tensor, value in values:
            if tensor.is_leaf:
                tensor.set_value(value)


def _said(network: Layer, where: list[str]) -> str:
    name = type(unwrapped(network)).__name__
    if not where:
        return (
            f"A copy of {name} computes something else than {name} in eval mode, so it cannot be exported: check "
            "for an "
            "attribute that copy.deepcopy does not copy."
        )
    return (
        f"The forward hooks of {name} change what it computes and cannot be copied (hooks on {where[:5]}): move "
        "what they "
        "compute into forward()."
    )
