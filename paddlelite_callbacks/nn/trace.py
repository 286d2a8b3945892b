"""Run a network once and record calls of layers, products and data flow.

The Python code of ``forward`` is not analysed: hooks record what happens. Products (convolutions, matrix products) in
``forward`` itself are recorded by replacing Paddle's operators during the run.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import Layer

from paddlelite_callbacks.nn.nested import tensors_in
from paddlelite_callbacks.utils.isolation import same_random_streams

try:
    from paddle import _C_ops as operators
except (ImportError, AttributeError):  # a later Paddle: products in forward() itself are not recorded
    operators = None  # type: ignore[assignment]

__all__ = ["Call", "Product", "Trace", "example_inputs", "noise", "release_graph", "trace"]

_SIZE = 64  # assumed image size
_GUESSED = {nn.Conv1D: 1, nn.Conv2D: 2, nn.Linear: 0}  # number of spatial sizes of the input


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Args:
        name: Name of the layer.
        inputs: Nodes that computed its inputs, see `Trace.consumers`.
        outputs: Nodes that computed its outputs.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """One convolution or matrix product.

    Args:
        within: Names of the running layers, outermost first.
        operation: Paddle's operator.
        macs: Multiply-accumulates for one image; 0 where unknown.
    """

    within: tuple[str, ...]
    operation: str
    macs: int


@dataclass
class Trace:
    """Record of one run.

    Args:
        calls: Calls of layers, in the order in which they returned.
        products: Convolutions and matrix products.
        outputs: Output tensors of the network.
    """

    calls: list[Call] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    _takers: dict[int, list[tuple[int, str]]] = field(default_factory=dict, init=False, repr=False)

    def of(self, name: str) -> list[Call]:
        """Return the calls of the layer ``name``."""
        return [call for call in self.calls if call.name == name]

    def consumers(self, node: int) -> list[str]:
        """Return the operations that read ``node``, by gradient names (``ReluGradNode``)."""
        return [name for _, name in self.readers(node)]

    def readers(self, node: int) -> list[tuple[int, str]]:
        """Return node and gradient name of the operations that read ``node``."""
        return list(self._takers.get(node, []))

    def is_output(self, node: int, through: Callable[[str], bool] = lambda _: False) -> bool:
        """Whether ``node`` computed an output of the network.

        Args:
            node: Node of a result.
            through: Operations to look through, such as reshapes.
        """
        if node in {_node(item) for item in self.outputs}:
            return True
        return any(through(name) and self.is_output(taker, through) for taker, name in self._takers.get(node, []))

    def link(self) -> None:
        """Find the readers of each result in the gradient graph."""
        waiting = [item.grad_fn for item in self.outputs]
        seen: set[int] = set()
        while waiting:
            node = waiting.pop()
            if node is None or node.node_ptr() in seen:
                continue
            seen.add(node.node_ptr())
            for source in node.next_functions:
                if source is not None:
                    self._takers.setdefault(source.node_ptr(), []).append((node.node_ptr(), node.name()))
            waiting.extend(node.next_functions)


def release_graph(outputs: Sequence[Tensor]) -> None:
    """Free what the gradient graph of ``outputs`` has saved.

    Paddle never frees an operation once ``grad_fn`` was read.
    """
    ends = [item.sum() for item in outputs if item.grad_fn is not None and item.is_floating_point()]
    if ends:
        with suppress(Exception):  # a custom operation without a gradient
            paddle.autograd.backward(ends)


def trace(network: Layer, inputs: Sequence[Tensor]) -> Trace:
    """Run ``network`` once in eval mode, with gradients, and return its trace.

    Random generators are restored.

    Args:
        network: Copy, whose hooks and ``stop_gradient`` flags change.
        inputs: Arguments of ``forward``, batch first.
    """
    running: list[str] = []
    found, batch = Trace(), max(int(inputs[0].shape[0]), 1)
    network.eval()
    for parameter in network.parameters():
        parameter.stop_gradient = not parameter.is_floating_point()
    given = [item.detach() for item in inputs]
    for item in given:
        item.stop_gradient = not item.is_floating_point()

    def product(operation: str, macs: int) -> None:
        found.products.append(Product(tuple(running), operation, macs // batch))

    with ExitStack() as scope, same_random_streams():
        for name, layer in network.named_sublayers():
            scope.enter_context(_noted(name, layer, running, found))
        scope.enter_context(_products_noted(product))
        found.outputs = tensors_in(network(*given))
        found.link()
        release_graph(found.outputs)
    return found


def noise(specs: Sequence[tuple[Sequence[int | None], str]]) -> list[Tensor]:
    """Return seeded random inputs: normal for floating dtypes, zeros for others.

    No random generator is advanced.

    Args:
        specs: Shape (``None`` for 2 images and sizes of 64) and dtype of each input.
    """
    random, made = np.random.RandomState(0), []
    for shape, dtype in specs:
        sizes = [(size or (_SIZE if axis else 2)) for axis, size in enumerate(shape)]
        values = random.standard_normal(sizes).astype("float32")
        kind = dtype.removeprefix("paddle.")
        made.append(paddle.to_tensor(values if "float" in kind else np.zeros_like(values)).astype(kind))
    return made


def example_inputs(network: Layer, size: int = _SIZE) -> list[Tensor] | None:
    """Guess an input from the first layer with known channels; ``None`` without one.

    Args:
        network: Network, presumably of one input.
        size: Height and width of images, and length of sequences.
    """
    for layer in network.sublayers(include_self=True):
        for kind, sizes in _GUESSED.items():
            if isinstance(layer, kind):
                weight, dtype = layer.weight, str(layer.weight.dtype)
                if kind is nn.Linear:
                    return noise([([2, int(weight.shape[0])], dtype)])
                channels = int(weight.shape[1]) * layer._groups
                places = [size] * sizes
                last = str(layer._data_format).endswith("C")
                return noise([([2, *places, channels] if last else [2, channels, *places], dtype)])
    return None


def _node(tensor: Tensor) -> int:
    """Return the node that computed ``tensor``; without one, its negated id."""
    made_by = tensor.grad_fn
    return -id(tensor) if made_by is None else made_by.node_ptr()


@contextmanager
def _noted(name: str, layer: Layer, running: list[str], found: Trace) -> Iterator[None]:
    waiting: list[tuple[int, ...]] = []

    def before(_: Layer, given: Any, options: Any) -> None:
        running.append(name)
        waiting.append(tuple(_node(item) for item in tensors_in([given, options])))

    def behind(_: Layer, __: Any, result: Any) -> None:
        running.pop()
        found.calls.append(Call(name, waiting.pop(), tuple(_node(item) for item in tensors_in(result))))

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_post_hook(behind)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _products_noted(note: Callable[[str, int], None]) -> Iterator[None]:
    """Call ``note(operation, macs)`` for each product of this thread in the block."""
    thread = threading.get_ident()

    def noting(name: str, original: Any, count: Callable[..., int]) -> Any:
        def operator(*given: Any, **options: Any) -> Any:
            result = original(*given, **options)
            if threading.get_ident() == thread:
                try:
                    macs = count(result, *given)
                except Exception:  # called with unknown arguments
                    macs = 0
                note(name, macs)
            return result

        return operator

    kept = []
    try:
        for name, count in _COUNTS.items():
            if (original := getattr(operators, name, None)) is not None:
                kept.append((operators, name, original))
                setattr(operators, name, noting(name, original, count))
        kept.append((Tensor, "__matmul__", Tensor.__matmul__))
        Tensor.__matmul__ = noting("matmul", Tensor.__matmul__, _matmul)
        yield
    finally:
        for owner, name, original in reversed(kept):
            setattr(owner, name, original)


def _size(tensor: Any) -> int:
    return math.prod(int(size) for size in (tensor[0] if isinstance(tensor, (list, tuple)) else tensor).shape)


def _convolution(result: Any, x: Tensor, weight: Tensor, *_: Any) -> int:
    return _size(result) * (_size(weight) // int(weight.shape[0]))


def _transposed(result: Any, x: Tensor, weight: Tensor, *_: Any) -> int:
    return _size(x) * (_size(weight) // int(weight.shape[0]))


def _deformable(result: Any, x: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> int:
    return _convolution(result, x, weight)


def _matmul(result: Any, x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False, *_: Any) -> int:
    return _size(result) * int(x.shape[-2 if transpose_x and len(x.shape) > 1 else -1])


def _linear(result: Any, x: Tensor, *_: Any) -> int:
    return _size(result) * int(x.shape[-1])


def _added(result: Any, start: Tensor, x: Tensor, *_: Any) -> int:
    return _size(result) * int(x.shape[-1])


def _einsum(result: Any, operands: Sequence[Tensor], equation: str, *_: Any) -> int:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        sizes.update(zip(term, (int(size) for size in x.shape), strict=True))  # an ellipsis is not counted
    return math.prod(sizes.values())


def _recurrent(result: Any, x: Tensor, states: Any, weights: Sequence[Tensor], *_: Any) -> int:
    return sum(_size(item) for item in weights if len(item.shape) == 2) * math.prod(x.shape[:2])


_COUNTS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "depthwise_conv2d_bias", "conv3d"), _convolution),
    **dict.fromkeys(
        ("conv2d_transpose", "conv2d_transpose_bias", "depthwise_conv2d_transpose", "conv3d_transpose"), _transposed
    ),
    **dict.fromkeys(("matmul", "bmm", "mv"), _matmul),
    "linear": _linear,
    **dict.fromkeys(("addmm", "baddbmm"), _added),
    "deformable_conv": _deformable,
    "einsum": _einsum,
    "rnn": _recurrent,
}
