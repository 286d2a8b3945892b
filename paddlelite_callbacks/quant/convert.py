"""Convert a fake-quantised network to int8 weights and fixed scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.nn import Layer
from paddle.quantization import BaseQuanter

from paddlelite_callbacks.nn.surgery import replace_sublayer
from paddlelite_callbacks.quant.layers import QuantedConv2DTranspose
from paddlelite_callbacks.quant.output_quantizers import detach_output_quantizer_, quantized_outputs
from paddlelite_callbacks.quant.paddle_layers import QuantedConv2D, QuantedLinear
from paddlelite_callbacks.quant.prepare import quantized_layers
from paddlelite_callbacks.quant.quantizers import ChannelWeightQuantizer, PACTActivationQuantizer
from paddlelite_callbacks.quant.subclasses import keep_additions_

__all__ = [
    "FixedActivation",
    "Int8Conv2D",
    "Int8Conv2DTranspose",
    "Int8Linear",
    "QuantizedOutput",
    "convert_for_export_",
    "has_run",
    "store_small_in_float_",
]

_JOINING = 500  # bytes of a cast, a product and the steps in Paddle's program and parameter file


class FixedActivation(Layer):
    """Quantise and dequantise activations with fixed scales, in any engine.

    Args:
        step: Quantisation step, in units of the input.
        low: Lowest integer of the grid.
        high: Highest integer of the grid.
        clip: Symmetric clip before it (PaddleSlim's PACT, whose scale is not its alpha); ``None`` for none.
    """

    def __init__(self, *, step: float, low: int, high: int, clip: float | None = None) -> None:
        super().__init__()
        self.step, self.low, self.high, self.clip = step, low, high, clip

    @classmethod
    def of(cls, quantizer: BaseQuanter) -> FixedActivation:
        """Read the scales of a trained quantizer of this package, PaddleSlim or Paddle.

        Raises:
            ValueError: The quantizer is not calibrated.
        """
        if isinstance(quantizer, PACTActivationQuantizer):
            low, high = quantizer.levels()
            if high == 0:
                raise ValueError(
                    "A quantised layer has seen no training batch, so its scale is unknown: run model.fit first."
                )
            return cls(step=quantizer.step(), low=low, high=high)
        high = 2 ** (int(quantizer.bit_length()) - 1) - 1
        clip = float(quantizer.alpha) if hasattr(quantizer, "alpha") else None
        return cls(step=float(quantizer.scales()) / high, low=-high - 1, high=high, clip=clip)

    def forward(self, x: Tensor) -> Tensor:
        """Quantise and dequantise ``x`` (any shape)."""
        if self.clip is not None:
            x = paddle.clip(x, -self.clip, self.clip)
        return paddle.clip(paddle.round(x / self.step), float(self.low), float(self.high)) * self.step


class _Int8Layer(Layer):
    """Layer with int8 weights and an fp32 step per output channel."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        quantizer: ChannelWeightQuantizer = layer.weight_quanter
        self.activation = FixedActivation.of(layer.activation_quanter)
        self.bias = layer.bias
        self._in_float = False
        self.register_buffer("weight_int8", quantizer.integers(layer.weight))
        self.register_buffer("weight_step", quantizer.steps(layer.weight))

    def weight(self) -> Tensor:
        """Return the fp32 weight that training simulated."""
        if self._in_float:
            return self.weight_on_grid
        return self.weight_int8.astype("float32") * self.weight_step

    def scale_channels_(self, factor: np.ndarray) -> None:
        """Scale output channels: magnitudes in the steps, signs in the integers.

        Args:
            factor: Factors without zeros, float64, shaped to broadcast against the weight.
        """
        signs = np.where(factor < 0, -1, 1).astype("int8")
        self.weight_int8.set_value(paddle.to_tensor(self.weight_int8.numpy() * signs))
        steps = self.weight_step.numpy().astype("float64") * np.abs(factor)
        self.weight_step.set_value(paddle.to_tensor(steps.astype("float32")))

    def store_in_float_(self) -> None:
        """Store the dequantised weight as fp32."""
        weight = self.weight()
        del self.weight_int8, self.weight_step
        self.register_buffer("weight_on_grid", weight)
        self._in_float = True


class Int8Conv2D(_Int8Layer):
    """A trained ``QuantedConv2D`` with int8 weights.

    Args:
        layer: Layer whose values are read; not changed.
    """

    def __init__(self, layer: QuantedConv2D) -> None:
        super().__init__(layer)
        self._options = {
            "padding": layer._padding,
            "stride": layer._stride,
            "dilation": layer._dilation,
            "groups": layer._groups,
            "data_format": layer._data_format,
        }
        self._pad: dict[str, Any] | None = None
        if layer._padding_mode != "zeros":
            self._pad = {
                "pad": layer._reversed_padding_repeated_twice,
                "mode": layer._padding_mode,
                "data_format": layer._data_format,
            }
            self._options["padding"] = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out, H', W']``."""
        x = self.activation(x)
        if self._pad is not None:
            x = F.pad(x, **self._pad)
        return F.conv2d(x, self.weight(), bias=self.bias, **self._options)


class Int8Linear(_Int8Layer):
    """A trained ``QuantedLinear`` with int8 weights.

    Args:
        layer: Layer whose values are read; not changed.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        return F.linear(self.activation(x), self.weight(), self.bias)


