"""Moved to `distill.losses.registry`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(
    __name__,
    {
        "AnyLoss": "distill.losses.registry",
        "LOSSES": "distill.losses.registry",
        "LossSpec": "distill.losses.registry",
        "spec_of": "distill.losses.registry",
    },
)
