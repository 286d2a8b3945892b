"""Moved to `backbone.comparison`."""

from paddlelite_callbacks.utils.moved import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "Cost": "backbone.comparison",
        "SwapSummary": "backbone.comparison",
        "compare": "backbone.comparison",
    },
)
