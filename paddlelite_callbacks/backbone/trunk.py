"""A backbone cut behind its last used map, giving the maps that the network around it expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle import Tensor
from paddle.nn import BatchNorm2D, Conv2D, Identity, Layer, LayerList, Sequential

__all__ = ["Trunk", "pack", "structure_of", "unpack"]


class Trunk(Layer):
    """Runs the sections of a light network one after another and returns tapped maps in a given structure.

    Keys in ``state_dict`` are the light network's own (``conv1.conv.weight``, ``blocks.3.…``), so that its weights
    load; projections, where channels had to be fitted, are added as ``project.<i>``.

    Args:
        network: whose sections are taken over (not copied).
        sections: names in the order of running; a trailing star makes each item of a Sequential a tap.
    """

    def __init__(self, network: Layer, sections: Sequence[str]) -> None:
        super().__init__()
        self._sections = [(section.rstrip("*"), section.endswith("*")) for section in sections]
        for name, _ in self._sections:
            setattr(self, name, getattr(network, name))
        self._taps: list[str] = self.tap_names()
        self._structure: Any = None
        self.project = LayerList()

    def tap_names(self) -> list[str]:
        """Return the names of all points that can be tapped, in the order of running."""
        names: list[str] = []
        for name, each in self._sections:
            section = getattr(self, name)
            names += [f"{name}[{i}]" for i in range(len(section))] if each else [name]
        return names

    def use(self, taps: Sequence[str], *, structure: Any, channels: Sequence[tuple[int, int]]) -> None:
        """Keep only what leads to ``taps`` and fit channels with a 1x1 convolution and batch norm where they differ.

        Args:
            taps: names of `tap_names`, one per map to return, in the order of ``structure``.
            structure: of the output, see `structure_of`.
            channels: per map, those of the tap and those that are wanted.
        """
        order = self.tap_names()
        last = max(order.index(tap) for tap in taps)
        for name, each in self._sections:
            if each:
                kept = [i for i in range(len(getattr(self, name))) if order.index(f"{name}[{i}]") <= last]
                setattr(self, name, Sequential(*[getattr(self, name)[i] for i in kept]))
            elif order.index(name) > last:
                delattr(self, name)
        self._sections = [
            (name, each)
            for name, each in self._sections
            if name in dict(self.named_children()) and (not each or len(getattr(self, name)))
        ]
        self._taps, self._structure = list(taps), structure
        self.project = LayerList([_projection(have, want) for have, want in channels])

    def forward(self, x: Tensor) -> Any:
        """``[N, 3, H, W]`` to the tapped maps."""
        maps = self.maps(x)
        tapped = [self.project[i](maps[tap]) for i, tap in enumerate(self._taps)]
        return pack(tapped, self._structure)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return every map by the name of its tap."""
        maps: dict[str, Tensor] = {}
        for name, each in self._sections:
            if not each:
                x = maps[name] = getattr(self, name)(x)
                continue
            for i, block in enumerate(getattr(self, name)):
                x = maps[f"{name}[{i}]"] = block(x)
        return maps


def structure_of(output: Any) -> Any:
    """Return how maps are handed on: ``None`` for a tensor, the type for a list or tuple, the keys for a dict.

    Raises:
        ValueError: another structure.
    """
    if isinstance(output, Tensor):
        return None
    if isinstance(output, dict):
        return list(output)
    if type(output) in (list, tuple):
        return type(output)
    raise ValueError(
        f"The backbone gives a {type(output).__name__}; a tensor, or a list, tuple or dict of tensors is needed."
    )


def unpack(output: Any) -> list[Tensor]:
    """Return the maps of ``output`` as a list.

    Raises:
        ValueError: something else than tensors is among them.
    """
    structure = structure_of(output)
    maps = [output] if structure is None else list(output.values() if isinstance(output, dict) else output)
    if not maps or not all(isinstance(item, Tensor) and item.ndim == 4 for item in maps):
        raise ValueError(
            f"The backbone must give maps [N, C, H, W]; it gives {[getattr(m, 'shape', m) for m in maps]}."
        )
    return maps


def pack(maps: list[Tensor], structure: Any) -> Any:
    """Put ``maps`` into ``structure``, the inverse of `unpack`."""
    if structure is None:
        return maps[0]
    if isinstance(structure, list):
        return {key: maps[i] for i, key in enumerate(structure)}
    return structure(maps)


def _projection(have: int, want: int) -> Layer:
    if have == want:
        return Identity()
    return Sequential(Conv2D(have, want, 1, bias_attr=False), BatchNorm2D(want))
