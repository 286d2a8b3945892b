"""Find the feature maps of a network by running it once.

A *trunk* map is one through which all data pass: without it the last output would not depend on the input. This is
derived from the gradient graph, which tells shortcuts, squeeze-and-excitation and auxiliary heads from the trunk in any
network, however its ``forward`` is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import AdaptiveAvgPool2D, AdaptiveMaxPool2D, Conv2D, Layer

from paddlelite_callbacks.backbone.strides import Stride, coarseness, stride_between
from paddlelite_callbacks.backbone.structure import maps_of
from paddlelite_callbacks.nn.surgery import frozen
from paddlelite_callbacks.nn.trace import release_graph

__all__ = ["OUTPUT", "Tap", "find_taps", "tap_spelling"]

OUTPUT = "output"  # tap name of the network's own output


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A feature map that a network can return.

    Args:
        name: Layer that returns it, as in ``named_sublayers()``; with ``:i`` appended where it returns several maps.
        channels: Number of channels.
        stride: Input size over map size; a pair ``(height, width)`` where the axes differ.
        default: Whether it is the default for its stride.
    """

    name: str
    channels: int
    stride: Stride
    default: bool


@dataclass
class _Call:
    name: str
    layer: Layer
    maps: dict[str, Tensor]
    given: set[Stride]
    calls: int = 1
    strides: set[Stride] = field(default_factory=set)


def tap_spelling(name: str) -> str:
    """Convert a ``name`` such as ``blocks[2]`` to its spelling ``blocks.2``."""
    return name.replace("[", ".").replace("]", "")


def find_taps(network: Layer, x: Tensor, *, end: str | None = None) -> list[Tap]:
    """Run ``network`` once and return its taps in order, with one default per stride.

    Taps are the outputs of the trunk's blocks and stages: a layer is one tap unless the stride along an axis changes
    more than once inside it. The default of a stride is the last one; at the deepest stride a pointwise convolution
    after the last block is skipped, since it only widens for the classifier, as is what runs after ``end``. Maps that
    the network itself returns are the defaults of their strides.

    Args:
        network: Network in any mode; restored.
        x: Image batch ``[N, 3, H, W]``, preferably with sides divisible by 32.
        end: Last stage of the trunk, where known.
    """
    calls, output = _run(network, x)
    own = {f"{OUTPUT}{suffix}": value for suffix, value in maps_of(output).items()}
    size = (int(x.shape[2]), int(x.shape[3]))
    deepest = _deepest(output)
    graph = _Graph(deepest)
    for call in calls.values():
        call.strides = {s for value in call.maps.values() if (s := _stride(value, size)) is not None}
    single = {name: call for name, call in calls.items() if call.calls == 1 and call.maps and call.strides}
    trunk = {name: call for name, call in single.items() if graph.passes_through(call.maps.values())}
    units = list(_until_pooled(_units(network, "", trunk)))
    given = {_stride(value, size) for value in own.values()}
    chosen = [*own, *(name for stride, name in _defaults(units, size, end).items() if stride not in given)]
    every = {f"{call.name}{suffix}": value for call in units for suffix, value in call.maps.items()} | own
    release_graph([] if deepest is None else [deepest])
    return [
        Tap(name=name, channels=int(value.shape[1]), stride=stride, default=name in chosen)
        for name, value in every.items()
        if (stride := _stride(value, size)) is not None
    ]


def _run(network: Layer, x: Tensor) -> tuple[dict[str, _Call], Any]:
    calls: dict[str, _Call] = {}
    size = (int(x.shape[2]), int(x.shape[3]))

    def keep(name: str) -> Any:
        def hook(layer: Layer, inputs: Any, output: Any) -> None:
            if name in calls:
                calls[name].calls += 1
                return
            given = {s for item in inputs for v in maps_of(item).values() if (s := _stride(v, size)) is not None}
            calls[name] = _Call(name, layer, maps_of(output), given)

        return hook

    hooks = [layer.register_forward_post_hook(keep(name)) for name, layer in network.named_sublayers()]
    try:
        with frozen(network), paddle.enable_grad():
            start = x.detach()
            start.stop_gradient = False
            return calls, network(start * 1.0)
    finally:
        for hook in hooks:
            hook.remove()


