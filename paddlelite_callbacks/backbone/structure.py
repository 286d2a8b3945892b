"""Pack and unpack maps: a tensor, list, tuple or dictionary."""

from __future__ import annotations

from typing import Any

from paddle import Tensor

__all__ = ["maps_of", "pack", "structure_of", "unpack"]


def structure_of(output: Any) -> Any:
    """Return the nesting of maps: ``None``, list, tuple, or the keys of a dict.

    Args:
        output: Output of a network: a tensor, or a list, tuple or dictionary of tensors.

    Raises:
        ValueError: Another structure.
    """
    if isinstance(output, Tensor):
        return None
    if isinstance(output, dict):
        return list(output)
    if type(output) in (list, tuple):
        return type(output)
    raise ValueError(
        f"The backbone must return a tensor, or a list, tuple or dict of tensors, got {type(output).__name__}: "
        "change its forward, or name another sublayer with at=."
    )


def unpack(output: Any) -> list[Tensor]:
    """Return the maps of ``output`` as a list.

    Raises:
        ValueError: It holds something else than maps ``[N, C, H, W]``.
    """
    structure = structure_of(output)
    maps = [output] if structure is None else list(output.values() if isinstance(output, dict) else output)
    if not maps or not all(isinstance(item, Tensor) and item.ndim == 4 for item in maps):
        raise ValueError(
            "The backbone must return maps [N, C, H, W], got "
            f"{[list(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]}. Name the sublayer "
            "before the "
            "pooling, or swap the whole classifier with at=None."
        )
    return maps


def pack(maps: list[Tensor], structure: Any) -> Any:
    """Put ``maps`` into ``structure``, the inverse of `unpack`."""
    if structure is None:
        return maps[0]
    if isinstance(structure, list):
        return {key: maps[i] for i, key in enumerate(structure)}
    return structure(maps)


def maps_of(output: Any) -> dict[str, Tensor]:
    """Return the 4-D maps among ``output`` by suffix: ``""``, ``":0"``, ..."""
    if isinstance(output, dict):
        items: list[tuple[Any, Any]] = list(output.items())
    elif isinstance(output, (list, tuple)):
        items = list(enumerate(output))
    else:
        return {"": output} if _is_map(output) else {}
    return {f":{key}": item for key, item in items if _is_map(item)}


def _is_map(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 4  # during a trace, values are not Tensors
