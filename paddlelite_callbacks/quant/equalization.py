"""Equalise the weight ranges of neighbouring layers in a network.

Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1). Between two layers with a positively
homogeneous activation (``f(s x) = s f(x)``: ReLU, leaky ReLU, PReLU) the channels of the first may be divided by ``s``
and the weights of the second that read them be multiplied by it. With ``s_i = (1 / r2_i) sqrt(r1_i r2_i)`` (equation
11) both layers have the range ``sqrt(r1_i r2_i)`` in channel ``i``. A batch norm between the two takes the division.

ReLU6 is not homogeneous. The paper replaces it by ReLU; here it stays, and only channels that never reach 6 in the
calibration data are scaled, no further than up to 6.

Large biases that result are absorbed by the next layer (section 4.1.3, `absorb_high_biases_`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.kinds import computes_as, foldable_norm
from paddlelite_callbacks.nn.nested import forward_batch, tensors_in
from paddlelite_callbacks.nn.surgery import computes_weight, copy_network, same_modes
from paddlelite_callbacks.nn.trace import Trace, trace
from paddlelite_callbacks.quant.bias_correction import add_bias_
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = ["LayerPair", "absorb_high_biases_", "equalize_", "equalizing_scales", "layer_pairs"]

_log = logging.getLogger(__name__)
_RELU6 = "Relu6"
_ACTIVATIONS = ("Relu", "LeakyRelu", "Prelu", _RELU6)
_POOLS = ("Pool2d", "MaxPool2dWithIndex", "Mean", "Flatten", "Reshape", "Squeeze", "Dropout", "Pad3d")
_SWEEPS, _SETTLED = 100, 1e-4  # sweeps over all pairs; largest change of log s
_SAME = 1e-4  # of the largest output: rounding
_TOP = 6.0


@dataclass(frozen=True)
class LayerPair:
    """Two layers whose channels can be scaled against each other.

    Args:
        first: Name of the layer that computes the channels.
        norm: Name of the batch norm behind it; ``None`` without one.
        second: Name of the only layer that reads them.
        second_norm: Name of the batch norm behind that.
        activation: ``"Relu"``, ``"LeakyRelu"``, ``"Prelu"`` or ``"Relu6"``; ``None`` for none.
        pooled: Whether the map is pooled or reshaped between the two.
    """

    first: str
    norm: str | None
    second: str
    second_norm: str | None = None
    activation: str | None = None
    pooled: bool = False


def equalizing_scales(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return ``s_i = (1 / r2_i) sqrt(r1_i r2_i)``; 1 for channels without weights.

    Args:
        first: Ranges ``r1`` of the first layer's output channels, ``[channels]``, at least 0.
        second: Ranges ``r2`` of the second layer's input channels, ``[channels]``, at least 0.
    """
    used = (first > 0) & (second > 0)
    below = np.where(used, second, 1.0)
    return np.where(used, np.sqrt(np.where(used, first, 1.0) * below) / below, 1.0)


def equalize_(network: Layer, batches: Sequence[Tensor | Sequence[Tensor]]) -> dict[LayerPair, np.ndarray]:
    """Equalise the ranges of all pairs of layers, in place.

    Pairs are scaled in turns until nothing changes, as chains of layers need it. The network computes the same outputs
    within rounding; pairs that would change them on the first batch are left as they are.

    Args:
        network: Float network; runs in eval mode.
        batches: Calibration inputs, a tensor or one per input of the network, not empty.

    Returns:
        The scales ``s`` of each pair's channels, by which the first layer was divided.
    """
    inputs = [batches[0]] if isinstance(batches[0], Tensor) else list(batches[0])
    pairs = layer_pairs(network, inputs)
    if not pairs:
        return {}
    layers = dict(network.named_sublayers())
    with paddle.no_grad(), same_modes(network):
        network.eval()
        highest = _largest_inputs(network, [pair for pair in pairs if pair.activation == _RELU6], batches)
        wanted = _outputs(network, inputs)
        held = _Values([layers[name] for pair in pairs for name in (pair.first, pair.norm, pair.second) if name])

        def applied(chosen: Sequence[LayerPair]) -> dict[LayerPair, np.ndarray] | None:
            scales = _settled_scales(layers, chosen, highest)
            for pair, scale in scales.items():
                _scale_(layers, pair, scale)
            if _same(wanted, _outputs(network, inputs)):
                return scales
            held.put_back()
            return None

        found = applied(pairs)
        if found is not None:
            return found
        kept = []
        for pair in pairs:
            if applied([pair]) is not None:
                kept.append(pair)
                held.put_back()
        _log.debug("Not equalised, for it would change the outputs: %s.", [pair for pair in pairs if pair not in kept])
        return (applied(kept) or {}) if kept else {}


