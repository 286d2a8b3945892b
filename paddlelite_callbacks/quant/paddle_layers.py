"""Import Paddle's own fake-quantised layers, from a private path."""

from __future__ import annotations

from typing import Any

from paddle.nn import Layer

from paddlelite_callbacks.utils.private_names import require_private

__all__ = ["QuantedConv2D", "QuantedLinear", "single_layer_config"]

_NEEDED_FOR = "Quantisation (PACTQuantCallback, prepare_pact_, ptq_int8)"

try:
    from paddle.nn.quant.qat import QuantedConv2D, QuantedLinear
except (ImportError, AttributeError):  # moved by a later Paddle: raised when a network is quantised, not on import

    class _Missing(Layer):
        def __init__(self, *args: Any) -> None:
            require_private("paddle.nn.quant.qat", "QuantedConv2D", "QuantedLinear", needed_for=_NEEDED_FOR)

    class QuantedConv2D(_Missing):  # type: ignore[no-redef]
        """Placeholder that cannot be built."""

    class QuantedLinear(_Missing):  # type: ignore[no-redef]
        """Placeholder that cannot be built."""


def single_layer_config(activation: Any, weight: Any) -> Any:
    """Build the ``q_config`` of Paddle's fake-quantised layers.

    Args:
        activation: Factory of the input quantizer.
        weight: Factory of the weight quantizer.

    Raises:
        RuntimeError: The installed Paddle has no ``SingleLayerConfig``.
    """
    config = require_private("paddle.quantization.config", "SingleLayerConfig", needed_for=_NEEDED_FOR)
    return config.SingleLayerConfig(activation, weight)
