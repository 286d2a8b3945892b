"""Run a frozen teacher's training branches without noise or updated statistics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.nn import Layer

from paddlelite_callbacks.nn.kinds import is_norm, is_quantized, running_statistics
from paddlelite_callbacks.quant.quantizers import Switched

__all__ = ["same_buffers", "still_functions", "train_branches_"]

_DROPOUTS = (nn.Dropout, nn.Dropout2D, nn.Dropout3D, nn.AlphaDropout, nn.RReLU)
_RUNNING = ("running", "moving", "mean", "var")  # in names of buffers


def train_branches_(network: Layer) -> None:
    """Set train mode, except for dropout, norms and quantizers.

    These stay in eval mode: norms, dropout of every kind (``Dropout``, ``DropPath``, ``StochasticDepth``), quantizers,
    and all of ``paddle.nn``'s own layers, which have no other training behaviour. So only the network's own layers that
    branch by ``self.training`` return their training outputs.

    Args:
        network: Network whose modes are changed.
    """
    for layer in network.sublayers(include_self=True):
        layer.training = not _noisy(layer)


def _noisy(layer: Layer) -> bool:
    kind = type(layer)
    if kind.__module__.startswith(("paddle.nn.", "paddle.incubate.")) or is_norm(layer) or is_quantized(layer):
        return True
    if isinstance(layer, (*_DROPOUTS, Switched)):
        return True
    if layer._sub_layers:
        return False
    named, dropping = kind.__name__.lower(), ("drop", "stochasticdepth")
    if not layer._parameters and any(part in named for part in dropping):
        return True
    return bool(running_statistics(layer)) or any(part in name for name in layer._buffers for part in _RUNNING)


@contextmanager
def same_buffers(network: Layer) -> Iterator[None]:
    """Restore the buffers of layers in train mode at the end of the block.

    Args:
        network: Network in any mode.
    """
    kept = [
        (layer, name, buffer, buffer.detach().clone())
        for layer in network.sublayers(include_self=True)
        if layer.training
        for name, buffer in layer._buffers.items()
        if isinstance(buffer, Tensor) and buffer._is_initialized()
    ]
    try:
        yield
    finally:
        for layer, name, buffer, value in kept:
            layer._buffers[name] = buffer
            paddle.assign(value, buffer)


@contextmanager
def still_functions() -> Iterator[None]:
    """Disable functional dropout and batch statistics inside the block.

    For forwards that call them with ``training=self.training``. Functions that this version of Paddle lacks are
    skipped.
    """
    functions = paddle.nn.functional
    with ExitStack() as scope:
        for name in ("dropout", "alpha_dropout", "feature_alpha_dropout", "rrelu"):
            for module in (functions, getattr(functions, "common", None)):
                _replaced(scope, module, name, _without_training)
        operators = getattr(paddle, "_C_ops", None)
        for name in ("dropout", "dropout_"):
            _replaced(scope, operators, name, _testing_dropout)
        _replaced(scope, operators, "batch_norm", _testing_batch_norm)
        yield


def _replaced(scope: ExitStack, module: Any, name: str, change: Callable[..., Any]) -> None:
    original = getattr(module, name, None)
    if original is not None:
        setattr(module, name, change(original))
        scope.callback(setattr, module, name, original)


def _without_training(original: Callable[..., Any]) -> Callable[..., Any]:
    position = _position_of_training(original)

    @wraps(original)
    def function(*arguments: Any, **keywords: Any) -> Any:
        if position is not None and len(arguments) > position:
            return original(*arguments[:position], False, *arguments[position + 1 :], **keywords)
        return original(*arguments, **{**keywords, "training": False})

    return function


def _position_of_training(function: Callable[..., Any]) -> int | None:
    names = list(inspect.signature(function).parameters)
    return names.index("training") if "training" in names else None


def _testing_dropout(original: Callable[..., Any]) -> Callable[..., Any]:
    def dropout(x: Tensor, seed: Any, p: Any, is_test: bool, *others: Any) -> Any:
        return original(x, seed, p, True, *others)

    return dropout


def _testing_batch_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    def batch_norm(*arguments: Any) -> Any:
        if len(arguments) != 11:  # another version of Paddle
            return original(*arguments)
        *first, _, momentum, epsilon, layout, _, _ = arguments
        return original(*first, True, momentum, epsilon, layout, True, False)

    return batch_norm
