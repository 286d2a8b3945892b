"""Moved to `distill.losses.afd`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "AttentionFeatureLoss": "distill.losses.afd",
    },
)
