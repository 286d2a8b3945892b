"""Restore Python state of networks and hooks after calls outside of training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.nn.surgery import HOOK_TABLES
from paddlelite_callbacks.utils.signals import uninterrupted

__all__ = ["same_attributes", "same_state"]

_Undo = Callable[[], None]


@contextmanager
def same_state(network: Layer) -> Iterator[None]:
    """Restore attributes of layers and state of hooks that calls in the block set.

    Covers counters, flags, and the entries of lists, dictionaries, sets and deques; not the values of tensors.

    Args:
        network: Network that is called inside the block.
    """
    layers = network.sublayers(include_self=True)
    hooks = [hook for layer in layers for table in HOOK_TABLES for hook in getattr(layer, table).values()]
    undo = [put_back for hook in hooks for put_back in _of_hook(hook)]
    with same_attributes(*layers), _undone(undo):
        yield


@contextmanager
def same_attributes(*holders: Any) -> Iterator[None]:
    """Restore attributes of ``holders`` and of their containers after the block.

    Args:
        holders: Any objects.
    """
    with _undone([put_back for holder in holders for put_back in _of_mapping(getattr(holder, "__dict__", {}))]):
        yield


@contextmanager
def _undone(undo: list[_Undo]) -> Iterator[None]:
    try:
        yield
    finally:
        with uninterrupted():
            for put_back in undo:
                put_back()


def _of_hook(hook: Any) -> list[_Undo]:
    owner, undo = getattr(hook, "__self__", hook), list[_Undo]()
    if not isinstance(owner, Layer):
        undo += _of_mapping(getattr(owner, "__dict__", {}))
    for cell in getattr(hook, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not set yet
            continue
        undo += [_cell_undo(cell, content), *_of_container(content)]
    return undo


def _cell_undo(cell: Any, content: Any) -> _Undo:
    def put_back() -> None:
        if cell.cell_contents is not content:
            cell.cell_contents = content

    return put_back


def _of_mapping(values: dict[str, Any]) -> list[_Undo]:
    return [*_of_container(values), *(undo for value in list(values.values()) for undo in _of_container(value))]


def _of_container(value: Any) -> list[_Undo]:
    """Return functions that restore changed entries of a container."""
    if not isinstance(value, (list, dict, set, deque)):
        return []
    before = _entries(value)

    def put_back() -> None:
        now = _entries(value)
        if len(now) == len(before) and all(a is b and x is y for (a, x), (b, y) in zip(now, before, strict=True)):
            return
        value.clear()
        if isinstance(value, dict):
            value.update(before)
        elif isinstance(value, set):
            value.update(key for key, _ in before)
        else:
            value.extend(key for key, _ in before)

    return [put_back]


def _entries(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else [(item, None) for item in value]
