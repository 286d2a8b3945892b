"""Moved to `distill.losses.afd`."""

from paddlelite_callbacks.utils.moved import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "AttentionFeatureLoss": "distill.losses.afd",
    },
)