def absorb_high_biases_(network: Layer, pairs: Sequence[LayerPair]) -> list[LayerPair]:
    """Move high biases of ReLU layers into the next layer, in place.

    With the statistics of the batch norm between them, ``c = max(0, beta - 3 |gamma|)`` is subtracted from the first
    layer's output and ``W2 c`` added to the second's bias. For a normal distribution 99.87 % of the values are at least
    ``c``, and ``relu(x - c) = relu(x) - c`` there; others change. Second layers with padding see zeros at the borders
    instead of ``c`` and are left as they are.

    Args:
        network: Float network with pairs of `equalize_`.
        pairs: The pairs.

    Returns:
        Pairs whose biases were moved.
    """
    layers, moved = dict(network.named_sublayers()), []
    for pair in pairs:
        if pair.norm is None or pair.activation != "Relu" or pair.pooled or not _unpadded(layers[pair.second]):
            continue
        norm, second = layers[pair.norm], layers[pair.second]
        high = np.maximum(0.0, _values(norm.bias) - 3 * np.abs(_values(norm.weight)))
        if not np.any(high > 0):
            continue
        weight = _by_input(second, len(high))
        if isinstance(second, paddle.nn.Conv2D):
            # [groups, out / groups, in / groups, ...] against the group's channels
            moving = np.einsum("goik,gi->go", weight, high.reshape(weight.shape[0], -1)).reshape(-1)
        else:
            moving = np.einsum("ikn,i->n", weight, high)
        with paddle.no_grad():
            _set_(norm.bias, _values(norm.bias) - high)
            add_bias_(second, moving.astype("float32"))
        moved.append(pair)
    return moved


def layer_pairs(network: Layer, inputs: Sequence[Tensor]) -> list[LayerPair]:
    """Find the pairs of layers that can be equalised, by running a copy.

    Args:
        network: Float network; not changed.
        inputs: A batch, one tensor per input.
    """
    ran = trace(copy_network(network), inputs)
    layers = dict(network.named_sublayers())
    calls = Counter(call.name for call in ran.calls)
    holders = Counter(id(item) for layer in layers.values() for item in layer._parameters.values() if item is not None)

    def free(layer: Layer) -> bool:
        own = [item for item in layer._parameters.values() if item is not None]
        return all(holders[id(item)] == 1 for item in own) and not any(
            computes_weight(hook) for hook in layer._forward_pre_hooks.values()
        )

    readers = {
        call.inputs[0]: call.name
        for call in ran.calls
        if call.inputs
        and calls[call.name] == 1
        and free(layers.get(call.name, network))
        and (_multiplies(layers.get(call.name)) or _norm(layers.get(call.name)))
    }
    outputs = {call.name: call.outputs for call in ran.calls}
    found = []
    for call in ran.calls:
        layer = layers.get(call.name)
        if _multiplies(layer) and layer is not None and calls[call.name] == 1 and free(layer) and call.outputs:
            pair = _followed(call.name, call.outputs[0], ran, readers, layers, outputs)
            if pair is not None and _channels_match(layers, pair):
                found.append(pair)
    return found


