"""Moved to `export.variants`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "Forms": "export.variants",
        "Reference": "export.variants",
        "export_forms": "export.variants",
        "references": "export.variants",
        "said_of": "export.variants",
    },
)
