"""Moved to `quant.output_quantizers`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "OutputPlace": "quant.output_quantizers",
        "attach_output_quanter_": "quant.output_quantizers:attach_output_quantizer_",
        "detach_output_quanter_": "quant.output_quantizers:detach_output_quantizer_",
        "output_places": "quant.output_quantizers",
        "quantized_outputs": "quant.output_quantizers",
    },
)
