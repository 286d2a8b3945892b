"""Round weights so that the layers' outputs change least.

GPTQ (Frantar et al. 2022, arXiv:2210.17323), the optimal-brain form of what AdaRound (Nagel et al. 2020,
arXiv:2004.10568) learns by gradients: with the layer's inputs ``X`` the error ``|| (W - Q) X ||^2`` is a quadratic form
in ``H = 2 X X^T``. Weights are rounded one input after another, and those that are not rounded yet absorb the error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.nn import Layer

from paddlelite_callbacks.nn.nested import forward_batch
from paddlelite_callbacks.nn.surgery import computes_weight, same_modes
from paddlelite_callbacks.quant.histogram import sampling_stride
from paddlelite_callbacks.quant.paddle_layers import QuantedConv2D, QuantedLinear
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.quantizers import ChannelWeightQuantizer, LSQWeightQuantizer
from paddlelite_callbacks.quant.switch import quantizers_off

__all__ = ["gptq_round", "optimize_rounding_"]

_ROWS = 4096  # input vectors of a call that are counted
_VALUES = 1 << 23  # of patches, in memory at once
_DAMPING = 0.01  # of the mean of the diagonal, as in the paper


def optimize_rounding_(network: Layer, batches: Sequence[Tensor | Sequence[Tensor]]) -> list[str]:
    """Round weights in place so that the layers' outputs change least.

    Steps stay those of the largest magnitude per channel. Layers whose weight is shared or computed by hooks,
    ``Conv2DTranspose``, and learned weight steps (LSQ) are rounded to the nearest as before.

    Args:
        network: Quantised network.
        batches: Calibration inputs, a tensor or one per input of the network.

    Returns:
        Names of the layers with new weights.
    """
    holders = Counter(id(p) for one in network.sublayers() for p in one._parameters.values() if p is not None)
    inputs = {
        name: _Moments(layer)
        for name, layer in quantized_layers(network).items()
        if _roundable(layer) and holders[id(layer.weight)] == 1
    }
    layers = quantized_layers(network)
    with paddle.no_grad(), same_modes(network), quantizers_off(network), ExitStack() as scope:
        network.eval()
        for name, moments in inputs.items():
            scope.callback(layers[name].register_forward_pre_hook(moments).remove)
        for batch in batches:
            forward_batch(network, batch)
    done = []
    for name, moments in inputs.items():
        if moments.total is not None:
            _round_(layers[name], moments.total)
            done.append(name)
    return done


def gptq_round(weight: np.ndarray, moments: np.ndarray, steps: np.ndarray, high: int) -> np.ndarray:
    """Return the integers of GPTQ's rounding.

    Per row, with ``U`` the upper Cholesky factor of the inverse of ``H``: ``q_i = round(w_i / s)``, then ``w_j -= (w_i
    - s q_i) U_ij / U_ii`` for all later ``j`` (algorithm 1). Inputs of large moments come first. The largest weight of
    a row keeps the integer ``high``, so that the row keeps its step.

    Args:
        weight: ``[rows, inputs]``.
        moments: ``X X^T`` of the inputs, ``[inputs, inputs]``.
        steps: Step of each row, ``[rows]``.
        high: Highest integer of the grid.
    """
    weight, hessian = weight.astype("float64").copy(), moments.astype("float64").copy()
    diagonal = np.diag(hessian).copy()
    hessian[np.diag_indices_from(hessian)] += _DAMPING * (diagonal.mean() or 1.0)
    order = np.argsort(-diagonal, kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    largest = np.abs(weight).argmax(axis=1)
    ends = high * np.sign(weight[np.arange(len(weight)), largest])
    found = np.zeros(weight.shape)
    for place, column in enumerate(order):
        integers = np.clip(np.rint(weight[:, column] / steps), -high, high)
        found[:, column] = np.where(largest == column, ends, integers)
        error = (weight[:, column] - found[:, column] * steps) / upper[place, place]
        weight[:, order[place + 1 :]] -= np.outer(error, upper[place, place + 1 :])
    return found


class _Moments:
    """Sums the products of a layer's inputs, ``[groups, inputs, inputs]``."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self.total: np.ndarray | None = None

    def __call__(self, _: Layer, inputs: tuple[Any, ...]) -> None:
        rows = self._rows(inputs[0].astype("float32"))
        found = paddle.matmul(rows, rows, transpose_x=True).numpy().astype("float64") / rows.shape[1]
        self.total = found if self.total is None else self.total + found

    def _rows(self, x: Tensor) -> Tensor:
        """Return input vectors, ``[groups, rows, inputs]``."""
        layer = self._layer
        if isinstance(layer, QuantedLinear):
            rows = x.reshape([1, -1, x.shape[-1]])
        else:
            kernel = layer.weight.shape[2:]
            padding = _paddings(layer._padding)
            images = max(1, _VALUES // max(1, x[0].size * kernel[0] * kernel[1]))
            patches = F.unfold(x[:images], kernel, layer._stride, padding, layer._dilation)
            patches = patches.reshape([patches.shape[0], layer._groups, -1, patches.shape[-1]])
            rows = patches.transpose([1, 0, 3, 2]).reshape([layer._groups, -1, patches.shape[2]])
        return rows[:, :: sampling_stride(rows.shape[1], _ROWS)]


def _roundable(layer: Layer) -> bool:
    quantizer = layer.weight_quanter
    if not isinstance(quantizer, ChannelWeightQuantizer) or isinstance(quantizer, LSQWeightQuantizer):
        return False
    if any(computes_weight(hook) for hook in layer._forward_pre_hooks.values()):
        return False
    if isinstance(layer, QuantedLinear):
        return True
    return (
        isinstance(layer, QuantedConv2D)
        and layer._data_format == "NCHW"
        and layer._padding_mode == "zeros"
        and _paddings(layer._padding) is not None
    )


def _paddings(padding: Any) -> list[int] | None:
    """Return top, left, bottom, right for ``unfold``; ``None`` for other forms."""
    given = [padding] if isinstance(padding, int) else padding
    if not isinstance(given, (list, tuple)) or not all(isinstance(item, int) for item in given):
        return None
    if len(given) == 1:
        return [given[0]] * 4
    if len(given) == 2:
        return [given[0], given[1], given[0], given[1]]
    return [given[0], given[2], given[1], given[3]] if len(given) == 4 else None  # from top, bottom, left, right


def _round_(layer: Layer, moments: np.ndarray) -> None:
    quantizer: ChannelWeightQuantizer = layer.weight_quanter
    weight = layer.weight.numpy()
    steps = quantizer.steps(layer.weight).numpy().reshape(-1).astype("float64")
    high = quantizer.high
    rows = weight.T if isinstance(layer, QuantedLinear) else weight.reshape(len(weight), -1)
    parts = np.split(np.arange(len(rows)), len(moments))
    integers = np.concatenate(
        [gptq_round(rows[part], one, steps[part], high) for part, one in zip(parts, moments, strict=True)]
    )
    values = (integers * steps[:, None]).astype("float32")
    values = values.T if isinstance(layer, QuantedLinear) else values.reshape(weight.shape)
    layer.weight.set_value(paddle.to_tensor(np.ascontiguousarray(values)).astype(layer.weight.dtype))
