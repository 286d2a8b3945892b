"""Paddle's own fake-quantised layers, which stand behind a private path."""

from __future__ import annotations

from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.utils.private_names import require_private

__all__ = ["QuantedConv2D", "QuantedLinear", "single_layer_config"]

_NEEDED_FOR = "Quantisation (PACTQuantCallback, prepare_pact_, ptq_int8)"

try:
    from paddle.nn.quant.qat import QuantedConv2D, QuantedLinear
except (ImportError, AttributeError):  # moved by a later Paddle: said where a network is quantised, not at import

    class _Missing(Layer):
        def __init__(self, *args: Any) -> None:
            require_private("paddle.nn.quant.qat", "QuantedConv2D", "QuantedLinear", needed_for=_NEEDED_FOR)

    class QuantedConv2D(_Missing):  # type: ignore[no-redef]
        """Stand-in that cannot be made."""

    class QuantedLinear(_Missing):  # type: ignore[no-redef]
        """Stand-in that cannot be made."""


def single_layer_config(activation: Any, weight: Any) -> Any:
    """Return what Paddle's fake-quantised layers take as ``q_config``.

    Args:
        activation: factory of the quantizer of the input.
        weight: factory of the quantizer of the weight.

    Raises:
        RuntimeError: the installed Paddle has no ``SingleLayerConfig``.
    """
    config = require_private("paddle.quantization.config", "SingleLayerConfig", needed_for=_NEEDED_FOR)
    return config.SingleLayerConfig(activation, weight)
