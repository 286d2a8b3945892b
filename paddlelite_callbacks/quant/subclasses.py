"""Keep attributes, methods and layers of a subclass on its quantised form."""

from __future__ import annotations

from typing import Any

from paddle.nn import Layer

__all__ = ["keep_additions_"]

_REPLACED = ("weight", "bias")
_TABLES = ("_parameters", "_buffers", "_sub_layers")


def keep_additions_(new: Layer, old: Layer, kind: type[Layer] | None = None) -> None:
    """Copy what the class of ``old`` adds to ``kind`` to ``new``, in place.

    The network may read it: ``self.conv.scale``, ``self.conv.flops()``. Methods that call ``super()`` cannot be kept:
    their class is not among the bases any more.

    Args:
        new: Quantised form of ``old``.
        old: A layer, or an earlier form of it; ``new`` has its weight and bias.
        kind: Paddle's class of ``old``; ``None`` for an earlier form, which has recorded the additions.
    """
    if kind is not None:
        tables = {table: _added(old, table) for table in _TABLES}
        members = {
            name: member
            for base in reversed(type(old).__mro__[: type(old).__mro__.index(kind)])
            for name, member in vars(base).items()
            if not hasattr(type(new), name) and not name.startswith("__")
        }
    else:
        tables, members = getattr(old, "_additions", ({}, {}))
    for key, value in vars(old).items():  # attributes that the network's forward() reads, as conv._kernel_size
        if key not in vars(new) and key != "_additions":
            object.__setattr__(new, key, value)
    for table, names in tables.items():
        for name in names:
            if name in getattr(old, table):
                getattr(new, table).setdefault(name, getattr(old, table)[name])
    new._non_persistable_buffer_names_set |= old._non_persistable_buffer_names_set & set(tables.get("_buffers", ()))
    object.__setattr__(new, "_additions", (tables, members))
    if members:
        new.__class__ = type(type(new).__name__, (type(new),), dict(members))


def _added(layer: Layer, table: str) -> tuple[str, ...]:
    held: dict[str, Any] = getattr(layer, table)
    return tuple(name for name in held if name not in _REPLACED and not name.startswith("weight_"))
