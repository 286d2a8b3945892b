"""Snapshot and restore buffers and batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterable

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.kinds import running_statistics
from paddlelite_callbacks.quant.quantizers import Switched

__all__ = ["StillBuffers"]


class StillBuffers:
    """Snapshot of buffers and batch-norm statistics, one concatenation a batch.

    The grid of a quantiser belongs to its ``alpha`` and is not kept. A mask that is infinite from the start is kept,
    but not probed. A buffer that holds no memory yet (the dropout state of ``LSTM`` and ``GRU``, which only a GPU
    fills) is passed over until it does.
    """

    def __init__(self) -> None:
        self._vectors: dict[str, dict[int, Tensor]] = {}
        self._others: dict[int, Tensor] = {}
        self._infinite: dict[int, Tensor] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._joined: list[tuple[list[Tensor], Tensor]] = []

    def follow(self, network: Layer) -> None:
        """Add the buffers of ``network``."""
        for layer in network.sublayers(include_self=True):
            if isinstance(layer, Switched):
                continue
            for buffer in [*layer.buffers(include_sublayers=False), *running_statistics(layer)]:
                if _is_infinite(buffer):
                    self._infinite[id(buffer)] = buffer
                elif len(buffer.shape) == 1:
                    self._vectors.setdefault(str(buffer.dtype), {})[id(buffer)] = buffer
                else:
                    self._others[id(buffer)] = buffer

    @paddle.no_grad()
    def keep(self) -> None:
        """Copy the buffers."""
        groups = self._filled_vectors()
        self._joined = [(group, paddle.concat(group)) for group in groups]
        others = _filled([*self._others.values(), *self._infinite.values()])
        self._kept = [(buffer, buffer.detach().clone()) for buffer in others]

    @paddle.no_grad()
    def probes(self) -> list[Tensor]:
        """Return scalars that are NaN where a finite buffer became non-finite, else 0."""
        held = [paddle.concat(group) for group in self._filled_vectors()]
        others = _filled(self._others.values())
        return [x.astype("float32").sum() * 0 for x in [*held, *others] if x.is_floating_point()]

    @paddle.no_grad()
    def broken(self) -> list[Tensor]:
        """Return the buffers that became non-finite."""
        held = [*(x for group in self._vectors.values() for x in group.values()), *self._others.values()]
        return [x for x in held if x.is_floating_point() and x.size and not bool(paddle.isfinite(x).all())]

    @paddle.no_grad()
    def put_back(self) -> None:
        """Restore the buffers of the last `keep`."""
        for group, joined in self._joined:
            for buffer, value in zip(group, paddle.split(joined, [b.shape[0] for b in group]), strict=True):
                buffer.set_value(value)
        for buffer, value in self._kept:
            buffer.set_value(value)

    def _filled_vectors(self) -> list[list[Tensor]]:
        groups = [_filled(group.values()) for group in self._vectors.values()]
        return [group for group in groups if group]


def _filled(buffers: Iterable[Tensor]) -> list[Tensor]:
    return [buffer for buffer in buffers if buffer._is_initialized()]


def _is_infinite(buffer: Tensor) -> bool:
    return buffer.is_floating_point() and bool(paddle.isinf(buffer.detach().astype("float32")).any())
