"""Repairs of paddleclas networks that Paddle 3.3 cannot export or quantise.

Each repair states its cause, keeps the keys of ``state_dict`` and the outputs of ``forward``, and is applied to a
freshly built network. Each has a test in ``tests/workarounds`` that fails once its cause is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

__all__ = ["FusedBranches", "LayersOf", "cure_", "upsample_nearest"]


_OF_FUSE_LAYERS = ("residual_func_list", "relu", "_in_channels")  # attributes that `FusedBranches` reads


def cure_(network: Layer) -> list[str]:
    """Apply the needed repairs to ``network`` in place; return their names."""
    applied = set()
    for layer in network.sublayers(include_self=True):
        for key, child in list(layer.named_children()):
            if type(child).__name__ == "FuseLayers" and all(hasattr(child, name) for name in _OF_FUSE_LAYERS):
                setattr(layer, key, FusedBranches(child))
                applied.add("interpolation")
    for layer in network.sublayers(include_self=True):
        if _follow_replacements_(layer):
            applied.add("plain lists")
    return sorted(applied)


def upsample_nearest(x: Tensor, factor: int) -> Tensor:
    """Repeat every pixel of ``[N, C, H, W]`` ``factor`` times in both directions.

    Equal bit for bit to ``F.interpolate(x, scale_factor=factor, mode="nearest")``, whose operation neither oneDNN in
    Paddle 3.3 (``ConvertPirAttribute2RuntimeAttribute``, https://github.com/PaddlePaddle/Paddle/issues/79749) nor
    paddle2onnx 2.1.0 can read.
    """
    repeated = paddle.tile(paddle.unsqueeze(x, [3, 5]), [1, 1, 1, factor, 1, factor])
    return paddle.flatten(paddle.flatten(repeated, 4, 5), 2, 3)


class FusedBranches(Layer):
    """HRNet's exchange unit (arXiv:1908.07919) with `upsample_nearest`.

    Args:
        original: paddleclas's ``FuseLayers``, whose layers are reused under their names.
    """

    def __init__(self, original: Layer) -> None:
        super().__init__()
        self.residual_func_list, self.relu = original.residual_func_list, original.relu
        self._branches = len(original._in_channels)

    def forward(self, x: list[Tensor], res_dict: Any = None) -> list[Tensor]:
        """Fuse maps ``[N, C_i, H / 2^i, W / 2^i]`` to maps of the same shapes."""
        remaining = iter(self.residual_func_list)
        fused = []
        for i in range(self._branches):
            total = x[i]
            for j in range(self._branches):
                if j > i:
                    total = total + upsample_nearest(next(remaining)(x[j]), 2 ** (j - i))
                elif j < i:
                    smaller = x[j]
                    for _ in range(i - j):
                        smaller = next(remaining)(smaller)
                    total = total + smaller
            fused.append(self.relu(total))
        return fused


class LayersOf(Sequence[Any]):
    """Live view of the sublayers ``keys`` of ``owner``.

    Many networks of paddleclas 2.6.0 keep their blocks in a plain list beside ``add_sublayer``: a layer replaced by a
    quantised one would still run from that list. Deleted layers are left out.
    """

    def __init__(self, owner: Layer, keys: Sequence[str]) -> None:
        self.owner, self._keys = owner, list(keys)

    def __len__(self) -> int:
        return len(self._there())

    def __getitem__(self, index: Any) -> Any:
        return self._there()[index]

    def _there(self) -> list[Layer]:
        return [self.owner._sub_layers[key] for key in self._keys if key in self.owner._sub_layers]


def _follow_replacements_(layer: Layer) -> bool:
    names = {id(child): key for key, child in layer._sub_layers.items()}
    found = {
        attribute: [names[id(item)] for item in value]
        for attribute, value in vars(layer).items()
        if type(value) is list and value and all(id(item) in names for item in value)
    }
    for attribute, keys in found.items():
        vars(layer)[attribute] = LayersOf(layer, keys)
    return bool(found)
