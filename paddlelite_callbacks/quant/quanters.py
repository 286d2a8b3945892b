"""Moved to `quant.quantizers`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "ChannelWeightQuanter": "quant.quantizers:ChannelWeightQuantizer",
        "LSQWeightQuanter": "quant.quantizers:LSQWeightQuantizer",
        "PACTActivationQuanter": "quant.quantizers:PACTActivationQuantizer",
        "Switched": "quant.quantizers",
        "activation_settings": "quant.quantizers",
        "read_grid": "quant.quantizers",
        "weight_settings": "quant.quantizers",
    },
)