class _Graph:
    """Operations from the network's input to its last output, by the autograd graph."""

    def __init__(self, output: Tensor | None) -> None:
        self._next: dict[int, list[int]] = {}
        self._kept: list[Any] = []  # an id is unique only while its node lives
        self._root = 0
        if output is None or output.grad_fn is None:
            return
        self._root = output.grad_fn.node_ptr()
        waiting = [output.grad_fn]
        while waiting:
            node = waiting.pop()
            if node.node_ptr() in self._next:
                continue
            self._kept.append(node)
            following = [item for item in node.next_functions if item is not None]
            self._next[node.node_ptr()] = [item.node_ptr() for item in following]
            waiting += following

    def passes_through(self, maps: Any) -> bool:
        """Whether every path from input to output crosses ``maps``."""
        nodes = {value.grad_fn.node_ptr() for value in maps if value.grad_fn is not None}
        if not nodes or not nodes <= self._next.keys():
            return False
        if self._root in nodes:
            return True
        seen, waiting = {self._root}, [self._root]
        while waiting:
            following = self._next[waiting.pop()]
            if not following:
                return False  # the input, reached without crossing one of the maps
            fresh = [node for node in following if node not in seen and node not in nodes]
            seen.update(fresh)
            waiting += fresh
        return True


def _deepest(output: Any) -> Tensor | None:
    """Return the output with the largest graph: the scores, or the smallest map."""
    if isinstance(output, Tensor):
        return output
    maps = list(maps_of(output).values())
    if maps:
        return min(maps, key=lambda value: value.shape[2] * value.shape[3])
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return next((item for item in items if isinstance(item, Tensor)), None)


def _stride(value: Tensor, size: tuple[int, int]) -> Stride | None:
    return stride_between(size, value.shape[2:])


def _units(layer: Layer, prefix: str, trunk: dict[str, _Call]) -> Iterator[_Call]:
    """Return blocks and stages of the trunk in running order."""
    for name, call in sorted(_children(layer, prefix, trunk), key=lambda item: list(trunk).index(item[0])):
        inside = {s for key, sub in trunk.items() if key.startswith(f"{name}.") for s in sub.strides}
        if len(call.maps) == 1 and _changes(inside | call.strides | call.given) > 1:
            yield from _units(call.layer, f"{name}.", trunk)
        else:
            yield call


def _changes(strides: set[Stride]) -> int:
    """Count how often the stride changes; a factorised block counts once."""
    pairs = [(one, one) if isinstance(one, int) else one for one in strides]
    return max((len(set(axis)) - 1 for axis in zip(*pairs, strict=True)), default=0)


def _children(layer: Layer, prefix: str, trunk: dict[str, _Call]) -> Iterator[tuple[str, _Call]]:
    """Return the nearest trunk layers below ``layer``, looking through containers."""
    for key, child in layer.named_children():
        name = f"{prefix}{key}"
        if name in trunk:
            yield name, trunk[name]
        else:
            yield from _children(child, f"{name}.", trunk)


def _until_pooled(units: Iterator[_Call]) -> Iterator[_Call]:
    seen: set[int] = set()
    for call in units:
        if isinstance(call.layer, (AdaptiveAvgPool2D, AdaptiveMaxPool2D)):
            return
        if not {id(value) for value in call.maps.values()} <= seen:  # dropout and Identity return their input
            yield call
        seen.update(id(value) for value in call.maps.values())


def _defaults(units: list[_Call], size: tuple[int, int], end: str | None) -> dict[Stride, str]:
    last: dict[Stride, str] = {}
    deepest = max((s for call in units for s in call.strides), key=coarseness, default=0)
    names = [call.name for call in units]
    if end in names and deepest in units[names.index(end)].strides:
        units = units[: names.index(end) + 1]
    tail = [call for call in units if deepest in call.strides]
    wide = [i for i, call in enumerate(tail) if any(k > 1 for k in _kernels(call.layer))]
    for call in tail[wide[-1] + 1 :] if wide else []:
        if _kernels(call.layer):  # a pointwise convolution after the last block
            units = units[: units.index(call)]
            break
    for call in units:
        for suffix, value in call.maps.items():
            if (stride := _stride(value, size)) is not None:
                last[stride] = f"{call.name}{suffix}"
    return last


def _kernels(layer: Layer) -> list[int]:
    """Return the kernel sizes of the convolutions in ``layer``."""
    return [
        max(int(side) for side in sub.weight.shape[2:])
        for sub in layer.sublayers(include_self=True)
        if isinstance(sub, Conv2D)
    ]
