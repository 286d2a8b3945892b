"""Moved to `distill.losses.features`."""

from paddlelite_callbacks.utils.moved import forwarded

__getattr__, __dir__ = forwarded(__name__, {"Projection": "distill.losses.features"})