def _followed(
    name: str,
    node: int,
    ran: Trace,
    readers: dict[int, str],
    layers: dict[str, Layer],
    outputs: dict[str, tuple[int, ...]],
) -> LayerPair | None:
    norm: str | None = None
    activation: str | None = None
    pooled = False
    while True:
        taking = ran.readers(node)
        if len(taking) != 1 or ran.is_output(node):
            return None
        reader = readers.get(node)
        if reader is not None and _multiplies(layers[reader]):
            last = readers.get(outputs[reader][0])
            alone = len(ran.readers(outputs[reader][0])) == 1
            behind = last if last is not None and alone and _norm(layers[last]) else None
            return LayerPair(name, norm, reader, behind, activation, pooled)
        if reader is not None:
            if norm is not None or activation is not None:
                return None
            norm, node = reader, outputs[reader][0]
            continue
        after, operation = taking[0][0], taking[0][1].removesuffix("GradNode")
        if operation in _ACTIVATIONS and activation is None:
            activation = operation
        elif operation in _POOLS and activation != _RELU6:  # behind ReLU6 its largest values would be averaged away
            pooled = True
        else:
            return None
        node = after


def _multiplies(layer: Layer | None) -> bool:
    return layer is not None and computes_as(layer, paddle.nn.Conv2D, paddle.nn.Linear) is not None


def _norm(layer: Layer | None) -> bool:
    return (
        layer is not None
        and foldable_norm(layer)
        and getattr(layer, "weight", None) is not None
        and getattr(layer, "bias", None) is not None
    )


def _channels_match(layers: dict[str, Layer], pair: LayerPair) -> bool:
    first, second = layers[pair.first], layers[pair.second]
    channels = _channels(first)
    if isinstance(second, paddle.nn.Conv2D):
        if not isinstance(first, paddle.nn.Conv2D) or second._padding_mode != "zeros":
            return False
        return int(second.weight.shape[1]) * int(second._groups) == channels
    return int(second.weight.shape[0]) % channels == 0 and (pair.pooled or int(second.weight.shape[0]) == channels)


def _channels(layer: Layer) -> int:
    """Return the number of output channels."""
    return int(layer.weight.shape[0 if isinstance(layer, paddle.nn.Conv2D) else 1])


def _unpadded(layer: Layer) -> bool:
    if not isinstance(layer, paddle.nn.Conv2D):
        return True
    padding = layer._padding
    given = padding if isinstance(padding, (list, tuple)) else [padding]
    return all(isinstance(item, int) and item == 0 for item in given)


