"""Fold batch normalisation into the convolution before it.

In eval mode ``gamma (conv(x) - mean) / sigma + beta`` is a convolution whose output channels are scaled by
``gamma / sigma``, and a shift. An int8 weight keeps its integers: ``|gamma / sigma|`` multiplies the channel's step
and a negative sign its integers. Which norm follows which convolution is observed by running the network.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.kinds import foldable_norm
from paddlelite_callbacks.nn.nested import flat_outputs
from paddlelite_callbacks.quant.convert import Int8Conv2D
from paddlelite_callbacks.quant.paddle_layers import QuantedConv2D

__all__ = ["Shift", "fold_batch_norms_", "folded"]

_log = logging.getLogger(__name__)
_CONVOLUTIONS = (paddle.nn.Conv2D, QuantedConv2D, Int8Conv2D)


class Shift(Layer):
    """Add one constant per channel to ``[N, C, H, W]``: a folded batch norm.

    Args:
        bias: Constants, ``[C]``.
    """

    def __init__(self, bias: np.ndarray) -> None:
        super().__init__()
        self.bias = self.create_parameter(
            [1, bias.size, 1, 1],
            dtype="float32",
            default_initializer=paddle.nn.initializer.Assign(bias.reshape([1, -1, 1, 1])),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + bias``."""
        return x + self.bias


def folded(make: Callable[[], Layer], inputs: Sequence[Tensor], same: Callable[[list[np.ndarray]], bool]) -> Layer:
    """Fold the batch norms of a network where its outputs stay the same.

    Args:
        make: Builds the network in eval mode, float or converted by `convert_for_export_`; called again where folding
            fails.
        inputs: Inputs to run it on.
        same: Whether outputs equal those of the network for ``inputs``.
    """
    network = make()
    try:
        if not fold_batch_norms_(network, inputs) or same(_outputs(network, inputs)):
            return network
        why = "its output would change: is a convolution's output used twice?"
    except Exception as error:  # for instance a forward that reads attributes of the norm
        why = f"{type(error).__name__}: {error}"
    _log.info("The batch norms of %s are not folded: %s", type(network).__name__, why)
    return make()


def fold_batch_norms_(network: Layer, inputs: Sequence[Tensor]) -> int:
    """Fold, in place, each norm that runs once, directly after a convolution.

    The convolution must run once, too.

    Args:
        network: Network in eval mode; pass a copy.
        inputs: Inputs to run it on.

    Returns:
        Number of folded norms.
    """
    layers, count = dict(network.named_sublayers()), 0
    holders = Counter(id(p) for layer in layers.values() for p in layer._parameters.values() if p is not None)
    pairs, places = _pairs(network, inputs), _places(network)
    for norm, conv in pairs.items():
        weight = layers[conv]._parameters.get("weight")
        if weight is not None and holders[id(weight)] > 1:  # another layer uses it too
            continue
        if (shift := _shift_of_folded(layers[conv], layers[norm])) is not None:
            for parent, key in places[id(layers[norm])]:
                setattr(parent, key, shift)
            count += 1
    return count


def _places(network: Layer) -> dict[int, list[tuple[Layer, str]]]:
    """Return parent and name of each layer by its id."""
    found: dict[int, list[tuple[Layer, str]]] = {}
    for parent in [network, *network.sublayers()]:
        for key, child in parent._sub_layers.items():
            found.setdefault(id(child), []).append((parent, key))
    return found


def _pairs(network: Layer, inputs: Sequence[Tensor]) -> dict[str, str]:
    """Return the name of the convolution by the name of the norm that follows it."""
    made: dict[int, tuple[str, weakref.ref[Tensor]]] = {}  # an id is reused once its tensor is freed
    found: dict[str, str] = {}
    runs: Counter[str] = Counter()

    def behind(name: str) -> Any:
        def note(_: Layer, __: Any, output: Any) -> None:
            runs[name] += 1
            key = id(output)
            made[key] = name, weakref.ref(output, lambda _: made.pop(key, None))

        return note

    def before(name: str) -> Any:
        def note(_: Layer, given: Any) -> None:
            runs[name] += 1
            if given and id(given[0]) in made:
                found[name] = made[id(given[0])][0]

        return note

    with paddle.no_grad(), ExitStack() as scope:
        for name, layer in network.named_sublayers():
            if isinstance(layer, _CONVOLUTIONS) and _plain(layer):
                scope.callback(layer.register_forward_post_hook(behind(name)).remove)
            elif foldable_norm(layer) and _foldable(layer):
                scope.callback(layer.register_forward_pre_hook(before(name)).remove)
        network(*inputs)
    used = Counter(found.values())
    return {norm: conv for norm, conv in found.items() if runs[norm] == runs[conv] == used[conv] == 1}


def _plain(layer: Layer) -> bool:
    quanted = isinstance(layer, QuantedConv2D)
    if quanted and layer.weight_quanter is not None:
        return False
    options = layer._options if isinstance(layer, Int8Conv2D) else {"data_format": layer._data_format}
    return options["data_format"] == "NCHW" and (quanted or type(layer) in _CONVOLUTIONS)


def _foldable(norm: Layer) -> bool:
    layout = getattr(norm, "_data_format", None) or getattr(norm, "_data_layout", "NCHW")
    return layout == "NCHW" and not getattr(norm, "_act", None) and not norm.training


def _shift_of_folded(conv: Layer, norm: Layer) -> Shift | None:
    """Scale ``conv`` in place, return the shift layer; ``None`` if impossible."""
    factor = 1 / np.sqrt(norm._variance.numpy().astype("float64") + norm._epsilon)
    if norm.weight is not None:
        factor = factor * norm.weight.numpy().astype("float64")
    if isinstance(conv, Int8Conv2D) and not factor.all():  # a step must not be 0
        return None
    shift = -norm._mean.numpy().astype("float64")
    if conv.bias is not None:
        shift = shift + conv.bias.numpy().astype("float64")
    shift = shift * factor
    if norm.bias is not None:
        shift = shift + norm.bias.numpy().astype("float64")
    conv.bias = None
    _scale_(conv, factor.reshape([-1, 1, 1, 1]))
    new = Shift(shift.astype("float32"))
    new.eval()
    return new


def _scale_(conv: Layer, factor: np.ndarray) -> None:
    if isinstance(conv, Int8Conv2D):
        conv.scale_channels_(factor)
        return
    weight = conv.weight.numpy().astype("float64") * factor
    conv.weight.set_value(weight.astype(conv.weight.numpy().dtype))


def _outputs(network: Layer, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    with paddle.no_grad():
        return [item.numpy() for item in flat_outputs(network(*inputs))]
