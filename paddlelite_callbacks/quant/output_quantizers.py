"""Quantise outputs of convolutions, which ONNX Runtime needs to compute in int8.

It fuses ``DQ, Conv, [Relu,] Q`` into one integer convolution. So the quantizer must follow the batch normalisation
(which is folded) and a ReLU (which the unsigned grid contains), but precede any other activation. The order of layers
is observed by running the network. A ReLU that is used in several places (in ``paddle.vision``'s ResNet after the first
normalisation and after the residual sum) gets no quantizer: that of the preceding normalisation rectifies, which
changes nothing where only ReLUs read the result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.kinds import is_batch_norm
from paddlelite_callbacks.nn.nested import tensors_in
from paddlelite_callbacks.nn.surgery import copy_network, unwrapped
from paddlelite_callbacks.nn.trace import Call, Trace, example_inputs, trace
from paddlelite_callbacks.quant.quantizers import PACTActivationQuantizer
from paddlelite_callbacks.utils.deprecation import forwarded
from paddlelite_callbacks.utils.error_text import reason as reason_of
from paddlelite_callbacks.utils.isolation import same_random_streams

__all__ = ["OutputPlace", "attach_output_quantizer_", "detach_output_quantizer_", "output_places", "quantized_outputs"]

__getattr__, _ = forwarded(  # old names
    __name__,
    {
        "attach_output_quanter_": "quant.output_quantizers:attach_output_quantizer_",
        "detach_output_quanter_": "quant.output_quantizers:detach_output_quantizer_",
    },
)

_log = logging.getLogger(__name__)
_RELUS = (paddle.nn.ReLU, paddle.nn.ReLU6)
_SIZES = (64, 32, 28, 224, 16, 96, 128, 256)  # of images, for networks that take one size only
_RELU_NODES = ("ReluGradNode", "Relu6GradNode")
_RESHAPES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Cast", "Stack")


@dataclass(frozen=True)
class OutputPlace:
    """Layer whose output is quantised.

    Args:
        name: Name of the layer.
        rectified: Whether only ReLUs read its output, so that its negative values do not matter.
    """

    name: str
    rectified: bool = False


class _QuantizedOutput:
    """Mixin for a layer with a fake-quantised output; its type and keys stay."""

    _plain_class: type
    output_quanter: PACTActivationQuantizer

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        return self.output_quanter(self._plain_class.forward(self, *inputs, **options))  # type: ignore[attr-defined]


def output_places(
    network: Layer, convolutions: Sequence[str], inputs: Sequence[Tensor] | None = None
) -> list[OutputPlace]:
    """Find the layers whose outputs are quantised, by running a copy.

    One quantizer serves one use: a layer that runs several times and whose results are used in different ways (once by
    a ReLU, once by a sum) gets none. Outputs of the network get none unless normalised. Without ``inputs``, the layers
    are the norms defined after the convolutions.

    Args:
        network: Network; not changed.
        convolutions: Names of convolutions.
        inputs: Inputs to run it on; ``None`` where unknown.
    """
    inner = unwrapped(network)
    if inner is not network:
        prefix = "_layers."  # of ``paddle.DataParallel``
        found = output_places(inner, [name.removeprefix(prefix) for name in convolutions], inputs)
        return [replace(place, name=prefix + place.name) for place in found]
    reason = "no input is known"
    for given in _tried(network, inputs):
        try:
            ran = trace(copy_network(network), given)
        except Exception as error:
            reason = reason_of(error) if given is inputs or inputs is None else reason
            continue
        places = _places_by_run(dict(network.named_sublayers()), convolutions, ran)
        return _verified(network, places, given)
    _log.warning(
        "The outputs to quantise follow the order in which %s defines its layers, which may differ from the order in "
        "which they run, since it could not be run: %s. Give prepare_pact_(inputs=...) a batch, or paddle.Model its "
        "InputSpecs.",
        type(network).__name__,
        reason.rstrip("."),
    )
    return _places_by_definition(network, convolutions)


def _tried(network: Layer, inputs: Sequence[Tensor] | None) -> Iterator[Sequence[Tensor]]:
    """Yield the inputs, then guesses for networks of one image size only."""
    if inputs is not None:
        yield inputs
    for size in _SIZES:
        guessed = example_inputs(network, size)
        if guessed is not None:
            yield guessed


def attach_output_quantizer_(layer: Layer, quantizer: PACTActivationQuantizer) -> None:
    """Fake-quantise the output of ``layer``.

    New keys are ``<layer>.output_quanter.alpha`` and ``.grid``.

    Args:
        layer: Layer whose class is changed.
        quantizer: Quantizer of its output.
    """
    plain = type(layer)
    layer.__class__ = type(f"{plain.__name__}WithQuantizedOutput", (_QuantizedOutput, plain), {"_plain_class": plain})
    layer.output_quanter = quantizer
    quantizer.training = layer.training


def detach_output_quantizer_(layer: Layer) -> PACTActivationQuantizer:
    """Undo `attach_output_quantizer_`; return the quantizer.

    Args:
        layer: Layer that `attach_output_quantizer_` was applied to.
    """
    quantizer = layer._sub_layers.pop("output_quanter")
    layer.__class__ = layer._plain_class
    return quantizer


def quantized_outputs(network: Layer) -> dict[str, Layer]:
    """Return the layers with quantised outputs by name.

    Args:
        network: Network to search.
    """
    return {name: layer for name, layer in network.named_sublayers() if isinstance(layer, _QuantizedOutput)}


def _places_by_run(layers: dict[str, Layer], convolutions: Sequence[str], ran: Trace) -> list[OutputPlace]:
    calls: dict[str, list[Call]] = {}
    takers: dict[int, list[str]] = {}  # layers that read a result, by the node that computed it
    for call in ran.calls:
        calls.setdefault(call.name, []).append(call)
        for node in call.inputs[:1]:
            takers.setdefault(node, []).append(call.name)

    def behind(name: str, kind: Any) -> list[set[str]]:
        """Return, for each call of ``name``, the layers of a kind that read its result."""
        return [{taker for taker in takers.get(_made(call), []) if kind(layers[taker])} for call in calls[name]]

    order = [call.name for call in ran.calls if call.name in set(convolutions)]
    places: dict[str, OutputPlace | None] = {}
    for name in dict.fromkeys(order):
        norms = behind(name, is_batch_norm)
        if all(norms):
            for norm in sorted(set.union(*norms)):
                places[norm] = _place(norm, calls, behind(norm, _is_relu), ran)
        elif not any(norms):
            found = _place(name, calls, behind(name, _is_relu), ran)
            if found is not None and found.name == name and not found.rectified:
                given = any(ran.is_output(_made(call), _is_reshape) for call in calls[name])
                found = None if given or (name == order[-1] and not _product_behind(name, layers, ran)) else found
            places[name] = found
    return list(dict.fromkeys(place for place in places.values() if place is not None))


def _product_behind(name: str, layers: dict[str, Layer], ran: Trace) -> bool:
    """Whether a ``Linear`` runs after the last call of ``name``."""
    last = max(at for at, call in enumerate(ran.calls) if call.name == name)
    return any(isinstance(layers[call.name], paddle.nn.Linear) for call in ran.calls[last + 1 :])


def _place(name: str, calls: dict[str, list[Call]], relus: list[set[str]], ran: Trace) -> OutputPlace | None:
    """Return the ReLU that alone reads all results of ``name``, or ``name`` itself."""
    nodes = [_made(call) for call in calls[name]]
    rectified = [_only_relus(ran, node) for node in nodes]
    if all(rectified):
        taking = set.union(*relus)
        alone = len(taking) == 1 and all(
            len(ran.consumers(node)) == len(found) for node, found in zip(nodes, relus, strict=True)
        )
        if alone and len(calls[relu := next(iter(taking))]) == len(nodes):
            return OutputPlace(relu)
        return OutputPlace(name, rectified=True)
    return None if any(rectified) else OutputPlace(name)


def _only_relus(ran: Trace, node: int) -> bool:
    consumers = ran.consumers(node)
    return bool(consumers) and all(name in _RELU_NODES for name in consumers) and not ran.is_output(node)


def _verified(network: Layer, places: list[OutputPlace], inputs: Sequence[Tensor]) -> list[OutputPlace]:
    """Return the places, without ``rectified`` where it would change outputs."""
    if not any(place.rectified for place in places):
        return places
    duplicate = copy_network(network)

    def differs(tried: Iterable[OutputPlace]) -> bool:
        given = [_run(duplicate, inputs, ()), _run(duplicate, inputs, [place.name for place in tried])]
        return any(not bool(paddle.equal_all(a, b)) for a, b in zip(*given, strict=True))

    if not differs(place for place in places if place.rectified):
        return places
    return [OutputPlace(p.name) if p.rectified and differs([p]) else p for p in places]


@paddle.no_grad()
def _run(network: Layer, inputs: Sequence[Tensor], rectified: Sequence[str]) -> list[Tensor]:
    layers = dict(network.named_sublayers())
    hooks = [
        layers[name].register_forward_post_hook(lambda _, __, y: paddle.nn.functional.relu(y)) for name in rectified
    ]
    try:
        with same_random_streams():
            return [item.detach() for item in tensors_in(network(*inputs))]
    finally:
        for hook in hooks:
            hook.remove()


def _places_by_definition(network: Layer, convolutions: Sequence[str]) -> list[OutputPlace]:
    leaves = [(name, layer) for name, layer in network.named_sublayers() if not list(layer.children())]
    order = [name for name, _ in leaves]
    names = []
    for name in convolutions:
        at = order.index(name)
        follower, layer = (*leaves, ("", None))[at + 1]
        if layer is not None and _normalises(layer, leaves[at][1]):
            names.append(follower)
        elif name != convolutions[-1]:
            names.append(name)
    return [OutputPlace(name) for name in dict.fromkeys(names)]


def _made(call: Call) -> int:
    return call.outputs[0] if call.outputs else 0


def _is_relu(layer: Layer) -> bool:
    return isinstance(layer, _RELUS)


def _is_reshape(node: str) -> bool:
    return node.startswith(_RESHAPES)


def _normalises(norm: Layer, convolution: Layer) -> bool:
    """Whether ``norm`` has the output channels of ``convolution``."""
    if not is_batch_norm(norm):
        return False
    weight, groups = convolution.weight, getattr(convolution, "_groups", 1)
    transposed = isinstance(convolution, paddle.nn.Conv2DTranspose)
    return norm._mean.shape[0] == (weight.shape[1] * groups if transposed else weight.shape[0])
