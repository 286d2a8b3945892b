"""Classify layers: norms, convolutions, linear, recurrent, fake-quantised."""

from __future__ import annotations

from paddle import Tensor, nn
from paddle.nn import Layer

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "NORMS",
    "QUANTIZABLE",
    "RECURRENT",
    "SCALES",
    "TRANSPOSED",
    "computes_as",
    "depthwise_layers",
    "foldable_norm",
    "is_batch_norm",
    "is_norm",
    "is_quantized",
    "kind_of",
    "running_statistics",
]

BATCH_NORMS = (nn.BatchNorm, nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D, nn.SyncBatchNorm)
NORMS = (*BATCH_NORMS, nn.InstanceNorm1D, nn.InstanceNorm2D, nn.InstanceNorm3D, nn.GroupNorm, nn.LayerNorm)
TRANSPOSED = (nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Conv3DTranspose)
CONVOLUTIONS = (nn.Conv1D, nn.Conv2D, nn.Conv3D, *TRANSPOSED)
RECURRENT = (nn.SimpleRNN, nn.LSTM, nn.GRU)
CELLS = (nn.SimpleRNNCell, nn.LSTMCell, nn.GRUCell)
QUANTIZABLE = (nn.Conv2D, nn.Conv2DTranspose, nn.Linear)
SCALES = (".activation_quanter.alpha", ".output_quanter.alpha", ".weight_quanter.alpha")  # suffixes of parameter names

_READ = ("__call__", "__getattr__", "weight", "bias")  # overriding these changes what a layer computes
_MULTIPLYING = (*CONVOLUTIONS, nn.Linear, *RECURRENT, *CELLS)
_FOLDABLE = (nn.BatchNorm2D, nn.BatchNorm, nn.SyncBatchNorm)  # after a Conv2D


def is_norm(layer: Layer) -> bool:
    """Whether ``layer`` is a batch, instance, group or layer norm."""
    return isinstance(layer, NORMS) or is_batch_norm(layer)


def is_batch_norm(layer: Layer) -> bool:
    """Whether ``layer`` is a batch norm of any dimension, or like one."""
    return isinstance(layer, BATCH_NORMS) or len(running_statistics(layer)) == 2


def running_statistics(layer: Layer) -> list[Tensor]:
    """Return running mean and variance of a batch norm.

    Args:
        layer: Layer, without its sublayers; other kinds have none.
    """
    held = {**layer._parameters, **layer._buffers}
    found = [held.get("_mean"), held.get("_variance")]
    return [item for item in found if item is not None] if all(item is not None for item in found) else []


def depthwise_layers(network: Layer) -> list[str]:
    """Return the names of the depthwise convolutions, as for ``skip``.

    Args:
        network: Network before or after quantisation.

    Returns:
        Names of the convolutions of more than one input channel with a group for each.
    """
    found = []
    for name, layer in network.named_sublayers():
        groups, weight = getattr(layer, "_groups", 1), getattr(layer, "weight", None)
        if groups == 1 or weight is None:
            continue
        if groups == (weight.shape[0] if "Transpose" in (kind_of(layer) or "") else weight.shape[1] * groups):
            found.append(name)
    return found


def foldable_norm(layer: Layer) -> bool:
    """Whether ``layer`` is a batch norm that folds into a 2-D convolution."""
    return computes_as(layer, *_FOLDABLE) is not None


def computes_as(layer: Layer, *types: type[Layer]) -> type[Layer] | None:
    """Return the one of ``types`` whose ``forward`` ``layer`` runs; else ``None``.

    A subclass that only sets other arguments or adds attributes counts; one with its own ``forward`` or ``__call__``
    does not.

    Args:
        layer: Layer to inspect.
        types: Layer types.
    """
    for kind in types:
        own = "forward" in vars(layer) or "__call__" in vars(layer)
        if isinstance(layer, kind) and not own and type(layer).forward is kind.forward:
            as_plain = all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in _READ)
            return kind if as_plain else None
    return None


def is_quantized(layer: Layer) -> bool:
    """Whether ``layer`` fake-quantises its weight and input."""
    return hasattr(layer, "weight_quanter") and hasattr(layer, "activation_quanter")


def kind_of(layer: Layer) -> str | None:
    """Return the Paddle class that ``layer`` multiplies like, by name, or ``None``.

    Args:
        layer: Plain layer, a subclass, or a fake-quantised one.
    """
    if is_quantized(layer):
        names = {base.__name__ for base in type(layer).__mro__}
        return next((kind.__name__ for kind in QUANTIZABLE if f"Quanted{kind.__name__}" in names), None)
    return next((kind.__name__ for kind in _MULTIPLYING if isinstance(layer, kind)), None)
