"""Correct the mean error of quantised layers through their biases.

Rounding and clipping shift the mean of a layer's output. Empirical bias correction (Nagel et al. 2019,
arXiv:1906.04721, section 4.2 and appendix D; per channel as Banner et al. 2018, arXiv:1810.05723) adds the difference
of the means, ``E[y] - E[y_q]`` per output channel, to the bias. Layers are corrected in the order in which they run, so
that each is measured on inputs that are corrected already.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.nested import forward_batch
from paddlelite_callbacks.nn.surgery import same_modes
from paddlelite_callbacks.quant.convert import has_run
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.switch import quantizers_off

__all__ = ["add_bias_", "correct_biases_", "float_means", "recorded_means"]

Means = list[tuple[np.ndarray, int]]  # of each call: means per channel, number of values in each


def correct_biases_(
    network: Layer, batches: Sequence[Tensor | Sequence[Tensor]], *, wanted: dict[str, Means] | None = None
) -> dict[str, np.ndarray]:
    """Add ``E[y] - E[y_q]`` to the bias of each quantised layer, in place.

    ``y`` is the layer's output in the float network, ``y_q`` that in the quantised one with all layers before it
    corrected. Layers without a bias get one (a new parameter ``<layer>.bias``). The means are over all batches and
    positions; while the batches run, each layer is corrected by the mean of its calls so far, so that those after it
    see corrected inputs. The network runs twice on each batch, once in float; once more if a layer runs several times
    in a batch, whose calls have to be corrected alike.

    Args:
        network: Quantised and calibrated network; runs in eval mode.
        batches: Calibration inputs, a tensor or one per input of the network.
        wanted: Result of `float_means`, where the weights have been changed since; ``None`` to measure it here.

    Returns:
        What was added by layer name, ``[channels]``; layers that did not run are left out.
    """
    means = float_means(network, batches) if wanted is None else wanted
    layers = {name: layer for name, layer in quantized_layers(network).items() if means.get(name)}
    with paddle.no_grad(), same_modes(network):
        network.eval()
        found = _run(network, layers, batches, lambda layer, name: _Corrector(layer, means[name]))
        added = {name: corrector.mean() for name, corrector in found.items()}
        if any(len(calls) > len(batches) for calls in means.values()):
            found = _run(network, layers, batches, lambda layer, name: _Corrector(layer, means[name], added[name]))
            added = {name: corrector.mean() for name, corrector in found.items()}
    holders = Counter(id(layer.bias) for layer in network.sublayers() if getattr(layer, "bias", None) is not None)
    for name, value in added.items():
        add_bias_(layers[name], value, shared=holders[id(layers[name].bias)] > 1)
    return added


def float_means(network: Layer, batches: Sequence[Tensor | Sequence[Tensor]]) -> dict[str, Means]:
    """Return the means of the layers' outputs in the float network, by name.

    Args:
        network: Quantised and calibrated network; runs in eval mode with its quantizers disabled.
        batches: Calibration inputs, a tensor or one per input of the network.

    Returns:
        For each call of a layer the means per channel and the number of values in each.
    """
    layers = {name: layer for name, layer in quantized_layers(network).items() if has_run(layer.activation_quanter)}
    with paddle.no_grad(), same_modes(network), quantizers_off(network), recorded_means(network) as means:
        network.eval()
        for batch in batches:
            forward_batch(network, batch)
    return {name: means[name] for name in layers}


@contextmanager
def recorded_means(network: Layer) -> Iterator[dict[str, Means]]:
    """Record the means of all quantised layers' outputs inside the block.

    Args:
        network: Quantised network that runs in the block, with its quantizers disabled by the caller.
    """
    layers = quantized_layers(network)
    recorders = {name: _Recorder(layer) for name, layer in layers.items()}
    with _hooked(layers, recorders):
        yield {name: recorder.calls for name, recorder in recorders.items()}


def add_bias_(layer: Layer, value: np.ndarray, *, shared: bool = False) -> None:
    """Add ``value`` to the bias of a quantised layer, which gets one if it has none.

    Args:
        layer: Layer that `prepare_pact_` converted.
        value: Shape ``[channels]``.
        shared: Whether other layers use the same bias, which they keep.
    """
    old = layer.bias
    total = value if old is None else old.astype("float32").numpy() + value
    if old is None or shared:
        dtype = layer.weight.dtype if old is None else old.dtype
        layer.bias = layer.create_parameter([len(value)], dtype=dtype, is_bias=True)
    layer.bias.set_value(paddle.to_tensor(np.asarray(total, "float32")).astype(layer.bias.dtype))


def channel_axis(layer: Layer) -> int:
    """Return the axis of the channels in a quantised layer's output.

    Args:
        layer: Layer that `prepare_pact_` converted.
    """
    return 1 if getattr(layer, "_data_format", "NHWC").startswith("NC") else -1


class _Recorder:
    """Records the means of each call, by layer."""

    def __init__(self, layer: Layer) -> None:
        self.axis = channel_axis(layer)
        self.calls: Means = []

    def means(self, output: Tensor) -> tuple[np.ndarray, int]:
        """Return the mean of each channel and the number of its values."""
        axis, shape = self.axis % output.ndim, output.shape
        count = output.size // shape[axis]
        if axis == output.ndim - 1 or count == 0:
            others = [dim for dim in range(output.ndim) if dim != axis]
            found = output.astype("float32").mean(axis=others) if others else output
            return found.numpy().astype("float64").reshape(-1), count
        maps = output.astype("float32").reshape([math.prod(shape[:axis]), shape[axis], -1])
        return maps.mean(axis=-1).numpy().astype("float64").mean(axis=0), count  # in one piece each: twice as fast

    def __call__(self, output: Tensor) -> Tensor | None:
        self.calls.append(self.means(output))
        return None


class _Corrector(_Recorder):
    """Measures what each call lacks, and adds a correction to its output."""

    def __init__(self, layer: Layer, wanted: Means, fixed: np.ndarray | None = None) -> None:
        super().__init__(layer)
        self._wanted, self._fixed = iter(wanted), fixed
        self._total, self._count = np.zeros(len(wanted[0][0])), 0

    def mean(self) -> np.ndarray:
        """Return the mean difference over all calls, ``[channels]``."""
        return self._total / max(self._count, 1)

    def __call__(self, output: Tensor) -> Tensor | None:
        found, count = self.means(output)
        reference = next(self._wanted, None)  # a network may call a layer more often on other values
        if reference is not None:
            self._total += count * (reference[0] - found)
            self._count += count
        shift = self.mean() if self._fixed is None else self._fixed
        if not output.size:
            return output
        # In place: a copy costs more than the sum. The layer's own result, which nobody else holds yet.
        added = paddle.to_tensor(shift.astype("float32")).astype(output.dtype)
        axis, shape = self.axis % output.ndim, output.shape
        if axis == output.ndim - 1:
            return output.add_(added)
        # As a matrix with a row for each map: Paddle takes eighteen times as long to broadcast along inner axes.
        rows = output.reshape([math.prod(shape[: axis + 1]), -1])
        return rows.add_(added.tile([math.prod(shape[:axis])]).unsqueeze(-1)).reshape(shape)


def _run(
    network: Layer, layers: dict[str, Layer], batches: Sequence[Any], make: Callable[[Layer, str], Any]
) -> dict[str, Any]:
    """Run all batches with hooks on the layers' outputs; return their owners."""
    owners = {name: make(layer, name) for name, layer in layers.items()}
    with _hooked(layers, owners):
        for batch in batches:
            forward_batch(network, batch)
    return owners


@contextmanager
def _hooked(layers: Mapping[str, Layer], owners: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Call each owner on its layer's outputs inside the block."""
    with ExitStack() as scope:
        for name, layer in layers.items():
            scope.callback(_hook(layer, owners[name]).remove)
        yield


def _hook(layer: Layer, owner: Callable[[Tensor], Tensor | None]) -> Any:
    """Register ``owner`` on the layer's output, before its output quantizer."""
    quantizer = getattr(layer, "output_quanter", None)
    if quantizer is not None:
        return quantizer.register_forward_pre_hook(lambda _, inputs: owner(inputs[0]))
    hook = layer.register_forward_post_hook(lambda _, __, output: owner(output))
    layer._forward_post_hooks.move_to_end(hook._hook_id, last=False)
    return hook
