"""Moved to `distill.losses.features`."""

from paddlelite_callbacks.utils.deprecation import forwarded

__getattr__, __dir__ = forwarded(__name__, {"Projection": "distill.losses.features"})