class Int8Conv2DTranspose(_Int8Layer):
    """A trained `QuantedConv2DTranspose` with int8 weights.

    Args:
        layer: Layer whose values are read; not changed.
    """

    def __init__(self, layer: QuantedConv2DTranspose) -> None:
        super().__init__(layer)
        self._options = layer._options

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out, H', W']``."""
        options = self._options if output_size is None else {**self._options, "output_padding": 0}
        return F.conv2d_transpose(self.activation(x), self.weight(), bias=self.bias, output_size=output_size, **options)


class QuantizedOutput(Layer):
    """Quantise and dequantise the output of a layer with fixed scales.

    Args:
        inner: The layer.
        activation: Scales of its output.
    """

    def __init__(self, inner: Layer, activation: FixedActivation) -> None:
        super().__init__()
        self.inner, self.activation = inner, activation

    def forward(self, *inputs: Any) -> Tensor:
        """Return the quantised output of the layer."""
        return self.activation(self.inner(*inputs))


_FORMS = {QuantedConv2D: Int8Conv2D, QuantedConv2DTranspose: Int8Conv2DTranspose, QuantedLinear: Int8Linear}


def convert_for_export_(network: Layer) -> list[str]:
    """Replace fake-quantised layers by int8 ones, in place; pass a copy.

    A layer whose quantizer is not calibrated, because it never ran, stays in float.

    Returns:
        Names of the converted layers; empty for a float network.

    Raises:
        ValueError: No quantizer is calibrated.
    """
    outputs = {name: (layer, detach_output_quantizer_(layer)) for name, layer in quantized_outputs(network).items()}
    converted, idle = [], []
    for name, layer in quantized_layers(network).items():
        if layer.weight_quanter is None:  # put back to float
            continue
        if not has_run(layer.activation_quanter):
            layer.activation_quanter = layer.weight_quanter = None
            idle.append(name)
            continue
        make = next(form for kind, form in _FORMS.items() if isinstance(layer, kind))
        new = make(layer)
        keep_additions_(new, layer)
        replace_sublayer(network, name, new)
        converted.append(name)
    if idle and not converted:
        raise ValueError(
            f"No quantised layer of {type(network).__name__} has seen a training batch, so their scales are unknown: "
            "run model.fit, past start_epoch, before the export."
        )
    sublayers = dict(network.named_sublayers())
    for name, (_, quantizer) in outputs.items():
        if has_run(quantizer):
            now = sublayers[name]
            replace_sublayer(network, name, QuantizedOutput(now, FixedActivation.of(quantizer)))
    return converted


def store_small_in_float_(network: Layer) -> int:
    """Store weights as fp32 where dequantising costs more bytes than it saves.

    The values stay the same. In place; pass a copy.

    Args:
        network: Network converted by `convert_for_export_`.

    Returns:
        Number of layers.
    """
    layers = [layer for layer in network.sublayers() if isinstance(layer, _Int8Layer)]
    small = [layer for layer in layers if 3 * layer.weight_int8.size - 4 * layer.weight_step.size < _JOINING]
    for layer in small:
        layer.store_in_float_()
    return len(small)


def has_run(quantizer: BaseQuanter) -> bool:
    """Whether an activation quantizer is calibrated.

    Args:
        quantizer: Quantizer of this package, or one of PaddleSlim or Paddle, which counts as calibrated.
    """
    return not isinstance(quantizer, PACTActivationQuantizer) or quantizer.calibrated
