"""Moved to `backbone.comparison`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "Cost": "backbone.comparison",
        "SwapSummary": "backbone.comparison",
        "compare": "backbone.comparison",
    },
)
