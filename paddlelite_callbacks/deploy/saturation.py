"""Moved to `export.saturation`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "INTEGER_OPERATORS": "export.saturation",
        "LayerSaturation": "export.saturation",
        "SaturationReport": "export.saturation",
        "saturating_channels": "export.saturation",
        "saturation_of": "export.saturation",
    },
)