def _values(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().astype("float64")


def _set_(tensor: Tensor, values: np.ndarray) -> None:
    tensor.set_value(paddle.to_tensor(np.ascontiguousarray(values, "float32")).astype(tensor.dtype))


def _by_input(layer: Layer, channels: int) -> np.ndarray:
    """Return weights with the input channels apart.

    ``[groups, out / groups, in / groups, k]`` of a convolution, ``[channels, places, out]`` of a ``Linear``.
    """
    weight = _values(layer.weight)
    if isinstance(layer, paddle.nn.Conv2D):
        groups = int(layer._groups)
        return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return weight.reshape(channels, -1, weight.shape[1])


def _folded(layers: dict[str, Layer], name: str, norm: str | None, channels: int) -> np.ndarray:
    """Return the magnitudes of `_by_input` with the batch norm folded."""
    layer = layers[name]
    weight = np.abs(_by_input(layer, channels))
    if norm is None:
        return weight
    factor = np.abs(_values(layers[norm].weight)) / np.sqrt(_values(layers[norm]._variance) + layers[norm]._epsilon)
    if isinstance(layer, paddle.nn.Conv2D):
        return weight * factor.reshape(weight.shape[0], -1, 1, 1)
    return weight * factor


def _output_range(layer: Layer, weight: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """Return each output channel's largest weight, inputs multiplied by ``scales``."""
    if isinstance(layer, paddle.nn.Conv2D):
        weight = weight if scales is None else weight * scales.reshape(weight.shape[0], 1, -1, 1)
        return weight.max(axis=(2, 3)).reshape(-1)
    weight = weight if scales is None else weight * scales[:, None, None]
    return weight.max(axis=(0, 1))


def _input_range(layer: Layer, weight: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """Return each input channel's largest weight, outputs divided by ``scales``."""
    if isinstance(layer, paddle.nn.Conv2D):
        weight = weight if scales is None else weight / scales.reshape(weight.shape[0], -1, 1, 1)
        return weight.max(axis=(1, 3)).reshape(-1)
    weight = weight if scales is None else weight / scales
    return weight.max(axis=(1, 2))


def _settled_scales(
    layers: dict[str, Layer], pairs: Sequence[LayerPair], highest: dict[str, np.ndarray]
) -> dict[LayerPair, np.ndarray]:
    """Return the scales at which no pair changes any more."""
    before = {pair.second: pair for pair in pairs}
    after = {pair.first: pair for pair in pairs}
    outputs = {pair: _channels(layers[pair.first]) for pair in pairs}
    weights = {pair.second: _folded(layers, pair.second, pair.second_norm, outputs[pair]) for pair in pairs}
    for pair in pairs:
        if pair.first not in weights:  # whose inputs nobody scales
            inputs = int(layers[pair.first].weight.shape[0])
            weights[pair.first] = _folded(layers, pair.first, pair.norm, inputs)
    scales = {pair: np.ones(channels) for pair, channels in outputs.items()}

    for _ in range(_SWEEPS):
        largest = 0.0
        for pair in pairs:
            given, taken = before.get(pair.first), after.get(pair.second)
            first = _output_range(layers[pair.first], weights[pair.first], scales[given] if given else None)
            second = _input_range(layers[pair.second], weights[pair.second], scales[taken] if taken else None)
            new = equalizing_scales(first, second)
            if pair.activation == _RELU6:
                most = highest[pair.second]
                new = np.where(most < _TOP, np.maximum(new, most / _TOP), 1.0)
            largest = max(largest, float(np.abs(np.log(new / scales[pair])).max(initial=0.0)))
            scales[pair] = new
        if largest < _SETTLED:
            break
    return scales


def _scale_(layers: dict[str, Layer], pair: LayerPair, scale: np.ndarray) -> None:
    first, second = layers[pair.first], layers[pair.second]
    if pair.norm is not None:
        norm = layers[pair.norm]
        _set_(norm.weight, _values(norm.weight) / scale)
        _set_(norm.bias, _values(norm.bias) / scale)
    else:
        rows = scale.reshape(-1, 1, 1, 1) if isinstance(first, paddle.nn.Conv2D) else scale
        _set_(first.weight, _values(first.weight) / rows)
        if first.bias is not None:
            _set_(first.bias, _values(first.bias) / scale)
    weight = _by_input(second, len(scale))
    if isinstance(second, paddle.nn.Conv2D):
        weight = weight * scale.reshape(weight.shape[0], 1, -1, 1)
    else:
        weight = weight * scale[:, None, None]
    _set_(second.weight, weight.reshape(second.weight.shape))


@dataclass
class _Values:
    """Parameters as they were."""

    layers: Sequence[Layer]
    _held: list[tuple[Tensor, np.ndarray]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        own = {id(item): item for layer in self.layers for item in layer._parameters.values() if item is not None}
        self._held = [(item, item.numpy().copy()) for item in own.values()]

    def put_back(self) -> None:
        for item, value in self._held:
            item.set_value(value)


def _runs(network: Layer, batches: Sequence[Any]) -> Iterator[Any]:
    for batch in batches:
        with same_random_streams():
            yield forward_batch(network, batch)


def _outputs(network: Layer, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    return [item.numpy() for result in _runs(network, [inputs]) for item in tensors_in(result)]


def _same(wanted: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> bool:
    return all(
        np.abs(a.astype("float64") - b).max(initial=0.0) <= _SAME * max(float(np.abs(a).max(initial=0.0)), 1e-30)
        for a, b in zip(wanted, got, strict=True)
    )


def _largest_inputs(network: Layer, pairs: Sequence[LayerPair], batches: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return the largest value of each input channel of the second layers."""
    layers, found = dict(network.named_sublayers()), dict[str, np.ndarray]()

    def noting(name: str) -> Any:
        def note(_: Layer, given: tuple[Tensor, ...]) -> None:
            x = given[0]
            axis = (1 if isinstance(layers[name], paddle.nn.Conv2D) else -1) % x.ndim
            most = x.max(axis=[dim for dim in range(x.ndim) if dim != axis]).numpy().astype("float64")
            found[name] = np.maximum(found.get(name, most), most)

        return note

    hooks = [layers[pair.second].register_forward_pre_hook(noting(pair.second)) for pair in pairs]
    try:
        for _ in _runs(network, batches) if pairs else ():
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return found
